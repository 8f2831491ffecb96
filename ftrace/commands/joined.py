"""Causal tracing joined to attribution, of a finished run: ``ftrace causal-trace --scores`` and the main job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ftrace.causal import Outcome, PromptTrace, Stack
from ftrace.causal.joined import Joined, JoinedQuery, join_profiles
from ftrace.commands.join_settings import JoinSettings
from ftrace.data import FactData
from ftrace.data.text import fill_in
from ftrace.evaluation.layer_profiles import score_profile
from ftrace.report.joined_plots import Teacher, plot_joined
from ftrace.report.joined_tables import write_joined
from ftrace.report.pictures import remove_pictures
from ftrace.scores import ScoreStore

PICTURES = "joined"


@dataclass(frozen=True)
class JoinedFiles:
    """The joined profiles, and the files that they were written to.

    Args:
        joined: The profiles, and how they agree.
        tables: ``layer_profiles.csv``, ``joined.csv`` and ``joined.json``.
        pictures: The PNG of each query that was drawn; a PDF is beside it.
    """

    joined: Joined
    tables: list[Path]
    pictures: list[Path]


def join(
    traces: Sequence[PromptTrace],
    store: ScoreStore,
    data: FactData,
    layer_names: Mapping[Stack, Sequence[str]],
    output_dir: Path,
    settings: JoinSettings | None = None,
    outcome: Outcome = "probability",
    seed: int = 0,
) -> JoinedFiles:
    """Join what causal tracing found of a data set's queries to a store's scores, and write tables and pictures.

    Args:
        traces: Of queries; those that were not traced are left out, and counted.
        store: Scores that are broken down by layer, of a FactLM.
        data: The data set, set up.
        layer_names: What each stack's layers are called; see :attr:`ftrace.causal.CausalTracer.layer_names`.
        output_dir: Where files go; pictures in a folder ``joined`` in it.
        settings: How.
        outcome: Effects on what.
        seed: Of the intervals.

    Raises:
        ValueError: If the store is not broken down by layer, lacks a query or the kind, no query was traced, or there
            is nothing to compare.
    """
    settings = settings or JoinSettings()
    kind = settings.kind or store.kinds[0]
    asked = [int(trace.query_id) for trace in traces if trace.stacks and trace.query_id is not None]
    missing = sorted(set(asked) - set(store.query_ids.tolist()))
    if missing:
        raise ValueError(f"{store.path}: expected scores of each query that was traced, found none of {missing[:3]}")
    true = dict(zip(data.query_rows["query_id"], data.query_rows["proponent_ids"], strict=True))
    by_truth = settings.summed_over == "ground_truth"
    profiles = [
        score_profile(store, query, kind, settings.k, _of_fact(true, query) if by_truth else None) for query in asked
    ]
    joined = join_profiles(
        traces, profiles, layer_names, kind=kind,
        summed_over="the ground-truth proponents" if by_truth else f"the {settings.k} strongest proponents",
        mediator=settings.mediator, reduction=settings.reduction, outcome=outcome, seed=seed,
    )  # fmt: skip
    tables = write_joined(joined, output_dir)
    remove_pictures(output_dir / PICTURES)
    pictures = []
    for query in _some(joined.queries, settings.pictures):
        ids, scores = store.top(query.query_id, settings.listed, kind)
        stating = set(true.get(query.query_id, ()))
        teachers = [
            Teacher(example, score, _sentence(data, example), example in stating)
            for example, score in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        file = output_dir / PICTURES / f"query-{query.query_id}"
        pictures.append(plot_joined(query, joined, teachers, file)[0])
    return JoinedFiles(joined, tables, pictures)


def _of_fact(true: Mapping[int, Sequence[int]], query: int) -> Sequence[int]:
    proponents = true.get(query)
    if not proponents:
        raise ValueError(
            f"summed_over: expected ground-truth proponents of each query, found none of query {query}. Sum over the "
            "strongest instead"
        )
    return proponents


def _some(queries: Sequence[JoinedQuery], most: int | None) -> list[JoinedQuery]:
    count = len(queries) if most is None else min(most, len(queries))
    positions = np.unique(np.linspace(0, len(queries) - 1, count).round().astype(int)).tolist() if count else []
    return [queries[position] for position in positions]


def _sentence(data: FactData, example: int) -> str:
    row = data.train_rows[example]
    return fill_in(row["inputs_pretokenized"], row["targets_pretokenized"])
