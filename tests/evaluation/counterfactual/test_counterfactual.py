"""The linear datamodelling score where the truth is known, and what is left out for whom."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torchmetrics.functional import spearman_corrcoef

from ftrace.evaluation import EvaluatedQueries
from ftrace.evaluation.counterfactual import (
    Counterfactual,
    LeftOut,
    Subsets,
    datamodelling_scores,
    draw_kept,
    effects,
    order_seed,
    plan_facts,
    plan_top,
    reliability,
    render_counterfactual,
    write_counterfactual,
)
from ftrace.evaluation.counterfactual.lds import (
    TRUTH,
    correlations_over_subsets,
    mean_over_queries,
    noise_free,
)
from ftrace.evaluation.counterfactual.subsets import LDS, WITH_FACT, NotFinite
from ftrace.evaluation.counterfactual.tables import ANOTHER, NOISE_FREE
from ftrace.scores import ScoreStore

FACTS = [[f"r0-e{row // 5}-e0"] for row in range(100)]  # 20 facts of five rows
QUERIES = EvaluatedQueries.of(
    {query: np.arange(5 * query, 5 * query + 5) for query in range(12)}, {q: f"r0-e{q}-e0" for q in range(12)}
)
TRUE = np.random.default_rng(0).normal(size=(100, 12))


def store(folder: Path, scores: np.ndarray, **options: np.ndarray) -> ScoreStore:
    return ScoreStore.write(folder, np.arange(len(scores)), np.arange(scores.shape[1]), {"dot": scores}, **options)


def subsets(noise: float, count: int = 200, trainings: int = 2) -> Subsets:
    """Losses that are linear in what is kept, and noisy."""
    is_kept = np.stack([draw_kept(FACTS, "fact", 0.5, index) for index in range(count)])
    plain = -(is_kept @ TRUE)
    size = noise * plain.std(0)
    again = plain + size * np.random.default_rng(1).normal(size=(trainings, *plain.shape))
    return Subsets(is_kept, again[0], again, QUERIES)


def test_whole_facts_are_left_out_by_a_draw_that_can_be_repeated() -> None:
    facts = [*FACTS, ["r0-e0-e0", "r0-e1-e0"], []]
    for index in range(5):
        kept = draw_kept(facts, "fact", 0.3, index, seed=4)
        np.testing.assert_array_equal(kept, draw_kept(facts, "fact", 0.3, index, seed=4))
        of_facts = kept[:100].reshape(20, 5)
        assert (of_facts.all(1) | ~of_facts.any(1)).all()
        assert of_facts.all(1).sum() == 6
        assert kept[100] == (of_facts[0, 0] and of_facts[1, 0])  # one of its facts is left out, so it is
        assert kept[101]  # it states none
    draws = {draw_kept(FACTS, "fact", 0.5, index, seed).tobytes() for index in range(5) for seed in range(2)}
    assert len(draws) == 10
    assert len({order_seed(seed, i, training) for seed in (0, 1) for i in (0, 1) for training in (0, 1)}) == 8


def test_rows_are_left_out_one_by_one() -> None:
    kept = draw_kept(FACTS, "row", 0.3, 0)
    assert kept.sum() == 30
    assert 0 < kept.reshape(20, 5).any(1).sum() < 30


@pytest.mark.parametrize(("unit", "keep"), [("fact", 0.02), ("fact", 0.99), ("row", 0.0), ("row", 1.0), ("row", 1.5)])
def test_shares_that_keep_all_or_nothing_are_refused(unit: str, keep: float) -> None:
    with pytest.raises(ValueError, match=f"keep: expected a share that keeps 1 to .* {unit}s, found {keep}"):
        draw_kept(FACTS, unit, keep, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='unit: expected "fact" or "row", found \'batch\''):
        draw_kept(FACTS, "batch", 0.5, 0)  # type: ignore[arg-type]


def test_rank_correlations_are_spearmans_with_ties() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.integers(0, 6, size=(2, 40, 7)).astype(float)
    expected = spearman_corrcoef(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(correlations_over_subsets(a, b), expected, atol=1e-6)
    mask = generator.random((40, 7)) < 0.5
    found = correlations_over_subsets(a, b, mask)
    of_one = spearman_corrcoef(torch.from_numpy(a[mask[:, 3], 3]), torch.from_numpy(b[mask[:, 3], 3]))
    np.testing.assert_allclose(found[3], float(of_one), atol=1e-6)
    assert correlations_over_subsets(np.ones((9, 1)), a[:9, :1]).tolist() == [0]
    assert np.isnan(correlations_over_subsets(a[:2], b[:2])).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_have_no_rank(bad: float) -> None:
    generator = np.random.default_rng(6)
    a, b = generator.normal(size=(2, 20, 3))
    for side in (a, b):
        before = side[4, 1], side[7, 1]
        side[4, 1], side[7, 1] = bad, -bad
        without = np.delete(np.arange(20), [4, 7])
        expected = spearman_corrcoef(torch.from_numpy(a[without, 1]), torch.from_numpy(b[without, 1]))
        np.testing.assert_allclose(correlations_over_subsets(a, b)[1], float(expected), atol=1e-6)
        side[4, 1], side[7, 1] = before
    a[2:, 0] = bad
    found = correlations_over_subsets(a, b)
    assert np.isnan(found).tolist() == [True, False, False]  # two are too few


def diverged(found: Subsets, bad: float) -> Subsets:
    """The same, where some trainings diverged: of two subsets for all queries, of one for a single query."""
    losses, again = found.losses.copy(), found.again.copy()
    losses[[0, 5]], losses[9, 2] = bad, bad
    again[1, [3, 4]] = bad
    return replace(found, losses=losses, again=again)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_trainings_that_diverged_are_left_out_and_not_ranked(tmp_path: Path, bad: float) -> None:
    stores = {"true": store(tmp_path / "true", TRUE)}
    made = diverged(subsets(0.0, count=30), bad)
    np.testing.assert_allclose(datamodelling_scores(stores, made)["true dot"][LDS], 1, atol=1e-9)
    np.testing.assert_allclose(reliability(made)[LDS], 1, atol=1e-9)
    assert made.num_ranked[LDS].tolist() == [28, 28, 27, *[28] * 9]
    assert made.not_finite == {"LDS": NotFinite(3, 30, 12, 25), "ceiling": NotFinite(2, 60, 12, 24)}
    noisy = subsets(0.5, count=30)
    some = np.delete(np.arange(30), [0, 5])
    fewer = Subsets(noisy.is_kept[some], noisy.losses[some], noisy.again[:, some], QUERIES)
    found, expected = (datamodelling_scores(stores, one)["true dot"] for one in (diverged(noisy, bad), fewer))
    for column in (LDS, WITH_FACT):
        np.testing.assert_allclose(np.delete(found[column], 2), np.delete(expected[column], 2))


def test_a_training_that_diverged_throughout_takes_no_other_out_of_the_ceiling() -> None:
    made = subsets(0.0, count=10, trainings=3)
    again = made.again.copy()
    again[1] = np.nan
    np.testing.assert_allclose(reliability(replace(made, again=again))[LDS], 1)
    assert np.isnan(reliability(replace(made, again=again[:2]))[LDS]).all()
    nothing = noise_free(mean_over_queries({LDS: np.full(12, np.nan)}, QUERIES)[LDS])
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_a_perfect_prediction_scores_1_and_noise_0(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(size=TRUE.shape)
    # With a mean of its own, a score would predict how many rows are kept, and that is the same in all subsets.
    stores = {"true": store(tmp_path / "true", TRUE.astype(np.float64)), "noise": store(tmp_path / "noise", noise)}
    found = datamodelling_scores(stores, subsets(0.0))
    np.testing.assert_allclose(found["true dot"][LDS], 1, atol=1e-9)
    np.testing.assert_allclose(found["true dot"][WITH_FACT], 1, atol=1e-9)
    estimate = mean_over_queries(found["noise dot"], QUERIES)[LDS]
    assert estimate.low < 0 < estimate.high or abs(estimate.mean) < 0.1
    flipped = datamodelling_scores({"x": store(tmp_path / "flipped", -TRUE)}, subsets(0.0))["x dot"][LDS]
    np.testing.assert_allclose(flipped, -1, atol=1e-6)


def test_the_ceiling_is_what_the_true_scores_reach(tmp_path: Path) -> None:
    noisy = subsets(noise=1.0, count=600, trainings=3)
    another = mean_over_queries(reliability(noisy), QUERIES)[LDS]
    assert another.mean == pytest.approx(0.5, abs=0.05)  # half of the variance is noise
    reached = mean_over_queries(
        datamodelling_scores({"true": store(tmp_path / "true", TRUE)}, noisy)["true dot"], QUERIES
    )
    assert noise_free(another).mean == pytest.approx(reached[LDS].mean, abs=0.03)
    assert noise_free(another).low < noise_free(another).mean < noise_free(another).high
    assert reliability(subsets(1.0, count=10, trainings=1)) == {}
    exact = reliability(subsets(noise=0.0))
    np.testing.assert_allclose(exact[LDS], 1)


def test_queries_are_correlated_over_subsets_with_their_fact(tmp_path: Path) -> None:
    """A score of the fact alone predicts that the fact is there, and nothing more."""
    is_there = subsets(0.0).has_fact
    truth = np.zeros_like(TRUE)
    for query, of_query in enumerate(QUERIES.proponents):
        truth[of_query, query] = 1
    losses = np.where(is_there, 0.0, 5.0) + np.random.default_rng(5).random(is_there.shape)
    made = replace(subsets(0.0), losses=losses)
    found = datamodelling_scores({"x": store(tmp_path / "x", truth)}, made)
    for columns in (found["x dot"], found[TRUTH]):
        assert (columns[LDS] > 0.8).all()
        assert (columns[WITH_FACT] == 0).all()
    by_row = np.stack([draw_kept(FACTS, "row", 0.9, index) for index in range(20)])
    rows = datamodelling_scores({}, Subsets(by_row, losses[:20], losses[None, :0], QUERIES))
    assert list(rows[TRUTH]) == [LDS]  # no subset lacks a fact


def test_bad_stores_are_refused(tmp_path: Path) -> None:
    few = store(tmp_path / "few", TRUE[:50])
    missing = store(tmp_path / "missing", TRUE[:, :9])
    wrong = store(tmp_path / "nan", np.where(TRUE > 2, np.nan, TRUE))
    of_pairs = ScoreStore.write(
        tmp_path / "pairs", np.arange(12), np.arange(12), {"dot": np.ones(12)}, candidate_offsets=np.arange(13)
    )
    for bad, message in (
        (few, "expected scores of all 100 training rows for each query, found 50 examples"),
        (of_pairs, "found candidates of each query. Score without candidates"),
        (missing, r"expected scores for query 9, found none \(3 are missing\)"),
        (wrong, r"expected finite scores, found \d others in kind 'dot' of query \d\. Score a run that"),
    ):
        with pytest.raises(ValueError, match=message):
            datamodelling_scores({"bad": bad}, subsets(0.0, count=3))


def test_what_is_left_out_for_whom(tmp_path: Path) -> None:
    stores = {"true": store(tmp_path / "true", TRUE)}
    plan = {one.row: one.examples for one in plan_top(stores, QUERIES, 100, 3, seed=1)}
    assert list(plan) == ["true dot", "ground truth", "random"]
    for query in range(12):
        assert set(plan["true dot"][query]) == set(np.argsort(-TRUE[:, query])[:3])
        assert set(plan["ground truth"][query]) < set(QUERIES.proponents[query])
        assert len(set(plan["random"][query].tolist())) == 3
    again = {one.row: one.examples for one in plan_top(stores, QUERIES, 100, 3, seed=1)}
    assert all(np.array_equal(a, b) for row in plan for a, b in zip(plan[row], again[row], strict=True))
    many = {one.row: one.examples for one in plan_top(stores, QUERIES, 100, 60)}
    assert [len(one) for one in many["ground truth"]] == [5] * 12  # all that there are
    for k in (0, 100):
        with pytest.raises(ValueError, match=f"k: expected 1 to 99 of 100 training rows to leave out, found {k}"):
            plan_top(stores, QUERIES, 100, k)


def test_whole_facts_of_the_top(tmp_path: Path) -> None:
    facts = [*FACTS[:99], ["r0-e19-e0", "r0-e3-e0"]]
    scores = np.zeros((100, 12))
    scores[7, 0], scores[99, 1], scores[98, 1] = 1, 2, 1
    plan = {one.row: one.examples for one in plan_facts({"x": store(tmp_path / "x", scores)}, QUERIES, facts, 1)}
    assert plan["x dot"][0].tolist() == [5, 6, 7, 8, 9]
    assert plan["x dot"][1].tolist() == [15, 16, 17, 18, 19, 95, 96, 97, 98, 99]
    np.testing.assert_array_equal(plan["ground truth"][2], QUERIES.proponents[2])
    assert len(plan["random"][0]) in (5, 6, 10)


def result(tmp_path: Path) -> Counterfactual:
    noisy, sample = subsets(0.5), QUERIES.among([0, 1, 2], "a sample")
    stores = {"true": store(tmp_path / "true", TRUE)}
    (first, *_) = plan_top(stores, sample, 100, 5)
    before, after = np.array([0.1, 0.2, 0.3]), np.array([1.1, 0.2, 2.3])
    settings = {"subsets": 200, "keep": 0.5, "unit": "fact"}
    found = {"top 5": {first.row: effects(before, after, first, sample)}}
    return Counterfactual(
        settings, QUERIES, datamodelling_scores(stores, noisy), reliability(noisy), sample, found
    )  # fmt: skip


def test_effects_are_the_rise_of_the_loss_and_the_fall_of_the_probability(tmp_path: Path) -> None:
    one = result(tmp_path).effects["top 5"]["true dot"]
    np.testing.assert_allclose(one["rise"], [1, 0, 2])
    np.testing.assert_allclose(one["fall"], np.exp([-0.1, -0.2, -0.3]) - np.exp([-1.1, -0.2, -2.3]))
    assert one["rows"].tolist() == [5, 5, 5]
    top = [set(np.argsort(-TRUE[:, query])[:5].tolist()) for query in range(3)]
    shares = [len(top[query] & set(QUERIES.proponents[query].tolist())) / 5 for query in range(3)]
    np.testing.assert_allclose(one["proponents"], shares)


def test_queries_whose_retraining_diverged_have_no_effect() -> None:
    left_out = LeftOut("x", tuple(np.arange(5) for _ in range(4)))
    some = QUERIES.among([0, 1, 2, 3], "a sample")
    before, after = np.array([0.1, np.nan, 0.3, 0.4]), np.array([1.1, 0.2, np.inf, 0.4])
    found = effects(before, after, left_out, some)
    for values in found.values():
        assert np.isnan(values).tolist() == [False, True, True, False]
    assert mean_over_queries(found, some)["rise"].mean == pytest.approx(0.5)
    assert mean_over_queries(found, some)["rows"].mean == 5


def said(found: Counterfactual, folder: Path) -> tuple[str, str, dict[str, object], list[dict[str, str]]]:
    """The table on a screen, as Markdown, as JSON, and lines of CSV."""
    files = write_counterfactual(found, folder)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_counterfactual(found))
    with files[1].open() as lines:
        table = list(csv.DictReader(lines))
    return console.export_text(), files[0].read_text(), json.loads(files[2].read_text()), table


def test_tables_say_what_was_left_out_and_why(tmp_path: Path) -> None:
    stores = {"true": store(tmp_path / "true", TRUE)}
    made, sample = diverged(subsets(0.0, count=30), np.nan), QUERIES.among([0, 1, 2], "a sample")
    losses = made.losses.copy()
    losses[2:, 7] = np.nan
    made = replace(made, losses=losses)
    (first, *_) = plan_top(stores, sample, 100, 5)
    settings = {"subsets": 30, "keep": 0.5, "unit": "fact"}
    of_one = effects(np.array([0.1, np.nan, 0.3]), np.array([1.1, 0.2, 2.3]), first, sample)
    found = Counterfactual(
        settings, QUERIES, datamodelling_scores(stores, made), reliability(made), sample,
        {"the top 5": {first.row: of_one}}, 0, made.num_ranked, made.not_finite,
    )  # fmt: skip
    screen, markdown, table, lines = said(found, tmp_path)
    notes = (
        "not in the LDS: 52 losses (in 29 of 30 trainings, of 12 queries) that are NaN or infinite, as when a training "
        "diverges",
        "not in the ceiling: 24 losses (in 2 of 60 trainings, of 12 queries) that are NaN or infinite",
        "not in the mean of 'LDS': 1 of 12 queries, for which fewer than three subsets are left to rank "
        "(true dot, ground truth)",
        "left out, the top 5: not in the means of 'true dot': 1 of 3 queries, whose loss with or without these rows is "
        "NaN or infinite",
    )
    for note in notes:
        assert note in " ".join(screen.split())
        assert note in markdown
        assert any(one.startswith(note) for one in table["notes"])  # type: ignore[attr-defined]
    assert table["subsets"]["true dot"][LDS]["mean"] == pytest.approx(1)  # type: ignore[index]
    assert table["not_finite"]["ceiling"]["losses"] == 24  # type: ignore[index]
    counts = {(line["table"], line["method"], line["figure"]): line["queries"] for line in lines}
    assert counts["subsets", "true dot", LDS] == "11"
    assert counts["subsets", NOISE_FREE, LDS] == "12"
    assert counts["the top 5", "true dot", "rise"] == "2"
    with (tmp_path / "per_query.csv").open() as rows:
        per_query = [line for line in csv.DictReader(rows) if (line["method"], line["figure"]) == ("true dot", LDS)]
    assert [line["subsets"] for line in per_query] == ["28", "28", "27", "28", "28", "28", "28", "1", *["28"] * 4]
    assert [line["value"] == "" for line in per_query].index(True) == 7
    assert "NaN:" not in markdown


def test_where_nothing_is_left_the_tables_say_nan(tmp_path: Path) -> None:
    made = replace(subsets(0.0, count=3), losses=np.full((3, 12), np.nan), again=np.full((2, 3, 12), np.nan))
    found = Counterfactual(
        {"subsets": 3, "keep": 0.5, "unit": "fact"}, QUERIES, datamodelling_scores({}, made), reliability(made),
        QUERIES, {}, 0, made.num_ranked, made.not_finite,
    )  # fmt: skip
    screen, markdown, table, lines = said(found, tmp_path)
    assert "| ground truth | NaN | NaN |" in markdown
    assert f"| {NOISE_FREE} | NaN | NaN |" in markdown
    assert markdown.endswith("- NaN: no query has enough left\n")
    assert "NaN: no query has enough left" in screen
    assert table["subsets"][NOISE_FREE][LDS] == {"mean": None, "low": None, "high": None}  # type: ignore[index]
    assert {line["queries"] for line in lines} == {"0"}


def test_tables_as_files(tmp_path: Path) -> None:
    found = result(tmp_path)
    files = write_counterfactual(found, tmp_path)
    table = json.loads(files[2].read_text())
    assert list(table["subsets"]) == ["true dot", TRUTH, ANOTHER, NOISE_FREE]
    one = table["subsets"]["true dot"][LDS]
    assert one["low"] <= one["mean"] <= one["high"] <= table["subsets"][NOISE_FREE][LDS]["high"]
    assert table["subsets"][NOISE_FREE][LDS]["mean"] ** 2 == pytest.approx(table["subsets"][ANOTHER][LDS]["mean"])
    assert table["left_out"]["top 5"]["true dot"]["rise"]["mean"] == pytest.approx(1)
    lines = files[0].read_text().splitlines()
    assert any(line.startswith(f"| true dot | {one['mean']:.3f} [{one['low']:.3f}, ") for line in lines)
    assert len(files[1].read_text().splitlines()) == 1 + 4 * 2 + 1 * 4
    assert len(files[3].read_text().splitlines()) == 1 + 3 * 2 * 12 + 4 * 3
    assert not list(tmp_path.glob(".*"))
    render_counterfactual(found)
