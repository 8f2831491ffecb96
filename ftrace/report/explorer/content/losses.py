"""What a query's loss and answers did while the model trained: a curve of few points, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ftrace.report.explorer.format import Answered, Loss
from ftrace.report.explorer.short_numbers import rounded
from ftrace.scores import NEVER_ASKED, Ledger
from ftrace.views import History, Source, StoreSource

MAX_POINTS = 200
_NOTICEABLE = 0.05  # nats by which a loss rises


class Losses:
    """The losses and answers of queries, by the first source of scores that knows of each.

    Args:
        sources: Sources of scores.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def of(self, query_id: int) -> tuple[History, Loss | None] | None:
        """Return what a query's loss did, in short and as a curve if there is a ledger; None if nothing is known."""
        for source in self._sources:
            history = source.history(query_id)
            if history is not None:
                ledger = source.store.ledger if isinstance(source, StoreSource) else None
                if ledger is None or history.losses is None:
                    return history, None
                return history, _curve(ledger, query_id, history)
        return None


def answered_in_report(history: History | None) -> Answered | None:
    """Return when a query was answered right, as a report has it; None if nobody asked."""
    answered = NEVER_ASKED if history is None else history.answered
    if answered.state == "unknown" or answered.step is None:
        return None
    return {"state": answered.state, "step": answered.step, "text": str(answered)}


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
    if history.answered.first_right is not None:
        shown = np.union1d(shown, np.flatnonzero(steps == history.answered.first_right))
    return {"steps": steps[shown].tolist(), "values": rounded(values[shown])}


def warnings_of_loss(history: History) -> Iterator[str]:
    """Say what about a query's loss makes its proponents doubtful."""
    answered = history.answered
    if answered.state == "never":
        yield "It was never answered right during training: proponents lowered its loss, but didn't teach the answer."
    elif answered.state == "forgotten":
        yield f"It was {answered}: it was no longer answered right at the end."
    if answered.was_known:
        yield (
            f"It was answered right {'before training' if answered.first_right == 0 else 'when it was first asked'}: "
            "what was trained on since then made the answer surer, or less sure, but didn't teach it."
        )
    if history.losses is not None and history.losses[1] > history.losses[0] + _NOTICEABLE:
        yield (
            f"Its loss rose during training, from {history.losses[0]:.3g} to {history.losses[1]:.3g} nats: more "
            "of training raised it than lowered it."
        )
