"""The largest scores of each query among chunks of examples that come one after another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class RunningTop:
    """The k largest scores of each query so far; equal scores in the order in which they came.

    What can be among them is collected: of the first chunk the k largest, later what is above the k-th of the last
    selection. Selections are rare, since ever less of a chunk is above it.

    Args:
        num_queries: Q.
        k: How many.
        sign: 1 for the largest scores, -1 for the smallest.
    """

    def __init__(self, num_queries: int, k: int, sign: int = 1) -> None:
        self.k = k
        self.sign = sign
        self._least = torch.full((num_queries,), -torch.inf, dtype=torch.float64)
        self._queries: list[Tensor] = []
        self._ids: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._collected = 0

    def add(self, ids: Tensor, scores_Qn: Tensor, largest: Tensor) -> None:
        """Add a chunk.

        Args:
            ids: ``[n]``.
            scores_Qn: Their scores.
            largest: ``[Q]``, the largest score of each query in the chunk; with ``sign=-1``, the smallest.
        """
        least = self._least.to(scores_Qn)
        hit = (self.sign * largest > least).nonzero().flatten()
        if not len(hit):
            return
        scores = self.sign * (scores_Qn if len(hit) == len(scores_Qn) else scores_Qn[hit])
        has_k = bool(least[hit].isfinite().all())  # otherwise nothing is below the k-th yet
        if has_k or scores.shape[1] <= self.k:
            queries, places = (scores > least[hit].unsqueeze(1)).nonzero(as_tuple=True)
        else:
            queries, places = _largest(scores, self.k)
        self._queries.append(hit[queries])
        self._ids.append(ids[places])
        self._scores.append(scores[queries, places])
        self._collected += len(queries)
        if not has_k or self._collected > 2 * self.k * len(self._least):
            self._select()

    def _select(self) -> None:
        """Keep the k largest of what was collected, query by query and strongest first."""
        queries, ids, scores = (torch.cat(column) for column in (self._queries, self._ids, self._scores))
        order = torch.from_numpy(np.lexsort((-scores.numpy(), queries.numpy())))  # stable
        queries = queries[order]
        counts = torch.bincount(queries, minlength=len(self._least))
        rank = torch.arange(len(queries)) - (counts.cumsum(0) - counts)[queries]
        order, queries, rank = order[rank < self.k], queries[rank < self.k], rank[rank < self.k]
        ids, scores = ids[order], scores[order]
        last = rank == self.k - 1
        self._least[queries[last]] = scores[last].double()
        self._queries, self._ids, self._scores = [queries], [ids], [scores]
        self._collected = len(queries)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and scores, ``[Q, k]`` each, strongest first; fewer columns if there were fewer examples."""
        if self._queries:
            self._select()
            shape = (len(self._least), -1)
            return self._ids[0].view(shape).numpy(), (self.sign * self._scores[0]).view(shape).numpy()
        empty = np.empty((len(self._least), 0))
        return empty.astype(np.int64), empty


def _largest(scores_Qn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest scores of each query, and of those that are equal to the k-th the first ones.

    Returns:
        Queries, ascending, and the places of their scores, ascending for each.
    """
    kth = scores_Qn.topk(k, dim=1).values[:, -1:]
    queries, places = (scores_Qn >= kth).nonzero(as_tuple=True)
    if len(queries) == k * len(scores_Qn):
        return queries, places
    is_above = scores_Qn[queries, places] > kth[queries, 0]
    wanted = k - torch.bincount(queries[is_above], minlength=len(kth))  # of those that are equal to the k-th
    equal = queries[~is_above]
    counts = torch.bincount(equal, minlength=len(kth))
    rank = torch.arange(len(equal)) - (counts.cumsum(0) - counts)[equal]
    is_kept = is_above.clone()
    is_kept[~is_above] = rank < wanted[equal]
    return queries[is_kept], places[is_kept]
