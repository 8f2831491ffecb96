"""Grids of restored runs: which cells a grid has, which of them are known without a run, and the runs of the rest.

Shape letters: N noise samples, C cells, O outcomes, L layers, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from ftrace.causal.mediators import Cell, Mediator, make_cell
from ftrace.causal.memory import MemoryLimit
from ftrace.causal.outcomes import AnswerGroup, log_probabilities, logit_differences
from ftrace.causal.passes import Inputs, Passes, Runs
from ftrace.causal.prompt_trace import Stack
from ftrace.causal.row_plan import RowPlan


@dataclass(frozen=True)
class StackShape:
    """What tells which cells are known without a run.

    Args:
        num_layers: How many layers.
        num_places: How many places are restored, from the first on.
        sees_ahead: Whether a token attends to those after it, as in an encoder.
        corrupted_from: The first place at which corrupted runs differ from the clean one.
        last_decides: Whether the last place's output alone is measured: the answers have one token.
    """

    num_layers: int
    num_places: int
    sees_ahead: bool
    corrupted_from: int
    last_decides: bool

    def known(self, cell: Cell) -> str | None:
        """The run that a cell's outcome equals, "clean" or "corrupted"; None where it takes a run to know.

        In a stack that doesn't look ahead, what stands before the subject is clean anyway, and what the last layer
        gives anywhere but where the answer is read changes nothing.
        """
        if self.sees_ahead:
            return None
        last = self.num_places - 1
        if cell.place < self.corrupted_from or (cell.changes_from == self.num_layers and cell.place < last):
            return "corrupted"
        if cell.restores_state and cell.birth == self.num_layers and cell.place == last and self.last_decides:
            return "clean"
        return None


def grid_cells(mediators: Iterable[Mediator], shape: StackShape, window: int) -> dict[Mediator, list[list[Cell]]]:
    """The cell of each mediator's layer and place."""
    return {
        mediator: [
            [make_cell(mediator, layer, place, shape.num_layers, window) for place in range(shape.num_places)]
            for layer in range(shape.num_layers)
        ]
        for mediator in mediators
    }


@dataclass(frozen=True)
class Measure:
    """What is measured of logits.

    Args:
        group: The answers.
        token: First token of the prompt's own answer.
        foil: What its logit is compared with.
    """

    group: AnswerGroup
    token: int
    foil: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-probability and logit difference, float64 on the CPU, ``[R, 2]``."""
        logs = log_probabilities(logits, self.group)
        return torch.stack([logs, logit_differences(logits, self.token, self.foil)], 1).double().cpu()


def run_cells(
    passes: Passes,
    stack: Stack,
    inputs: Inputs,
    runs: Runs,
    cells: Sequence[Cell],
    measure: Measure,
    limit: MemoryLimit,
    *,
    suffix: bool = False,
) -> dict[Cell, Tensor]:
    """Run cells, in as few forward passes as memory allows.

    Args:
        passes: The model.
        stack: Where the cells are.
        inputs: The prompt.
        runs: Its clean and corrupted runs.
        cells: The cells, each once.
        measure: What is measured.
        limit: Of tokens in a pass.
        suffix: Compute only what stands from the restored place on; the runs must have kept their cache.

    Returns:
        For each cell, its measures ``[N, 2]``.

    Raises:
        ValueError: If the clean and corrupted runs come out differently in a growing batch.
        MemoryError: If a single place with one sample takes more memory than there is.
    """
    samples = len(runs.logits) - 1
    expected = measure(runs.logits)
    found = {cell: torch.empty(samples, 2, dtype=torch.float64) for cell in cells}
    width = inputs.input_ids.shape[1] + (0 if inputs.decoder_ids is None else inputs.decoder_ids.shape[1])
    whole = slice(0, samples)
    if suffix:
        waiting = [_Work(tuple(own), whole, width - place, place) for place, own in _by_place(cells)]
    else:
        waiting = [_Work(tuple(cells), whole, width, 0)] if cells else []
    while waiting:
        one = waiting.pop()
        if one.tokens > limit.tokens and (halves := one.halves()):
            waiting += halves
            continue
        some = runs.some(one.samples)
        plan = RowPlan(one.cells, one.samples.stop - one.samples.start, one.offset, passes.device)
        attempt = partial(_measured, passes, stack, inputs, some, plan, one.offset, measure)
        measured = limit.attempt(attempt, one.tokens)
        if measured is None:
            halves = one.halves()
            if not halves:
                raise MemoryError(
                    f"one cell with one sample of noise takes more memory than there is: {one.tokens} tokens"
                )
            waiting += halves
            continue
        own = torch.cat([expected[:1], expected[1:][one.samples]])
        _check_unchanged(measured[: len(own)], own, runs.logits.dtype)
        for cell, values in zip(one.cells, plan.of_cells(measured), strict=True):
            found[cell][one.samples] = values
    return found


def _measured(
    passes: Passes, stack: Stack, inputs: Inputs, runs: Runs, plan: RowPlan, offset: int, measure: Measure
) -> Tensor:
    return measure(passes.grown(stack, inputs, runs, plan, offset))


@dataclass(frozen=True)
class _Work:
    """Cells and samples for one forward pass, as long as memory allows."""

    cells: tuple[Cell, ...]
    samples: slice
    width: int
    offset: int

    @property
    def tokens(self) -> int:
        """How many tokens the pass has in the end."""
        return (1 + (self.samples.stop - self.samples.start) * (1 + len(self.cells))) * self.width

    def halves(self) -> list[_Work]:
        """The same in two passes: half of the samples each, or if there is one, half of the places, or of the cells."""
        start, stop = self.samples.start, self.samples.stop
        if stop - start > 1:
            middle = (start + stop) // 2
            parts = [(self.cells, slice(start, middle)), (self.cells, slice(middle, stop))]
        elif len(self.cells) > 1:
            places = sorted({cell.place for cell in self.cells})
            if len(places) > 1:
                left = tuple(cell for cell in self.cells if cell.place < places[len(places) // 2])
            else:
                left = self.cells[: len(self.cells) // 2]
            right = tuple(cell for cell in self.cells if cell not in set(left))
            parts = [(left, self.samples), (right, self.samples)]
        else:
            return []
        return [_Work(cells, samples, self.width, self.offset) for cells, samples in parts]


def _by_place(cells: Sequence[Cell]) -> Iterator[tuple[int, list[Cell]]]:
    for place, own in groupby(sorted(cells, key=lambda cell: cell.place), lambda cell: cell.place):
        yield place, list(own)


def alike(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether outcomes that must be the same are, but for what a model of this dtype rounds."""
    bound = {torch.float64: 1e-9, torch.float32: 2e-3}.get(dtype, 0.25)
    return torch.allclose(found, expected, rtol=bound, atol=bound)


def _check_unchanged(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """The clean and the corrupted runs are in every growing batch: they must come out as they did alone."""
    if not (torch.isfinite(found).all() and torch.isfinite(expected).all()):
        raise ValueError("the model gives numbers that are not finite. Take a larger dtype, or less noise")
    if not alike(found, expected, dtype):
        worst = float((found - expected).abs().max())
        raise ValueError(
            "the model gives other results for a row when more rows are added to its batch: log-probabilities differ "
            f"by {worst:.3g}. It can't be traced by growing rows"
        )
