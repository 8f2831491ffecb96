"""Grids of restored runs: the cells of a grid, those whose outcome is known without a run, and the runs of the rest.

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
    """The properties of a stack that tell which cells are known without a run.

    Args:
        num_layers: The number of layers.
        num_positions: How many positions are restored, from the first on.
        sees_ahead: Whether a token attends to later ones, as in an encoder.
        corrupted_from: The first position at which corrupted runs differ from the clean one.
        last_decides: Whether only the last position's output is measured, as it is if the answers have one token.
    """

    num_layers: int
    num_positions: int
    sees_ahead: bool
    corrupted_from: int
    last_decides: bool

    def known(self, cell: Cell) -> str | None:
        """Return the run whose outcome a cell has, "clean" or "corrupted"; None if only a run of the cell can tell.

        In a stack that doesn't look ahead, tokens before the subject are clean anyway, and the last layer's output
        matters only where the answer is read.
        """
        if self.sees_ahead:
            return None
        last = self.num_positions - 1
        if cell.position < self.corrupted_from or (cell.changes_from == self.num_layers and cell.position < last):
            return "corrupted"
        if cell.restores_state and cell.birth == self.num_layers and cell.position == last and self.last_decides:
            return "clean"
        return None


def grid_cells(mediators: Iterable[Mediator], shape: StackShape, window: int) -> dict[Mediator, list[list[Cell]]]:
    """Make each mediator's cells, by layer and position."""
    return {
        mediator: [
            [make_cell(mediator, layer, position, shape.num_layers, window) for position in range(shape.num_positions)]
            for layer in range(shape.num_layers)
        ]
        for mediator in mediators
    }


@dataclass(frozen=True)
class Measure:
    """A measurement of logits.

    Args:
        token: The first token of the prompt's first answer.
        foil: The token whose logit is subtracted from that token's.
    """

    group: AnswerGroup
    token: int
    foil: int

    def __call__(self, logits: Tensor) -> Tensor:
        """Measure the log-probability and the logit difference, float64 on the CPU, ``[R, 2]``."""
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
        stack: The stack that the cells belong to.
        inputs: The prompt.
        runs: The prompt's clean and corrupted runs.
        cells: The cells, each once.
        measure: What to measure.
        limit: The limit of tokens in a pass.
        suffix: Whether to compute only tokens from the restored position on; the runs must have kept their cache.

    Returns:
        For each cell, its measures ``[N, 2]``.

    Raises:
        ValueError: If the clean and corrupted runs come out differently in a growing batch.
        MemoryError: If a single position with one sample takes more memory than there is.
    """
    samples = len(runs.logits) - 1
    expected = measure(runs.logits)
    measures = {cell: torch.empty(samples, 2, dtype=torch.float64) for cell in cells}
    width = inputs.input_ids.shape[1] + (0 if inputs.decoder_ids is None else inputs.decoder_ids.shape[1])
    all_samples = slice(0, samples)
    if suffix:
        waiting = [
            _Work(tuple(at_position), all_samples, width - position, position)
            for position, at_position in _by_position(cells)
        ]
    else:
        waiting = [_Work(tuple(cells), all_samples, width, 0)] if cells else []
    while waiting:
        work = waiting.pop()
        if work.tokens > limit.tokens and (halves := work.halves()):
            waiting += halves
            continue
        some_runs = runs.some(work.samples)
        plan = RowPlan(work.cells, work.samples.stop - work.samples.start, work.offset, passes.device)
        attempt = partial(_measured, passes, stack, inputs, some_runs, plan, work.offset, measure)
        measured = limit.attempt(attempt, work.tokens)
        if measured is None:
            halves = work.halves()
            if not halves:
                raise MemoryError(
                    f"one cell with one sample of noise takes more memory than there is: {work.tokens} tokens"
                )
            waiting += halves
            continue
        alone = torch.cat([expected[:1], expected[1:][work.samples]])
        _check_unchanged(measured[: len(alone)], alone, passes.tolerance)
        for cell, values in zip(work.cells, plan.of_cells(measured), strict=True):
            measures[cell][work.samples] = values
    return measures


def _measured(
    passes: Passes, stack: Stack, inputs: Inputs, runs: Runs, plan: RowPlan, offset: int, measure: Measure
) -> Tensor:
    return measure(passes.grown(stack, inputs, runs, plan, offset))


@dataclass(frozen=True)
class _Work:
    """Cells and samples for one forward pass, if memory allows."""

    cells: tuple[Cell, ...]
    samples: slice
    width: int
    offset: int

    @property
    def tokens(self) -> int:
        """How many tokens the pass has after the last layer."""
        return (1 + (self.samples.stop - self.samples.start) * (1 + len(self.cells))) * self.width

    def halves(self) -> list[_Work]:
        """Split the work in two: by samples, or if there is only one, by positions, or by cells of one position."""
        start, stop = self.samples.start, self.samples.stop
        if stop - start > 1:
            middle = (start + stop) // 2
            parts = [(self.cells, slice(start, middle)), (self.cells, slice(middle, stop))]
        elif len(self.cells) > 1:
            positions = sorted({cell.position for cell in self.cells})
            if len(positions) > 1:
                left = tuple(cell for cell in self.cells if cell.position < positions[len(positions) // 2])
            else:
                left = self.cells[: len(self.cells) // 2]
            right = tuple(cell for cell in self.cells if cell not in set(left))
            parts = [(left, self.samples), (right, self.samples)]
        else:
            return []
        return [_Work(cells, samples, self.width, self.offset) for cells, samples in parts]


def _by_position(cells: Sequence[Cell]) -> Iterator[tuple[int, list[Cell]]]:
    for position, at_position in groupby(sorted(cells, key=lambda cell: cell.position), lambda cell: cell.position):
        yield position, list(at_position)


def alike(outcomes: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether outcomes that must be the same are, given the tolerance of the model's results.

    Logits are some three times as large as their differences, the log probabilities.
    """
    bound = 3 * tolerance
    return torch.allclose(outcomes, expected, rtol=bound, atol=bound)


def _check_unchanged(measured: Tensor, alone: Tensor, tolerance: float) -> None:
    """Make sure that the clean and the corrupted runs, which are in every growing batch, come out as they did alone."""
    if not (torch.isfinite(measured).all() and torch.isfinite(alone).all()):
        raise ValueError("the model gives numbers that are not finite. Take a larger dtype, or less noise")
    if not alike(measured, alone, tolerance):
        worst = float((measured - alone).abs().max())
        raise ValueError(
            "the model gives other results for a row when more rows are added to its batch: log-probabilities differ "
            f"by {worst:.3g}. It can't be traced by growing rows"
        )
