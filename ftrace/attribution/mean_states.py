"""Mean hidden states of rows at one snapshot, by layer, and their cosines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.passes import Batch, Pass, Scorer, score_in_passes
from ftrace.attribution.task import Task, choose_named
from ftrace.attribution.vectors import Vectors, masked_mean, scorer_by_cosine
from ftrace.models import FactLM
from ftrace.scores import ScoreStore


def score_by_states(
    method: AttributionMethod,
    task: Task,
    snapshot: Literal["last", "first"] | int,
    layers: Sequence[str] | None,
    end_of_sequence: bool,
) -> ScoreStore:
    """Score a task's examples by cosines of mean hidden states; the options are those of Embed.

    Raises:
        ValueError: If there is no such snapshot or layer.
    """
    (folder,) = task.choose_snapshots(snapshot)
    kinds = choose_named("layers", layers, layer_names(task.model_at(folder)))
    passes = [Pass(0, len(task.queries), partial(_begin, task, folder, kinds, end_of_sequence))]
    facts = {"snapshots": [folder.name]}
    return score_in_passes(method, task, passes, task.data.example_dataloader().collate_fn, facts)


def _begin(task: Task, folder: Path, kinds: Sequence[str], end_of_sequence: bool, device: torch.device) -> Scorer:
    model = task.model_at(folder).to(device)
    end = None if end_of_sequence else int(task.data.tokenizer.eos_token_id)  # type: ignore[union-attr]
    wanted = {name for kind in kinds for name in _stacks(kind)}
    batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in task.query_batches()]

    def vectors(batch: Batch) -> Vectors:
        return {name: rows for name, rows in mean_states(model, batch, end).items() if name in wanted}

    return scorer_by_cosine(vectors, batches, lambda cosines: {kind: _mean(cosines, _stacks(kind)) for kind in kinds})


def layer_names(model: FactLM) -> list[str]:
    """List the kinds of scores of a model: the layers of its stacks, and of an encoder-decoder, of both together."""
    config: Any = model.model.config
    if not config.is_encoder_decoder:
        return [f"decoder.{layer}" for layer in range(config.num_hidden_layers + 1)]
    decoder = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    depths = {"encoder": config.num_hidden_layers, "decoder": decoder, "both": min(config.num_hidden_layers, decoder)}
    return [f"{stack}.{layer}" for stack, depth in depths.items() for layer in range(depth + 1)]


def mean_states(model: FactLM, batch: Batch, end: int | None = None) -> dict[str, Tensor]:
    """Compute the mean hidden states of each row.

    Args:
        model: In eval mode.
        batch: ``input_ids``, ``attention_mask`` and ``labels``.
        end: The token that is not pooled; None: all tokens are.

    Returns:
        For ``encoder.L`` and ``decoder.L``, ``[B, D]``.
    """
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    of_inputs = batch["attention_mask"].bool()
    if end is not None:
        of_inputs &= batch["input_ids"] != end
    if not model.model.config.is_encoder_decoder:
        states = model.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        return {f"decoder.{layer}": masked_mean(state, of_inputs) for layer, state in enumerate(states)}
    labels = batch["labels"]
    of_targets = labels >= 0
    if end is not None:
        of_targets &= labels != end
    inputs["decoder_input_ids"] = model.model.prepare_decoder_input_ids_from_labels(labels=labels)
    outputs = model.model(**inputs, output_hidden_states=True, use_cache=False)
    stacks = {
        "encoder": (outputs.encoder_hidden_states, of_inputs),
        "decoder": (outputs.decoder_hidden_states, of_targets),
    }
    return {
        f"{stack}.{layer}": masked_mean(state, mask)
        for stack, (states, mask) in stacks.items()
        for layer, state in enumerate(states)
    }


def _stacks(kind: str) -> list[str]:
    stack, _, layer = kind.partition(".")
    return [f"encoder.{layer}", f"decoder.{layer}"] if stack == "both" else [kind]


def _mean(cosines: Vectors, names: Sequence[str]) -> Tensor:
    return torch.stack([cosines[name] for name in names]).mean(0)
