"""Means over queries, how sure they are, and how they spread over runs.

Intervals are percentiles of the bootstrap (Efron 1979). What is drawn anew are facts, each with all its queries in all
runs of its data set: two queries of one fact, or one query in two runs, are hardly two observations. Each data set's
facts are drawn among themselves. One draw serves all methods, so differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over queries; over several runs, the mean of the runs' means.

    Args:
        mean: The mean.
        low: Lower end of the 95% interval; NaN where a data set has fewer than two facts to draw from.
        high: Its upper end.
        spread: Standard deviation of the runs' means (over n - 1); None for a single run.
    """

    mean: float
    low: float
    high: float
    spread: float | None = None


@dataclass(frozen=True)
class Sample:
    """Means of several columns over the queries of one or several runs, and the same of resampled facts.

    Args:
        means: ``[R, M]``, each run's means.
        resampled: ``[resamples, M]``, mean over runs of each resample; empty with fewer than two facts.
    """

    means: np.ndarray
    resampled: np.ndarray

    def estimates(self) -> list[Estimate]:
        """Of each column."""
        return _estimates(self.means, self.resampled)

    def differences(self, column: int | np.ndarray) -> list[Estimate]:
        """Of each column minus another one, paired by query: the same for all ``[]``, or one for each ``[M]``."""
        return _estimates(
            self.means - self.means[:, np.atleast_1d(column)],
            self.resampled - self.resampled[:, np.atleast_1d(column)],
        )

    def ratio(self, above: int, below: int) -> Estimate:
        """Of one column's mean to another's; NaN where that is 0, and resamples without it are left out."""
        means, resampled = (
            np.divide(of[:, [above]], of[:, [below]], out=np.full((len(of), 1), np.nan), where=of[:, [below]] != 0)
            for of in (self.means, self.resampled)
        )
        return _estimates(means, resampled)[0]


def sample_means(
    values: Sequence[np.ndarray],
    facts: Sequence[Sequence[str]],
    resamples: int = RESAMPLES,
    seed: int = 0,
    data: Sequence[str] | None = None,
) -> Sample:
    """Average columns over queries, and over resampled facts.

    Args:
        values: For each run, ``[Q, M]``: M columns of one value for each query.
        facts: For each run, which fact each of its queries asks for.
        resamples: How often to draw.
        seed: Of the draws.
        data: For each run, which data set it is of; None: all of the same.

    Raises:
        ValueError: If a run has no queries.
    """
    if not values or not all(map(len, values)):
        raise ValueError("expected at least one query in each run, found none")
    of_runs = data or [""] * len(values)
    means = np.stack([of_run.mean(0) for of_run in values])
    generator = np.random.default_rng(seed)
    resampled = np.zeros((resamples, means.shape[1]))
    for name in dict.fromkeys(of_runs):
        same = [place for place, of_run in enumerate(of_runs) if of_run == name]
        own = _resample([values[place] for place in same], [facts[place] for place in same], resamples, generator)
        if own is None:
            return Sample(means, np.zeros((0, means.shape[1])))
        resampled += own * len(same) / len(values)
    return Sample(means, resampled)


def _resample(
    values: Sequence[np.ndarray], facts: Sequence[Sequence[str]], resamples: int, generator: np.random.Generator
) -> np.ndarray | None:
    """Means over runs of one data set for resampled facts, ``[resamples, M]``; None with fewer than two facts."""
    names = {fact: place for place, fact in enumerate(sorted({fact for of_run in facts for fact in of_run}))}
    if len(names) < 2:
        return None
    sums, counts = [], []
    for of_run, of_facts in zip(values, facts, strict=True):
        place = np.array([names[fact] for fact in of_facts])
        total = np.zeros((len(names), of_run.shape[1]))
        np.add.at(total, place, of_run)
        sums.append(total)
        counts.append(np.bincount(place, minlength=len(names)).astype(float))
    found = [
        np.mean([_ratio(drawn @ total, drawn @ count) for total, count in zip(sums, counts, strict=True)], axis=0)
        for drawn in _draws(len(names), resamples, generator)
    ]
    return np.concatenate(found)


def _draws(num_facts: int, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each fact is drawn, ``[some resamples, F]``, a few resamples at a time."""
    at_once = max(1, _DRAWS_AT_ONCE // num_facts)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(num_facts, size=(rows, num_facts)) + num_facts * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_facts).reshape(rows, num_facts).astype(float)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """A mean; NaN in the rare draw that holds no query of a run."""
    return np.divide(total, count[:, None], out=np.full_like(total, np.nan), where=count[:, None] > 0)


def _estimates(means: np.ndarray, resampled: np.ndarray) -> list[Estimate]:
    columns = means.shape[1]
    spread = means.std(0, ddof=1).tolist() if len(means) > 1 else [None] * columns
    low, high = np.full((2, columns), np.nan)
    if len(resampled):
        tail = (1 - LEVEL) / 2
        whole = resampled[~np.isnan(resampled).all(1)]  # a draw without queries of a run is NaN in all columns
        if len(whole) > len(resampled) / 2:  # otherwise a run has too few facts to say anything
            low, high = np.quantile(whole, [tail, 1 - tail], axis=0)
    return [
        Estimate(float(mean), float(lowest), float(highest), of_runs)
        for mean, lowest, highest, of_runs in zip(means.mean(0), low, high, spread, strict=True)
    ]
