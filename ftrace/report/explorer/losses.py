"""What a query's loss did while the model trained: a curve of few points, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ftrace.report.explorer.format import Loss
from ftrace.report.explorer.short_numbers import rounded
from ftrace.scores import Ledger
from ftrace.views import History, Source, StoreSource

MAX_POINTS = 200
_NOTICEABLE = 0.05  # nats by which a loss rises


class Losses:
    """The losses of queries, by the first source of scores that kept a ledger of each.

    Args:
        sources: Sources of scores.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def of(self, query_id: int) -> tuple[History, Loss] | None:
        """Return what a query's loss did, in short and as a curve; None if nobody kept a ledger."""
        for source in self._sources:
            history = source.history(query_id)
            if history is not None and isinstance(source, StoreSource) and source.store.ledger is not None:
                return history, _curve(source.store.ledger, query_id, history)
        return None


def _curve(ledger: Ledger, query_id: int, history: History) -> Loss:
    column = int(np.flatnonzero(ledger.query_ids == query_id)[0])
    before, after = ledger["loss"][:, column], ledger["next_loss"][:, column].copy()
    joins = ledger.next_steps[:-1] == ledger.steps[1:]
    lacking = ~np.isfinite(after[:-1]) & joins
    after[:-1][lacking] = before[1:][lacking]
    steps = np.append(ledger.steps[:1], ledger.next_steps)
    values = np.append(before[:1], after)
    kept = np.isfinite(values) & np.append(np.diff(steps) > 0, True)
    steps, values = steps[kept], values[kept]
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS - 1)).round().astype(int))
    if history.learned_step is not None:
        shown = np.union1d(shown, np.flatnonzero(steps == history.learned_step))
    return {
        "steps": steps[shown].tolist(),
        "values": rounded(values[shown]),
        "learned_step": history.learned_step,
        "right_at_end": history.right_at_end,
    }


def warnings_of_loss(history: History) -> Iterator[str]:
    """Say what about a query's loss makes its proponents doubtful."""
    if history.learned_step is not None and history.learned_step < 0:
        yield "It was never answered right during training: proponents lowered its loss, but didn't teach the answer."
    elif history.right_at_end is False:
        yield f"It was first answered right at step {history.learned_step:,}, but no longer at the end."
    if history.last_loss > history.first_loss + _NOTICEABLE:
        yield (
            f"Its loss rose during training, from {history.first_loss:.3g} to {history.last_loss:.3g} nats: more "
            "of training raised it than lowered it."
        )
