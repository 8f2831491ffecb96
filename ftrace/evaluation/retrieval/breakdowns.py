"""Metrics by group of queries: by relation, and by how many ground-truth proponents a query has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np

from ftrace.evaluation.queries import relation_of
from ftrace.evaluation.query_groups import QueryGroup, shorter_first
from ftrace.evaluation.retrieval.evaluation import Evaluation, RunMetrics
from ftrace.evaluation.retrieval.metrics import MAIN

By = Literal["relation", "proponents"]
EDGES = (1, 2, 5, 10, 25, 50, 100, 1000)


def breakdown(evaluation: Evaluation, by: By) -> list[QueryGroup]:
    """Evaluate each group of queries by itself; runs without queries of a group are left out of it.

    Args:
        evaluation: The evaluation of all queries.
        by: The property that queries of a group share.

    Returns:
        The groups: relations in the order of their numbers, or ranges of numbers of proponents, ascending.
    """
    labels = [_labels(run, by) for run in evaluation.runs]
    groups = []
    for name in _in_order({label for of_run in labels for label in of_run.tolist()}, by):
        masks = [of_run == name for of_run in labels]
        kept = [(run, mask) for run, mask in zip(evaluation.runs, masks, strict=True) if mask.any()]
        runs = tuple(run.where(mask) for run, mask in kept)
        of_group = Evaluation(runs, seed=evaluation.seed, resamples=evaluation.resamples, metrics=MAIN)
        groups.append(QueryGroup(by, name, sum(len(run.queries) for run in runs), of_group.estimates))
    return groups


def _labels(run: RunMetrics, by: By) -> np.ndarray:
    """Name each query's group, ``[Q]``."""
    if by == "relation":
        return np.array([relation_of(fact) for fact in run.queries.facts])
    names = np.array(list(_bins()))
    return names[np.searchsorted(EDGES, run.num_proponents, side="right") - 1]


def _bins() -> Iterator[str]:
    """Yield the names of the ranges that begin at each of the edges."""
    for first, following in pairwise(EDGES):
        yield str(first) if following == first + 1 else f"{first} to {following - 1}"
    yield f"{EDGES[-1]} and more"


def _in_order(names: set[str], by: By) -> list[str]:
    if by == "proponents":
        return [name for name in _bins() if name in names]
    return shorter_first(names)
