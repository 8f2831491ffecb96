"""Random projection of gradients: small enough to keep, and inner products stay what they are in expectation.

A matrix's gradient ``G [R, C]`` becomes ``L^T G D [K, K]`` with ``L [R, K]`` and ``D [C, K]`` of normal entries with
variance 1/K, so that ``E <L^T G D, L^T H D> = <G, H>`` (TrackStar, Chang et al. 2024, arXiv 2410.17413, section 3). A
matrix product's gradient has both factors projected by themselves, so nothing of the weight's size is formed.

An axis of at most K entries gets orthonormal rows instead, which lose nothing. A vector becomes K * K numbers, as many
as a matrix: its entries are added up in that many buckets with random signs (a count sketch: Charikar et al. 2002,
"Finding frequent items in data streams"), which loses nothing if there are enough buckets.

Directions belong to the parameter's own axes and are drawn on the CPU from (seed, parameter name, axis), so that they
are the same on every device, in every process, and whichever module uses the parameter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ftrace.gradients.parts import Dense, Lookup, Part, Positions, accumulation_dtype
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.preconditioners import Elementwise, Preconditioner, RankOne

Entries = Literal["normal", "signs"]


class Projection:
    """Two-sided random projection, the same for all gradients of a parameter.

    Args:
        side: K: what each axis of a matrix is projected to.
        seed: Of the directions.
        entries: Of the directions: "normal" numbers, as TrackStar has them, or random "signs", both of variance 1/K.
            Products vary a little less with signs.

    Raises:
        ValueError: If K is less than 1, or the entries are unknown.

    Example:
        >>> projection = Projection(side=16)
        >>> projection.project("layer.weight", torch.randn(5, 300, 100)).shape
        torch.Size([5, 16, 16])
        >>> projection.project("layer.bias", torch.randn(5, 300)).shape
        torch.Size([5, 256])
    """

    def __init__(self, side: int, seed: int = 0, entries: Entries = "normal") -> None:
        if side < 1:
            raise ValueError(f"side: expected a whole number of at least 1, found {side}")
        if entries not in ("normal", "signs"):
            raise ValueError(f'entries: expected "normal" or "signs", found {entries!r}')
        self.side = side
        self.seed = seed
        self.entries: Entries = entries
        self._preconditioners: dict[str, Preconditioner] = {}
        self._axes: dict[tuple[str, int, int, torch.device, torch.dtype], Tensor] = {}
        self._sketches: dict[tuple[str, int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def preconditioned(self, preconditioners: Mapping[str, Preconditioner]) -> Projection:
        """The projection of preconditioned gradients, as one map: nothing of the weight's size is formed.

        Args:
            preconditioners: By parameter: of rank one for matrices, elementwise for vectors. Others' gradients are
                projected as they are.

        Raises:
            ValueError: On an elementwise preconditioner of a matrix. It needs the gradient whole: record without
                projection, then use ``precondition`` and ``project``.
        """
        made = Projection(self.side, self.seed, self.entries)
        for name, factor in preconditioners.items():
            if isinstance(factor, Elementwise) and factor.scale.ndim > 1:
                raise ValueError(
                    f"an elementwise preconditioner of a matrix ({name!r}) can't be folded into a projection: expected "
                    "one of rank one. Approximate it with rank_one, or record without projection and use precondition "
                    "and project"
                )
        made._preconditioners = {**self._preconditioners, **preconditioners}
        for name in self._preconditioners.keys() & preconditioners.keys():
            made._preconditioners[name] = _composed(self._preconditioners[name], preconditioners[name])
        return made

    def shape(self, shape: Sequence[int]) -> torch.Size:
        """What a parameter's shape becomes."""
        return torch.Size([self.side, self.side] if len(shape) > 1 else [self.side**2])

    def axis(self, name: str, axis: int, size: int, like: Tensor) -> Tensor:
        """The directions of one axis of a matrix.

        Args:
            name: The parameter.
            axis: 0 for rows, 1 for columns (all other axes of its shape, flattened).
            size: The axis's length.
            like: A tensor of the device and dtype wanted.

        Returns:
            ``[size, K]``.
        """
        key = name, axis, size, like.device, like.dtype
        if key not in self._axes:
            generator = self._generator(name, axis)
            if size > self.side:
                drawn = self._draw(size, generator) / math.sqrt(self.side)
            else:
                square = torch.randn(self.side, size, generator=generator, dtype=torch.float64)
                basis, triangle = torch.linalg.qr(square)
                drawn = (basis * triangle.diagonal().sign()).T  # orthonormal rows, of mean zero
            factor = self._preconditioners.get(name)
            if isinstance(factor, RankOne):
                own = factor.columns if axis else factor.rows
                drawn = drawn * own.to("cpu", torch.float64).unsqueeze(1)
            self._axes[key] = drawn.to(like)
        return self._axes[key]

    def _draw(self, size: int, generator: torch.Generator) -> Tensor:
        if self.entries == "normal":
            return torch.randn(size, self.side, generator=generator, dtype=torch.float64)
        return torch.randint(0, 2, (size, self.side), generator=generator).double() * 2 - 1

    def sketch(self, name: str, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The bucket of each entry of a vector, ``[size]`` int64, and its sign, ``[size]``."""
        key = name, size, like.device, like.dtype
        if key not in self._sketches:
            generator = self._generator(name, -1)
            buckets = torch.randperm(size, generator=generator) % self.side**2
            signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
            factor = self._preconditioners.get(name)
            scale = factor.scale.flatten().to(like) if isinstance(factor, Elementwise) else 1
            self._sketches[key] = buckets.to(like.device), signs.to(like) * scale
        return self._sketches[key]

    def _generator(self, name: str, axis: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}\n{axis}\n{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))

    def project(self, name: str, gradients: Tensor) -> Tensor:
        """Gradients ``[n, *shape]`` of a parameter, projected: ``[n, K, K]``, or ``[n, K * K]`` for a vector."""
        if gradients.ndim <= 2:
            flat = gradients.reshape(len(gradients), gradients[:1].numel())
            buckets, signs = self.sketch(name, flat.shape[1], flat)
            return flat.new_zeros(len(flat), self.side**2).index_add_(1, buckets, flat * signs)
        matrices = gradients.flatten(2)
        rows = self.axis(name, 0, matrices.shape[1], gradients)
        return rows.T @ (matrices @ self.axis(name, 1, matrices.shape[2], gradients))

    def unproject(self, name: str, projected: Tensor, shape: Sequence[int]) -> Tensor:
        """The transposed map: of a projected direction, the direction ``[*shape]`` with the same inner products."""
        if len(shape) <= 1:
            buckets, signs = self.sketch(name, math.prod(shape), projected)
            return (projected[buckets] * signs).view(shape)
        columns = self.axis(name, 1, math.prod(shape[1:]), projected)
        return (self.axis(name, 0, shape[0], projected) @ projected @ columns.T).view(shape)

    def project_part(self, name: str, part: Part | Positions, shape: Sequence[int]) -> Dense:
        """One part of the gradients of a parameter of that shape, projected."""
        if isinstance(part, Positions):
            part = part.summed()
        if isinstance(part, Dense):
            return Dense(self.project(name, part.value.to(accumulation_dtype(part.value))))
        if isinstance(part, Lookup):
            rows = self.axis(name, 0, shape[0], _summable(part.columns))[part.ids]
            return _product(rows, self.project_factor(name, 1, part.columns))
        return _product(self.project_factor(name, 0, part.rows), self.project_factor(name, 1, part.columns))

    def project_factor(self, name: str, axis: int, factor: Tensor) -> Tensor:
        """One factor ``[..., size]`` of a matrix's gradients, projected: ``[..., K]``, in float32 at least."""
        return (factor @ self.axis(name, axis, factor.shape[-1], factor)).to(accumulation_dtype(factor))


def project(gradients: PerExampleGradients, projection: Projection) -> PerExampleGradients:
    """Gradients that were recorded (and perhaps preconditioned) in full, projected.

    Those that have an elementwise scale are formed one example at a time; all others stay factors.
    """
    parts: dict[str, list[Part | Positions]] = {}
    for name, own in gradients.parts.items():
        if name in gradients.scales:
            chunks = gradients.chunks(2 * gradients.shapes[name].numel())
            parts[name] = [Dense(torch.cat([projection.project(name, gradients.dense(name, *c)) for c in chunks]))]
        else:
            parts[name] = [projection.project_part(name, part, gradients.shapes[name]) for part in own]
    shapes = {name: projection.shape(shape) for name, shape in gradients.shapes.items()}
    return PerExampleGradients(parts, shapes, len(gradients))


def pool(gradients: PerExampleGradients, blocks: Mapping[str, Sequence[str]]) -> PerExampleGradients:
    """Projected gradients of several layers added up, block by block (TrackStar, section 3).

    Parameters have directions of their own, so products of blocks are, in expectation, sums of those of their members.

    Args:
        gradients: Projected gradients.
        blocks: For each block's name, the parameters in it. Those in no block are left out.

    Returns:
        Gradients of the blocks, as if each were a parameter.

    Raises:
        ValueError: If a block has a parameter that is not known, in two blocks, or of another shape.
    """
    if gradients.scales:
        raise ValueError("pool: expected projected gradients, found some with an elementwise preconditioner")
    members = [name for names in blocks.values() for name in names]
    unknown = sorted(set(members) - set(gradients.shapes))
    if unknown:
        raise ValueError(f"blocks: expected parameters that have a gradient, found {unknown}")
    if len(set(members)) < len(members):
        raise ValueError("blocks: expected each parameter in one block at most, found some in several")
    parts: dict[str, list[Part | Positions]] = {}
    shapes: dict[str, torch.Size] = {}
    for block, names in blocks.items():
        of_block = {gradients.shapes[name] for name in names}
        if len(of_block) != 1:
            found = {name: tuple(gradients.shapes[name]) for name in names}
            raise ValueError(f"blocks: expected projected gradients of one shape in {block!r}, found {found}")
        shapes[block] = of_block.pop()
        parts[block] = [part for name in names for part in gradients.parts[name]]
    return PerExampleGradients(parts, shapes, len(gradients))


def _composed(first: Preconditioner, second: Preconditioner) -> Preconditioner:
    if isinstance(first, RankOne) and isinstance(second, RankOne):
        return RankOne(first.rows * second.rows, first.columns * second.columns)
    return Elementwise(first.dense() * second.dense())


def _summable(tensor: Tensor) -> Tensor:
    return tensor.new_empty(0, dtype=accumulation_dtype(tensor))


def _product(rows_BTK: Tensor, columns_BTK: Tensor) -> Dense:
    return Dense(torch.bmm(rows_BTK.transpose(1, 2), columns_BTK))
