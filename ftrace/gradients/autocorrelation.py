"""The autocorrelation of projected gradients, block by block, and whitening with it.

``R = mean over examples of phi phi^T``, damped by a fraction of its mean eigenvalue. Inner products of whitened
gradients are ``a^T R^-1 b``, whichever root of ``R^-1`` both gradients are multiplied by. Here it is the inverse of the
Cholesky factor, which is cheaper than ``R^(-1/2)`` and gives the same products and norms (TrackStar, Chang et al. 2024,
arXiv 2410.17413, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class RunningAutocorrelation:
    """Exponential average of the autocorrelation over optimizer steps.

    Sums and weights are linear in the examples, so those of several processes can be added up.

    Args:
        time_constant: Steps after which a gradient's weight has fallen to about 1/e; at least 1.

    Attributes:
        sums: For each block, ``sum of weight * phi phi^T``, ``[D, D]``.
        weights: For each block, the sum of the examples' weights.

    Raises:
        ValueError: If the time constant is less than 1.

    Example:
        >>> running = RunningAutocorrelation(time_constant=10)
        >>> running.add({"layer": torch.tensor([[1.0, 0.0], [0.0, 2.0]])})
        >>> running.mean("layer")
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]])
    """

    def __init__(self, time_constant: float) -> None:
        if not time_constant >= 1:
            raise ValueError(f"time_constant: expected at least 1 step, found {time_constant}")
        self.time_constant = time_constant
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add examples' projected gradients: by block, ``[B, D]`` each."""
        for block, phi_BD in gradients.items():
            if block not in self.sums:
                self.sums[block] = phi_BD.new_zeros(phi_BD.shape[1], phi_BD.shape[1])
            self.sums[block].addmm_(phi_BD.T, phi_BD)
            self.weights[block] = self.weights.get(block, 0.0) + len(phi_BD)

    def add_sums(self, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Add the sums and weights of another average."""
        for block, of_block in sums.items():
            self.sums[block] = self.sums[block] + of_block if block in self.sums else of_block.clone()
            self.weights[block] = self.weights.get(block, 0.0) + weights[block]

    def forget(self, blocks: Iterable[str]) -> None:
        """Start these blocks from zero."""
        for block in blocks:
            self.sums.pop(block, None)
            self.weights.pop(block, None)

    def age(self, blocks: Iterable[str]) -> None:
        """Lower the weight of everything added so far, after a step of these blocks."""
        factor = 1 - 1 / self.time_constant
        for block in blocks:
            if block in self.sums:
                self.sums[block] *= factor
                self.weights[block] *= factor

    def mean(self, block: str) -> Tensor:
        """Compute R of one block, undamped, ``[D, D]``."""
        return self.sums[block] / self.weights[block]


def whitener(autocorrelation: Tensor, damping: float) -> Tensor:
    """Compute W ``[D, D]`` with ``W W^T = (R + damping * mean eigenvalue * I)^-1``: ``gradients [n, D] @ W`` are white.

    Args:
        autocorrelation: R, ``[D, D]``, symmetric and positive semidefinite.
        damping: Fraction of the mean eigenvalue, above 0.

    Returns:
        W in R's dtype; the identity where R is 0, since then there is nothing to whiten.

    Raises:
        ValueError: If damping is not above 0, or R is not finite.

    Example:
        >>> whitener(torch.diag(torch.tensor([3.0, 1.0])), damping=0.5)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.7071]])
    """
    if not damping > 0:
        raise ValueError(f"damping: expected a fraction of the mean eigenvalue above 0, found {damping}")
    R = autocorrelation.double()
    if not R.isfinite().all():
        raise ValueError("autocorrelation: expected finite numbers, found NaN or infinity")
    identity = torch.eye(len(R), dtype=R.dtype, device=R.device)
    mean = float(R.diagonal().mean())
    if mean == 0:
        return identity.to(autocorrelation)
    factor = torch.linalg.cholesky(R / mean + damping * identity)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return (inverse.T / mean**0.5).to(autocorrelation).contiguous()
