"""Gradients that are taken as they arrive, so that those of all parameters are never held together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

Reduce = Callable[[str, Tensor], Tensor]


@contextmanager
def reduced_gradients(parameters: Mapping[str, nn.Parameter], reduce: Reduce | None) -> Iterator[dict[str, Tensor]]:
    """Reduce each parameter's gradient as soon as a backward pass has added it up, as long as the context is open.

    What autograd returns or accumulates instead has the gradient's shape, but no memory, and is of no use.

    Args:
        parameters: The parameters by name.
        reduce: A linear map of a parameter's gradient to something small; None to leave gradients as they are.

    Yields:
        By parameter, the sum of the reduced gradients of all backward passes so far.
    """
    totals: dict[str, Tensor] = {}
    if reduce is None:
        yield totals
        return

    def take(name: str, grad: Tensor) -> Tensor | None:
        reduced = reduce(name, grad.detach())
        totals[name] = totals[name] + reduced if name in totals else reduced
        return None if grad.is_sparse else grad.new_zeros(()).expand(grad.shape)

    handles = [parameter.register_hook(partial(take, name)) for name, parameter in parameters.items()]
    try:
        yield totals
    finally:
        for handle in handles:
            handle.remove()
