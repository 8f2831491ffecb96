"""Agreement of two sets of scores: correlations over examples, query by query.

An example whose score is NaN or infinite on either side is left out for that query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional import pearson_corrcoef

from ftrace.scores import ScoreStore
from ftrace.scores.correlation import Correlation, finite_correlation, rank_correlation

_MOST_EXAMPLES = 100_000  # that are correlated; of more, a random sample


@dataclass(frozen=True)
class Agreement:
    """Correlations of scores with those of a store.

    Args:
        name: Name of the store and of the kind of its scores.
        pearson: Pearson's correlation for each query, ``[Q]``; NaN where a side is constant, or fewer than two examples
            are left.
        spearman: Spearman's correlation for each query, ``[Q]``; NaN where Pearson's is.
        top: Share of the store's ten highest-scored examples that are among the ten highest-scored here, ``[Q]``; NaN
            where no example is left.
        examples: Number of examples that have scores on both sides.
        not_finite: Number of pairs of example and query that were left out because a score is NaN or infinite.
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
    """Compare scores with a store's.

    Args:
        chunks: Ids ``[n]`` and scores ``[n, Q]`` of examples, chunk by chunk.
        query_ids: Ids of the Q queries; those that the store doesn't know are left out.
        store: The store to compare with.
        kind: One of its kinds; default: the only one, or dot.
        seed: Seed of the sample that is taken of more than 100,000 examples.

    Raises:
        ValueError: If no query or fewer than two examples are in both, or the store has no such kind.
    """
    known = set(store.query_ids.tolist())
    columns = [column for column, query in enumerate(query_ids) if query in known]
    store_scores = store.matrix(kind)
    store_columns = [int(np.flatnonzero(store.query_ids == query_ids[column])[0]) for column in columns]
    generator = np.random.default_rng(seed)
    share = min(1.0, _MOST_EXAMPLES / max(1, len(store.example_ids)))
    our_chunks, their_chunks = [], []
    for ids, scores in chunks:
        _, our_rows, their_rows = np.intersect1d(ids, store.example_ids, assume_unique=True, return_indices=True)
        kept = generator.random(len(our_rows)) < share
        our_chunks.append(scores[torch.from_numpy(our_rows[kept])][:, columns].double())
        their_chunks.append(torch.from_numpy(np.array(store_scores[their_rows[kept]][:, store_columns])).double())
    if not columns or sum(map(len, our_chunks)) < 2:
        raise ValueError(f"{store.path}: expected queries and examples that both know, found none")
    ours, theirs = torch.cat(our_chunks), torch.cat(their_chunks)
    return Agreement(
        f"{store.path.name} {kind or (store.kinds[0] if len(store.kinds) == 1 else 'dot')}",
        _by_query(pearson_correlation, ours, theirs),
        _by_query(rank_correlation, ours, theirs),
        np.array([_same_top(ours[:, q], theirs[:, q]) for q in range(len(columns))]),
        len(ours),
        int((~(ours.isfinite() & theirs.isfinite())).sum()),
    )


def pearson_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlate two lists of numbers, ``[N]`` each; NaN where a side is constant or has fewer than two values."""
    if len(first) < 2:
        return float("nan")
    return float(pearson_corrcoef(torch.from_numpy(first).double(), torch.from_numpy(second).double()))


def _by_query(correlation: Correlation, ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Correlate column by column: torchmetrics' forms for many columns treat a single one differently."""
    columns = zip(ours.T.numpy(), theirs.T.numpy(), strict=True)
    return np.array([finite_correlation(correlation, *pair) for pair in columns])


def _same_top(ours: torch.Tensor, theirs: torch.Tensor, k: int = 10) -> float:
    """Return the share of the k highest scores that are of the same examples on both sides; NaN without a score."""
    is_known = ours.isfinite() & theirs.isfinite()
    ours, theirs = ours[is_known], theirs[is_known]
    if not len(ours):
        return float("nan")
    k = min(k, len(ours))
    return len(set(ours.topk(k).indices.tolist()) & set(theirs.topk(k).indices.tolist())) / k
