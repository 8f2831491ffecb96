"""Bootstrap intervals: they cover what they should, in clusters, paired, and over runs."""

from __future__ import annotations

import numpy as np
import pytest

from ftrace.evaluation import sample_means
from ftrace.evaluation.estimates import Sample


def clustered(generator: np.random.Generator, facts: int = 40) -> tuple[np.ndarray, list[str]]:
    """Two queries of each fact, nearly alike, around 0.5."""
    effects = np.repeat(generator.normal(0.5, 0.3, facts), 2)
    return (effects + generator.normal(0, 0.05, 2 * facts))[:, None], [f"fact {i // 2}" for i in range(2 * facts)]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered, covered_if_independent = [], []
    for trial in range(300):
        values, facts = clustered(generator)
        for found, units in ((covered, facts), (covered_if_independent, [f"query {i}" for i in range(len(facts))])):
            (estimate,) = sample_means([values], [units], resamples=400, seed=trial).estimates()
            found.append(estimate.low <= 0.5 <= estimate.high)
    assert 0.90 <= np.mean(covered) <= 0.98
    assert np.mean(covered_if_independent) < 0.88  # two queries of a fact are hardly two observations


def naive(values: list[np.ndarray], facts: list[list[str]], resamples: int, seed: int) -> np.ndarray:
    """One resample at a time, with the same draws."""
    names = sorted({fact for of_run in facts for fact in of_run})
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    found = []
    for draw in drawn:
        of_runs = []
        for of_run, of_facts in zip(values, facts, strict=True):
            rows = [row for place in draw for row, fact in zip(of_run, of_facts, strict=True) if fact == names[place]]
            of_runs.append(np.mean(rows, axis=0) if rows else np.full(of_run.shape[1], np.nan))
        found.append(np.mean(of_runs, axis=0))
    return np.array(found)


def test_resampling_is_by_facts_with_all_their_queries_in_all_runs() -> None:
    generator = np.random.default_rng(1)
    values = [generator.random((6, 3)), generator.random((4, 3))]
    facts = [["a", "a", "b", "c", "c", "d"], ["a", "c", "d", "d"]]  # the second run has not learned b
    sample = sample_means(values, facts, resamples=50, seed=7)
    np.testing.assert_allclose(sample.resampled, naive(values, facts, 50, 7), equal_nan=True)
    estimates = sample.estimates()
    means = [of_run.mean(0) for of_run in values]
    for column, estimate in enumerate(estimates):
        assert estimate.mean == pytest.approx((means[0][column] + means[1][column]) / 2)
        assert estimate.spread == pytest.approx(np.std([means[0][column], means[1][column]], ddof=1))
        ends = np.nanquantile(sample.resampled[:, column], [0.025, 0.975])
        assert (estimate.low, estimate.high) == pytest.approx(tuple(ends))


def test_many_facts_are_drawn_in_pieces_that_add_up_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values, facts = clustered(np.random.default_rng(2))
    whole = sample_means([values], [facts], resamples=64, seed=3)
    monkeypatch.setattr("ftrace.evaluation.estimates._DRAWS_AT_ONCE", 700)
    np.testing.assert_allclose(sample_means([values], [facts], resamples=64, seed=3).resampled, whole.resampled)


def test_differences_are_paired() -> None:
    generator = np.random.default_rng(4)
    hard = generator.random((60, 1))
    values = np.concatenate([hard, hard + 0.1, hard + generator.normal(0.1, 0.01, (60, 1))], axis=1)
    sample = sample_means([values], [[str(i) for i in range(60)]], resamples=1000)
    itself, constant, noisy = sample.differences(0)
    assert (itself.mean, itself.low, itself.high) == (0, 0, 0)
    assert (constant.mean, constant.low, constant.high) == pytest.approx((0.1, 0.1, 0.1))
    assert 0.09 < noisy.low < noisy.mean < noisy.high < 0.11
    each = sample.differences(np.array([0, 0, 1]))
    assert each[2].mean == pytest.approx(noisy.mean - 0.1)
    means = [estimate.high - estimate.low for estimate in sample.estimates()]
    assert min(means) > 0.1  # unpaired, queries differ much more than methods


def test_one_fact_has_no_interval() -> None:
    (estimate,) = sample_means([np.array([[1.0], [0.0]])], [["a", "a"]]).estimates()
    assert estimate.mean == 0.5
    assert np.isnan(estimate.low)
    assert np.isnan(estimate.high)
    assert estimate.spread is None
    assert isinstance(sample_means([np.ones((1, 2))], [["a"]]).differences(1)[0].low, float)


def test_facts_of_different_data_sets_are_drawn_apart() -> None:
    """Though their keys may agree. Means of independent data sets spread less than those of one, by the root of two."""
    values, facts = [np.arange(40.0)[:, None]] * 2, [[str(i) for i in range(40)]] * 2
    together = sample_means(values, facts, resamples=4000, data=["a", "a"]).resampled.std()
    apart = sample_means(values, facts, resamples=4000, data=["a", "b"]).resampled.std()
    alone = sample_means(values[:1], facts[:1], resamples=4000).resampled.std()
    assert together == alone
    assert abs(apart / alone - 0.5**0.5) < 0.03
    three = [np.array([[0.0]]), np.array([[1.0]]), np.array([[1.0]])]
    (estimate,) = sample_means(three, [["x"]] * 3, data=["a", "b", "c"]).estimates()  # one fact each: nothing to draw
    assert (round(estimate.mean, 3), np.isnan(estimate.low)) == (0.667, True)
    (estimate,) = sample_means(three, [["x"], ["y"], ["z"]], data=["a"] * 3).estimates()  # most draws lack a run
    assert np.isnan(estimate.low)


def test_seeds_decide() -> None:
    values, facts = clustered(np.random.default_rng(5))
    first, again, other = (sample_means([values], [facts], 200, seed).resampled for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_column_that_is_not_known_leaves_the_others_their_intervals() -> None:
    generator = np.random.default_rng(8)
    (column, facts), (another, _) = clustered(generator), clustered(generator)
    values = np.concatenate([column, another], axis=1)
    spoilt = values.copy()
    spoilt[3, 1] = np.nan
    found, expected = (sample_means([one], [facts], 200).estimates() for one in (spoilt, values))
    assert np.isnan([found[1].mean, found[1].low, found[1].high]).all()
    assert found[0] == expected[0]


def test_bad_input() -> None:
    for values in ([], [np.zeros((0, 2))], [np.ones((1, 2)), np.zeros((0, 2))]):
        with pytest.raises(ValueError, match="at least one query in each run, found none"):
            sample_means(values, [[] for _ in values])
    assert isinstance(sample_means([np.ones((2, 1))], [["a", "b"]], resamples=5), Sample)


def test_a_ratio_is_of_means_and_leaves_out_resamples_without_its_denominator() -> None:
    values = np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    sample = sample_means([values], [["a", "b", "c", "d"]], resamples=2_000)
    found = sample.ratio(0, 1)
    assert found.mean == pytest.approx(6 / 8)
    draws = sample.resampled[sample.resampled[:, 1] > 0]
    assert len(draws) < len(sample.resampled)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])))
    nothing = sample.ratio(0, 2)
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()
