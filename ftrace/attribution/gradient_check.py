"""Check of per-example gradients against plain autograd, before scores are made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ftrace.gradients import PerExampleGradients, coarsest_eps, of_passes
from ftrace.models import FactLM


def check_against_autograd(
    model: FactLM, losses: Tensor, gradients: PerExampleGradients, names: Sequence[str], what: str
) -> None:
    """Check that per-example gradients sum to the batch's: a weight may be used outside of its layer, too.

    Args:
        losses: The same examples' losses, computed anew, ``[B]``.
        gradients: The examples'.
        names: The covered parameters.
        what: Whose work this is, for the error.

    Raises:
        ValueError: If they don't.
    """
    parameters = dict(model.named_parameters())
    named = {name: parameters[name] for name in names}
    total_loss = losses.sum()
    by_autograd = torch.autograd.grad(total_loss, list(named.values()), allow_unused=True)
    norm = torch.stack([grad.norm() for grad in by_autograd if grad is not None] or [total_loss.new_zeros(())]).norm()
    tolerance = of_passes(coarsest_eps(parameter.dtype for parameter in parameters.values()))
    for name, grad in zip(named, by_autograd, strict=True):
        total = gradients.total(name) if name in gradients.parts else torch.zeros_like(named[name])
        expected = torch.zeros_like(total) if grad is None else grad
        if not (total - expected).norm() <= tolerance * (expected.norm() + 1e-3 * norm):
            raise ValueError(
                f"{what} can't cover {name!r}: the rows' gradients don't sum to the batch's. Something may use it "
                "outside of its layer's forward"
            )
