"""Random projection of gradients: small enough to keep, with the same inner products in expectation.

A matrix's gradient ``G [R, C]`` becomes ``L^T G D [K, K]``, where ``L [R, K]`` and ``D [C, K]`` have Gaussian entries
with variance 1/K, so that ``E <L^T G D, L^T H D> = <G, H>`` (TrackStar, Chang et al. 2024, arXiv 2410.17413, section
3). The two factors of a matrix product's gradient are projected separately, so that no tensor of the weight's size is
formed.

An axis of at most K entries gets orthonormal rows instead, which lose nothing. A vector becomes K * K numbers, as many
as a matrix: its entries are added up in that many buckets with random signs (a count sketch: Charikar et al. 2002,
"Finding frequent items in data streams"), which loses nothing if there are enough buckets.

Directions belong to the parameter's axes and are drawn on the CPU from (seed, parameter name, axis), so that they are
the same on every device, in every process, and whichever module uses the parameter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ftrace.arguments import Seed, Within, checked
from ftrace.gradients.parts import Dense, Lookup, Part, Positions, accumulation_dtype
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.preconditioners import Elementwise, Preconditioner, RankOne
from ftrace.renamed import warn_of_old_name

ProjectionSide = Annotated[int, Within(1, 4096)]  # a block of K * K numbers: more is a typing error
Entries = Literal["gaussian", "rademacher", "normal", "signs"]
ENTRIES: tuple[Entries, ...] = ("gaussian", "rademacher")
_BLOCK_BYTES = 4 * 2**20  # of dense gradients that are formed at a time
# Old names. Indexes on disk that have them are read; as arguments they work for one more release.
OLD_ENTRIES: dict[str, Entries] = {"normal": "gaussian", "signs": "rademacher"}


def generator_for(seed: int, what: object, name: str) -> torch.Generator:
    """Make the generator of what is drawn for a parameter, the same on every device and in every process.

    Args:
        seed: The user's.
        what: What is drawn, such as an axis.
        name: The parameter.
    """
    digest = hashlib.sha256(f"{seed}\n{what}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@checked
class Projection:
    """Two-sided random projection, the same for all gradients of a parameter.

    Args:
        side: K: each axis of a matrix is projected to this size.
        seed: Of the directions.
        entries: Of the directions: "gaussian", as TrackStar has them, or "rademacher" (random signs), both of variance
            1/K. With the latter, products vary a little less.

    Raises:
        ValueError: If K is less than 1, or the entries are unknown.

    Example:
        >>> projection = Projection(side=16)
        >>> projection.project("layer.weight", torch.randn(5, 300, 100)).shape
        torch.Size([5, 16, 16])
        >>> projection.project("layer.bias", torch.randn(5, 300)).shape
        torch.Size([5, 256])
    """

    def __init__(self, side: ProjectionSide, seed: Seed = 0, entries: Entries = "gaussian") -> None:
        if entries in OLD_ENTRIES:
            warn_of_old_name("entries", entries, OLD_ENTRIES[entries])
            entries = OLD_ENTRIES[entries]
        self.side = side
        self.seed = seed
        self.entries: Entries = entries
        self._preconditioners: dict[str, Preconditioner] = {}
        self._axes: dict[tuple[str, int, int, torch.device, torch.dtype], Tensor] = {}
        self._sketches: dict[tuple[str, int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._joined_sketches: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def preconditioned(self, preconditioners: Mapping[str, Preconditioner]) -> Projection:
        """Fold preconditioners into the projection, so that no tensor of the weight's size is formed.

        Args:
            preconditioners: By parameter: of rank one for matrices, elementwise for vectors. Gradients of parameters
                without one are projected as they are.

        Returns:
            The projection of preconditioned gradients.

        Raises:
            ValueError: On an elementwise preconditioner of a matrix. It needs the unprojected gradient: record without
                projection, then use ``precondition`` and ``project``.
        """
        projection = Projection(self.side, self.seed, self.entries)
        for name, preconditioner in preconditioners.items():
            if isinstance(preconditioner, Elementwise) and preconditioner.scale.ndim > 1:
                raise ValueError(
                    f"an elementwise preconditioner of a matrix ({name!r}) can't be folded into a projection: expected "
                    "one of rank one. Approximate it with rank_one, or record without projection and use precondition "
                    "and project"
                )
        projection._preconditioners = {**self._preconditioners, **preconditioners}
        for name in self._preconditioners.keys() & preconditioners.keys():
            projection._preconditioners[name] = _composed(self._preconditioners[name], preconditioners[name])
        return projection

    @property
    def preconditions(self) -> bool:
        """Whether preconditioners are folded in."""
        return bool(self._preconditioners)

    def shape(self, shape: Sequence[int]) -> torch.Size:
        """Get the shape that gradients of a parameter are projected to."""
        return torch.Size([self.side, self.side] if len(shape) > 1 else [self.side**2])

    def axis(self, name: str, axis: int, size: int, like: Tensor) -> Tensor:
        """Draw the directions of one axis of a matrix, once.

        Args:
            name: The parameter.
            axis: 0 for rows, 1 for columns (all other axes of its shape, flattened).
            size: The axis's length.
            like: A tensor of the wanted device and dtype.

        Returns:
            ``[size, K]``.
        """
        key = name, axis, size, like.device, like.dtype
        if key not in self._axes:
            generator = generator_for(self.seed, axis, name)
            if size > self.side:
                drawn = self._draw(size, generator) / math.sqrt(self.side)
            else:
                square = torch.randn(self.side, size, generator=generator, dtype=torch.float64)
                basis, triangle = torch.linalg.qr(square)
                drawn = (basis * triangle.diagonal().sign()).T  # orthonormal rows, of mean zero
            preconditioner = self._preconditioners.get(name)
            if isinstance(preconditioner, RankOne):
                factors = preconditioner.columns if axis else preconditioner.rows
                drawn = drawn * factors.to("cpu", torch.float64).unsqueeze(1)
            self._axes[key] = drawn.to(like)
        return self._axes[key]

    def _draw(self, size: int, generator: torch.Generator) -> Tensor:
        if self.entries == "gaussian":
            return torch.randn(size, self.side, generator=generator, dtype=torch.float64)
        return torch.randint(0, 2, (size, self.side), generator=generator).double() * 2 - 1

    def sketch(self, name: str, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the bucket of each entry of a vector, ``[size]`` int64, and its sign, ``[size]``, once."""
        key = name, size, like.device, like.dtype
        if key not in self._sketches:
            generator = generator_for(self.seed, -1, name)
            buckets = torch.randperm(size, generator=generator) % self.side**2
            signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
            preconditioner = self._preconditioners.get(name)
            scale = preconditioner.scale.flatten().to(like) if isinstance(preconditioner, Elementwise) else 1
            self._sketches[key] = buckets.to(like.device), signs.to(like) * scale
        return self._sketches[key]

    def project(self, name: str, gradients: Tensor) -> Tensor:
        """Project gradients ``[n, *shape]`` of a parameter to ``[n, K, K]``, or ``[n, K * K]`` for a vector."""
        if gradients.ndim <= 2:
            flat = gradients.reshape(len(gradients), gradients[:1].numel())
            buckets, signs = self.sketch(name, flat.shape[1], flat)
            return flat.new_zeros(len(flat), self.side**2).index_add_(1, buckets, flat * signs)
        matrices = gradients.flatten(2)
        rows = self.axis(name, 0, matrices.shape[1], gradients)
        return rows.T @ (matrices @ self.axis(name, 1, matrices.shape[2], gradients))

    def project_vectors(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project gradients ``[n, *shape]`` of several vectors at once, as :meth:`project` does one by one.

        Returns:
            By parameter, ``[n, K * K]``.
        """
        if not gradients:
            return {}
        flat = {name: of_name.reshape(len(of_name), of_name[:1].numel()) for name, of_name in gradients.items()}
        joined = torch.cat(list(flat.values()), 1)
        key = *((name, of_name.shape[1]) for name, of_name in flat.items()), joined.device, joined.dtype
        if key not in self._joined_sketches:
            sketches = [self.sketch(name, of_name.shape[1], joined) for name, of_name in flat.items()]
            buckets = [of_name + place * self.side**2 for place, (of_name, _) in enumerate(sketches)]
            self._joined_sketches[key] = torch.cat(buckets), torch.cat([signs for _, signs in sketches])
        buckets_of_all, signs_of_all = self._joined_sketches[key]
        projected = joined.new_zeros(len(joined), len(flat) * self.side**2)
        projected.index_add_(1, buckets_of_all, joined * signs_of_all)
        return dict(zip(flat, projected.split(self.side**2, 1), strict=True))

    def unproject(self, name: str, projected: Tensor, shape: Sequence[int]) -> Tensor:
        """Apply the transposed map: to a projected direction, the direction ``[*shape]`` with the same products."""
        if len(shape) <= 1:
            buckets, signs = self.sketch(name, math.prod(shape), projected)
            return (projected[buckets] * signs).view(shape)
        columns = self.axis(name, 1, math.prod(shape[1:]), projected)
        return (self.axis(name, 0, shape[0], projected) @ projected @ columns.T).view(shape)

    def project_part(self, name: str, part: Part | Positions, shape: Sequence[int]) -> Dense:
        """Project one part of the gradients of a parameter of the given shape."""
        if isinstance(part, Positions):
            part = part.summed()
        if isinstance(part, Dense):
            return Dense(self.project(name, part.value.to(accumulation_dtype(part.value))))
        if isinstance(part, Lookup):
            rows = self.axis(name, 0, shape[0], _summable(part.columns))[part.ids]
            return _product(rows, self.project_factor(name, 1, part.columns))
        return _product(self.project_factor(name, 0, part.rows), self.project_factor(name, 1, part.columns))

    def project_factor(self, name: str, axis: int, factor: Tensor) -> Tensor:
        """Project one factor ``[..., size]`` of a matrix's gradients to ``[..., K]``, in float32 at least."""
        return (factor @ self.axis(name, axis, factor.shape[-1], factor)).to(accumulation_dtype(factor))


class Projections:
    """Several projections of the same gradients, by which factors are multiplied together, so that they are read once.

    Args:
        members: The projections.

    Attributes:
        places: Where each member's result is in what :meth:`project_factor` returns.
    """

    def __init__(self, members: Sequence[Projection]) -> None:
        self.members = tuple(members)
        stops = list(accumulate(member.side for member in self.members))
        self.places = [slice(stop - member.side, stop) for member, stop in zip(self.members, stops, strict=True)]
        self._axes: dict[tuple[str, int, int, torch.device, torch.dtype], Tensor] = {}

    def project_factor(self, name: str, axis: int, factor: Tensor) -> Tensor:
        """Project one factor ``[..., size]`` by all members: their results side by side, ``[..., sum of K]``."""
        if len(self.members) == 1:
            return self.members[0].project_factor(name, axis, factor)
        key = name, axis, factor.shape[-1], factor.device, factor.dtype
        if key not in self._axes:
            self._axes[key] = torch.cat(
                [member.axis(name, axis, factor.shape[-1], factor) for member in self.members], 1
            )
        return (factor @ self._axes[key]).to(accumulation_dtype(factor))


def project(gradients: PerExampleGradients, projection: Projection) -> PerExampleGradients:
    """Project gradients that were recorded (and perhaps preconditioned) without projection.

    Those that have an elementwise scale are formed, in blocks that stay in the processor's cache; all others stay
    factors.
    """
    parts: dict[str, list[Part | Positions]] = {}
    for name, unprojected in gradients.parts.items():
        if name in gradients.scales and len(gradients.shapes[name]) > 1:
            parts[name] = [Dense(_project_formed(name, gradients, projection))]
        elif name in gradients.scales:
            parts[name] = [Dense(projection.project(name, gradients.dense(name)))]
        else:
            parts[name] = [projection.project_part(name, part, gradients.shapes[name]) for part in unprojected]
    shapes = {name: projection.shape(shape) for name, shape in gradients.shapes.items()}
    return PerExampleGradients(parts, shapes, len(gradients))


def _project_formed(name: str, gradients: PerExampleGradients, projection: Projection) -> Tensor:
    """Project the gradients of one matrix that are formed, ``[n, K, K]``: some examples and some rows at a time."""
    R, C = gradients.matrix_shape(name)
    number = gradients.zeros()
    rows, columns = projection.axis(name, 0, R, number), projection.axis(name, 1, C, number)
    total = gradients.zeros(len(gradients), projection.side, projection.side)
    numbers = max(1, _BLOCK_BYTES // number.element_size())
    examples = max(1, min(len(gradients), numbers // C))
    step = max(1, min(R, numbers // (examples * C)))
    memory = number.new_empty(examples * step * C)
    for start in range(0, len(gradients), examples):
        stop = min(start + examples, len(gradients))
        for first in range(0, R, step):
            last = min(first + step, R)
            block = gradients.dense(name, start, stop, out=memory, rows=(first, last))
            total[start:stop] += rows[first:last].T @ (block @ columns)
    return total


def pool(gradients: PerExampleGradients, blocks: Mapping[str, Sequence[str]]) -> PerExampleGradients:
    """Add up projected gradients of several layers, block by block (TrackStar, section 3).

    Each parameter has its own directions, so products of blocks are, in expectation, sums of their members' products.

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
            different = {name: tuple(gradients.shapes[name]) for name in names}
            raise ValueError(f"blocks: expected projected gradients of one shape in {block!r}, found {different}")
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
