"""Metrics of one ranking, in expectation over the order of tied candidates.

A method that scores many candidates alike has not ranked them: whatever a sort makes of it is luck. So each function
here returns the mean over all orders of the tied, in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _tied_groups(scores: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes of the groups of equal scores, best first, and the number of relevant candidates in each."""
    if scores.shape != relevant.shape or scores.ndim != 1:
        raise ValueError(
            f"expected scores and relevant of one shape [N], found {tuple(scores.shape)} and {tuple(relevant.shape)}"
        )
    if relevant.dtype != torch.bool:
        raise ValueError(f"relevant: expected bool, found {relevant.dtype}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers, found NaN or infinity")
    _, group, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(sizes), dtype=torch.float64, device=scores.device)
    hits.index_add_(0, group, relevant.double())
    return sizes.flip(0).double(), hits.flip(0)


def expected_hits(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Relevant candidates among the best k, in expectation over the order of ties.

    Args:
        scores: ``[N]``, higher is better.
        relevant: ``[N]`` bool.
        k: At least 1.

    Returns:
        A float64 scalar.

    Raises:
        ValueError: If shapes or dtypes are off, a score is not finite, or k is below 1.

    Example:
        >>> expected_hits(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([False, True, False]), k=2)
        tensor(0.5000, dtype=torch.float64)
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    sizes, hits = _tied_groups(scores, relevant)
    before = sizes.cumsum(0) - sizes
    taken = (k - before).clamp(min=0).minimum(sizes)
    return (hits * taken / sizes).sum()


def expected_reciprocal_rank(scores: Tensor, relevant: Tensor) -> Tensor:
    """One over the rank of the best relevant candidate, in expectation over the order of ties; 0 if there is none.

    With r relevant among m tied candidates behind s others, the first relevant one is the j-th of them with
    probability ``C(m - j, r - 1) / C(m, r)``.

    Args:
        scores: ``[N]``, higher is better.
        relevant: ``[N]`` bool.

    Returns:
        A float64 scalar.

    Raises:
        ValueError: If shapes or dtypes are off, or a score is not finite.

    Example:
        >>> expected_reciprocal_rank(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([False, True, False]))
        tensor(0.4167, dtype=torch.float64)
    """
    sizes, hits = _tied_groups(scores, relevant)
    if not hits.any():
        return hits.sum()
    first = int(hits.nonzero()[0])
    before, m, r = sizes[:first].sum(), sizes[first], hits[first]
    j = torch.arange(1, int(m - r) + 2, dtype=torch.float64, device=scores.device)
    log_probability = _log_choose(m - j, r - 1) - _log_choose(m, r)
    return (log_probability.exp() / (before + j)).sum()


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
