"""Tolerances of all checks: how far two computations of the same numbers may be apart by rounding alone.

A dtype rounds each number by at most ``eps / 2`` of it, so n roundings one after another differ by ``n eps`` at worst.
How many there are depends on the model, and how many digits are left for finding faults on the dtype. So the tolerances
are powers of eps: ``eps ** (1 - a)`` allows ``n = eps ** -a`` roundings.

====================  =====  =======  =======  =======  ========  =============================================
tolerance             a      float64  float32  float16  bfloat16  of two computations of
====================  =====  =======  =======  =======  ========  =============================================
:func:`of_noise`      0.15   5e-14    1e-6     3e-3     0.02      0: numbers that cancel, but for their rounding
:func:`of_a_pass`     0.2    3e-13    3e-6     4e-3     0.02      a pass that does the same operations again
:func:`of_a_layer`    0.3    1e-11    1e-5     8e-3     0.03      one layer, by other operations
:func:`of_passes`     0.5    1e-8     3e-4     0.03     0.09      a gradient through all layers, by other operations
====================  =====  =======  =======  =======  ========  =============================================

The faults that checks look for, such as a forgotten bias or another example's row, are some percent of a gradient and
more.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def coarsest_eps(dtypes: Iterable[torch.dtype]) -> float:
    """Get the largest distance from 1 to the next number, over those of some dtypes that have fractions.

    Args:
        dtypes: Of all numbers that a computation goes through; integers are exact. Default: float32.

    Example:
        >>> coarsest_eps([torch.float32, torch.bfloat16, torch.int64])
        0.0078125
    """
    fractions = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max((torch.finfo(dtype).eps for dtype in fractions), default=torch.finfo(torch.float32).eps)


def of_noise(eps: float) -> float:
    """Compute the size of a number that may be rounding errors only, relative to the largest of its kind."""
    return eps**0.85


def of_a_pass(eps: float) -> float:
    """Compute the relative tolerance of a pass that is repeated, where only the order of sums may differ."""
    return eps**0.8


def of_a_layer(eps: float) -> float:
    """Compute the tolerance, relative to the largest number, of one layer that is computed in another way."""
    return eps**0.7


def of_passes(eps: float) -> float:
    """Compute the tolerance, relative to a gradient's norm, of gradients that are computed in two ways."""
    return eps**0.5
