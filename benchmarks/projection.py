"""How well products of projected gradients agree with exact ones, by dimension, raw and divided by second moments.

    python benchmarks/projection.py --run runs/synth_demo/version_0

Products of some examples' gradients with all queries' at one snapshot, over the matrices of the model's blocks: exact,
and of rows of 2^8 to 2^16 numbers (four blocks: attention and MLP weights of either half of the layers). Raw
gradients, and divided by the root of the optimizer's second moments, elementwise or by the closest outer product; the
latter is held against the former's exact products, too. Correlations are over all pairs, and in the median over
queries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ftrace.attribution.index_pass import covered_names, measured, preconditioners_at
from ftrace.gradients import GradientCapture, PerExampleGradients, inner_products, precondition
from ftrace.gradients.queries import QueryGradients
from ftrace.index import (
    PRECONDITIONER_KINDS,
    FeatureSettings,
    GradientFeatures,
    GradientRows,
    IndexSettings,
    PreconditionerKind,
    moved_like,
)
from ftrace.runs import Run

SIDES = (8, 11, 16, 23, 32, 45, 64, 91, 128)


def exact(
    model: Any, names: list[str], batches: list[Any], query_batches: list[Any], factors: dict[str, Any]
) -> Tensor:
    """Exact products, ``[N, Q]``."""
    capture = GradientCapture(model, names, strict=True)

    def gradients(batch: Any) -> PerExampleGradients:
        with capture.recording(len(batch["labels"])) as recording:
            recording.backward(model.example_losses(batch))
        found = recording.gradients()
        return precondition(found, {name: factors.get(name, 1.0) for name in found.parts}) if factors else found

    with capture:
        queries = QueryGradients(PerExampleGradients.stack([_whole(gradients(batch)) for batch in query_batches]))
        return torch.cat([inner_products(gradients(batch), queries, names).detach() for batch in batches])


def _whole(gradients: PerExampleGradients) -> PerExampleGradients:
    """With scales multiplied in."""
    from ftrace.gradients import Dense

    parts: Any = {name: [Dense(gradients.dense(name))] for name in gradients.parts}
    return PerExampleGradients(parts, gradients.shapes, len(gradients))


def projected(model: Any, features: GradientFeatures, batches: list[Any], query_batches: list[Any]) -> Tensor:
    """Products of rows, ``[N, Q]``."""
    rows = GradientRows(model, features, measured("loss"))
    queries = torch.cat([rows(batch)[0] for batch in query_batches])
    found = torch.cat([rows(batch)[0] @ queries.T for batch in batches])
    rows.detach()
    return found


def correlations(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Pearson's, over all pairs and in the median over queries."""
    over_all = np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1]
    of_queries = [np.corrcoef(a.numpy(), b.numpy())[0, 1] for a, b in zip(one.T, other.T, strict=True)]
    return float(over_all), float(np.median(of_queries))


def main(run: str, examples: int = 512, seeds: int = 3, sides: tuple[int, ...] = SIDES) -> None:
    """Measure and print a table.

    Args:
        run: Folder of a run whose optimizer keeps second moments.
        examples: How many training examples, drawn at random.
        seeds: Projections to average over.
        sides: K: a row has 4 K^2 numbers.
    """
    opened = Run(run)
    model = opened.model
    snapshot = opened.last_snapshot
    drawn = np.sort(np.random.default_rng(0).choice(len(opened.data.train_rows), examples, replace=False))
    rows = [opened.data.train_rows[int(place)] for place in drawn]
    collate, size = opened.data.example_dataloader().collate_fn, 64
    batches = [collate(rows[start : start + size]) for start in range(0, examples, size)]
    query_batches = list(opened.data.query_dataloader())
    settings = FeatureSettings(layer_groups=2)
    names = covered_names(model, IndexSettings(settings))
    like = next(model.parameters())
    ways: dict[PreconditionerKind, dict[str, Any]] = {}
    for kind in PRECONDITIONER_KINDS:
        own = IndexSettings(replace(settings, preconditioner=kind))
        factors = moved_like(preconditioners_at(snapshot, model, own), like)
        ways[kind] = {name: factor for name, factor in factors.items() if name in set(names)}
    whole = {way: exact(model, names, batches, query_batches, factors) for way, factors in ways.items()}
    shown: dict[str, tuple[PreconditionerKind, PreconditionerKind]] = {
        "raw": ("none", "none"),
        "divided, rank one": ("rank-one", "rank-one"),
        "divided, elementwise": ("elementwise", "elementwise"),
        "rank one beside elementwise": ("rank-one", "elementwise"),
    }
    table = Table("numbers of a row", *shown)
    for side in track(sides, "projecting", transient=True):
        cells = []
        for way, target in shown.values():
            found = [
                correlations(
                    projected(
                        model,
                        GradientFeatures(
                            FeatureSettings(side, seed, layer_groups=2, preconditioner=way), names, ways[way]
                        ),
                        batches,
                        query_batches,
                    ).detach(),
                    whole[target],
                )
                for seed in range(seeds)
            ]
            over_all, of_queries = np.array(found).mean(0)
            cells.append(f"{over_all:.3f} ({of_queries:.3f})")
        table.add_row(f"{4 * side**2:,}", *cells)
    exact_cells = [f"{a:.3f} ({b:.3f})" for a, b in (correlations(whole[w], whole[t]) for w, t in shown.values())]
    table.add_row("exact", *exact_cells)
    console = Console(width=130)
    console.print(table)
    console.print(
        f"Pearson's correlation with exact products over {examples} examples x {whole['none'].shape[1]} queries (in "
        f"brackets: in the median over queries), mean of {seeds} projections; {snapshot.name} of {run}"
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
