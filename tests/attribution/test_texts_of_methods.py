"""The stores of all methods, and the index of a corpus, have the texts of their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.attribution import AttributionMethod, Bm25, Embed, Ensemble, RandomTarget, TracIn, TrackStar
from ftrace.index import GradientIndex
from ftrace.scores import ScoreStore, Texts
from helpers import small_run
from helpers.small_run import SmallRun

EXAMPLES = np.array([2, 3, 11, 40])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make("decoder-only", tmp_path_factory.mktemp("run"))


def hold(texts: Texts | None, key: str, ids: np.ndarray, run: SmallRun) -> None:
    of_data = {row[key]: row for row in run.data.describe()[key == "query_id"].to_pylist()}
    assert texts is not None
    assert len(texts) == len(ids)
    assert texts.rows(ids) == [of_data[i] for i in ids.tolist()]


@pytest.mark.parametrize(
    "method",
    [
        Bm25(),
        RandomTarget(),
        Embed(),
        TracIn(),
        TrackStar(projection_side=4),
        Ensemble(["first:bm25", "second:random-target"]),
    ],
    ids=lambda method: method.name,
)
def test_every_method_writes_texts(method: AttributionMethod, run: SmallRun, tmp_path: Path) -> None:
    queries = np.asarray(run.data.query_rows["query_id"])[::2]
    if isinstance(method, Ensemble):
        for member in (Bm25(), RandomTarget()):
            folder = tmp_path / ("first" if isinstance(member, Bm25) else "second")
            member.score(run.task(folder, example_ids=EXAMPLES, query_ids=queries))
    task = run.task(tmp_path / "scores", example_ids=EXAMPLES, query_ids=queries, run_dir=tmp_path)
    store = method.score(task)
    hold(store.examples, "example_id", EXAMPLES, run)
    hold(ScoreStore.open(store.path).queries, "query_id", queries, run)
    if isinstance(method, TrackStar):
        hold(GradientIndex(tmp_path / "scores-index").examples, "example_id", EXAMPLES, run)


def test_all_rows_have_texts(run: SmallRun, tmp_path: Path) -> None:
    store = Bm25().score(run.task(tmp_path / "scores"))
    hold(store.examples, "example_id", store.example_ids, run)
