"""From gradients to the rows of an index: divided by the root of second moments, projected, and added up by blocks.

``phi = P (gradient / sqrt(V))`` (Chang et al. 2024, arXiv 2410.17413, section 3). The steps don't commute: the division
comes first, at full size. One of rank one is folded into the projection, so that nothing of a weight's size is formed;
an elementwise one needs each example's gradient of each weight whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ftrace.gradients import (
    Elementwise,
    Entries,
    PerExampleGradients,
    Preconditioner,
    Projection,
    RankOne,
    flat_rows,
    precondition,
    project,
    rank_one,
)
from ftrace.index.blocks import Layout, make_blocks

Correction = Literal["rank-one", "elementwise", "none"]
CORRECTIONS: tuple[Correction, ...] = ("rank-one", "elementwise", "none")


@dataclass(frozen=True)
class FeatureSettings:
    """What the rows of an index are.

    Args:
        side: K: a weight's gradient becomes K x K, a block of a row K * K numbers.
        seed: Of the projection.
        layout: Which weights share a block: "pooled", "layer" or "parameter".
        groups: Of the layout "pooled": groups of consecutive layers for attention and for MLP weights.
        parameters: Globs over parameter names, in order; one that begins with "!" takes away. Default: the matrices in
            the model's numbered blocks.
        correction: What gradients are divided by: "rank-one", the root of the closest outer product to the optimizer's
            second moments; "elementwise", their root as it is; "none".
        entries: Of the projection: "normal" or "signs".

    Raises:
        ValueError: If a number is out of range or an option unknown.
    """

    side: int = 16
    seed: int = 0
    layout: Layout = "pooled"
    groups: int = 8
    parameters: tuple[str, ...] | None = None
    correction: Correction = "rank-one"
    entries: Entries = "normal"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side: expected at least 1, found {self.side}")
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction: expected one of {list(CORRECTIONS)}, found {self.correction!r}")
        Projection(self.side, self.seed, self.entries)
        make_blocks([], self.layout, self.groups)


class GradientFeatures:
    """Makes rows of gradients, for examples and queries alike.

    Args:
        settings: How.
        names: The parameters, in the model's order.
        preconditioners: One over the root of second moments, by parameter; those of others count as 1.

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
        self.blocks = make_blocks(names, settings.layout, settings.groups)
        given = {} if settings.correction == "none" else dict(preconditioners or {})
        self.preconditioners = {name: factor for name, factor in given.items() if name in set(names)}

    @property
    def block_size(self) -> int:
        """Numbers of a row in each block."""
        return self.settings.side**2

    @property
    def size(self) -> int:
        """D: numbers of a row."""
        return len(self.blocks) * self.block_size

    @property
    def needs_whole(self) -> bool:
        """Whether gradients must come whole; otherwise projected by :attr:`projection`."""
        return any(isinstance(one, Elementwise) and one.scale.ndim > 1 for one in self.preconditioners.values())

    @cached_property
    def projection(self) -> Projection:
        """What gradients are projected with, division included where it can be folded in."""
        plain = Projection(self.settings.side, self.settings.seed, self.settings.entries)
        return plain if self.needs_whole else plain.preconditioned(self.preconditioners)

    def without_correction(self) -> GradientFeatures:
        """The same of gradients as they are."""
        return GradientFeatures(replace(self.settings, correction="none"), self.names)

    def rows(self, gradients: PerExampleGradients) -> Tensor:
        """Rows ``[B, D]`` of gradients that are projected, or whole where :attr:`needs_whole`.

        A parameter without gradient, such as of a layer that has not run, counts as 0.
        """
        if self.needs_whole:
            factors: dict[str, float | Preconditioner] = {
                name: self.preconditioners.get(name, 1.0) for name in gradients.parts
            }
            gradients = project(precondition(gradients, factors), self.projection)
        rows = gradients.zeros(len(gradients), len(self.blocks), self.block_size)
        for place, names in enumerate(self.blocks.values()):
            for name in names:
                if name in gradients.parts:
                    rows[:, place] += flat_rows(gradients.dense(name))
        return rows.flatten(1)

    def row_of(self, gradients: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """The row ``[D]`` of one gradient, given by parameter: what the rows of its examples must sum to.

        Args:
            gradients: Each in its parameter's shape.
            like: A tensor of the dtype and on the device wanted.
        """
        row = like.new_zeros(len(self.blocks), self.block_size)
        for place, names in enumerate(self.blocks.values()):
            for name in names:
                if name in gradients:
                    given = gradients[name].to(like)
                    if self.needs_whole and name in self.preconditioners:
                        given = given * self.preconditioners[name].dense().view(given.shape)
                    row[place] += self.projection.project(name, given[None]).flatten()
        return row.flatten()


def correction_of(factor: Preconditioner, correction: Correction) -> Preconditioner:
    """What an index divides by, of what an optimizer divides by: for matrices, the closest outer product or all of it.

    Vectors' gradients are divided elementwise in any case, which costs nothing.
    """
    if correction == "rank-one" and isinstance(factor, Elementwise) and factor.scale.ndim > 1:
        return rank_one(factor)[0]
    if correction == "elementwise" and isinstance(factor, RankOne):
        return Elementwise(factor.dense())
    return factor


def to_tensors(preconditioners: Mapping[str, Preconditioner]) -> dict[str, Tensor]:
    """Preconditioners as a file of tensors holds them."""
    found: dict[str, Tensor] = {}
    for name, factor in preconditioners.items():
        if isinstance(factor, RankOne):
            found |= {f"{name}::rows": factor.rows, f"{name}::columns": factor.columns}
        else:
            found[f"{name}::scale"] = factor.scale
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def from_tensors(tensors: Mapping[str, Tensor], like: Tensor | None = None) -> dict[str, Preconditioner]:
    """The inverse of :func:`to_tensors`, on the device and in the dtype of a tensor."""
    placed = {name: tensor if like is None else tensor.to(like) for name, tensor in tensors.items()}
    found: dict[str, Preconditioner] = {}
    for full, tensor in placed.items():
        name, _, part = full.partition("::")
        if part == "rows":
            found[name] = RankOne(tensor, placed[f"{name}::columns"])
        elif part == "scale":
            found[name] = Elementwise(tensor)
    return found


def placed(preconditioners: Mapping[str, Preconditioner], like: Tensor) -> dict[str, Preconditioner]:
    """Preconditioners on the device and in the dtype of a tensor."""
    return from_tensors(to_tensors(preconditioners), like)


def as_dtype(name: str) -> torch.dtype:
    """A dtype that rows are kept in, by its name.

    Raises:
        ValueError: If rows can't be kept so.
    """
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if name not in known:
        raise ValueError(f"dtype: expected one of {list(known)}, found {name!r}")
    return known[name]
