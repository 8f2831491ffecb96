"""Means over queries, their bootstrap intervals, and their spread over runs.

Intervals are percentiles of the bootstrap (Efron 1979). It resamples facts, each with all its queries in all runs of
its data set, because two queries of one fact, or one query in two runs, are hardly two observations. Each data set's
facts are resampled separately. All methods share the same resamples, so differences between them are paired.
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
        low: Lower end of the 95% interval; NaN where a data set has fewer than two facts to resample.
        high: Upper end of the interval.
        spread: Standard deviation of the runs' means (over n - 1); None for a single run.
    """

    mean: float
    low: float
    high: float
    spread: float | None = None

    @property
    def excludes_0(self) -> bool:
        """Whether the interval is known and without 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Sample:
    """Means of M columns over the queries of R runs, for the facts as they are and for resampled ones.

    Args:
        means: ``[R, M]``, one row for each run.
        resampled: ``[resamples, M]``, averaged over runs; empty with fewer than two facts.
    """

    means: np.ndarray
    resampled: np.ndarray

    def estimates(self) -> list[Estimate]:
        """Estimate the mean of each column."""
        return _estimates(self.means, self.resampled)

    def differences(self, column: int | np.ndarray) -> list[Estimate]:
        """Estimate each column minus another one, paired by query.

        Args:
            column: Index of the column to subtract: one for all columns, or one for each, ``[M]``.
        """
        return _estimates(
            self.means - self.means[:, np.atleast_1d(column)],
            self.resampled - self.resampled[:, np.atleast_1d(column)],
        )

    def ratio(self, above: int, below: int) -> Estimate:
        """Estimate the ratio of two columns' means; NaN where the denominator is 0.

        Resamples whose denominator is 0 are left out.

        Args:
            above: Index of the numerator's column.
            below: Index of the denominator's column.
        """
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
    """Average columns over the queries, and over the queries of resampled facts.

    Args:
        values: For each run, M columns of one value per query, ``[Q, M]``.
        facts: For each run, the fact that each of its queries asks for.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
        data: For each run, the data set that it was trained on; None if all runs share one.

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
        same = [run for run, of_run in enumerate(of_runs) if of_run == name]
        of_data = _resample([values[run] for run in same], [facts[run] for run in same], resamples, generator)
        if of_data is None:
            return Sample(means, np.zeros((0, means.shape[1])))
        resampled += of_data * len(same) / len(values)
    return Sample(means, resampled)


def _resample(
    values: Sequence[np.ndarray], facts: Sequence[Sequence[str]], resamples: int, generator: np.random.Generator
) -> np.ndarray | None:
    """Resample the facts of one data set.

    Returns:
        Means over its runs, ``[resamples, M]``; None with fewer than two facts.
    """
    numbers = {fact: number for number, fact in enumerate(sorted({fact for of_run in facts for fact in of_run}))}
    if len(numbers) < 2:
        return None
    sums, counts = [], []
    for of_run, of_facts in zip(values, facts, strict=True):
        fact_numbers = np.array([numbers[fact] for fact in of_facts])
        total = np.zeros((len(numbers), of_run.shape[1]))
        np.add.at(total, fact_numbers, of_run)
        sums.append(total)
        counts.append(np.bincount(fact_numbers, minlength=len(numbers)).astype(float))
    means = [
        np.mean([_ratio(drawn @ total, drawn @ count) for total, count in zip(sums, counts, strict=True)], axis=0)
        for drawn in _draws(len(numbers), resamples, generator)
    ]
    return np.concatenate(means)


def _draws(num_facts: int, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each fact is drawn, ``[some resamples, F]``, a few resamples at a time."""
    at_once = max(1, _DRAWS_AT_ONCE // num_facts)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(num_facts, size=(rows, num_facts)) + num_facts * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_facts).reshape(rows, num_facts).astype(float)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Divide to get a mean; NaN in the rare draw that contains no query of a run."""
    return np.divide(total, count[:, None], out=np.full_like(total, np.nan), where=count[:, None] > 0)


def _estimates(means: np.ndarray, resampled: np.ndarray) -> list[Estimate]:
    columns = means.shape[1]
    spread = means.std(0, ddof=1).tolist() if len(means) > 1 else [None] * columns
    low, high = np.full((2, columns), np.nan)
    if len(resampled):
        tail = (1 - LEVEL) / 2
        whole = resampled[~np.isnan(resampled).all(1)]  # a resample without queries of a run is NaN in all columns
        if len(whole) > len(resampled) / 2:  # otherwise a run has too few facts for an interval
            low, high = np.quantile(whole, [tail, 1 - tail], axis=0)
    return [
        Estimate(float(mean), float(lowest), float(highest), of_runs)
        for mean, lowest, highest, of_runs in zip(means.mean(0), low, high, spread, strict=True)
    ]
