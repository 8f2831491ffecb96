"""How well two ways to score agree: correlations over examples, query by query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from ftrace.scores import ScoreStore

_AT_MOST = 100_000  # examples that ranks are taken over


@dataclass(frozen=True)
class Agreement:
    """Correlations of scores with those of a store.

    Args:
        name: Of the store and its kind.
        pearson: For each query.
        spearman: For each query.
        top: For each query, the share of the store's ten strongest that are among the ten strongest here.
        examples: That both know.
    """

    name: str
    pearson: np.ndarray
    spearman: np.ndarray
    top: np.ndarray
    examples: int

    def __str__(self) -> str:
        low, high = np.quantile(self.pearson, [0.25, 0.75])
        return (
            f"Agreement with {self.name} over {self.examples:,} examples, of {len(self.pearson)} queries: Pearson "
            f"{np.median(self.pearson):.3f} in the median ({low:.3f} to {high:.3f} in the middle half), Spearman "
            f"{np.median(self.spearman):.3f}, of the ten strongest {self.top.mean():.0%} the same"
        )


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
        np.atleast_1d(_each(pearson_corrcoef, ours, theirs)),
        np.atleast_1d(_each(spearman_corrcoef, ours, theirs)),
        np.array([_same_top(ours[:, q], theirs[:, q]) for q in range(len(places))]),
        len(ours),
    )


def _each(correlation: object, ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray:
    """Column by column: torchmetrics' forms for many columns treat a single one differently."""
    assert callable(correlation)
    return np.array([float(correlation(a, b)) for a, b in zip(ours.T, theirs.T, strict=True)])


def _same_top(ours: torch.Tensor, theirs: torch.Tensor, k: int = 10) -> float:
    k = min(k, len(ours))
    return len(set(ours.topk(k).indices.tolist()) & set(theirs.topk(k).indices.tolist())) / k
