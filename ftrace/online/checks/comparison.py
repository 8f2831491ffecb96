"""Gradients that were read off layers, compared with autograd's; and what a check of this kind needs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ftrace.gradients import Projection
from ftrace.online.checks.failures import Failures

# Rounding is some 1e-6 of these scales in float32 and 1e-15 in float64; a forgotten bias is 1e-2 and more.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
COARSE = 0.1  # bfloat16 rounds to 4e-3 and float16 to 5e-4, at every layer
_ROUNDINGS = 5  # one rounding differs from another by so many of it
TINY = 1e-3  # a parameter whose gradient is smaller than this share of the whole may be all rounding


class Check:
    """A check of some parameters, and its tolerance.

    Args:
        parameters: The covered parameters by name.
        failures: Where to report; None to check sums only.
        seed: Of the random choice of what is checked.
        projection: What gradients are projected with, autograd's too before they are compared; None if they aren't.
        coarse: Whether passes are in half precision.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        failures: Failures | None,
        *,
        seed: int,
        projection: Projection | None,
        coarse: bool,
    ) -> None:
        self.parameters = dict(parameters)
        self.projection = projection
        self.coarse = coarse
        self._failures = failures
        self._generator = torch.Generator().manual_seed(seed)


def projected(grads: Mapping[str, Tensor], projection: Projection | None) -> dict[str, Tensor]:
    """Project gradients, by parameter, if there is a projection."""
    if projection is None:
        return dict(grads)
    return {name: projection.project(name, grad.unsqueeze(0))[0] for name, grad in grads.items()}


def total_norm(tensors: object) -> float:
    """Compute the norm of all tensors together."""
    return float(torch.nn.utils.get_total_norm(list(tensors)))  # type: ignore[call-overload]


def rounding_of(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep only those elements of gradients that are so small that they may be nothing but rounding; the rest is 0.

    A bias before a softmax has such a gradient. Whoever divides by the optimizer's second moments makes numbers of the
    usual size out of it.
    """
    largest = max((float(grad.abs().amax()) for grad in gradients.values() if grad.numel()), default=0.0)
    return {
        name: torch.where(grad.abs() <= torch.finfo(grad.dtype).eps ** 0.85 * largest, grad, 0)
        for name, grad in gradients.items()
    }


def compare_gradients(
    read: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    magnitudes: Mapping[str, float] | None = None,
    *,
    projection: Projection | None = None,
    coarse: bool = False,
) -> list[str]:
    """List the parameters whose gradients differ by more than rounding, the worst first.

    Args:
        read: The gradients to check, by parameter; projected, if there is a projection.
        gradients: Autograd's, by parameter.
        magnitudes: Where ``read`` is a sum that may cancel, the sum of the norms of its terms.
        projection: What ``read`` is projected with.
        coarse: Whether passes are in half precision.
    """
    expected = projected(gradients, projection)
    noise = {} if projection is None else projected(rounding_of(gradients), projection)
    whole = total_norm([*expected.values()])
    errors = {}
    for name in {**read, **expected}:
        f, e = read.get(name), expected.get(name)
        reference = e if e is not None else f
        assert reference is not None
        difference = (f if f is not None else 0) - (e if e is not None else torch.zeros_like(reference))
        scale = float(reference.norm()) if e is not None else 0.0
        allowed = (COARSE if coarse else TOLERANCE.get(reference.dtype, COARSE)) * (
            scale + TINY * (whole + (magnitudes or {}).get(name, 0.0))
        )
        if name in noise:
            allowed += _ROUNDINGS * float(noise[name].norm())
        error = float(difference.norm())
        if not error <= allowed:  # NaN is no agreement
            errors[name] = error / allowed if allowed else math.inf
    return sorted(errors, key=errors.__getitem__, reverse=True)
