"""Which rows state a fact, when sentences' variants are not side by side."""

from __future__ import annotations

from ftrace.data.fact_index import FactIndex


def made() -> FactIndex:
    """Variants of three sentences, of which one is noted to state its fact in one variant only."""
    index = FactIndex()
    for sentence, facts in ((0, ["a"]), (1, ["a", "b", "a"]), (0, []), (2, ["b"]), (1, ["b"])):
        index.add(sentence, facts)
    return index


def test_all_variants_of_a_sentence_state_its_facts_in_ascending_order() -> None:
    index = made()
    assert index.rows_stating("a").tolist() == [0, 1, 2, 4]
    assert index.rows_stating("b").tolist() == [1, 3, 4]
    assert index.rows_stating("c").tolist() == []
    assert (index.num_facts, index.num_sentences) == (2, 3)
    assert index.facts_of_rows(1, 4).to_pylist() == [["a", "b"], ["a"], ["b"]]


def test_a_fact_that_a_row_names_twice_is_listed_once() -> None:
    assert made().num_listed(0, 5).tolist() == [1, 2, 0, 1, 1]
