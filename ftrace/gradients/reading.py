"""Reading the per-example gradients that the runs of layers have left, after a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ftrace.gradients.coverage import Layer
from ftrace.gradients.layouts import Examples
from ftrace.gradients.outputs import trained
from ftrace.gradients.parts import Part, Positions
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.projection import Projection
from ftrace.gradients.uses import AnyUse


def read_runs(uses: Sequence[AnyUse]) -> Iterator[tuple[Layer, list[tuple[str, Part | Positions]]]]:
    """Yield each run of a layer that has left gradients: the layer, and its parts with the parameters' full names."""
    for use in uses:
        names = trained(use.layer)
        parts = use.parts(names)
        if parts:
            yield use.layer, [(names[local], part) for local, part in parts.items()]


def read_gradients(uses: Sequence[AnyUse], examples: Examples, projection: Projection | None) -> PerExampleGradients:
    """Add up the gradients of all runs, parameter by parameter.

    Args:
        uses: The runs of layers, and uses of parameters, of one pass.
        examples: Of the batch. Where it is made of several dataloaders' batches, each run has one of these, or all.
        projection: The one that gradients were projected with; None where they weren't.
    """
    if not examples.loaders:
        return _read(uses, examples.total, projection)
    of_all = _read([use for use in uses if use.loader is None], examples.total, projection)
    of_loaders = [
        _read([use for use in uses if use.loader == loader], count, projection)
        for loader, count in enumerate(examples.loaders)
    ]
    stacked = PerExampleGradients.stack(of_loaders)
    names = dict.fromkeys([*of_all.parts, *stacked.parts])
    parts: dict[str, list[Part | Positions]] = {
        name: [*of_all.parts.get(name, ()), *stacked.parts.get(name, ())] for name in names
    }
    return PerExampleGradients(parts, {**of_all.shapes, **stacked.shapes}, examples.total)


def _read(uses: Sequence[AnyUse], num_examples: int, projection: Projection | None) -> PerExampleGradients:
    parts: dict[str, list[Part | Positions]] = {}
    shapes: dict[str, torch.Size] = {}
    for layer, of_run in read_runs(uses):
        local_names = {full: local for local, full in layer.names.items()}
        for name, part in of_run:
            parts.setdefault(name, []).append(part)
            shape = layer.parameter(local_names[name]).shape
            shapes[name] = shape if projection is None else projection.shape(shape)
    return PerExampleGradients(parts, shapes, num_examples)
