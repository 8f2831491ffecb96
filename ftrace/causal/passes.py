"""Forward passes of decoder-only and encoder-decoder models: of clean and corrupted runs, and of growing rows.

Shape letters: N noise samples, R rows, C cells, T tokens, S tokens at which outputs are wanted, D width, V vocabulary.
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


@dataclass(frozen=True)
class Inputs:
    """What a prompt's passes are given.

    Args:
        input_ids: An encoder's input; of a decoder-only model the prompt and all but the last token of the answer.
        subject: Half-open range of the subject's places in it.
        decoder_ids: What an encoder-decoder's decoder is given, with all but the last token of the answer.
        outputs: How many of the last places' outputs are wanted.
    """

    input_ids: Tensor
    subject: tuple[int, int]
    decoder_ids: Tensor | None
    outputs: int


@dataclass(frozen=True)
class Runs:
    """The clean run and the corrupted ones.

    Args:
        logits: Of the clean run and the corrupted ones, ``[1 + N, S, V]``.
        first_states: Input of the first layer of the stack that reads the prompt, ``[1 + N, T, D]``.
        encoder_states: What the encoder gives, ``[1 + N, T, D]``; None in decoder-only models.
        cache: Keys and values of a decoder-only model's runs, if they were asked for.
        rows: Which rows of the cache these runs are; None: all.
    """

    logits: Tensor
    first_states: Tensor
    encoder_states: Tensor | None
    cache: Any = None
    rows: Tensor | None = None

    def some(self, samples: slice) -> Runs:
        """The clean run and some of the corrupted ones."""
        rows = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(len(self.logits))[1:][samples]])
        rows = rows.to(self.logits.device)
        encoder_states = None if self.encoder_states is None else self.encoder_states[rows]
        return Runs(self.logits[rows], self.first_states[rows], encoder_states, self.cache, rows)


def joined_runs(parts: Sequence[Runs]) -> Runs:
    """Runs of some samples each as one; they share their clean run."""
    if len(parts) == 1:
        return parts[0]

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensors[0], *(one[1:] for one in tensors[1:])])

    states = [one.encoder_states for one in parts if one.encoder_states is not None]
    caches = [one.cache for one in parts if one.cache is not None]
    return Runs(
        joined([one.logits for one in parts]),
        joined([one.first_states for one in parts]),
        joined(states) if states else None,
        joined_caches(caches, joined) if caches else None,
    )


class Passes:
    """A model and the stacks of it that are traced.

    Args:
        model: In eval mode.
        stacks: Its stacks: "decoder" alone, or "encoder" and "decoder".
    """

    def __init__(self, model: PreTrainedModel, stacks: Mapping[Stack, StackModules]) -> None:
        self.model = model
        self.stacks = stacks
        self.device = next(model.parameters()).device
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        reading: Stack = "encoder" if self.is_encoder_decoder else "decoder"
        self.reading = stacks[reading]  # the stack whose embedding is corrupted
        taken = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in taken

    @torch.inference_mode()
    def runs(self, inputs: Inputs, corrupted: Tensor, *, keep_cache: bool = False) -> Runs:
        """The clean run and the corrupted ones, as one ordinary batch.

        Args:
            inputs: The prompt.
            corrupted: Embeddings of the subject, ``[N, tokens, D]``.
            keep_cache: Also keep a decoder-only model's keys and values.
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
        """Logits of all rows of a plan, ``[R, S, V]``.

        Args:
            stack: Where the rows grow.
            inputs: The prompt.
            runs: Its clean run and as many corrupted ones as the plan has samples.
            plan: The rows.
            offset: The first place that is computed; those before it come from the runs' cache.
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
        cached = {"past_key_values": cache, "use_cache": cache is not None}
        logits: Tensor = self.model(input_ids=ids, **cached, **keep).logits
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
    """While this is open, all rows but the first have other embeddings of the subject.

    It is open while the prompt is read, and no longer: a decoder may share the embedding.
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
    """While this is open, a layer's inputs are kept."""

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
    """The inputs that make a model say how likely an answer is; its last token is not given."""
    given = list(answer[:-1])

    def tensor(ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=device)

    if decoder_ids:
        return Inputs(tensor(list(input_ids)), subject, tensor([*decoder_ids, *given]), len(answer))
    return Inputs(tensor([*input_ids, *given]), subject, None, len(answer))
