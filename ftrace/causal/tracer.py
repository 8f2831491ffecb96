"""Causal tracing of prompts, one at a time.

Shape letters: N noise samples, O outcomes, L layers, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch._dynamo import OptimizedModule
from transformers import PreTrainedModel

from ftrace.arguments import checked
from ftrace.causal.corruption import Corruption
from ftrace.causal.grids import Measure, StackShape, alike, grid_cells, run_cells
from ftrace.causal.layouts import find_modules, layouts_of
from ftrace.causal.mediators import MEDIATORS, Cell, Mediator, module_of
from ftrace.causal.memory import MemoryLimit
from ftrace.causal.outcomes import AnswerGroup, answer_groups, best_rank, is_greedy, likeliest_other
from ftrace.causal.passes import Inputs, Passes, Runs, inputs_of, joined_runs
from ftrace.causal.prompt_trace import OUTCOMES, PromptTrace, Stack, StackTrace, Status
from ftrace.causal.residual_check import check_residual_stream
from ftrace.causal.settings import CausalSettings, ModelLayout
from ftrace.data.prompt_tokens import TokenizedPrompt

_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@checked
class CausalTracer:
    """A tracer of prompts through a Hugging Face language model, which it doesn't change.

    Args:
        model: In eval mode, not compiled.
        settings: What to trace.
        layouts: The names of modules in the model's stacks; default: the preset for its type.

    Raises:
        ValueError: If the model is in train mode or compiled, lacks what settings ask for, or its layers don't add to
            one residual stream.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: CausalSettings | None = None,
        layouts: Mapping[Stack, ModelLayout] | None = None,
    ) -> None:
        self.settings = settings or CausalSettings()
        check_state(model)
        layouts = layouts or layouts_of(model)
        self.passes = Passes(model, {stack: find_modules(model, layout) for stack, layout in layouts.items()})
        self.mediators = {stack: self._mediators_of(stack) for stack in self._stacks()}
        check_residual_stream(self.passes, model.config.model_type)
        self._limit = MemoryLimit(self.settings.max_tokens)
        self._is_checked = not self.settings.checked
        config = model.config.get_text_config(decoder=not self.passes.is_encoder_decoder)
        lengths = [getattr(config, name, None) for name in _LENGTHS]
        self._longest = next((length for length in lengths if isinstance(length, int) and length > 0), None)
        if hasattr(config, "relative_attention_num_buckets"):  # T5 has relative positions, whatever its config says
            self._longest = None

    @property
    def embedding(self) -> torch.nn.Module:
        """The token embedding that is corrupted."""
        assert self.passes.reading.embedding is not None
        return self.passes.reading.embedding

    @property
    def layer_names(self) -> dict[Stack, tuple[str, ...]]:
        """The names of each traced stack's layers within the model, from the lowest."""
        return {stack: self.passes.stacks[stack].layer_names for stack in self.mediators}

    def trace(self, prompt: TokenizedPrompt, corruption: Corruption) -> PromptTrace:
        """Trace a prompt.

        Returns:
            The trace; it has no grids if the model answers the prompt wrongly.

        Raises:
            ValueError: If the prompt can't be traced: it is too long, or its foil begins as its answer does.
        """
        answers = [answer[:1] if self.settings.answer == "first" else answer for answer in prompt.answers]
        accepted = answer_groups(answers)
        self._check_length(prompt, max(1 + len(group.prefix) for group in accepted))
        first = [token for group in accepted for token in group.first_tokens]
        inputs_of_groups = [self._inputs(prompt, group) for group in accepted]
        with torch.inference_mode():
            subject = prompt.input_ids[slice(*prompt.subject)]
            corrupted = corruption.draw(prompt.prompt.name, subject).to(self.passes.device)
            runs = [self._runs(inputs, corrupted[:1]) for inputs in inputs_of_groups]
        clean = [run.logits[0] for run in runs]
        if any(logits.isnan().any() for logits in clean):  # any answer would have rank 1
            raise ValueError("the model gives NaN for the prompt. Take other weights, or a larger dtype")
        rank = best_rank(clean[0][0], first)
        if self.settings.only_correct and not any(map(is_greedy, clean, accepted)):
            reason = f"the model gives the answer rank {rank}"
            if rank == 1:
                reason = "the model begins as the answer does, and goes on otherwise"
            return _described(prompt, "wrong", reason, rank)
        foil = self._foil(prompt, clean[0][0], first)
        measures = [Measure(group, answers[0][0], foil) for group in accepted]
        runs = [self._runs(inputs, corrupted) for inputs in inputs_of_groups]
        of_runs = _outcomes([measure(run.logits) for measure, run in zip(measures, runs, strict=True)])
        stacks = {
            stack: self._grids(stack, prompt, inputs_of_groups, runs, measures, of_runs) for stack in self.mediators
        }
        self._is_checked = True
        traced = _described(prompt, "traced", "", rank, of_runs[0].numpy(), of_runs[1:].mean(0).numpy(), stacks)
        measured = tuple((*group.prefix, final) for group in accepted for final in group.finals)
        return replace(traced, answer_tokens=measured, foil_token=foil)

    def _grids(
        self,
        stack: Stack,
        prompt: TokenizedPrompt,
        inputs_of_groups: Sequence[Inputs],
        runs: Sequence[Runs],
        measures: Sequence[Measure],
        of_runs: Tensor,
    ) -> StackTrace:
        modules = self.passes.stacks[stack]
        inside = stack == "decoder" and self.passes.is_encoder_decoder
        tokens = prompt.decoder_tokens if inside else prompt.tokens
        shape = StackShape(
            num_layers=len(modules.layers),
            num_positions=len(tokens),
            sees_ahead=stack == "encoder",
            corrupted_from=0 if inside else prompt.subject[0],
            last_decides=len(inputs_of_groups) == 1 and inputs_of_groups[0].outputs == 1,
        )
        grids = grid_cells(self.mediators[stack], shape, self.settings.window)
        distinct = dict.fromkeys(cell for layers in grids.values() for positions in layers for cell in positions)
        known = {cell: run for cell in distinct if (run := shape.known(cell)) is not None}
        to_run = list(distinct) if not self._is_checked else [cell for cell in distinct if cell not in known]
        of_groups: list[dict[Cell, Tensor]] = []
        for inputs, group_runs, measure in zip(inputs_of_groups, runs, measures, strict=True):
            suffix = self.settings.suffix and group_runs.cache is not None
            of_groups.append(
                run_cells(self.passes, stack, inputs, group_runs, to_run, measure, self._limit, suffix=suffix)
            )
        outcomes = {cell: _outcomes([of_group[cell] for of_group in of_groups]) for cell in to_run}
        for cell, name in known.items():
            expected = of_runs[:1].expand(len(of_runs) - 1, -1) if name == "clean" else of_runs[1:]
            if cell in outcomes:
                _check_known(cell, name, outcomes[cell], expected, self.passes.tolerance)
            outcomes[cell] = expected
        means = {cell: values.mean(0) for cell, values in outcomes.items()}
        spreads = {cell: _spread(values) for cell, values in outcomes.items()}
        for cell, name in known.items():
            means[cell] = of_runs[0] if name == "clean" else of_runs[1:].mean(0)

        def arranged(values: Mapping[Cell, Tensor], layers: Sequence[Sequence[Cell]]) -> np.ndarray:
            rows = [torch.stack([values[cell] for cell in positions], -1) for positions in layers]
            grid: np.ndarray = torch.stack(rows, -2).numpy()
            return grid

        return StackTrace(
            tokens,
            (0, 0) if inside else prompt.subject,
            {mediator: arranged(means, layers) for mediator, layers in grids.items()},
            {mediator: arranged(spreads, layers) for mediator, layers in grids.items()},
        )

    def _runs(self, inputs: Inputs, corrupted: Tensor) -> Runs:
        """Compute the clean and the corrupted runs, a few samples at a time if a pass would be too large."""
        keep = self.settings.suffix and not self.passes.is_encoder_decoder
        width = inputs.input_ids.shape[1]
        parts, start = [], 0
        while start < len(corrupted):
            most = max(1, self._limit.tokens // width - 1)
            samples = corrupted[start : start + most]
            attempt = partial(self.passes.runs, inputs, samples, keep_cache=keep)
            runs = self._limit.attempt(attempt, (1 + len(samples)) * width)
            if runs is not None:
                parts.append(runs)
                start += len(samples)
            elif len(samples) == 1:
                raise MemoryError(f"the clean and a corrupted run, {2 * width} tokens, take more memory than there is")
        return joined_runs(parts)

    def _inputs(self, prompt: TokenizedPrompt, group: AnswerGroup) -> Inputs:
        answer = (*group.prefix, group.finals[0])
        return inputs_of(prompt.input_ids, prompt.subject, prompt.decoder_ids, answer, self.passes.device)

    def _foil(self, prompt: TokenizedPrompt, logits: Tensor, first: Sequence[int]) -> int:
        if prompt.foil is None:
            return likeliest_other(logits, first)
        if prompt.foil[0] in first:
            raise ValueError(
                f"foil: expected one that begins with another token than the answer, found {prompt.prompt.foil!r}"
            )
        return prompt.foil[0]

    def _check_length(self, prompt: TokenizedPrompt, of_answer: int) -> None:
        length = len(prompt.input_ids) + (0 if self.passes.is_encoder_decoder else of_answer - 1)
        if self._longest is not None and length > self._longest:
            raise ValueError(f"too long: expected at most {self._longest} tokens, as the model takes, found {length}")

    def _stacks(self) -> tuple[Stack, ...]:
        known = tuple(self.passes.stacks)
        asked = self.settings.stacks or known
        unknown = [stack for stack in asked if stack not in known]
        if unknown:
            raise ValueError(f"stacks: expected some of {known}, as the model has, found {unknown[0]!r}")
        return tuple(dict.fromkeys(asked))

    def _mediators_of(self, stack: Stack) -> tuple[Mediator, ...]:
        """Select the mediators that are asked for and that the stack has; one that no stack has is an error."""

        def has(stack: Stack, mediator: Mediator) -> bool:
            return module_of(mediator) in (None, *self.passes.stacks[stack].modules)

        asked = self.settings.mediators or tuple(
            mediator for mediator in MEDIATORS if any(has(other, mediator) for other in self._stacks())
        )
        for mediator in asked:
            if mediator not in MEDIATORS:
                raise ValueError(f"mediators: expected some of {MEDIATORS}, found {mediator!r}")
            if not any(has(other, mediator) for other in self._stacks()):
                raise ValueError(f"mediators: the model has nothing to restore for {mediator!r}")
        return tuple(dict.fromkeys(mediator for mediator in asked if has(stack, mediator)))


def check_state(model: PreTrainedModel) -> None:
    """Refuse a model in train mode, whose runs are random, and a compiled one, in which hooks don't run.

    Raises:
        ValueError: If the model is in train mode or compiled.
    """
    if any(
        isinstance(module, OptimizedModule) or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    ):
        raise ValueError("expected a model that is not compiled, found one of torch.compile. Give the model itself")
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"expected a model in eval mode, found {training[0] or type(model).__name__!r} in train mode. "
            "Call model.eval()"
        )


def _outcomes(of_groups: Sequence[Tensor]) -> Tensor:
    """Turn the measures of each group of answers, ``[..., 2]``, into outcomes, ``[..., O]``: probabilities add up."""
    logs = torch.stack([measures[..., 0] for measures in of_groups]).logsumexp(0)
    outcomes = {"probability": logs.exp(), "log_probability": logs, "logit_difference": of_groups[0][..., 1]}
    return torch.stack([outcomes[name] for name in OUTCOMES], -1)


def _check_known(cell: Cell, name: str, outcomes: Tensor, expected: Tensor, tolerance: float) -> None:
    if not alike(outcomes, expected, tolerance):
        raise ValueError(
            f"expected the {name} run's outcome with something restored at position {cell.position} from layer "
            f"{cell.birth} on, found one that differs by {float((outcomes - expected).abs().max()):.3g}: tokens see "
            "those after them"
        )


def _spread(values: Tensor) -> Tensor:
    """Compute the standard deviation ``[O]`` over samples, given values ``[N, O]``."""
    return values.std(0) if len(values) > 1 else torch.zeros_like(values[0])


def _described(
    prompt: TokenizedPrompt,
    status: Status,
    reason: str,
    rank: int,
    clean: np.ndarray | None = None,
    corrupted: np.ndarray | None = None,
    stacks: Mapping[Stack, StackTrace] | None = None,
) -> PromptTrace:
    asked = prompt.prompt
    nothing = np.full(len(OUTCOMES), np.nan)
    return PromptTrace(
        asked.name, status, reason, asked.prompt, asked.subject, asked.answers, asked.fact, asked.query_id, rank,
        clean=nothing if clean is None else clean, corrupted=nothing if corrupted is None else corrupted,
        stacks=stacks or {},
    )  # fmt: skip
