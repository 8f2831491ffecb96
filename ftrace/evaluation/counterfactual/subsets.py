"""Random subsets of the training data, and the losses of models trained on them.

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
    """Draw one random subset of the training rows.

    Args:
        facts: For each training row, the facts that it states.
        unit: The unit that is kept or left out: a fact, with all rows that state it, or a single row.
        keep: Share of the units that is kept.
        index: Number of the subset.
        seed: Seed of all subsets.

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
    kept = {names[number] for number in drawn}
    return np.array([kept.issuperset(of_row) for of_row in facts], dtype=bool)


def order_seed(seed: int, index: int, training: int) -> int:
    """Return the seed of the rows' order in one training of one subset, different for each training."""
    return int(np.random.SeedSequence([seed, index, training]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class NotFinite:
    """Counts of losses that are NaN or infinite, such as those of a training that diverged.

    Args:
        trainings: Number of trainings with such a loss of some query.
        num_trainings: Number of all trainings.
        queries: Number of queries with such a loss in some training.
        losses: Number of such losses.
    """

    trainings: int
    num_trainings: int
    queries: int
    losses: int

    @classmethod
    def of(cls, losses: np.ndarray) -> NotFinite:
        """Count the losses that are not finite.

        Args:
            losses: ``[..., Q]``, of one or several trainings.

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
    """Random subsets, and the losses of models trained on them.

    Args:
        is_kept: Whether each example is in each subset, bool ``[S, N]``; examples are the training rows, in order.
        losses: Each query's loss after training on each subset, in nats, ``[S, Q]``.
        again: Losses of the first few subsets, each trained several times, ``[R, some S, Q]``; with R below 2 there is
            no ceiling.
    """

    is_kept: np.ndarray
    losses: np.ndarray
    again: np.ndarray
    queries: EvaluatedQueries

    @property
    def has_fact(self) -> np.ndarray:
        """Whether each subset has examples that state each query's fact, bool ``[S, Q]``."""
        return np.stack([self.is_kept[:, of_query].any(1) for of_query in self.queries.proponents], axis=1)

    @property
    def num_ranked(self) -> dict[str, np.ndarray]:
        """Number of subsets that a query's LDS is taken over, int64 ``[Q]``, for each column of the table."""
        return {column: (mask & np.isfinite(self.losses)).sum(0) for column, mask in columns_of(self.has_fact).items()}

    @property
    def not_finite(self) -> dict[str, NotFinite]:
        """Losses that are left out of the LDS and, if there is one, of the ceiling."""
        left_out = {"LDS": NotFinite.of(self.losses)}
        return left_out if len(self.again) < 2 else {**left_out, "ceiling": NotFinite.of(self.again)}


def columns_of(has_fact: np.ndarray) -> dict[str, np.ndarray]:
    """Tell which subsets count for each query in each column of the table, bool ``[S, Q]``."""
    all_subsets = {LDS: np.ones_like(has_fact)}
    return all_subsets if has_fact.all() else {**all_subsets, WITH_FACT: has_fact}
