"""Which queries are evaluated: halves by fact, samples, and those that are kept out."""

from __future__ import annotations

import numpy as np
import pytest

from ftrace.evaluation import EvaluatedQueries, sample_means, seeded_sample
from ftrace.evaluation.queries import development_facts, relation_of

FACTS = {query: f"r{query // 2 % 4}-e{query // 2}-e9" for query in range(80)}
QUERIES = EvaluatedQueries.of({query: [query, 100] for query in FACTS}, FACTS)


def test_halves_are_halves_of_facts() -> None:
    development = QUERIES.in_half("development")
    assert development.sum() == 40
    assert (development == ~QUERIES.in_half("report")).all()
    assert QUERIES.in_half("all").all()
    sides: dict[str, set[bool]] = {}
    for fact, side in zip(QUERIES.facts, development.tolist(), strict=True):
        sides.setdefault(fact, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())  # both queries of a fact are on one side


def test_halves_depend_on_the_seed_and_not_on_the_order_or_on_what_was_learned() -> None:
    facts = list(FACTS.values())
    assert development_facts(facts, 0) == development_facts(reversed(facts), 0)
    assert development_facts(facts, 0) != development_facts(facts, 1)
    learned = QUERIES.among(range(0, 80, 3), "learned")
    sides = dict(zip(QUERIES.query_ids.tolist(), QUERIES.is_development.tolist(), strict=True))
    assert learned.is_development.tolist() == [sides[query] for query in learned.query_ids.tolist()]
    assert learned.description == "learned"
    assert learned.query_ids.tolist() == list(range(0, 80, 3))


def test_queries_without_proponents_are_kept_out_and_counted() -> None:
    queries = EvaluatedQueries.of({5: [3, 1], 6: [], 7: np.array([2])})
    assert queries.query_ids.tolist() == [5, 7]
    assert [ids.tolist() for ids in queries.proponents] == [[1, 3], [2]]
    assert queries.without_proponents == 1
    assert queries.among([7], "one").without_proponents == 1


def test_samples_are_seeded_and_keep_the_order() -> None:
    drawn = seeded_sample(range(100), 20, 0)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 20
    assert drawn == seeded_sample(range(100), 20, 0) != seeded_sample(range(100), 20, 1)
    assert set(drawn) == set(seeded_sample(range(99, -1, -1), 20, 0))
    assert set(drawn) < set(seeded_sample(range(100), 30, 0))  # the first n of one shuffle
    assert seeded_sample([3, 1], 5, 0) == [3, 1]
    with pytest.raises(ValueError, match="count: expected at least 1, found 0"):
        seeded_sample([1], 0, 0)


def test_relations_of_both_data_sets_and_of_others() -> None:
    assert [relation_of(fact) for fact in ("r17-e1-e2", "P17,Q1,Q-2", "my fact")] == ["r17", "P17", "my fact"]


def test_queries_without_a_fact_have_one_of_their_own() -> None:
    queries = EvaluatedQueries.of({0: [1], 1: [2], 2: [3]}, {0: None, 1: "P1,Q1,Q2", 2: None})
    assert queries.facts == ("query 0", "P1,Q1,Q2", "query 2")
    assert [relation_of(fact) for fact in queries.facts] == ["query", "P1", "query"]
    assert sample_means([np.ones((3, 1))], [queries.facts], 50, 0).estimates()[0].mean == 1
