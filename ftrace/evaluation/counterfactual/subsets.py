"""Does a score predict what happens when training data are left out?

The linear datamodelling score (LDS; Park et al. 2023, arXiv 2303.14186, section 2): over random subsets of the training
data, the rank correlation of what scores predict for a model trained on a subset, their sum over the examples kept,
with what that model does, here -loss of the query. Any rising function of it, such as the answer's probability or its
log odds (the margin of that paper), has the same ranks and so the same LDS.

How well could any score do? A retraining is noisy: the same subset in another order gives other losses. By how much is
measured by training some subsets several times. The rank correlation of one training's losses with another's is the
reliability of a measured loss. A prediction without noise, of the mean over orders, correlates better with a single
training than another training does: with the root of the reliability (Spearman 1904, the correction for attenuation;
exact for linear correlations, near enough for ranks), so that root is the ceiling of an LDS.

A training may diverge, and its losses are then NaN or infinite. Such a loss is neither high nor low, so it has no rank:
the subset is left out for that query, from the LDS and the ceiling alike.

Shape letters: S subsets, N examples, Q queries, R trainings of one subset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from ftrace.evaluation.estimates import RESAMPLES, Estimate, sample_means
from ftrace.evaluation.queries import EvaluatedQueries
from ftrace.evaluation.retrieval.evaluation import row_name
from ftrace.scores import ScoreStore

Unit = Literal["fact", "row"]
TRUTH, RANDOM = "ground truth", "random"
LDS, WITH_FACT = "LDS", "LDS, fact kept"
_FEWEST = 3  # of subsets, to correlate over


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
        return {column: (mask & np.isfinite(self.losses)).sum(0) for column, mask in _masks(self.has_fact).items()}

    @property
    def not_finite(self) -> dict[str, NotFinite]:
        """What is left out of the LDS and, where there is one, of the ceiling."""
        found = {"LDS": NotFinite.of(self.losses)}
        return found if len(self.again) < 2 else {**found, "ceiling": NotFinite.of(self.again)}


def datamodelling_scores(stores: Mapping[str, ScoreStore], subsets: Subsets) -> dict[str, dict[str, np.ndarray]]:
    """The LDS of each kind of each store, query by query.

    Args:
        stores: Stores by the name of their rows.
        subsets: What they are to predict.

    Returns:
        For each row, ``LDS`` over all subsets and, if some subsets lack a query's fact, ``LDS, fact kept`` over those
        that don't: each ``[Q]``, over the subsets where the query's loss is finite, and NaN where those are fewer than
        three. The last row is of scores that are 1 for ground-truth proponents and else 0.

    Raises:
        ValueError: If a store lacks queries or training rows, or has scores that are not finite.
    """
    truth = np.stack([subsets.is_kept[:, of_query].sum(1) for of_query in subsets.queries.proponents], axis=1)
    for store in stores.values():
        check_store(store, subsets.queries.query_ids, subsets.is_kept.shape[1])
    predictions = {
        row_name(name, kind): _predicted(store, kind, subsets) for name, store in stores.items() for kind in store.kinds
    }
    predictions[TRUTH] = truth.astype(float)
    masks = _masks(subsets.has_fact)
    return {
        row: {
            column: rank_correlations(predicted, -subsets.losses.astype(float), mask) for column, mask in masks.items()
        }
        for row, predicted in predictions.items()
    }


def reliability(subsets: Subsets) -> dict[str, np.ndarray]:
    """How well one training of a subset predicts another one in another order.

    Returns:
        For each column of the table, the rank correlation over subsets of two trainings' losses where both are finite,
        averaged over the pairs of trainings that have three such subsets, ``[Q]``; NaN where there is no such pair.
        Empty where no subset was trained twice.
    """
    if len(subsets.again) < 2:
        return {}
    masks = _masks(subsets.has_fact)
    pairs = list(combinations(subsets.again.astype(float), 2))
    some = subsets.again.shape[1]
    return {
        column: _mean_of_known(np.stack([rank_correlations(one, other, mask[:some]) for one, other in pairs]))
        for column, mask in masks.items()
    }


def noise_free(of_another: Estimate) -> Estimate:
    """The ceiling: with what a prediction without noise would correlate, where another training does so.

    The root of a mean is no less than the mean of roots, so the mean LDS of no prediction should be above it. NaN stays
    NaN.
    """
    return Estimate(*np.sqrt(np.maximum(0.0, [of_another.mean, of_another.low, of_another.high])).tolist())


def rank_correlations(predicted: np.ndarray, actual: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Spearman's rank correlation over subsets, query by query; ties share their mean rank.

    A subset with a value that is NaN or infinite, on either side, is left out for that query.

    Args:
        predicted: ``[S, Q]``.
        actual: ``[S, Q]``.
        mask: Which subsets count for a query, bool ``[S, Q]``; default: all.

    Returns:
        ``[Q]``; 0 where a side is constant, and so says nothing, and NaN with fewer than three subsets.

    Example:
        >>> rank_correlations(np.array([[1.0], [2.0], [9.0]]), np.array([[0.1], [0.3], [0.2]]))
        array([0.5])
    """
    is_known = np.isfinite(predicted) & np.isfinite(actual)
    found = np.full(predicted.shape[1], np.nan)
    for query in range(predicted.shape[1]):
        rows = is_known[:, query] if mask is None else is_known[:, query] & mask[:, query]
        a, b = centred_ranks(predicted[rows, query]), centred_ranks(actual[rows, query])
        if len(a) >= _FEWEST:
            size = np.sqrt((a @ a) * (b @ b))
            found[query] = a @ b / size if size else 0.0
    return found


def mean_over_queries(
    columns: Mapping[str, np.ndarray], queries: EvaluatedQueries, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Mean and interval of each column ``[Q]``; queries without a finite value are left out of a column."""
    found = {}
    for name, values in columns.items():
        known = np.flatnonzero(np.isfinite(values))
        if len(known):
            facts = [queries.facts[place] for place in known]
            found[name] = sample_means([values[known, None]], [facts], resamples, seed).estimates()[0]
        else:
            found[name] = Estimate(np.nan, np.nan, np.nan)
    return found


def check_store(store: ScoreStore, query_ids: np.ndarray, num_examples: int) -> None:
    """Make sure that a store has a score of each training row for each query, of each kind, and a finite one.

    Raises:
        ValueError: If it doesn't.
    """
    if store.has_candidates or not np.array_equal(store.example_ids, np.arange(num_examples)):
        raise ValueError(
            f"{store.path}: expected scores of all {num_examples} training rows for each query, found "
            f"{'candidates of each query' if store.has_candidates else f'{len(store.example_ids)} examples'}. Score "
            "without candidates"
        )
    missing = np.setdiff1d(query_ids, store.query_ids)
    if len(missing):
        raise ValueError(
            f"{store.path}: expected scores for query {missing[0]}, found none ({len(missing)} are missing)"
        )
    for kind in store.kinds:
        check_finite(store, kind, query_ids.tolist())


def check_finite(store: ScoreStore, kind: str, query_ids: Iterable[int]) -> None:
    """Make sure that a kind's scores for some queries can be ranked; where queries have candidates, those of these.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for query in query_ids:
        scores = store.scores(query, kind)
        bad = ~np.isfinite(scores) if not store.has_candidates else np.isinf(scores)
        if bad.any():
            raise ValueError(
                f"{store.path}: expected finite scores, found {bad.sum()} others in kind {kind!r} of query {query}. "
                "Score a run that has not diverged, or in a larger dtype"
            )


def _predicted(store: ScoreStore, kind: str, subsets: Subsets) -> np.ndarray:
    """The sum of scores over the examples kept, ``[S, Q]``."""
    kept, found = subsets.is_kept.astype(float), []
    for query in subsets.queries.query_ids.tolist():
        found.append(kept @ store.scores(query, kind).astype(float))
    return np.stack(found, axis=1)


def _masks(has_fact: np.ndarray) -> dict[str, np.ndarray]:
    """Which subsets count for a query in each column of the table, bool ``[S, Q]``."""
    everything = {LDS: np.ones_like(has_fact)}
    return everything if has_fact.all() else {**everything, WITH_FACT: has_fact}


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where everything is."""
    is_known = ~np.isnan(values)
    counts = is_known.sum(0)
    total = np.where(is_known, values, 0.0).sum(0)
    mean: np.ndarray = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
    return mean


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks minus their mean, ``[N]`` float64; ties share their mean rank.

    Raises:
        ValueError: If a value is NaN or infinite, which has no rank.
    """
    if not np.isfinite(values).all():
        raise ValueError("expected finite values to rank, found NaN or infinity. Leave them out")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks - ranks.mean() if len(ranks) else ranks
