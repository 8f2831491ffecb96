"""Reading the per-example gradients that the runs of layers have left, after a backward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ftrace.gradients.coverage import Layer
from ftrace.gradients.layouts import Examples
from ftrace.gradients.outputs import trained
from ftrace.gradients.parts import Dense, Part, Positions, merge
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.projection import Projection, Projections
from ftrace.gradients.uses import AnyUse


def read_runs(uses: Sequence[AnyUse]) -> Iterator[tuple[Layer, list[tuple[str, Part | Positions]]]]:
    """Yield each run of a layer that has left gradients: the layer, and its parts with the parameters' full names."""
    for use in uses:
        for layer, forms in _forms(use):
            yield layer, forms[0]


def _forms(
    use: AnyUse, taken: Collection[str] = (), only: Collection[str] | None = None
) -> Iterator[tuple[Layer, list[list[tuple[str, Part | Positions]]]]]:
    wanted = trained(use.layer)
    names = {n: full for n, full in wanted.items() if full not in taken and (only is None or full in only)}
    if not names:
        return
    forms = use.forms(names)
    if any(forms):
        yield use.layer, [[(names[local], part) for local, part in parts.items()] for parts in forms]


def read_gradients(
    uses: Sequence[AnyUse],
    examples: Examples,
    projections: Projections | None,
    *,
    taken: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[PerExampleGradients]:
    """Add up the gradients of all runs, parameter by parameter, once for each projection, or unprojected.

    Args:
        uses: The runs of layers, and uses of parameters, of one pass.
        examples: Of the batch. Where it is made of several dataloaders' batches, each run has one of these, or all.
        projections: Those that gradients were projected with; None where they weren't.
        taken: Parameters that were read during the backward pass, which are left out.
        only: Just these parameters; default: all.
    """
    if not examples.loaders:
        return _read(uses, examples.total, projections, taken, only)
    of_all = _read([use for use in uses if use.loader is None], examples.total, projections)
    of_loaders = [
        _read([use for use in uses if use.loader == loader], count, projections)
        for loader, count in enumerate(examples.loaders)
    ]
    return [
        _joined(of_form, [of_loader[number] for of_loader in of_loaders], examples)
        for number, of_form in enumerate(of_all)
    ]


def _joined(
    of_all: PerExampleGradients, of_loaders: Sequence[PerExampleGradients], examples: Examples
) -> PerExampleGradients:
    stacked = PerExampleGradients.stack(of_loaders)
    names = dict.fromkeys([*of_all.parts, *stacked.parts])
    parts: dict[str, list[Part | Positions]] = {
        name: [*of_all.parts.get(name, ()), *stacked.parts.get(name, ())] for name in names
    }
    return PerExampleGradients(parts, {**of_all.shapes, **stacked.shapes}, examples.total)


def _read(
    uses: Sequence[AnyUse],
    num_examples: int,
    projections: Projections | None,
    taken: Collection[str] = (),
    only: Collection[str] | None = None,
) -> list[PerExampleGradients]:
    members: Sequence[Projection | None] = (None,) if projections is None else projections.members
    parts: list[dict[str, list[Part | Positions]]] = [{} for _ in members]
    shapes: dict[str, torch.Size] = {}
    for use in uses:
        for layer, forms in _forms(use, taken, only):
            shapes |= {full: layer.parameter(local).shape for local, full in layer.names.items()}
            for of_form, of_run in zip(parts, forms, strict=True):
                for name, part in of_run:
                    of_form.setdefault(name, []).append(part)
    for member, of_form in zip(members, parts, strict=True):
        if member is not None:
            _project_vectors(member, of_form, shapes)
    return [
        PerExampleGradients(
            of_form, {n: shapes[n] if member is None else member.shape(shapes[n]) for n in of_form}, num_examples
        )
        for of_form, member in zip(parts, members, strict=True)
    ]


def _project_vectors(
    projection: Projection, parts: dict[str, list[Part | Positions]], shapes: Mapping[str, torch.Size]
) -> None:
    """Project the gradients of all vectors at once: uses leave them as they are."""
    vectors: dict[str, Tensor] = {}
    for name, of_name in parts.items():
        if len(shapes[name]) < 2:
            (merged,) = merge(of_name)
            assert isinstance(merged, Dense)
            vectors[name] = merged.value
    parts |= {name: [Dense(projected)] for name, projected in projection.project_vectors(vectors).items()}
