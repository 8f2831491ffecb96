"""Layer profiles of scores, and their agreement with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftrace.evaluation.layer_profiles import compare_profiles, score_profile
from ftrace.scores import ScoreStore, Sum
from ftrace.scores.correlation import rank_correlation

PARTS = ["model.wte", "model.h.1", "model.h.10"]
RANDOM = np.random.default_rng(3)
EXAMPLES = np.arange(100, 130)


def store(folder: Path, *, by_layer: bool = True) -> ScoreStore:
    of_parts = {part: RANDOM.normal(size=(30, 2)) for part in PARTS}
    scores = {Sum("dot"): sum(of_parts.values()), Sum("cosine"): RANDOM.normal(size=(30, 2))}
    if by_layer:
        scores |= {Sum("dot", "layer", part): values for part, values in of_parts.items()}
    return ScoreStore.write(folder / "store", EXAMPLES, np.array([5, 6]), scores)  # type: ignore[arg-type]


def test_profile_equals_a_plain_loop(tmp_path: Path) -> None:
    opened = store(tmp_path)
    for query in (5, 6):
        whole = opened.scores(query, "dot")
        best = sorted(range(30), key=lambda place: -whole[place])[:4]
        found = score_profile(opened, query, "dot", k=4)
        assert found.example_ids.tolist() == [100 + place for place in best]
        assert list(found.parts) == PARTS
        for part in PARTS:
            expected = sum(float(opened.parts(query, "layer", "dot")[part][place]) for place in best)
            assert found.parts[part] == pytest.approx(expected)
            assert found.share(part) == pytest.approx(expected / sum(whole[place] for place in best))
        assert found.total == pytest.approx(found.scores.sum())


def test_profile_of_given_examples(tmp_path: Path) -> None:
    opened = store(tmp_path)
    found = score_profile(opened, 6, "dot", example_ids=[129, 100, 129])
    scores = opened.scores(6, "dot")
    assert sorted(found.example_ids.tolist()) == [100, 129]
    assert found.scores.tolist() == sorted([scores[0], scores[29]], reverse=True)
    parts = opened.parts(6, "layer", "dot")
    assert found.parts == pytest.approx({part: parts[part][0] + parts[part][29] for part in PARTS})


def test_bad_stores(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"broken down by layer, found breakdowns \[\].*breakdown: \[layer\]"):
        score_profile(store(tmp_path, by_layer=False), 5, "dot")
    opened = store(tmp_path)
    with pytest.raises(ValueError, match="query 5: expected scores of 2 examples, found those of 1"):
        score_profile(opened, 5, "dot", example_ids=[100, 7])
    with pytest.raises(KeyError, match="no query 9"):
        score_profile(opened, 9, "dot")


def test_agreement_equals_plain_loops() -> None:
    first, second = RANDOM.normal(size=(2, 7, 5))
    first[6] = 1.0  # no order
    facts = ["a", "a", "b", "c", "d", "d", "e"]
    found = compare_profiles(first, second, facts)
    assert found.num_queries == 6
    for query in range(6):
        assert found.by_query[query] == pytest.approx(rank_correlation(first[query], second[query]))
        others = [other for other in range(7) if facts[other] != facts[query]]
        pairs = [rank_correlation(first[query], second[other]) for other in others]
        pairs += [rank_correlation(first[other], second[query]) for other in others if other != 6]
        assert found.by_query_mismatched[query] == pytest.approx(np.mean(pairs))
    assert np.isnan(found.by_query[6])
    for layer in range(5):
        assert found.by_layer[layer] == pytest.approx(rank_correlation(first[:, layer], second[:, layer]))
    assert found.matched.mean == pytest.approx(found.by_query[:6].mean())
    assert found.mismatched.mean == pytest.approx(found.by_query_mismatched[:6].mean())
    assert found.difference.mean == pytest.approx(found.matched.mean - found.mismatched.mean)
    assert found.matched.low < found.matched.mean < found.matched.high


def test_what_all_queries_share_is_no_difference() -> None:
    common = np.arange(6.0)
    found = compare_profiles(np.tile(common, (8, 1)), np.tile(common, (8, 1)), [f"fact {query}" for query in range(8)])
    assert (found.matched.mean, found.mismatched.mean) == pytest.approx((1, 1))
    assert found.difference.mean == pytest.approx(0)
    assert np.isnan(found.by_layer).all()


def test_one_fact_has_nothing_to_compare_with() -> None:
    found = compare_profiles(RANDOM.normal(size=(2, 3)), RANDOM.normal(size=(2, 3)), ["a", "a"])
    assert np.isnan(found.mismatched.mean)
    assert np.isnan(found.difference.mean)
    assert np.isnan(found.matched.low)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "found shapes"),
        (np.ones((2, 1)), np.ones((2, 1)), "at least two layers, which can be ranked, found 1"),
        (np.ones((2, 3)), np.ones((2, 3)), "whose two profiles differ by layer, found none of 2"),
    ],
)
def test_what_can_not_be_compared(first: np.ndarray, second: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_profiles(first, second, ["a", "b"])
