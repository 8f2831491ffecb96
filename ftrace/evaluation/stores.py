"""Score stores as rows of a table: their names, and checks of their scores."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ftrace.scores import ScoreStore


def row_name(store: str, kind: str) -> str:
    """Name the row of one kind of a store's scores."""
    return store if store == kind else f"{store} {kind}"


def check_store(store: ScoreStore, query_ids: np.ndarray, num_examples: int) -> None:
    """Check that a store has a finite score of each training row for each query, of each kind.

    Raises:
        ValueError: If it lacks one, or one is NaN or infinite.
    """
    if store.has_candidates or not np.array_equal(store.example_ids, np.arange(num_examples)):
        raise ValueError(
            f"{store.path}: expected scores of all {num_examples} training rows for each query, found "
            f"{'candidates of each query' if store.has_candidates else f'{len(store.example_ids)} examples'}. Score "
            "without candidates"
        )
    missing = np.setdiff1d(query_ids, store.query_ids)
    if len(missing):
        raise ValueError(
            f"{store.path}: expected scores for query {missing[0]}, found none ({len(missing)} are missing)"
        )
    for kind in store.kinds:
        check_finite(store, kind, query_ids.tolist())


def check_finite(store: ScoreStore, kind: str, query_ids: Iterable[int]) -> None:
    """Check that the scores of some queries can be ranked; where queries have candidates, the scores of these.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for query in query_ids:
        scores = store.scores(query, kind)
        bad = ~np.isfinite(scores) if not store.has_candidates else np.isinf(scores)
        if bad.any():
            raise ValueError(
                f"{store.path}: expected finite scores, found {bad.sum()} others in kind {kind!r} of query {query}. "
                "Score a run that has not diverged, or in a larger dtype"
            )
