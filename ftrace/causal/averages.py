"""Average effects over prompts: by group of positions and layer, with intervals.

A prompt's effects are averaged over the tokens of a group first, so that long subjects count no more than short ones,
then over the prompts that have tokens in the group. Intervals are those of :mod:`ftrace.evaluation.estimates`: facts
are resampled, each with all its prompts. Effects are never clipped: they may be negative, or exceed the total effect.

Shape letters: G groups of positions, L layers, O outcomes, T tokens, P prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ftrace.arguments import Positive, Seed, checked
from ftrace.causal.positions import GIVEN, LAST, groups_of
from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace, Stack
from ftrace.causal.readout import SEVERED, readout_cells
from ftrace.evaluation import Estimate, sample_means
from ftrace.evaluation.estimates import RESAMPLES


@dataclass(frozen=True)
class EffectGrid:
    """Average effects by group and layer, each ``[G, L]``; NaN in a group in which no prompt has tokens.

    Args:
        mean: Over prompts.
        low: Lower ends of the means' 95% intervals; NaN with fewer than two facts.
        high: Upper ends.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Peak:
    """The cell in which an average effect is largest.

    Args:
        group: The group of positions.
        layer: The layer, from 0.
        effect: The effect with its interval, which doesn't account for the cell's being chosen as the largest.
    """

    group: str
    layer: int
    effect: Estimate


@dataclass(frozen=True)
class StackAverages:
    """Averages over prompts in one stack of layers.

    Args:
        groups: Names of the groups of positions, ``[G]``.
        num_prompts: How many prompts have tokens in each group, int64 ``[G]``.
        effects: Indirect effects by mediator and outcome.
        differences: By severed mediator and outcome, the indirect effect of "hidden" minus that of the mediator, paired
            by prompt: what severing takes away. Empty if "hidden" was not traced.
    """

    stack: Stack
    groups: tuple[str, ...]
    num_prompts: np.ndarray
    effects: Mapping[str, Mapping[Outcome, EffectGrid]]
    differences: Mapping[str, Mapping[Outcome, EffectGrid]]

    def readout(self, mediator: str) -> np.ndarray:
        """Find the cells at which the answer is read off, ``[G, L]`` bool; see :mod:`ftrace.causal.readout`."""
        shape = next(iter(self.effects[mediator].values())).mean.shape
        last = self.groups.index(LAST)
        return readout_cells(self.stack, mediator, shape, last, reads_subject=GIVEN not in self.groups)

    def peak(self, mediator: str, outcome: Outcome = "probability", group: str | None = None) -> Peak | None:
        """Find where a mediator's average indirect effect is largest.

        Cells at which the answer is read off are left out, unless their group is asked for; see :meth:`readout`.

        Args:
            mediator: One of those in ``effects``.
            outcome: The outcome whose effect counts.
            group: The only group to look at; default: all.

        Returns:
            The peak; None if no prompt has tokens in the groups that count.

        Raises:
            ValueError: If there is no such mediator or group.
        """
        if mediator not in self.effects or group not in (None, *self.groups):
            raise ValueError(
                f"expected one of the mediators {list(self.effects)} and of the groups {list(self.groups)}, "
                f"found {mediator!r} and {group!r}"
            )
        grid = self.effects[mediator][outcome]
        counts = ~self.readout(mediator) if group is None else np.array([[name == group] for name in self.groups])
        mean = np.where(counts, grid.mean, np.nan)
        if np.isnan(mean).all():
            return None
        row, layer = np.unravel_index(np.nanargmax(mean), mean.shape)
        effect = Estimate(*(float(values[row, layer]) for values in (grid.mean, grid.low, grid.high)))
        return Peak(self.groups[row], int(layer), effect)


@dataclass(frozen=True)
class Averages:
    """The average results of causal tracing.

    Args:
        num_prompts: How many prompts have each status: "traced", "wrong" and "refused". Averages are over the traced.
        num_facts: How many facts the traced prompts ask for; each prompt without a known fact counts as one.
        clean: Outcomes of the clean runs.
        corrupted: Outcomes of the corrupted runs.
        total_effect: The clean run's outcomes minus the corrupted runs', paired by prompt.
        stacks: Indirect effects, by stack.
        resamples: How often facts were resampled for the intervals.
        seed: The seed of the resampling.
    """

    num_prompts: Mapping[str, int]
    num_facts: int
    clean: Mapping[Outcome, Estimate]
    corrupted: Mapping[Outcome, Estimate]
    total_effect: Mapping[Outcome, Estimate]
    stacks: Mapping[Stack, StackAverages]
    resamples: int
    seed: int


@checked
def average_effects(traces: Sequence[PromptTrace], resamples: Positive = RESAMPLES, seed: Seed = 0) -> Averages:
    """Average the effects of traced prompts.

    All layers, mediators and outcomes of a group share the same resamples, so that they can be compared.

    Args:
        traces: The traces of all prompts, including those that were left out, which are counted.
        resamples: How often to resample facts for the intervals.
        seed: The seed of the resampling.

    Raises:
        ValueError: If no prompt was traced, a prompt comes twice, or prompts have different stacks, mediators or
            numbers of layers.
    """
    traced = [trace for trace in traces if trace.status == "traced"]
    if not traced:
        raise ValueError(
            f"expected at least one prompt that was traced, found {len(traces)} prompts, none of them traced: "
            "a prompt is traced if the model answers it correctly"
        )
    (name, times), *_ = Counter(trace.name for trace in traces).most_common(1)
    if times > 1:
        raise ValueError(f"expected each prompt once, found {name!r} {times} times: give the traces of one run")
    _check_alike(traced)
    facts = [f"prompt {trace.name}" if trace.fact is None else f"fact {trace.fact}" for trace in traced]
    clean, corrupted = (np.stack([getattr(trace, name) for trace in traced]) for name in ("clean", "corrupted"))
    totals = np.concatenate([clean, corrupted, clean - corrupted], axis=1)
    estimates = sample_means([totals], [facts], resamples, seed).estimates()
    by_outcome = [
        dict(zip(OUTCOMES, estimates[start : start + len(OUTCOMES)], strict=True))
        for start in range(0, 3 * len(OUTCOMES), len(OUTCOMES))
    ]
    return Averages(
        num_prompts={
            status: sum(trace.status == status for trace in traces) for status in ("traced", "wrong", "refused")
        },
        num_facts=len(set(facts)),
        clean=by_outcome[0],
        corrupted=by_outcome[1],
        total_effect=by_outcome[2],
        stacks={stack: _average_stack(traced, stack, facts, resamples, seed) for stack in traced[0].stacks},
        resamples=resamples,
        seed=seed,
    )


def _check_alike(traced: Sequence[PromptTrace]) -> None:
    def shape(trace: PromptTrace) -> dict[str, tuple[str, int]]:
        return {
            f"{stack}/{mediator}": (f"{len(groups_of(trace, stack))} groups of positions", grid.shape[1])
            for stack, stack_trace in trace.stacks.items()
            for mediator, grid in stack_trace.restored.items()
        }

    first = shape(traced[0])
    for trace in traced[1:]:
        other = shape(trace)
        if other != first:
            differ = sorted(name for name in other.keys() | first.keys() if other.get(name) != first.get(name))
            raise ValueError(
                f"expected prompts that were traced in the same way, found {differ[0]} to be "
                f"{_in_words(first.get(differ[0]))} in prompt {traced[0].name!r} and "
                f"{_in_words(other.get(differ[0]))} in prompt {trace.name!r}: average the prompts of one run alone"
            )


def _in_words(shape: tuple[str, int] | None) -> str:
    return "missing" if shape is None else f"of {shape[1]} layers and {shape[0]}"


def _average_stack(
    traced: Sequence[PromptTrace], stack: Stack, facts: Sequence[str], resamples: int, seed: int
) -> StackAverages:
    mediators = list(traced[0].stacks[stack].restored)
    severed = [name for name in mediators if name.endswith(SEVERED)] if "hidden" in mediators else []
    positions = [groups_of(trace, stack) for trace in traced]
    groups = tuple(positions[0])
    layers = next(iter(traced[0].stacks[stack].restored.values())).shape[1]
    columns = len(mediators) + len(severed)
    grids = np.full((len(OUTCOMES), 3, columns, len(groups), layers), math.nan)
    counts = np.zeros(len(groups), dtype=np.int64)
    for row, group in enumerate(groups):
        chosen = [index for index, of_prompt in enumerate(positions) if len(of_prompt[group])]
        counts[row] = len(chosen)
        if not chosen:
            continue
        chosen_facts = [facts[index] for index in chosen]
        means = np.stack(
            [_means_of_prompt(traced[index], stack, mediators, positions[index][group]) for index in chosen]
        )
        hidden = means[:, [mediators.index("hidden")] * len(severed)] if severed else means[:, :0]
        taken = hidden - means[:, [mediators.index(name) for name in severed]]
        values = np.concatenate([means, taken], axis=1)  # P, mediators and differences, O, L
        for index in range(len(OUTCOMES)):  # one at a time to save memory: a column takes a number for each resample
            flat = values[:, :, index].reshape(len(chosen), -1)
            estimates = sample_means([flat], [chosen_facts], resamples, seed).estimates()
            cells = np.array([[estimate.mean, estimate.low, estimate.high] for estimate in estimates])
            grids[index, :, :, row] = cells.T.reshape(3, columns, layers)

    def by_outcome(column: int) -> dict[Outcome, EffectGrid]:
        return {outcome: EffectGrid(*grids[index, :, column]) for index, outcome in enumerate(OUTCOMES)}

    return StackAverages(
        stack,
        groups,
        counts,
        {mediator: by_outcome(column) for column, mediator in enumerate(mediators)},
        {mediator: by_outcome(len(mediators) + column) for column, mediator in enumerate(severed)},
    )


def _means_of_prompt(trace: PromptTrace, stack: Stack, mediators: Sequence[str], positions: np.ndarray) -> np.ndarray:
    """Average each mediator's indirect effects over some positions, ``[mediators, O, L]``."""
    restored = np.stack([trace.stacks[stack].restored[name] for name in mediators])[..., positions]
    means: np.ndarray = (restored - trace.corrupted[:, None, None]).mean(-1)
    return means
