"""Scores that are cosines of vectors, one or several of each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ftrace.attribution.passes import Batch, Scorer
from ftrace.scores import Sum

Vectors = Mapping[str, Tensor]


@torch.no_grad()
def scorer_by_cosine(
    vectors: Callable[[Batch], Vectors], query_batches: Sequence[Batch], cosines: Callable[[Vectors], Vectors]
) -> Scorer:
    """Make the function that scores batches by the cosines of their vectors with the queries'.

    Args:
        vectors: Computes the vectors ``[B, D]`` of a batch, by name.
        query_batches: The queries, on the model's device.
        cosines: Combines the cosines ``[B, Q]`` of each name to those of each kind of scores.
    """
    of_batches = [vectors(batch) for batch in query_batches]
    queries = {
        name: F.normalize(torch.cat([of_batch[name] for of_batch in of_batches]), dim=1) for name in of_batches[0]
    }

    @torch.no_grad()
    def score(batch: Batch) -> dict[Sum, Tensor]:
        by_name = {name: F.normalize(rows, dim=1) @ queries[name].T for name, rows in vectors(batch).items()}
        return {Sum(kind): values for kind, values in cosines(by_name).items()}

    return score


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average ``[B, T, D]`` over the positions where the mask ``[B, T]`` is set; zeros where it is set nowhere."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
