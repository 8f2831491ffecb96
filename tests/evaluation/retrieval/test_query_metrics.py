"""Each query's metrics against a slow oracle, among any pool, by row and by sentence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ftrace.evaluation import EvaluatedQueries
from ftrace.evaluation.retrieval import CandidatePools, Judge, PoolSettings, WholeTrainingSet
from ftrace.evaluation.retrieval.metrics import KS, METRICS
from ftrace.scores import ScoreStore

N, Q = 60, 5
GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.integers(-6, 6, (N, Q)).astype(np.float32)  # with many ties
PROPONENTS = {query: np.sort(GENERATOR.choice(N, 4 + query, replace=False)) for query in range(Q)}
QUERIES = EvaluatedQueries.of(PROPONENTS)
SENTENCES = GENERATOR.integers(0, 20, N)
EVERYTHING = WholeTrainingSet(np.arange(N))


def pools(of_query: dict[int, np.ndarray]) -> CandidatePools:
    offsets = np.cumsum([0, *map(len, of_query.values())])
    return CandidatePools(np.array(list(of_query)), offsets, np.concatenate(list(of_query.values())), PoolSettings())


def some_pools() -> CandidatePools:
    generator = np.random.default_rng(1)
    return pools({query: np.union1d(ids, generator.choice(N, 15)) for query, ids in PROPONENTS.items()})


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore.write(tmp_path / "store", np.arange(N), np.arange(Q), {"dot": SCORES})


def one_by_one(scores: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """One query's metrics in expectation over ties, candidate by candidate, without a sort."""

    def hits_at(k: int, scores: np.ndarray) -> float:
        above = [(scores > score).sum() for score in scores[relevant]]
        tied = [(scores == score).sum() for score in scores[relevant]]
        return float(sum(np.clip((k - a) / t, 0, 1) for a, t in zip(above, tied, strict=True)))

    best, count = scores[relevant].max(), int(relevant.sum())
    above, tied, hits = (scores > best).sum(), int((scores == best).sum()), int((scores[relevant] == best).sum())
    # With h relevant among m tied, the first relevant one is the j-th with probability C(m - j, h - 1) / C(m, h).
    chances = [math.comb(tied - j, hits - 1) / math.comb(tied, hits) for j in range(1, tied - hits + 2)]
    metrics = {"MRR": sum(chance / (above + j) for j, chance in enumerate(chances, 1))}
    metrics["R@n"] = hits_at(count, scores) / count
    for k in KS:
        metrics |= {f"P@{k}": hits_at(k, scores) / k, f"R@{k}": hits_at(k, scores) / count}
        metrics[f"O@{k}"] = hits_at(k, -scores) / k
    return metrics


@pytest.mark.parametrize("pool", [EVERYTHING, some_pools()], ids=["all", "candidates"])
def test_metrics_of_each_query(store: ScoreStore, pool: WholeTrainingSet | CandidatePools) -> None:
    judge = Judge(QUERIES, pool)
    found = judge.judge(store, "dot")
    assert tuple(found) == METRICS
    for query in range(Q):
        ids = pool.of(query)
        relevant = np.isin(ids, PROPONENTS[query])
        for name, value in one_by_one(SCORES[ids, query], relevant).items():
            assert found[name][query] == pytest.approx(value), name
        for name, value in one_by_one(relevant.astype(float), relevant).items():
            assert judge.ceiling()[name][query] == pytest.approx(value), name
    assert judge.num_candidates.tolist() == [len(pool.of(query)) for query in range(Q)]
    assert judge.num_proponents.tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("pool", [EVERYTHING, some_pools()], ids=["all", "candidates"])
def test_variants_of_a_sentence_merge_by_maximum(store: ScoreStore, pool: WholeTrainingSet | CandidatePools) -> None:
    judge = Judge(QUERIES, pool, SENTENCES)
    found = judge.judge(store, "dot")
    for query in range(Q):
        best: dict[int, float] = {}
        worst: dict[int, float] = {}
        for example in pool.of(query).tolist():
            sentence, score = int(SENTENCES[example]), float(SCORES[example, query])
            best[sentence] = max(best.get(sentence, -np.inf), score)
            worst[sentence] = min(worst.get(sentence, np.inf), score)
        stating = {int(SENTENCES[example]) for example in PROPONENTS[query]}
        relevant = np.array([sentence in stating for sentence in best])
        expected = one_by_one(np.array(list(best.values())), relevant)
        opponents = one_by_one(np.array(list(worst.values())), relevant)
        for name, value in expected.items():
            assert found[name][query] == pytest.approx(opponents[name] if name[0] == "O" else value), name
        assert judge.num_candidates[query] == len(best)
        assert judge.num_proponents[query] == relevant.sum()


def test_a_store_of_the_union_of_pools_is_enough(store: ScoreStore, tmp_path: Path) -> None:
    pool = some_pools()
    union = pool.example_ids
    assert len(union) < N
    part = ScoreStore.write(tmp_path / "part", union, np.arange(Q), {"dot": SCORES[union]})
    whole = Judge(QUERIES, pool).judge(store, "dot")
    for name, values in Judge(QUERIES, pool).judge(part, "dot").items():
        np.testing.assert_array_equal(values, whole[name])


def test_a_store_of_the_very_pools_is_enough(store: ScoreStore, tmp_path: Path) -> None:
    pool = some_pools()
    pairs = np.concatenate([SCORES[pool.of(query), query] for query in range(Q)])
    ids, offsets = pool.candidate_ids, pool.offsets
    own = ScoreStore.write(tmp_path / "own", ids, np.arange(Q), {"dot": pairs}, candidate_offsets=offsets)
    np.testing.assert_array_equal(
        Judge(QUERIES, pool).judge(own, "dot")["MRR"], Judge(QUERIES, pool).judge(store, "dot")["MRR"]
    )
    with pytest.raises(ValueError, match=r"has no scores for \d+ of the 60 candidates of query 0"):
        Judge(QUERIES, EVERYTHING).judge(own, "dot")


def test_bad_input(store: ScoreStore, tmp_path: Path) -> None:
    part = ScoreStore.write(tmp_path / "part", np.arange(50), np.arange(Q), {"dot": SCORES[:50]})
    with pytest.raises(ValueError, match=r"same pool, but .*part has no scores for 10 of the 60 candidates of query 0"):
        Judge(QUERIES, EVERYTHING).judge(part, "dot")
    pool = pools({query: np.union1d(PROPONENTS[query], [55]) for query in range(Q)})
    kept = EvaluatedQueries.of({3: PROPONENTS[3][PROPONENTS[3] < 50]})
    with pytest.raises(ValueError, match=r"no scores for \d of the \d candidates of query 3.*--pool candidates"):
        Judge(kept, pool).judge(part, "dot")
    fewer = ScoreStore.write(tmp_path / "fewer", np.arange(N), np.arange(3), {"dot": SCORES[:, :3]})
    with pytest.raises(ValueError, match=r"2 evaluated queries have no scores, among them \[3, 4\]"):
        Judge(QUERIES, EVERYTHING).judge(fewer, "dot")
    with pytest.raises(ValueError, match="query 0: 4 ground-truth proponents are not among the examples of its pool"):
        Judge(QUERIES, WholeTrainingSet(np.setdiff1d(np.arange(N), PROPONENTS[0])))
    with pytest.raises(ValueError, match="query 0: expected at least one candidate in its pool, found none"):
        Judge(QUERIES, WholeTrainingSet(np.zeros(0, np.int64)))
    with pytest.raises(ValueError, match=r"at least one query to evaluate, found none \(all; 2 without proponents"):
        Judge(EvaluatedQueries.of({0: [], 1: []}), EVERYTHING)
    unranked = ScoreStore.write(tmp_path / "nan", np.arange(N), np.arange(Q), {"dot": np.full((N, Q), np.nan)})
    with pytest.raises(ValueError, match=r"nan, kind 'dot', query 0: scores: expected finite numbers, found NaN"):
        Judge(QUERIES, EVERYTHING).judge(unranked, "dot")
