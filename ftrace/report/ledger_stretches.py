"""The ledger of a run by stretches of training: few enough to draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ftrace.scores import Ledger
from ftrace.scores.ledger import ACCOUNTS

MOST = 40


@dataclass(frozen=True)
class Stretches:
    """How much a query's loss fell in each stretch of training, on average, and what explains it, in nats.

    Args:
        edges: Ends of the stretches, in optimizer steps, int64 ``[S + 1]``, ascending.
        actual: How much the loss fell, ``[S]``; NaN in a stretch without an interval of the ledger.
        accounts: What explains it, by name, each ``[S]``: those accounts that booked anything. Of a ledger without
            accounts, ``predicted`` takes their place.
    """

    edges: np.ndarray
    actual: np.ndarray
    accounts: Mapping[str, np.ndarray]


def by_stretches(ledger: Ledger, most: int = MOST) -> Stretches:
    """Sum up a ledger over equally long stretches of training; an interval belongs to the one that its middle is in.

    Args:
        ledger: The ledger, with at least one interval.
        most: The largest number of stretches.
    """
    first, last = int(ledger.steps[0]), int(ledger.next_steps[-1])
    edges = np.linspace(first, last, min(most, len(ledger.steps)) + 1).round().astype(np.int64)
    middle = (ledger.steps + ledger.next_steps) / 2
    stretches = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(stretches, minlength=len(edges) - 1)

    def summed(column: str) -> np.ndarray:
        values = np.nan_to_num(ledger[column]).mean(1)
        return np.where(counts, np.bincount(stretches, weights=values, minlength=len(edges) - 1), np.nan)

    names = [name for name in ACCOUNTS if np.nan_to_num(ledger[name]).any()] if ledger.has_accounts else ["predicted"]
    return Stretches(edges, summed("actual"), {name: summed(name) for name in names})
