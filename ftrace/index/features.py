"""From gradients to the rows of an index: divided by the root of second moments, projected, and summed by blocks.

``phi = P (gradient / sqrt(V))`` (Chang et al. 2024, arXiv 2410.17413, section 3). The steps don't commute: the division
comes first, at full size. One of rank one is folded into the projection, so that nothing of a weight's size is formed;
an elementwise one needs each example's unprojected gradient of each weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ftrace.arguments import Name, Positive, Seed, checked
from ftrace.gradients import (
    OLD_ENTRIES,
    Elementwise,
    Entries,
    PerExampleGradients,
    Preconditioner,
    Projection,
    ProjectionSide,
    RankOne,
    flat_rows,
    precondition,
    project,
    rank_one,
)
from ftrace.index.blocks import Layout, make_blocks
from ftrace.renamed import use_new_names, warn_of_old_name

PreconditionerKind = Literal["rank-one", "elementwise", "none"]
PRECONDITIONER_KINDS: tuple[PreconditionerKind, ...] = ("rank-one", "elementwise", "none")

# Old names: arguments and flags under them work for one more release; indexes on disk that have them are read.
OLD_OPTIONS = {"side": "projection_side", "groups": "layer_groups", "correction": "preconditioner"}


@checked
@dataclass(frozen=True)
class FeatureSettings:
    """The options that decide what the rows of an index are.

    Raises:
        ValueError: If a number is out of range or an option unknown.
    """

    projection_side: ProjectionSide = 16
    """K: a weight's gradient becomes K x K, a block of a row K * K numbers."""
    seed: Seed = 0
    """Of the projection, and of the sample that the autocorrelation R is taken of."""
    layout: Layout = "pooled"
    """Which weights share a block: "pooled", attention and MLP weights of consecutive layers; "layer"; "parameter"."""
    layer_groups: Positive = 8
    """Of the layout "pooled": how many groups of consecutive layers, for attention and for MLP weights."""
    parameters: tuple[Name, ...] | None = None
    """Globs over parameter names, in order; one that begins with "!" excludes. Default: the matrices in the model's
    numbered blocks."""
    preconditioner: PreconditionerKind = "rank-one"
    """What gradients are divided by: "rank-one", the root of the closest outer product to the optimizer's second
    moments; "elementwise", their root as it is, which forms each example's gradient of each weight; "none"."""
    entries: Entries = "gaussian"
    """Of the projection: "gaussian", as TrackStar has them, or "rademacher", with which products vary a little less."""

    def __post_init__(self) -> None:
        if self.entries in OLD_ENTRIES:
            warn_of_old_name("entries", self.entries, OLD_ENTRIES[self.entries])
            object.__setattr__(self, "entries", OLD_ENTRIES[self.entries])

    @staticmethod
    def under_new_names(who: str, **options: Any) -> FeatureSettings:
        """Make settings of options that may have old names, with a warning.

        Args:
            who: What the options were given to, for messages.
            options: By name; those of old names are None where they were not given.

        Raises:
            ValueError: If an option is given under both names.
        """
        return FeatureSettings(**use_new_names(who, options, OLD_OPTIONS, asdict(FeatureSettings())))

    @property
    def projection(self) -> Projection:
        """The projection, of gradients that are not preconditioned."""
        return Projection(self.projection_side, self.seed, self.entries)


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
        plain = self.settings.projection
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
