"""Forward passes of decoder-only and encoder-decoder models: of clean and corrupted runs, and of growing rows.

Shape letters: N noise samples, R rows, C cells, T tokens, S positions at which outputs are needed, D width, V
vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ftrace.causal.growing_rows import Watch, growing_rows, input_states
from ftrace.causal.layouts import StackModules
from ftrace.causal.prefix_cache import joined_caches, prefix_cache, recording_cache
from ftrace.causal.prompt_trace import Stack
from ftrace.causal.row_plan import RowPlan
from ftrace.models import tolerance_of


@dataclass(frozen=True)
class Inputs:
    """The inputs of a prompt's passes.

    Args:
        input_ids: An encoder's input; for a decoder-only model, the prompt and all but the last token of the answer.
        subject: Half-open range of the subject's positions in the input.
        decoder_ids: The input of an encoder-decoder's decoder, including all but the last token of the answer; None for
            a decoder-only model.
        outputs: At how many of the last positions outputs are needed.
    """

    input_ids: Tensor
    subject: tuple[int, int]
    decoder_ids: Tensor | None
    outputs: int


@dataclass(frozen=True)
class Runs:
    """The clean run and the corrupted ones.

    Args:
        logits: ``[1 + N, S, V]``, the clean run first.
        first_states: Input of the first layer of the stack that reads the prompt, ``[1 + N, T, D]``.
        encoder_states: Output of the encoder, ``[1 + N, T, D]``; None in decoder-only models.
        cache: Keys and values of a decoder-only model's runs, if they were asked for.
        rows: The rows of the cache that belong to these runs; None: all.
    """

    logits: Tensor
    first_states: Tensor
    encoder_states: Tensor | None
    cache: Any = None
    rows: Tensor | None = None

    def some(self, samples: slice) -> Runs:
        """Select the clean run and some of the corrupted ones."""
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(len(self.logits))[1:][samples]])
        rows = rows.to(self.logits.device)
        encoder_states = None if self.encoder_states is None else self.encoder_states[rows]
        return Runs(self.logits[rows], self.first_states[rows], encoder_states, self.cache, rows)


def joined_runs(parts: Sequence[Runs]) -> Runs:
    """Join runs of different samples; the clean run is taken from the first."""
    if len(parts) == 1:
        return parts[0]

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensors[0], *(tensor[1:] for tensor in tensors[1:])])

    states = [runs.encoder_states for runs in parts if runs.encoder_states is not None]
    caches = [runs.cache for runs in parts if runs.cache is not None]
    return Runs(
        joined([runs.logits for runs in parts]),
        joined([runs.first_states for runs in parts]),
        joined(states) if states else None,
        joined_caches(caches, joined) if caches else None,
    )


class Passes:
    """The forward passes of a model.

    Args:
        model: In eval mode.
        stacks: The model's stacks: "decoder" alone, or "encoder" and "decoder".

    Attributes:
        tolerance: How far results may be apart by rounding, relative to their size.
    """

    def __init__(self, model: PreTrainedModel, stacks: Mapping[Stack, StackModules]) -> None:
        self.model = model
        self.stacks = stacks
        self.device = next(model.parameters()).device
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        reading: Stack = "encoder" if self.is_encoder_decoder else "decoder"
        self.reading = stacks[reading]  # the stack whose embedding is corrupted
        self.tolerance = tolerance_of(model)
        taken = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in taken
        self._takes_cache_as = (
            "cache" if "cache" in taken else "past_key_values"
        )  # its name in transformers before 5.24

    @torch.inference_mode()
    def runs(self, inputs: Inputs, corrupted: Tensor, *, keep_cache: bool = False) -> Runs:
        """Compute the clean run and the corrupted ones, as one ordinary batch.

        Args:
            inputs: The prompt.
            corrupted: Embeddings of the subject, ``[N, tokens, D]``.
            keep_cache: Whether to keep a decoder-only model's keys and values, too.
        """
        rows = 1 + len(corrupted)
        seen: list[Tensor] = []
        ids = inputs.input_ids.expand(rows, -1)
        with _corrupted(self.reading, inputs.subject, corrupted), _seen(self.reading.layers[0], seen):
            if self.is_encoder_decoder:
                states = self._encode(ids)
            else:
                cache = recording_cache(len(self.reading.layers)) if keep_cache else None
                return Runs(self._read(ids, inputs.outputs, cache), seen[0], None, cache)
        return Runs(self._decode(states, inputs, rows), seen[0], states)

    def grown(
        self, stack: Stack, inputs: Inputs, runs: Runs, plan: RowPlan, offset: int = 0, watch: Watch | None = None
    ) -> Tensor:
        """Compute the logits of all rows of a plan, ``[R, S, V]``.

        Args:
            stack: The stack in which rows grow.
            inputs: The prompt.
            runs: The prompt's clean run and as many corrupted ones as the plan has samples.
            offset: The first position that is computed; earlier ones come from the runs' cache.
            watch: As :func:`growing_rows` takes it.
        """
        modules = self.stacks[stack]
        outputs = inputs.outputs if watch is None else None
        if not self.is_encoder_decoder:
            first = runs.first_states[:, offset:]
            with growing_rows(modules, plan, first, outputs=outputs, watch=watch):
                cache = None if not offset else prefix_cache(runs.cache, offset, plan, runs.rows)
                return self._read(inputs.input_ids[:, offset:], inputs.outputs, cache)
        assert runs.encoder_states is not None
        if stack == "encoder":
            with growing_rows(modules, plan, runs.first_states, watch=watch):
                states = self._encode(inputs.input_ids)
            with torch.inference_mode():
                return self._decode(states, inputs, len(states))
        with growing_rows(modules, plan, encoder_states=runs.encoder_states, outputs=outputs, watch=watch):
            return self._decode(runs.encoder_states[:1], inputs, 1)

    def _read(self, ids: Tensor, outputs: int, cache: Any = None) -> Tensor:
        keep = {"logits_to_keep": outputs} if self._keeps else {}
        cached = {} if cache is None else {self._takes_cache_as: cache}
        logits: Tensor = self.model(input_ids=ids, use_cache=cache is not None, **cached, **keep).logits
        return logits[:, -outputs:]

    def _encode(self, ids: Tensor) -> Tensor:
        states: Tensor = self.model.get_encoder()(input_ids=ids).last_hidden_state
        return states

    def _decode(self, states: Tensor, inputs: Inputs, rows: int) -> Tensor:
        assert inputs.decoder_ids is not None
        encoded = BaseModelOutput(last_hidden_state=states)
        ids = inputs.decoder_ids.expand(rows, -1)
        logits: Tensor = self.model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits
        return logits[:, -inputs.outputs :]


@contextmanager
def _corrupted(stack: StackModules, subject: tuple[int, int], corrupted: Tensor) -> Iterator[None]:
    """Replace the subject's embeddings in all rows but the first, as long as the context is open.

    It must be open only while the prompt is read, because a decoder may share the embedding.
    """
    assert stack.embedding is not None

    def corrupt(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.clone()
        output[1:, subject[0] : subject[1]] = corrupted
        return output

    handle = stack.embedding.register_forward_hook(corrupt)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _seen(layer: nn.Module, states: list[Tensor]) -> Iterator[None]:
    """Collect a layer's inputs, as long as the context is open."""

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(input_states(args, kwargs))

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def inputs_of(
    input_ids: Sequence[int],
    subject: tuple[int, int],
    decoder_ids: Sequence[int],
    answer: Sequence[int],
    device: torch.device,
) -> Inputs:
    """Make the inputs with which a model predicts each token of an answer, whose last token is not an input."""
    given = list(answer[:-1])

    def tensor(ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=device)

    if decoder_ids:
        return Inputs(tensor(list(input_ids)), subject, tensor([*decoder_ids, *given]), len(answer))
    return Inputs(tensor([*input_ids, *given]), subject, None, len(answer))
