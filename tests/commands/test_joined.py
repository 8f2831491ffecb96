"""Causal tracing joined to a store's scores, as commands do it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from ftrace.causal import PromptTrace, Stack
from ftrace.commands.join_settings import JoinSettings
from ftrace.commands.joined import join
from ftrace.scores import ScoreStore, Sum
from helpers.made_traces import left_out, made_trace

NAMES: dict[Stack, list[str]] = {"decoder": [f"transformer.h.{layer}" for layer in range(3)]}
PARTS = ["model.transformer.wte", *[f"model.{name}" for name in NAMES["decoder"]]]


def traces() -> list[PromptTrace]:
    return [replace(made_trace(f"query-{one}", seed=one, fact=f"f{one}"), query_id=one) for one in range(4)]


def store(folder: Path, parts: list[str] = PARTS) -> ScoreStore:
    generator = np.random.default_rng(0)
    values = {part: generator.normal(size=(20, 4)) for part in parts}
    scores: dict[Sum, Any] = {Sum("update"): sum(values.values())}
    scores |= {Sum("update", "layer", part): own for part, own in values.items()}
    return ScoreStore.write(folder / "online", np.arange(20), np.arange(4), scores)


def data() -> Any:
    """What a datamodule has, once it is set up."""
    rows = [
        {"example_id": one, "inputs_pretokenized": f"<extra_id_0> is the capital of {one}",
         "targets_pretokenized": "<extra_id_0> Oslo"}
        for one in range(20)
    ]  # fmt: skip
    queries = [{"query_id": one, "proponent_ids": [one, one + 4] if one < 3 else []} for one in range(4)]
    return SimpleNamespace(train_rows=datasets.Dataset.from_list(rows), query_rows=datasets.Dataset.from_list(queries))


def test_tables_and_pictures_are_written(tmp_path: Path) -> None:
    found = join([*traces(), left_out()], store(tmp_path), data(), NAMES, tmp_path / "out", JoinSettings(pictures=2))
    assert [file.name for file in found.tables] == ["layer_profiles.csv", "joined.csv", "joined.json"]
    assert [file.name for file in found.pictures] == ["query-0.png", "query-3.png"]
    assert all(file.exists() and file.with_suffix(".pdf").exists() for file in found.pictures)
    assert found.joined.outside == ("model.transformer.wte",)
    opened = store(tmp_path)
    ids, scores = opened.top(2, 10, "update")
    assert found.joined.queries[2].profile.example_ids.tolist() == ids.tolist()
    assert found.joined.queries[2].profile.total == pytest.approx(scores.sum(), abs=1e-5)


def test_scores_of_examples_that_state_the_fact(tmp_path: Path) -> None:
    settings = JoinSettings(summed_over="ground_truth", pictures=0)
    found = join(traces()[:3], store(tmp_path), data(), NAMES, tmp_path / "out", settings)
    assert [sorted(query.profile.example_ids.tolist()) for query in found.joined.queries] == [[0, 4], [1, 5], [2, 6]]
    with pytest.raises(ValueError, match="ground-truth proponents of each query, found none of query 3"):
        join(traces(), store(tmp_path), data(), NAMES, tmp_path / "out", settings)


def test_queries_without_scores_are_refused(tmp_path: Path) -> None:
    unknown = replace(traces()[0], query_id=9)
    with pytest.raises(ValueError, match=r"scores of each query that was traced, found none of \[9\]"):
        join([unknown], store(tmp_path), data(), NAMES, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected at least 1"),
        ({"listed": 0}, "listed: expected at least 1"),
        ({"pictures": -1}, "pictures"),
    ],
)
def test_bad_settings(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JoinSettings(**options)  # type: ignore[arg-type]
