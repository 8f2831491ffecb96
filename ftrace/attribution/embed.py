"""EMBED: cosines of mean hidden states (Akyürek et al. 2022, arXiv 2205.11482, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ftrace.arguments import Count, Name, checked
from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.passes import Batch, Pass, Scorer, score_in_passes
from ftrace.attribution.task import Task, choose_named
from ftrace.attribution.vectors import Vectors, masked_mean, scorer_by_cosine
from ftrace.models import FactLM
from ftrace.scores import ScoreStore


@checked
@dataclass(frozen=True)
class Embed(AttributionMethod):
    """Cosine of mean hidden states at one snapshot; each layer is a kind of scores, all from one pass.

    ``encoder.L`` is the mean over the input's tokens, ``decoder.L`` over the target's; ``both.L`` is the mean of the
    two cosines, which is the cosine of the two unit vectors side by side. A decoder-only model has ``decoder.L`` alone,
    over all tokens of a row. Layer 0 is the embeddings; states are Hugging Face's ``output_hidden_states``, where the
    last layer's come after the final norm. Padding is never pooled. A position in the decoder of an encoder-decoder
    belongs to the token that it predicts.

    Args:
        snapshot: "last", "first" or a step.
        layers: Which kinds, such as encoder.0 or both.2; default: all.
        end_of_sequence: Whether the end-of-sequence token is pooled.
    """

    name: ClassVar[Name] = "embed"

    snapshot: Literal["last", "first"] | Count = "last"
    layers: Sequence[Name] | None = None
    end_of_sequence: bool = True

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples, in eval mode."""
        (folder,) = task.choose_snapshots(self.snapshot)
        kinds = choose_named("layers", self.layers, layer_names(task.model_at(folder)))
        passes = [Pass(0, len(task.queries), partial(self._begin, task, folder, kinds))]
        facts = {"snapshots": [folder.name]}
        return score_in_passes(self, task, passes, task.data.example_dataloader().collate_fn, facts)

    def _begin(self, task: Task, folder: Path, kinds: Sequence[str], device: torch.device) -> Scorer:
        model = task.model_at(folder).to(device)
        end = None if self.end_of_sequence else int(task.data.tokenizer.eos_token_id)  # type: ignore[union-attr]
        wanted = {name for kind in kinds for name in _stacks(kind)}
        batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in task.query_batches()]

        def vectors(batch: Batch) -> Vectors:
            return {name: rows for name, rows in mean_states(model, batch, end).items() if name in wanted}

        return scorer_by_cosine(
            vectors, batches, lambda cosines: {kind: _mean(cosines, _stacks(kind)) for kind in kinds}
        )


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
