"""Rows of an index: what they are divided by, and what they sum to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftrace.gradients import Dense, Elementwise, PerExampleGradients, Projection, RankOne, project
from ftrace.index import FeatureSettings, GradientFeatures
from ftrace.index.features import PreconditionerKind, preconditioner_for_index

NAMES = ["h.0.attn.weight", "h.0.attn.bias", "h.1.attn.weight"]
SHAPES = {"h.0.attn.weight": (4, 3), "h.0.attn.bias": (4,), "h.1.attn.weight": (4, 3)}


def scale_of(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["rank-one", "elementwise", "none"])
def test_the_row_of_a_sum_is_the_sum_of_rows(kind: PreconditionerKind) -> None:
    factors = {
        name: preconditioner_for_index(Elementwise(scale_of(shape, seed)), kind)
        for seed, (name, shape) in enumerate(SHAPES.items())
        if kind != "none" and name != "h.1.attn.weight"  # what has none counts as 1
    }
    settings = FeatureSettings(2, layout="pooled", layer_groups=1, preconditioner=kind)
    features = GradientFeatures(settings, NAMES, factors)
    drawn = torch.Generator().manual_seed(9)
    dense = {name: torch.randn(5, *shape, generator=drawn, dtype=torch.float64) for name, shape in SHAPES.items()}
    shapes = {name: torch.Size(shape) for name, shape in SHAPES.items()}
    whole = PerExampleGradients({name: [Dense(values)] for name, values in dense.items()}, shapes, 5)
    assert features.needs_unprojected == (kind == "elementwise")
    rows = features.rows(whole if features.needs_unprojected else project(whole, features.projection))
    assert rows.shape == (5, features.size)
    total = features.row_of({name: values.sum(0) for name, values in dense.items()}, rows)
    torch.testing.assert_close(rows.sum(0), total, rtol=1e-10, atol=1e-12)
    plain = GradientFeatures(settings, NAMES).row_of({name: values.sum(0) for name, values in dense.items()}, rows)
    assert torch.allclose(plain, total) == (kind == "none")


def test_of_an_optimizers_preconditioner_an_index_makes_its_own() -> None:
    matrix, vector = Elementwise(scale_of((4, 3), 0)), Elementwise(scale_of((4,), 1))
    outer = RankOne(scale_of((4,), 2), scale_of((3,), 3))
    assert isinstance(preconditioner_for_index(matrix, "rank-one"), RankOne)
    assert preconditioner_for_index(outer, "rank-one") is outer
    assert preconditioner_for_index(matrix, "elementwise") is matrix
    found = preconditioner_for_index(outer, "elementwise")
    assert isinstance(found, Elementwise)
    torch.testing.assert_close(found.scale, outer.dense())
    for kind in ("rank-one", "elementwise"):
        assert preconditioner_for_index(vector, kind) is vector  # type: ignore[arg-type]


def test_a_table_is_not_preconditioned_where_it_has_no_factor() -> None:
    module = nn.Linear(3, 4, dtype=torch.float64)
    features = GradientFeatures(
        FeatureSettings(2, layout="parameter", preconditioner="none"),
        ["weight"],
        {"weight": Elementwise(torch.full((4, 3), 7.0).double())},
    )
    assert features.preconditioners == {}
    row = features.row_of({"weight": module.weight.detach()}, module.weight)
    projection = Projection(2, features.settings.seed)
    torch.testing.assert_close(row.view(2, 2), projection.project("weight", module.weight[None])[0])
