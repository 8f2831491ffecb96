"""Balance of the two sides of a projected product in which one side is preconditioned.

An optimizer's step makes products ``<P G, c>`` of query gradients ``G`` and contributions ``c``. Projected as they
stand, their random error is about ``|P G| |c| / K``. Where P spans many orders of magnitude, as Adam's does when its
second moments are those of a few steps, that is far more than the product. But for any positive ``D``

    <P G, c> = <(P / D) G, D c>,

whose error is about ``|(P / D) G| |D c| / K``. It is smallest for ``D = sqrt(P |G| / |c|)``, element by element, which
is ``sqrt(P)`` for gradients of one scale. ``D`` of rank one is multiplied into the factors of projection and gradients,
so nothing of the weight's size is formed for the examples. The product is right in expectation whatever ``D`` is, so
one of earlier second moments serves later steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ftrace.gradients.preconditioners import Elementwise, Preconditioner, RankOne


def balancing(preconditioner: Preconditioner) -> Preconditioner:
    """Compute ``D``, the root of a preconditioner, positive everywhere.

    Where the preconditioner is 0, since no gradient has arrived yet, ``D`` is as for the median row or column.

    Args:
        preconditioner: Of rank one for a matrix, elementwise for a vector.

    Example:
        >>> balancing(Elementwise(torch.tensor([4.0, 0.0, 16.0]))).dense()
        tensor([2., 2., 4.])
    """
    if isinstance(preconditioner, RankOne):
        return RankOne(_positive_root(preconditioner.rows), _positive_root(preconditioner.columns))
    return Elementwise(_positive_root(preconditioner.scale))


def divided(preconditioner: Preconditioner, balance: Preconditioner) -> Preconditioner:
    """Compute ``P / D``, element by element."""
    if isinstance(preconditioner, RankOne) and isinstance(balance, RankOne):
        return RankOne(preconditioner.rows / balance.rows, preconditioner.columns / balance.columns)
    dense = preconditioner.dense()
    return Elementwise(dense / balance.dense().view(dense.shape))


def _positive_root(factors: Tensor) -> Tensor:
    roots = factors.sqrt()
    is_known = roots.isfinite() & (roots > 0)
    typical = roots[is_known].median() if is_known.any() else torch.ones_like(roots[:1]).sum()
    return torch.where(is_known, roots, typical)
