"""From gradients to the rows of an index: divided by the root of second moments, projected, and summed by blocks.

``phi = P (gradient / sqrt(V))`` (Chang et al. 2024, arXiv 2410.17413, section 3). The steps don't commute: the division
comes first, at full size. One of rank one is folded into the projection, so that nothing of a weight's size is formed;
an elementwise one needs each example's unprojected gradient of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ftrace.gradients import (
    Elementwise,
    PerExampleGradients,
    Preconditioner,
    Projection,
    RankOne,
    flat_rows,
    precondition,
    project,
    rank_one,
)
from ftrace.index.blocks import make_blocks
from ftrace.index.settings import FeatureSettings, PreconditionerKind


class GradientFeatures:
    """The map from gradients to rows, for examples and queries alike.

    Args:
        settings: The options of the rows.
        names: The parameters, in the model's order.
        preconditioners: One over the root of second moments, by parameter; default: 1.

    Attributes:
        names: The parameters.
        blocks: Names of the parameters in each block, in the order of a row.
    """

    def __init__(
        self,
        settings: FeatureSettings,
        names: Sequence[str],
        preconditioners: Mapping[str, Preconditioner] | None = None,
    ) -> None:
        self.settings = settings
        self.names = list(names)
        self.blocks = make_blocks(names, settings.layout, settings.layer_groups)
        given = {} if settings.preconditioner == "none" else dict(preconditioners or {})
        self.preconditioners = {name: factor for name, factor in given.items() if name in set(names)}

    @property
    def block_size(self) -> int:
        """Numbers of a row in each block."""
        return self.settings.projection_side**2

    @property
    def size(self) -> int:
        """D: numbers of a row."""
        return len(self.blocks) * self.block_size

    @property
    def needs_unprojected(self) -> bool:
        """Whether gradients must come unprojected; otherwise projected by :attr:`projection`."""
        return any(isinstance(p, Elementwise) and p.scale.ndim > 1 for p in self.preconditioners.values())

    @cached_property
    def projection(self) -> Projection:
        """The projection of gradients, with the preconditioners where they can be folded in."""
        settings = self.settings
        plain = Projection(settings.projection_side, settings.seed, settings.entries)
        return plain if self.needs_unprojected else plain.preconditioned(self.preconditioners)

    def without_preconditioner(self) -> GradientFeatures:
        """Give the features of gradients as they are, not divided."""
        return GradientFeatures(replace(self.settings, preconditioner="none"), self.names)

    def rows(self, gradients: PerExampleGradients) -> Tensor:
        """Make rows ``[B, D]`` of gradients that are projected, or unprojected where :attr:`needs_unprojected`.

        A parameter without gradient, such as of a layer that has not run, counts as 0.
        """
        if self.needs_unprojected:
            factors: dict[str, float | Preconditioner] = {
                name: self.preconditioners.get(name, 1.0) for name in gradients.parts
            }
            gradients = project(precondition(gradients, factors), self.projection)
        rows = gradients.zeros(len(gradients), len(self.blocks), self.block_size)
        for block, names in enumerate(self.blocks.values()):
            for name in names:
                if name in gradients.parts:
                    rows[:, block] += flat_rows(gradients.dense(name))
        return rows.flatten(1)

    def row_of(self, gradients: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Make the row ``[D]`` of one gradient, given by parameter: the rows of its examples must sum to it.

        Args:
            gradients: Each in its parameter's shape.
            like: A tensor of the wanted dtype and device.
        """
        row = like.new_zeros(len(self.blocks), self.block_size)
        for block, names in enumerate(self.blocks.values()):
            for name in names:
                if name in gradients:
                    gradient = gradients[name].to(like)
                    if self.needs_unprojected and name in self.preconditioners:
                        gradient = gradient * self.preconditioners[name].dense().view(gradient.shape)
                    row[block] += self.projection.project(name, gradient[None]).flatten()
        return row.flatten()


def preconditioner_for_index(factor: Preconditioner, kind: PreconditionerKind) -> Preconditioner:
    """Make an index's preconditioner of the optimizer's: of a matrix, rank one or elementwise.

    Vectors' gradients are divided elementwise in any case, which costs nothing.
    """
    if kind == "rank-one" and isinstance(factor, Elementwise) and factor.scale.ndim > 1:
        return rank_one(factor)[0]
    if kind == "elementwise" and isinstance(factor, RankOne):
        return Elementwise(factor.dense())
    return factor


def to_tensors(preconditioners: Mapping[str, Preconditioner]) -> dict[str, Tensor]:
    """Convert preconditioners to the tensors that a file holds."""
    tensors: dict[str, Tensor] = {}
    for name, factor in preconditioners.items():
        if isinstance(factor, RankOne):
            tensors |= {f"{name}::rows": factor.rows, f"{name}::columns": factor.columns}
        else:
            tensors[f"{name}::scale"] = factor.scale
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def from_tensors(tensors: Mapping[str, Tensor], like: Tensor | None = None) -> dict[str, Preconditioner]:
    """Convert tensors back to preconditioners, on the device and in the dtype of a tensor."""
    moved = {name: tensor if like is None else tensor.to(like) for name, tensor in tensors.items()}
    preconditioners: dict[str, Preconditioner] = {}
    for full, tensor in moved.items():
        name, _, part = full.partition("::")
        if part == "rows":
            preconditioners[name] = RankOne(tensor, moved[f"{name}::columns"])
        elif part == "scale":
            preconditioners[name] = Elementwise(tensor)
    return preconditioners


def moved_like(preconditioners: Mapping[str, Preconditioner], like: Tensor) -> dict[str, Preconditioner]:
    """Move preconditioners to the device and the dtype of a tensor."""
    return from_tensors(to_tensors(preconditioners), like)


def as_dtype(name: str) -> torch.dtype:
    """Find a dtype that rows are kept in, by its name.

    Raises:
        ValueError: If rows can't be kept so.
    """
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if name not in known:
        raise ValueError(f"dtype: expected one of {list(known)}, found {name!r}")
    return known[name]
