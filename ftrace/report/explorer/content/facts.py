"""Which of a query's listed examples state its fact, what others share with it, and how precise lists are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ftrace.evaluation.tail_patch.example_kinds import KINDS, OTHER, SUBJECT, kind_by_keys, relation_by_key
from ftrace.report.explorer.content.corpus_texts import ListedExample
from ftrace.report.explorer.content.listings import PRECISION_AT, MethodListing, precision_by_ranks
from ftrace.views.joining import GroundTruth

Kind = Literal["same subject", "same object", "same relation", "other"]


def kind_of_example(truth: GroundTruth, example: ListedExample, states_fact: bool | None) -> Kind | None:
    """Return what an example shares with a query's fact; None if it states the fact, or facts aren't known.

    Args:
        truth: What is known of the query's fact.
        example: The example.
        states_fact: Whether it states the fact.
    """
    facts = example.row.get("facts")
    if states_fact or truth.fact is None or facts is None:
        return None
    kind = kind_by_keys(truth.fact, map(str, facts))
    return None if kind is None or not SUBJECT <= kind <= OTHER else KINDS[kind]  # type: ignore[return-value]


def relation_of_fact(fact: str | None) -> str | None:
    """Return the relation of a fact; None if the fact's key doesn't name it."""
    return None if fact is None else relation_by_key(fact)


def precision_of(method: MethodListing, states_fact: Sequence[bool | None]) -> float | None:
    """Return P@10 of a method's list: of all examples where ground truth is known, else as far as the labels tell.

    Args:
        method: What the method lists.
        states_fact: Of each of the query's examples.

    Returns:
        From 0 to 1, in expectation over the order of equal scores where all examples are ranked, as ``ftrace evaluate``
        says; None if the list is too short, or labels are lacking.
    """
    if method.precision is not None:
        return method.precision
    first = method.proponents[:PRECISION_AT]
    if len(first) < PRECISION_AT:
        return None
    if method.counts is not None:  # whoever has the score of the tenth may have its place
        ranks, ties = method.places.ranks, method.places.ties
        first = method.proponents[ranks[method.proponents] <= PRECISION_AT]
        if ranks[first[-1]] + ties[first[-1]] > len(method.proponents):
            return None
    labels = [states_fact[place] for place in first.tolist()]
    if any(label is None for label in labels):
        return None
    if method.counts is None:
        return sum(map(bool, labels)) / PRECISION_AT
    return precision_by_ranks(method.counts.candidates, ranks[first], ties[first], np.array(labels, float))
