"""Comparison of gradients that hooks read off layers with those that autograd computes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ftrace.gradients import Projection, coarsest_eps, of_noise, of_passes
from ftrace.online.checks.failures import Failures

ROUNDINGS = 5  # two computations of what is rounding error only may differ by this multiple of it
TINY = 1e-3  # a gradient smaller than this fraction of the total norm may be rounding error only


class Check:
    """The base of checks that compare gradients of some parameters.

    Args:
        parameters: The covered parameters by name.
        failures: Where to report; None to check sums only.
        seed: For the random choice of what is checked.
        projection: The projection of the gradients that are checked; None if they aren't projected.
        eps: Of the coarsest dtype that passes go through.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        failures: Failures | None,
        *,
        seed: int,
        projection: Projection | None,
        eps: float,
    ) -> None:
        self.parameters = dict(parameters)
        self.projection = projection
        self.eps = eps
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
    """Keep only those elements of gradients that are small enough to be rounding errors, and set all others to 0.

    The gradient of a bias before a softmax, for example, is rounding error only. Dividing it by the root of the
    optimizer's second moments scales it up to the size of any other gradient.
    """
    largest = max((float(grad.abs().amax()) for grad in gradients.values() if grad.numel()), default=0.0)
    return {
        name: torch.where(grad.abs() <= of_noise(coarsest_eps([grad.dtype])) * largest, grad, 0)
        for name, grad in gradients.items()
    }


def compare_gradients(
    read: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    magnitudes: Mapping[str, float] | None = None,
    *,
    projection: Projection | None = None,
    eps: float,
) -> list[str]:
    """List the parameters whose gradients differ by more than rounding errors, the worst first.

    Args:
        read: The gradients to check, by parameter; projected, if there is a projection.
        gradients: The gradients that autograd computed, by parameter; not projected.
        magnitudes: By parameter, the sum of the norms of the terms that ``read`` is the sum of, since these may cancel.
        projection: The projection of ``read``.
        eps: Of the coarsest dtype that passes go through.
    """
    expected = projected(gradients, projection)
    noise = {} if projection is None else projected(rounding_of(gradients), projection)
    norm_of_all = total_norm([*expected.values()])
    errors = {}
    for name in {**read, **expected}:
        read_grad, expected_grad = read.get(name), expected.get(name)
        reference = expected_grad if expected_grad is not None else read_grad
        assert reference is not None
        difference = (read_grad if read_grad is not None else 0) - (
            expected_grad if expected_grad is not None else torch.zeros_like(reference)
        )
        scale = float(reference.norm()) if expected_grad is not None else 0.0
        tolerance = of_passes(max(eps, coarsest_eps([reference.dtype])))
        allowed = tolerance * (scale + TINY * (norm_of_all + (magnitudes or {}).get(name, 0.0)))
        if name in noise:
            allowed += ROUNDINGS * float(noise[name].norm())
        error = float(difference.norm())
        if not error <= allowed:  # also if it is NaN
            errors[name] = error / allowed if allowed else math.inf
    return sorted(errors, key=errors.__getitem__, reverse=True)
