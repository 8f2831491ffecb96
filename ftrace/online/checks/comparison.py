"""Comparison of gradients that hooks read off layers with those that autograd computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ftrace.gradients import Projection, Reduce, coarsest_eps, of_noise, of_passes
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


def projected(name: str, grad: Tensor, projection: Projection | None) -> Tensor:
    """Project the gradient of one parameter, if there is a projection; in float32 at least."""
    if projection is None:
        return grad
    return projection.project(name, grad.to(torch.promote_types(grad.dtype, torch.float32)).unsqueeze(0))[0]


def reduction(projection: Projection | None) -> Reduce | None:
    """Return the map by which autograd's gradients become small as they arrive; None if they are needed as they are.

    They are needed to tell rounding errors that preconditioners blow up.
    """
    if projection is None or projection.preconditions:
        return None
    return partial(projected, projection=projection)


def total_norm(tensors: object) -> float:
    """Compute the norm of all tensors together."""
    return float(torch.nn.utils.get_total_norm(list(tensors)))  # type: ignore[call-overload]


def projected_all(
    gradients: Mapping[str, Tensor], projection: Projection | None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Project gradients by parameter, and compute the norms of what may be rounding errors in them.

    Args:
        gradients: Not projected.
        projection: The projection; None if there is none.

    Returns:
        The projected gradients, and by parameter, the norm of its projected rounding errors; none of these where no
        preconditioner can have blown them up.
    """
    noise = {}
    if projection is not None and projection.preconditions:
        least = _size_of_noise(gradients)
        for name, grad in gradients.items():
            noise[name] = float(projected(name, torch.where(grad.abs() <= least, grad, 0), projection).norm())
    return {name: projected(name, grad, projection) for name, grad in gradients.items()}, noise


def rounding_of(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep only those elements of gradients that are small enough to be rounding errors, and set all others to 0.

    The gradient of a bias before a softmax, for example, is rounding error only. Dividing it by the root of the
    optimizer's second moments scales it up to the size of any other gradient.
    """
    least = _size_of_noise(gradients)
    return {name: torch.where(grad.abs() <= least, grad, 0) for name, grad in gradients.items()}


def _size_of_noise(gradients: Mapping[str, Tensor]) -> float:
    """Compute the size of elements that may be rounding errors."""
    largest = max((float(grad.abs().amax()) for grad in gradients.values() if grad.numel()), default=0.0)
    return of_noise(coarsest_eps(grad.dtype for grad in gradients.values())) * largest


def compare_gradients(
    names: Iterable[str],
    read: Callable[[str], Tensor],
    expected: Mapping[str, Tensor],
    magnitudes: Mapping[str, float] | None = None,
    noise: Mapping[str, float] | None = None,
    *,
    eps: float,
) -> list[str]:
    """List the parameters whose gradients differ by more than rounding errors, the worst first.

    Args:
        names: The parameters whose gradients were read.
        read: Gives the gradient to check of one of them, projected if there is a projection.
        expected: The gradients that autograd computed, by parameter, likewise.
        magnitudes: By parameter, the sum of the norms of the terms that ``read`` is the sum of, since these may cancel.
        noise: By parameter, the norm of what may be rounding errors in ``expected``.
        eps: Of the coarsest dtype that passes go through.
    """
    norm_of_all = total_norm([*expected.values()])
    errors = {}
    was_read = set(names)
    for name in [*names, *(name for name in expected if name not in was_read)]:
        read_grad, expected_grad = read(name) if name in was_read else None, expected.get(name)
        reference = expected_grad if expected_grad is not None else read_grad
        assert reference is not None
        difference = (read_grad if read_grad is not None else 0) - (
            expected_grad if expected_grad is not None else torch.zeros_like(reference)
        )
        scale = float(reference.norm()) if expected_grad is not None else 0.0
        tolerance = of_passes(max(eps, coarsest_eps([reference.dtype])))
        allowed = tolerance * (scale + TINY * (norm_of_all + (magnitudes or {}).get(name, 0.0)))
        allowed += ROUNDINGS * (noise or {}).get(name, 0.0)
        error = float(difference.norm())
        if not error <= allowed:  # also if it is NaN
            errors[name] = error / allowed if allowed else math.inf
    return sorted(errors, key=errors.__getitem__, reverse=True)
