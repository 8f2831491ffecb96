"""Causal tracing joined with attribution: a printed table, and its numbers as files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from ftrace.causal.joined import Joined, JoinedQuery, Layer
from ftrace.causal.prompt_trace import OUTCOMES
from ftrace.evaluation import Estimate
from ftrace.evaluation.files import nan_as_null, replace_csv
from ftrace.evaluation.formatting import plain_table
from ftrace.files.manifests import write_json
from ftrace.files.noted_files import note_files
from ftrace.report.causal_words import UNITS
from ftrace.shown_text import plain, shortened

_FILES = ("layer_profiles.csv", "joined.csv", "joined.json")


def layer_label(layer: Layer, layers: Sequence[Layer]) -> str:
    """Name a layer by its number, preceded by its stack if there are two.

    Example:
        >>> encoder, decoder = Layer("encoder", 0, "encoder.block.0"), Layer("decoder", 3, "decoder.block.3")
        >>> layer_label(decoder, [encoder, decoder]), layer_label(decoder, [decoder])
        ('decoder 3', '3')
    """
    return f"{layer.stack} {layer.number}" if len({other.stack for other in layers}) > 1 else str(layer.number)


def render_joined(joined: Joined, most: int = 10) -> RenderableType:
    """Render a table with a line for each query, and below it figures of all queries and notes.

    Args:
        most: Number of queries to show, evenly spaced among all.
    """
    unit, agreement = UNITS[joined.outcome], joined.agreement
    labels = [layer_label(layer, joined.layers) for layer in joined.layers]
    outcome_number = OUTCOMES.index(joined.outcome)
    table = plain_table(
        "What taught it, where it was written, where it is read: causal effects and scores by layer",
        "query",
        ["answer", "effect", "read in", "written in", "corr."],
    )
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    count = len(joined.queries)
    for index in np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist():
        query = joined.queries[index]
        trace = query.trace
        table.add_row(
            shortened(f"{query.query_id}: {query.prompt}", 24),
            shortened(trace.answers[0], 14) if trace.answers else "",
            unit.text(float(trace.clean[outcome_number] - trace.corrupted[outcome_number])),
            labels[int(query.effects.argmax())],
            labels[int(query.scores.argmax())],
            signed(query.correlation),
        )
    if count > most:
        table.add_row(f"... and {count - most} more", style="dim")
    lines = [
        "effect: the total effect; read in: layer of the largest causal effect; written in: layer of the largest "
        "score; corr.: rank correlation of both over layers",
        f"Mean rank correlation of {agreement.num_queries} queries over {len(labels)} layers: "
        f"{_estimate(agreement.matched)}; with other facts' profiles {_estimate(agreement.mismatched)}; difference "
        f"{_estimate(agreement.difference)}",
        "Over queries, layer by layer: "
        + ", ".join(f"{label} {signed(value)}" for label, value in zip(labels, agreement.by_layer, strict=True)),
        *[f"- {note}" for note in joined.notes],
    ]
    return Group(table, *[Text(plain(line)) for line in lines])


def signed(value: float) -> str:
    """Format a correlation with its sign and two digits; NaN gives an empty text."""
    return "" if math.isnan(value) else f"{round(value, 2) + 0.0:+.2f}"  # adding 0.0 turns -0.00 into 0.00


def _estimate(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "not known"
    ends = "" if math.isnan(estimate.low) else f" [{signed(estimate.low)}, {signed(estimate.high)}]"
    return signed(estimate.mean) + ends


def write_joined(joined: Joined, folder: Path) -> list[Path]:
    """Write the joined effects and scores, each file whole or not at all.

        layer_profiles.csv   a line for each query and part of the model: its causal effect, its scores and their share
        joined.csv           a line for each query
        joined.json          figures of all queries, and settings

    Effects and scores are not rescaled: probabilities are shares of 1. Unknown values are empty, in JSON null.

    Args:
        folder: Folder of the files; missing folders are made.

    Returns:
        The paths of the files, in this order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profiles, queries, summary = (folder / name for name in _FILES)
    replace_csv(profiles, _profile_rows(joined))
    replace_csv(queries, _query_rows(joined))
    write_json(summary, nan_as_null(_as_json(joined)))
    note_files(folder, [profiles.name, queries.name, summary.name])
    return [profiles, queries, summary]


def _profile_rows(joined: Joined) -> Iterable[Sequence[Any]]:
    yield ["query_id", "fact", "stack", "layer", "part", "causal_effect", "score", "score_share"]
    for query in joined.queries:
        about = [query.query_id, query.trace.fact or ""]
        for layer, effect in zip(joined.layers, query.effects.tolist(), strict=True):
            yield [*about, layer.stack, layer.number, layer.part, effect, *_score(query, layer.part)]
        for part in joined.outside:
            yield [*about, "", "", part, "", *_score(query, part)]


def _score(query: JoinedQuery, part: str) -> list[Any]:
    return [query.profile.parts[part], _known(query.profile.share(part))]


def _query_rows(joined: Joined) -> Iterable[Sequence[Any]]:
    labels = [layer_label(layer, joined.layers) for layer in joined.layers]
    outcome_number = OUTCOMES.index(joined.outcome)
    yield [
        "query_id", "fact", "prompt", "subject", "answer", "clean", "corrupted", "total_effect", "rank_correlation",
        "rank_correlation_mismatched", "most_effect_in", "most_score_in", "score", "score_share_outside", "example_ids",
    ]  # fmt: skip
    for query in joined.queries:
        trace = query.trace
        yield [
            query.query_id, trace.fact or "", trace.prompt, trace.subject, trace.answers[0] if trace.answers else "",
            _known(float(trace.clean[outcome_number])), _known(float(trace.corrupted[outcome_number])),
            _known(trace.total_effect(joined.outcome)), _known(query.correlation), _known(query.mismatched),
            labels[int(query.effects.argmax())], labels[int(query.scores.argmax())], query.profile.total,
            _known(query.share_outside), " ".join(map(str, query.profile.example_ids.tolist())),
        ]  # fmt: skip


def _known(value: float) -> Any:
    return "" if math.isnan(value) else value


def _as_json(joined: Joined) -> dict[str, Any]:
    agreement = joined.agreement

    def as_json(estimate: Estimate) -> dict[str, Any]:
        return {"mean": estimate.mean, "interval": [estimate.low, estimate.high]}

    return {
        "num_queries": len(joined.queries),
        "num_ranked": agreement.num_queries,
        "left_out": joined.left_out,
        "num_layers": len(joined.layers),
        "mediator": joined.mediator,
        "reduction": joined.reduction,
        "outcome": joined.outcome,
        "kind": joined.kind,
        "summed_over": joined.summed_over,
        "rank_correlation": as_json(agreement.matched),
        "rank_correlation_mismatched": as_json(agreement.mismatched),
        "difference": as_json(agreement.difference),
        "by_layer": [
            {
                "stack": layer.stack,
                "layer": layer.number,
                "part": layer.part,
                "mean_causal_effect": float(np.mean([query.effects[index] for query in joined.queries])),
                "mean_score": float(np.mean([query.scores[index] for query in joined.queries])),
                "rank_correlation_over_queries": float(agreement.by_layer[index]),
            }
            for index, layer in enumerate(joined.layers)
        ],
        "outside": {"parts": list(joined.outside), "share_of_scores": joined.share_outside},
        "without_scores": list(joined.without_scores),
        "notes": joined.notes,
        "seed": joined.seed,
    }
