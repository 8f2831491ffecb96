"""How well two ways to score agree: correlations over examples, query by query.

A score that is NaN or infinite says nothing, so an example that has one, on either side, is left out for that query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional import pearson_corrcoef

from ftrace.scores import ScoreStore
from ftrace.scores.correlation import rank_correlation

Correlation = Callable[[np.ndarray, np.ndarray], float]

_AT_MOST = 100_000  # examples that ranks are taken over


@dataclass(frozen=True)
class Agreement:
    """Correlations of scores with those of a store.

    Args:
        name: Of the store and its kind.
        pearson: For each query; NaN where a side is constant, or fewer than two examples are left.
        spearman: For each query, likewise.
        top: For each query, the share of the store's ten strongest that are among the ten strongest here; NaN where no
            example is left.
        examples: That both know.
        not_finite: How many pairs of example and query were left out, as a score is NaN or infinite.
    """

    name: str
    pearson: np.ndarray
    spearman: np.ndarray
    top: np.ndarray
    examples: int
    not_finite: int = 0

    def __str__(self) -> str:
        is_known = ~np.isnan([self.pearson, self.spearman, self.top]).any(0)
        said = f"Agreement with {self.name} over {self.examples:,} examples, of {is_known.sum()} queries"
        if is_known.any():
            pearson, spearman, top = self.pearson[is_known], self.spearman[is_known], self.top[is_known]
            low, high = np.quantile(pearson, [0.25, 0.75])
            said += (
                f": Pearson {np.median(pearson):.3f} in the median ({low:.3f} to {high:.3f} in the middle half), "
                f"Spearman {np.median(spearman):.3f}, of the ten strongest {top.mean():.0%} the same"
            )
        if self.not_finite:
            said += f". Left out: {self.not_finite:,} pairs of example and query with a score that is NaN or infinite"
        if not is_known.all():
            said += f". Left out: {(~is_known).sum()} queries whose scores are constant, or NaN or infinite"
        return said


def agreement(
    chunks: Iterable[tuple[np.ndarray, torch.Tensor]],
    query_ids: Sequence[int],
    store: ScoreStore,
    kind: str | None = None,
    seed: int = 0,
) -> Agreement:
    """Hold scores against a store's.

    Args:
        chunks: Ids ``[n]`` and scores ``[n, Q]`` of examples.
        query_ids: Of the Q queries; those that the store doesn't know are left out.
        store: The store.
        kind: One of its kinds; default: the only one, or dot.
        seed: Of the sample, where there are more than 100,000 examples.

    Raises:
        ValueError: If no query or fewer than two examples are in both, or the store has no such kind.
    """
    known = set(store.query_ids.tolist())
    places = [place for place, query in enumerate(query_ids) if query in known]
    of_store = store.matrix(kind)
    columns = [int(np.flatnonzero(store.query_ids == query_ids[place])[0]) for place in places]
    generator = np.random.default_rng(seed)
    share = min(1.0, _AT_MOST / max(1, len(store.example_ids)))
    own, others = [], []
    for ids, scores in chunks:
        _, here, there = np.intersect1d(ids, store.example_ids, assume_unique=True, return_indices=True)
        kept = generator.random(len(here)) < share
        own.append(scores[torch.from_numpy(here[kept])][:, places].double())
        others.append(torch.from_numpy(np.array(of_store[there[kept]][:, columns])).double())
    if not places or sum(map(len, own)) < 2:
        raise ValueError(f"{store.path}: expected queries and examples that both know, found none")
    ours, theirs = torch.cat(own), torch.cat(others)
    return Agreement(
        f"{store.path.name} {kind or (store.kinds[0] if len(store.kinds) == 1 else 'dot')}",
        _by_query(pearson_correlation, ours, theirs),
        _by_query(rank_correlation, ours, theirs),
        np.array([_same_top(ours[:, q], theirs[:, q]) for q in range(len(places))]),
        len(ours),
        int((~(ours.isfinite() & theirs.isfinite())).sum()),
    )


def pearson_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlate two lists of numbers, ``[N]`` each; NaN where a side is constant or has fewer than two values."""
    if len(first) < 2:
        return float("nan")
    return float(pearson_corrcoef(torch.from_numpy(first).double(), torch.from_numpy(second).double()))


def finite_correlation(correlation: Correlation, first: np.ndarray, second: np.ndarray) -> float:
    """Correlate two lists of numbers, ``[N]`` each, where both are finite.

    Returns:
        NaN where fewer than two such pairs are left.
    """
    is_known = np.isfinite(first) & np.isfinite(second)
    return correlation(first[is_known], second[is_known])


def _by_query(correlation: Correlation, ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Correlate column by column: torchmetrics' forms for many columns treat a single one differently."""
    columns = zip(ours.T.numpy(), theirs.T.numpy(), strict=True)
    return np.array([finite_correlation(correlation, *pair) for pair in columns])


def _same_top(ours: torch.Tensor, theirs: torch.Tensor, k: int = 10) -> float:
    is_known = ours.isfinite() & theirs.isfinite()
    ours, theirs = ours[is_known], theirs[is_known]
    if not len(ours):
        return float("nan")
    k = min(k, len(ours))
    return len(set(ours.topk(k).indices.tolist()) & set(theirs.topk(k).indices.tolist())) / k
