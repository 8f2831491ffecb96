"""Random subsets of the training data, and what came of training on them.

Shape letters: S subsets, N examples, Q queries, R trainings of one subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ftrace.evaluation.queries import EvaluatedQueries

Unit = Literal["fact", "row"]
LDS, WITH_FACT = "LDS", "LDS, fact kept"


def draw_kept(facts: Sequence[Sequence[str]], unit: Unit, keep: float, index: int, seed: int = 0) -> np.ndarray:
    """One random subset of the training rows.

    Args:
        facts: For each training row, the facts that it states.
        unit: What is left out: whole facts, with all rows that state one of them, or single rows.
        keep: Which share of the units is kept.
        index: Which subset.
        seed: Of all subsets.

    Returns:
        Whether each row is kept, bool ``[N]``.

    Raises:
        ValueError: If the unit is unknown, or the share would keep all or nothing.

    Example:
        >>> draw_kept([["a"], ["b"], ["a"], ["b", "c"]], "fact", 0.67, index=0).tolist()
        [True, False, True, False]
    """
    if unit not in ("fact", "row"):
        raise ValueError(f'unit: expected "fact" or "row", found {unit!r}')
    names = sorted({fact for of_row in facts for fact in of_row}) if unit == "fact" else range(len(facts))
    count = round(keep * len(names))
    if not 0 < count < len(names):
        raise ValueError(
            f"keep: expected a share that keeps 1 to {len(names) - 1} of {len(names)} {unit}s, found {keep}"
        )
    drawn = np.random.default_rng([seed, index]).permutation(len(names))[:count]
    if unit == "row":
        return np.isin(np.arange(len(facts)), drawn)
    kept = {names[place] for place in drawn}
    return np.array([kept.issuperset(of_row) for of_row in facts], dtype=bool)


def order_seed(seed: int, index: int, training: int) -> int:
    """Of the rows' order in one training of one subset: each has its own."""
    return int(np.random.SeedSequence([seed, index, training]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class NotFinite:
    """Losses that are NaN or infinite, as those of a training that diverged.

    Args:
        trainings: How many trainings have such a loss of some query.
        num_trainings: Of how many trainings.
        queries: How many queries have such a loss in some training.
        losses: How many losses they are.
    """

    trainings: int
    num_trainings: int
    queries: int
    losses: int

    @classmethod
    def of(cls, losses: np.ndarray) -> NotFinite:
        """Count them.

        Args:
            losses: ``[..., Q]``, of one training or several.

        Example:
            >>> NotFinite.of(np.array([[0.5, np.nan], [0.25, np.inf], [0.5, 0.5]]))
            NotFinite(trainings=2, num_trainings=3, queries=1, losses=2)
        """
        bad = ~np.isfinite(losses.reshape(-1, losses.shape[-1]))
        return cls(int(bad.any(1).sum()), len(bad), int(bad.any(0).sum()), int(bad.sum()))

    def __str__(self) -> str:
        of = f"in {self.trainings} of {self.num_trainings} trainings, of {self.queries} queries"
        return f"{self.losses} losses ({of}) that are NaN or infinite"


@dataclass(frozen=True)
class Subsets:
    """What came of training on random subsets.

    Args:
        is_kept: Whether each example is in each subset, bool ``[S, N]``; examples are the training rows, in order.
        losses: Each query's loss after training on each, in nats, ``[S, Q]``.
        again: Losses of the first few subsets, each trained several times, ``[R, some S, Q]``; with R below 2 there is
            no ceiling.
        queries: The queries.
    """

    is_kept: np.ndarray
    losses: np.ndarray
    again: np.ndarray
    queries: EvaluatedQueries

    @property
    def has_fact(self) -> np.ndarray:
        """Whether a subset has examples that state a query's fact, bool ``[S, Q]``."""
        return np.stack([self.is_kept[:, of_query].any(1) for of_query in self.queries.proponents], axis=1)

    @property
    def num_ranked(self) -> dict[str, np.ndarray]:
        """For each column of the table, over how many subsets a query's LDS is taken, int64 ``[Q]``."""
        return {column: (mask & np.isfinite(self.losses)).sum(0) for column, mask in columns_of(self.has_fact).items()}

    @property
    def not_finite(self) -> dict[str, NotFinite]:
        """What is left out of the LDS and, where there is one, of the ceiling."""
        found = {"LDS": NotFinite.of(self.losses)}
        return found if len(self.again) < 2 else {**found, "ceiling": NotFinite.of(self.again)}


def columns_of(has_fact: np.ndarray) -> dict[str, np.ndarray]:
    """Which subsets count for a query in each column of the table, bool ``[S, Q]``."""
    everything = {LDS: np.ones_like(has_fact)}
    return everything if has_fact.all() else {**everything, WITH_FACT: has_fact}
