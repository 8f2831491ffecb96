"""The linear datamodelling score (LDS), and its ceiling, which is set by the noise of retraining.

The LDS (Park et al. 2023, arXiv 2303.14186, section 2) is a rank correlation over random subsets of the training data.
It correlates what scores predict for a model trained on a subset, their sum over the examples kept, with what that
model does, here -loss of the query. Any increasing function of it, such as the answer's probability or its log odds
(the margin of that paper), has the same ranks and so the same LDS.

No score can reach an LDS of 1, because retraining is noisy: the same subset in another order gives other losses. To
measure by how much, some subsets are trained several times. The rank correlation of one training's losses with those of
another is the reliability of a measured loss. A prediction without noise, of the mean over orders, correlates better
with a single training than another training does: with the root of the reliability (Spearman 1904, the correction for
attenuation; exact for linear correlations, near enough for ranks). That root is the ceiling of an LDS.

A training may diverge, and its losses are then NaN or infinite. Such a loss is neither high nor low, so it has no rank:
the subset is left out for that query, from the LDS and from the ceiling.

Shape letters: S subsets, N examples, Q queries, R trainings of one subset.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from ftrace.evaluation.counterfactual.subsets import Subsets, columns_of
from ftrace.evaluation.estimates import RESAMPLES, Estimate, sample_means
from ftrace.evaluation.queries import EvaluatedQueries
from ftrace.evaluation.stores import check_store, row_name
from ftrace.scores import ScoreStore
from ftrace.scores.correlation import rank_correlation

TRUTH = "ground truth"
_FEWEST_SUBSETS = 3  # that are correlated


def datamodelling_scores(stores: Mapping[str, ScoreStore], subsets: Subsets) -> dict[str, dict[str, np.ndarray]]:
    """Compute the LDS of each kind of each store, query by query.

    Args:
        stores: Stores by the name of their rows.
        subsets: The subsets whose losses the scores are to predict.

    Returns:
        For each row, ``LDS`` over all subsets and, if some subsets lack a query's fact, ``LDS, fact kept`` over those
        that have it. Each is ``[Q]``, over the subsets in which the query's loss is finite, and NaN if those are fewer
        than three. The last row is of scores that are 1 for ground-truth proponents and 0 for all others.

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
    masks = columns_of(subsets.has_fact)
    return {
        row: {
            column: correlations_over_subsets(predicted, -subsets.losses.astype(float), mask)
            for column, mask in masks.items()
        }
        for row, predicted in predictions.items()
    }


def reliability(subsets: Subsets) -> dict[str, np.ndarray]:
    """Measure how well one training of a subset predicts another one in another order.

    Returns:
        For each column of the table, the rank correlation over subsets of two trainings' losses where both are finite,
        averaged over the pairs of trainings that have three such subsets, ``[Q]``; NaN if there is no such pair. Empty
        if no subset was trained twice.
    """
    if len(subsets.again) < 2:
        return {}
    masks = columns_of(subsets.has_fact)
    pairs = list(combinations(subsets.again.astype(float), 2))
    some = subsets.again.shape[1]
    return {
        column: _mean_of_known(np.stack([correlations_over_subsets(*pair, mask[:some]) for pair in pairs]))
        for column, mask in masks.items()
    }


def noise_free(of_another: Estimate) -> Estimate:
    """Compute the ceiling of the LDS from the reliability: the correlation that a prediction without noise would have.

    The root of a mean is at least the mean of the roots, so no prediction's mean LDS should be above it. NaN stays NaN.

    Args:
        of_another: Mean reliability, with its interval.
    """
    return Estimate(*np.sqrt(np.maximum(0.0, [of_another.mean, of_another.low, of_another.high])).tolist())


def correlations_over_subsets(predicted: np.ndarray, actual: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Correlate ranks over subsets, query by query.

    A subset with a value that is NaN or infinite, on either side, is left out for that query.

    A constant side counts as 0, although its rank correlation is undefined: a score that is the same for all subsets
    predicts nothing. If such queries were left out, a method would be judged only where it commits itself.

    Args:
        predicted: ``[S, Q]``.
        actual: ``[S, Q]``.
        mask: Whether each subset counts for each query, bool ``[S, Q]``; default: all do.

    Returns:
        ``[Q]``; 0 where a side is constant, NaN with fewer than three subsets.

    Example:
        >>> correlations_over_subsets(np.array([[1.0], [2.0], [9.0]]), np.array([[0.1], [0.3], [0.2]]))
        array([0.5])
    """
    is_known = np.isfinite(predicted) & np.isfinite(actual)
    if mask is not None:
        is_known &= mask
    correlations = np.full(predicted.shape[1], np.nan)
    for query, subsets in enumerate(is_known.T):
        if subsets.sum() >= _FEWEST_SUBSETS:
            correlations[query] = np.nan_to_num(rank_correlation(predicted[subsets, query], actual[subsets, query]))
    return correlations


def mean_over_queries(
    columns: Mapping[str, np.ndarray], queries: EvaluatedQueries, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Estimate the mean of each column ``[Q]``; queries without a finite value are left out of a column."""
    estimates = {}
    for name, values in columns.items():
        known = np.flatnonzero(np.isfinite(values))
        if len(known):
            facts = [queries.facts[query] for query in known]
            estimates[name] = sample_means([values[known, None]], [facts], resamples, seed).estimates()[0]
        else:
            estimates[name] = Estimate(np.nan, np.nan, np.nan)
    return estimates


def _predicted(store: ScoreStore, kind: str, subsets: Subsets) -> np.ndarray:
    """Sum the scores of the examples kept, ``[S, Q]``."""
    kept, query_ids = subsets.is_kept.astype(float), subsets.queries.query_ids.tolist()
    return np.stack([kept @ store.scores(query, kind).astype(float) for query in query_ids], axis=1)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Average what is not NaN over the first axis; NaN where everything is."""
    is_known = ~np.isnan(values)
    counts = is_known.sum(0)
    total = np.where(is_known, values, 0.0).sum(0)
    mean: np.ndarray = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
    return mean
