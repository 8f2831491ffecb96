"""The autocorrelation of projected gradients, block by block, and whitening with it.

``R = mean over examples of phi phi^T``, damped by a fraction of its mean eigenvalue. Inner products of whitened
gradients are ``a^T R^-1 b``, whichever root of ``R^-1`` both gradients are multiplied by. Here it is the inverse of the
Cholesky factor, which is cheaper than ``R^(-1/2)`` and gives the same products and norms (TrackStar, Chang et al. 2024,
arXiv 2410.17413, section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

STACKED = 64  # blocks that are multiplied, or factored, at once
_CONDITION = 1e5  # up to which float32 suffices to factor a matrix: its inverse is then right to some 1e-5


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
        self._stacks: list[tuple[tuple[str, ...], Tensor]] = []
        self._loose = False  # whether some sums are in no stack

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add examples' projected gradients: by block, ``[B, D]`` each."""
        self._add(gradients, set())

    def step(self, blocks: Collection[str], gradients: Sequence[Mapping[str, Tensor]]) -> None:
        """Lower the weight of everything added so far, and add the gradients of a step, in one pass over memory.

        Args:
            blocks: The blocks that the step was of, whose sums age.
            gradients: Projected gradients of its batches: by block, ``[B, D]`` each.
        """
        first, *others = gradients or [{}]
        self._add(first, set(blocks))
        for of_batch in others:
            self._add(of_batch, set())

    def _add(self, gradients: Mapping[str, Tensor], aging: Collection[str]) -> None:
        """Add gradients, and let the sums so far of some blocks age."""
        factor = 1 - 1 / self.time_constant
        new = {block: phi for block, phi in gradients.items() if block not in self.sums}
        for block in aging:
            if block in self.weights:
                self.weights[block] *= factor
        for block, phi in gradients.items():
            self.weights[block] = self.weights.get(block, 0.0) + len(phi)
        for block, phi in new.items():
            self.sums[block] = phi.new_empty(0)  # its place in the order
        if new or self._loose:
            self._stack({block: phi.shape[1] for block, phi in new.items()}, gradients)
        for names, stack in self._stacks:
            present = {block: gradients[block] for block in names if block in gradients}
            ages = [block in aging for block in names]
            if all(ages) or not any(ages):
                beta = factor if all(ages) else 1.0
                lengths = {len(phi) for phi in present.values()}
                if len(lengths) == 1 and 2 * len(present) >= len(names):
                    rows = stacked(present, names)
                    stack.baddbmm_(rows.transpose(1, 2), rows, beta=beta)
                    continue
                if not present:
                    if beta != 1:
                        stack *= beta
                    continue
            for block, age in zip(names, ages, strict=True):
                beta = factor if age else 1.0
                if block in present:
                    self.sums[block].addmm_(present[block].T, present[block], beta=beta)
                elif age:
                    self.sums[block] *= beta

    def _stack(self, sizes: Mapping[str, int], gradients: Mapping[str, Tensor]) -> None:
        """Lay sums of one shape side by side in memory, :data:`STACKED` blocks at a time, with zeros for new ones."""
        arranged = {name for names, _ in self._stacks for name in names}
        kinds: dict[tuple[int, torch.dtype, torch.device], list[str]] = {}
        for block, sums in self.sums.items():
            if block not in arranged:
                like = gradients[block] if block in sizes else sums
                kinds.setdefault((like.shape[1], like.dtype, like.device), []).append(block)
        for (size, dtype, device), blocks in kinds.items():
            for start in range(0, len(blocks), STACKED):
                names = tuple(blocks[start : start + STACKED])
                stack = torch.zeros(len(names), size, size, dtype=dtype, device=device)
                for block, place in zip(names, stack, strict=True):
                    if block not in sizes:
                        place.copy_(self.sums[block])
                    self.sums[block] = place
                self._stacks.append((names, stack))
        self._loose = False

    def add_sums(self, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Add the sums and weights of another average."""
        for block, of_block in sums.items():
            if block in self.sums:
                self.sums[block] += of_block
            else:
                self.sums[block], self._loose = of_block.clone(), True
            self.weights[block] = self.weights.get(block, 0.0) + weights[block]

    def forget(self, blocks: Iterable[str]) -> None:
        """Start these blocks from zero."""
        forgotten = {block for block in blocks if block in self.sums}
        for block in forgotten:
            del self.sums[block], self.weights[block]
        if forgotten:  # the others are laid out anew
            self._stacks = [(names, stack) for names, stack in self._stacks if forgotten.isdisjoint(names)]
            self._loose = True

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
    return whiteners(autocorrelation.unsqueeze(0), damping, precise=True)[0]


def whiteners(autocorrelations: Tensor, damping: float, *, precise: bool = False) -> Tensor:
    """Compute :func:`whitener` of several blocks at once, ``[n, D, D]``.

    Args:
        autocorrelations: ``[n, D, D]``.
        damping: As there.
        precise: Whether float32 is factored in float64. Otherwise it is only where damping is so small that rounding
            would matter.

    Raises:
        ValueError: As there.
    """
    if not damping > 0:
        raise ValueError(f"damping: expected a fraction of the mean eigenvalue above 0, found {damping}")
    if not autocorrelations.isfinite().all():
        raise ValueError("autocorrelation: expected finite numbers, found NaN or infinity")
    size = autocorrelations.shape[-1]
    coarse = not precise and autocorrelations.dtype == torch.float32 and size / damping < _CONDITION
    R = autocorrelations if coarse else autocorrelations.double()
    means = R.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    is_known = means > 0
    means = torch.where(is_known, means, 1.0)
    damped = R / means
    damped.diagonal(dim1=1, dim2=2).add_(damping)
    inverse = _inverse_of_triangular(torch.linalg.cholesky(damped)) / means.sqrt()
    identity = torch.eye(size, dtype=R.dtype, device=R.device)
    return torch.where(is_known, inverse.transpose(1, 2), identity).to(autocorrelations).contiguous()


def _inverse_of_triangular(factors: Tensor) -> Tensor:
    """Invert lower triangular matrices ``[n, D, D]``, by halves: a third less work than to solve for the identity."""
    size = factors.shape[-1]
    if size % 2 or size <= 32:
        identity = torch.eye(size, dtype=factors.dtype, device=factors.device)
        return torch.linalg.solve_triangular(factors, identity.expand_as(factors), upper=False)
    half = size // 2
    first, second = _inverse_of_triangular(torch.cat([factors[:, :half, :half], factors[:, half:, half:]])).chunk(2)
    inverse = torch.zeros_like(factors)
    inverse[:, :half, :half], inverse[:, half:, half:] = first, second
    inverse[:, half:, :half] = second @ (factors[:, half:, :half] @ first).neg_()
    return inverse


def stacked(rows: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Lay the rows of blocks side by side, ``[len(names), B, D]``, with zeros for blocks that have none."""
    some = next(iter(rows.values()))
    empty = None if len(rows) == len(names) else torch.zeros_like(some)
    return torch.stack([rows.get(name, empty) if empty is not None else rows[name] for name in names])
