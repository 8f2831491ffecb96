"""The table: every row on one pool, ceilings, choices, groups, and files that say the same."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ftrace.data import FtraceSynth
from ftrace.evaluation import EvaluatedQueries
from ftrace.evaluation.retrieval import (
    Evaluation,
    breakdown,
    choose_best,
    evaluate,
    families,
    over_runs,
    published_for,
    render_breakdown,
    render_table,
    write_tables,
)
from ftrace.scores import ScoreStore

PROPONENTS = {0: [1, 2], 1: [30]}
QUERIES = EvaluatedQueries.of(PROPONENTS)


def store(path: Path, examples: int = 40, kinds: tuple[str, ...] = ("dot",)) -> ScoreStore:
    scores = np.zeros((examples, 2))
    scores[[1, 2], 0] = [-1.0, -2.0]
    scores[scores == 0] = -3.0
    scores[5, 1], scores[30, 1] = -1.0, -2.0
    return ScoreStore.write(path, np.arange(examples), np.array([0, 1]), dict.fromkeys(kinds, scores))


def noisy(path: Path, noise: Mapping[str, float], seed: int = 0, queries: int = 24) -> Evaluation:
    """A store whose kinds find the proponents the less, the more noise they have."""
    generator = np.random.default_rng(seed)
    proponents = {query: np.arange(query, query + 2 + query % 3) for query in range(queries)}
    truth = np.zeros((60, queries))
    for query, ids in proponents.items():
        truth[ids, query] = 1
    scores = {kind: truth + generator.normal(0, scale, truth.shape) for kind, scale in noise.items()}
    facts = {query: f"r{query // 2 % 3}-e{query // 2}-e0" for query in range(queries)}
    of_run = ScoreStore.write(path, np.arange(60), np.arange(queries), scores)
    return replace(evaluate({"m": of_run}, EvaluatedQueries.of(proponents, facts)), resamples=300)


def text_of(renderable: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_each_kind_of_each_store_is_a_row(tmp_path: Path) -> None:
    stores = {"online": store(tmp_path / "a", kinds=("dot", "cosine")), "bm25": store(tmp_path / "b", kinds=("bm25",))}
    table = evaluate(stores, QUERIES)
    assert table.names == ["online dot", "online cosine", "bm25"]
    row = {metric: estimate.mean for metric, estimate in table.estimates["bm25"].items()}
    assert row["MRR"] == 0.75
    assert (row["P@1"], row["P@3"]) == (0.5, pytest.approx((2 / 3 + 1 / 3) / 2))
    assert row["R@3"] == 1.0
    assert row["R@n"] == pytest.approx((1 + 0) / 2)
    assert row["O@1"] == 0
    assert table.ceiling["P@10"] == pytest.approx((0.2 + 0.1) / 2)
    assert table.ceiling["R@1"] == pytest.approx((0.5 + 1) / 2)
    assert table.runs[0].num_candidates.tolist() == [40, 40]


def test_only_the_named_queries_count(tmp_path: Path) -> None:
    table = evaluate({"a": store(tmp_path / "a")}, QUERIES.among([1], "learned, of 2"))
    assert table.estimates["a dot"]["MRR"].mean == 0.5
    assert np.isnan(table.estimates["a dot"]["MRR"].low)  # one fact


def test_printed(tmp_path: Path) -> None:
    table = evaluate({"a": store(tmp_path / "a")}, EvaluatedQueries.of({**PROPONENTS, 2: []}, description="learned"))
    text = text_of(render_table(replace(table, published=published_for(FtraceSynth()))))
    assert "2 queries (learned; 1 without proponents left out), 40 candidates each" in text
    lines = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert re.search(r"ceiling +100 +100 +15\.0 ", text)
    assert text.index("a dot") < text.index("published") < text.index("TracIn + EMBED") < text.index("ceiling")
    assert "published: Akyürek et al. 2022, arXiv 2205.11482; full-size data" in text
    assert len(lines) > 8
    assert "published" not in text_of(render_table(table))


def test_tables_fit_a_hundred_columns(tmp_path: Path) -> None:
    names = {"dot": 0.5, "whitened.encoder": 1.0}
    runs = over_runs([noisy(tmp_path / str(seed), names, seed) for seed in range(3)])
    runs = replace(runs, against="m dot", published=published_for(FtraceSynth()))
    for one in (runs, replace(noisy(tmp_path / "one", names), against="m dot")):
        lines = [line.rstrip() for line in text_of(render_table(one), 300).splitlines()]
        rules = [line for line in lines if "───" in line]
        assert len(rules) == 2
        assert max(map(len, rules)) <= 100
        assert sum(line.startswith(" m whitened.encoder ") for line in lines) == 2
        assert any("±" in line for line in text_of(render_table(one)).splitlines())


def test_written_files_say_the_same(tmp_path: Path) -> None:
    table = noisy(tmp_path / "a", {"dot": 0.3, "cosine": 0.6})
    table = replace(table, against="m dot", published=published_for(FtraceSynth()))
    files = write_tables(table, tmp_path / "tables")
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {file.name for file in files}
    markdown, csv_file, json_file, groups, per_query = files
    found = json.loads(json_file.read_text())
    cosine = table.estimates["m cosine"]
    assert found["rows"]["m cosine"]["P@3"] == cosine["P@3"].mean
    assert found["intervals"]["m cosine"]["P@3"] == [cosine["P@3"].low, cosine["P@3"].high]
    assert found["differences"]["means"]["m cosine"]["MRR"] == table.differences["m cosine"]["MRR"].mean
    assert found["num_candidates"] == {"least": 60, "most": 60, "mean": 60}
    with csv_file.open() as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert float(rows["m cosine"]["P@3 low"]) == cosine["P@3"].low
    assert rows["EMBED"]["source"].startswith("Akyürek")
    assert rows["EMBED"]["MRR"] == "0.9958"
    assert rows["EMBED"]["P@1"] == ""
    with per_query.open() as stream:
        queries = list(csv.DictReader(stream))
    assert len(queries) == 2 * 24
    of_dot = [float(row["R@n"]) for row in queries if row["method"] == "m dot"]
    assert np.mean(of_dot) == pytest.approx(table.estimates["m dot"]["R@n"].mean)
    assert {row["half"] for row in queries} == {"development", "report"}
    with groups.open() as stream:
        grouped = list(csv.DictReader(stream))
    assert {row["group"] for row in grouped if row["by"] == "relation"} == {"r0", "r1", "r2"}
    lines = markdown.read_text().splitlines()
    assert any(line.startswith("| EMBED (published) | 99.6 |") for line in lines)
    assert sum(line.startswith("| m cosine |") for line in lines) == 3  # the table, differences, opponents


def test_one_query_is_written_with_null_for_its_interval(tmp_path: Path) -> None:
    table = evaluate({"a": store(tmp_path / "a")}, QUERIES.among([1], "one"))
    files = write_tables(table, tmp_path / "tables")
    assert json.loads(files[2].read_text())["intervals"]["a dot"]["MRR"] == [None, None]


def test_differences_are_to_the_named_row(tmp_path: Path) -> None:
    table = replace(noisy(tmp_path / "a", {"dot": 0.3, "cosine": 0.6, "update": 0.3}), against="m dot")
    assert list(table.differences) == ["m cosine", "m update"]
    for metric, difference in table.differences["m cosine"].items():
        means = [table.estimates[name][metric].mean for name in ("m cosine", "m dot")]
        assert difference.mean == pytest.approx(means[0] - means[1])
        assert difference.low <= difference.mean <= difference.high
    with pytest.raises(ValueError, match=r"against: expected one of \['m cosine', .*found 'm cosin'"):
        _ = replace(table, against="m cosin").differences
    with pytest.raises(ValueError, match=r"against: expected one of \['m dot', 'm cosine', 'm update'\], found 'xyz'"):
        _ = replace(table, against="xyz").differences


def test_several_runs_are_averaged_and_spread(tmp_path: Path) -> None:
    each = [noisy(tmp_path / str(seed), {"dot": 0.5}, seed, queries=20 + 2 * seed) for seed in range(3)]
    together = over_runs(each)
    means = [one.estimates["m dot"]["MRR"].mean for one in each]
    estimate = together.estimates["m dot"]["MRR"]
    assert estimate.mean == pytest.approx(np.mean(means))
    assert estimate.spread == pytest.approx(np.std(means, ddof=1))
    assert estimate.low < estimate.mean < estimate.high
    assert "20 + 22 + 24 queries" in text_of(render_table(together))
    assert [row["m dot"]["MRR"] for row in json.loads(
        write_tables(together, tmp_path / "tables")[2].read_text())["by_run"]] == pytest.approx(means)  # fmt: skip
    with pytest.raises(ValueError, match=r"expected the same rows in all runs, but \['m cosine'\] are in some only"):
        over_runs([each[0], noisy(tmp_path / "other", {"dot": 0.5, "cosine": 0.5})])


def test_the_best_is_chosen_on_one_half_and_reported_on_the_other(tmp_path: Path) -> None:
    table = noisy(tmp_path / "a", {"first": 0.9, "second": 0.2, "third": 0.9})
    found = choose_best(table, families(["MRR"], {"m": table.names, "bm25": ["bm25"]}))
    assert found.names[0] == "best of m"
    assert found.half == "report"
    run, whole = found.runs[0], table.runs[0]
    report = whole.queries.in_half("report")
    np.testing.assert_array_equal(run.rows["best of m"]["P@3"], whole.rows["m second"]["P@3"][report])
    on_development = whole.rows["m second"]["MRR"][~report].mean()
    assert (
        f"best of m: m second, of 3, by MRR on the development half ({100 * on_development:.1f} there)" in found.notes
    )
    text = text_of(render_table(found))
    assert "report half" in text
    assert " m third" not in text.split("percent;")[0]  # what stands behind the choice is in the files
    assert "m third" in write_tables(found, tmp_path / "tables")[1].read_text()


def test_the_report_half_has_no_say_in_the_choice(tmp_path: Path) -> None:
    table = noisy(tmp_path / "a", {"first": 0.5, "second": 0.5})
    run = table.runs[0]
    report = run.queries.in_half("report")
    rows = {
        name: {metric: np.where(report, good, 1 - good) for metric in row}
        for (name, row), good in zip(run.rows.items(), (1.0, 0.0), strict=True)
    }  # the first is right on the report half only, the second on the development half only
    turned = replace(table, runs=(replace(run, rows=rows),))
    found = choose_best(turned, families(["m *:P@10"], {"m": turned.names}))
    assert found.estimates["best of m *"]["P@10"].mean == 0
    lower = choose_best(turned, families(["m *:O@10"], {"m": turned.names}))
    assert lower.notes[0].startswith("best of m *: m first,")  # fewer proponents among opponents are better


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (["P@11"], r"choose: expected one of \['P@1', 'P@10', .*found 'P@11'"),
        (["tracin*:P@10"], r"expected a pattern of rows, found 'tracin\*'; there are \['m dot', 'm cosine'\]"),
        (["P@10", "MRR"], "expected one metric for each family, found several for 'm'"),
    ],
)
def test_bad_choices(choose: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        families(choose, {"m": ["m dot", "m cosine"]})


def test_one_kind_leaves_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match=r"a store of several kinds to choose from, found only \['bm25'\]"):
        families(["P@10"], {"bm25": ["bm25"]})


def test_a_choice_needs_queries_on_both_sides(tmp_path: Path) -> None:
    table = evaluate({"a": store(tmp_path / "a")}, QUERIES)
    one_sided = table.where([~QUERIES.is_development])
    with pytest.raises(ValueError, match="half: expected queries in the development half, found none"):
        choose_best(one_sided, families(["a*:MRR"], {"a": table.names}))


def test_groups_of_queries(tmp_path: Path) -> None:
    table = noisy(tmp_path / "a", {"dot": 0.5})
    run = table.runs[0]
    relations = np.array([fact.split("-")[0] for fact in run.queries.facts])
    groups = breakdown(table, "relation")
    assert [group.name for group in groups] == ["r0", "r1", "r2"]
    for group in groups:
        mask = relations == group.name
        assert group.num_queries == mask.sum()
        assert group.estimates["m dot"]["MRR"].mean == pytest.approx(run.rows["m dot"]["MRR"][mask].mean())
    by_number = breakdown(table, "proponents")
    assert [(group.name, group.num_queries) for group in by_number] == [("2 to 4", 24)]
    assert "number of proponents" in text_of(render_breakdown(table, by_number))
    assert "P@10 by relation" in text_of(render_breakdown(table, groups))


def test_relations_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    facts: dict[int, str | None] = {query: f"r{number}-e1-e2" for query, number in enumerate([10, 2, 1, 10])}
    queries = EvaluatedQueries.of({query: [query] for query in facts}, facts)
    scores = ScoreStore.write(tmp_path / "a", np.arange(20), np.arange(4), {"dot": np.eye(20, 4)})
    groups = breakdown(evaluate({"a": scores}, queries), "relation")
    assert [(group.name, group.num_queries) for group in groups] == [("r1", 1), ("r2", 1), ("r10", 2)]


def test_rows_on_other_pools_are_refused(tmp_path: Path) -> None:
    stores = {"a": store(tmp_path / "a", examples=41), "b": store(tmp_path / "b")}
    with pytest.raises(
        ValueError, match=r"all rows on the same pool, but .*b has no scores for 1 of the 41 candidates"
    ):
        evaluate(stores, QUERIES)
    with pytest.raises(ValueError, match="at least one score store to evaluate, found none"):
        evaluate({}, QUERIES)


def test_missing_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 evaluated queries have no scores, among them \[7\]"):
        evaluate({"a": store(tmp_path / "a")}, EvaluatedQueries.of({7: [1]}))
    with pytest.raises(ValueError, match=r"at least one query to evaluate, found none \(learned, of 3"):
        evaluate({"a": store(tmp_path / "a")}, QUERIES.among([], "learned, of 3"))
