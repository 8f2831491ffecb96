"""Scores that can't be trusted are marked, and whoever looks at them is told."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.scores import Ledger, ScoreStore, Sum, find_doubts
from ftrace.scores.ledger import COLUMNS


def ledger(**columns: list[list[float]]) -> Ledger:
    """Make the ledger of three queries over two intervals, in which each moves by 1 nat down and up again."""
    values = {name: np.zeros((2, 3)) for name in COLUMNS}
    values["loss"], values["next_loss"] = np.array([[2.0] * 3, [1.0] * 3]), np.array([[1.0] * 3, [2.0] * 3])
    values["predicted"] = values["loss"] - values["next_loss"]
    values |= {name: np.array(of_name) for name, of_name in columns.items()}
    return Ledger(np.array([0, 1]), np.array([1, 2]), np.array([7, 8, 9]), values)


def test_an_account_within_what_was_learned_and_forgotten_is_no_reason() -> None:
    """Although the losses are where they were, so that any share of their net fall is infinite."""
    assert ledger().doubts() == []
    assert ledger(projection=[[0.9, 0.9, 0.9], [0.9, 0.9, 0.9]]).doubts() == []


def test_shares_of_a_fall_that_is_next_to_nothing_are_not_told() -> None:
    """But nats are."""
    columns = {"next_loss": [[1.0] * 3, [1.99] * 3], "predicted": [[1.2] * 3, [-0.99] * 3]}
    summary = ledger(**columns, examples=[[1.1] * 3, [-1.0] * 3], uncovered=[[0.1] * 3, [0.01] * 3]).summary()
    assert str(summary) == (
        "the scores predict a fall by 0.1 nats where a fall by 0.01 nats was measured, after the queries gained and "
        "lost 1.99 nats each; momentum 0 nats, decay 0 nats, uncovered 0.11 nats, curvature -0.2 nats. The largest "
        "part is what curvature leaves unexplained (single steps changed the query gradients): a smaller learning rate "
        "would help"
    )
    assert not summary.shares
    assert str(ledger(**columns, examples=[[np.nan] * 3] * 2).summary()) == (
        "to first order, the steps predict a fall by 0.21 nats where a fall by 0.01 nats was measured, after the "
        "queries gained and lost 1.99 nats each: so scores don't count nats here; compare examples by "
        "`cosine` or `learning`"
    )


@pytest.mark.parametrize(
    ("account", "remedy"),
    [("projection", "larger projection_side"), ("momentum", 'momentum="exact"'), ("uncovered", "parameters=")],
)
def test_an_account_beyond_that_is_one(account: str, remedy: str) -> None:
    sentences = ledger(**{account: [[3.0, -9.0, 0.0], [3.0, -9.0, 6.0]]}).doubts()
    assert len(sentences) == 1
    assert "comes to 5 times all that the queries learned and forgot" in sentences[0]
    assert remedy in sentences[0]


def test_without_accounts_there_is_nothing_to_doubt() -> None:
    unknown = [[np.nan] * 3] * 2
    assert ledger(examples=unknown, projection=[[99.0] * 3] * 2).doubts() == []


def test_queries_whose_learning_scores_are_all_0_are_counted() -> None:
    scores = {Sum("learning"): np.array([[0.0, 1.0], [0.0, 0.0]]), Sum("whitened"): np.ones((2, 2))}
    doubts = find_doubts(scores, None)
    assert list(doubts) == ["learning"]
    assert "0 for all examples of 1 of 2 queries" in doubts["learning"][0]
    scores[Sum("learning")][1, 0] = 1e-30
    assert find_doubts(scores, None) == {}


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([[400.0], [180.0]], r"above 170 nats at every step.* always 0\. Rank by `whitened`"),
        ([[0.0], [1e-9]], r"were 0 at every step.*certain from the beginning.*Trace the training that taught them"),
        ([[np.nan], [-1e-9]], "were 0 at every step"),  # added later; rounding
        ([[400.0], [3.0]], "neither 0 nor above 170 nats"),
        ([[0.0], [3.0]], "neither 0 nor above 170 nats"),
        (None, r"was 0 at every step, as that of whole texts is, or 1\. Keep the ledger"),
    ],
)
def test_why_they_are_0_is_read_off_the_losses(losses: Any, reason: str) -> None:
    """Of the second of two queries; the first has scores."""
    book = None
    if losses is not None:
        columns = dict.fromkeys(COLUMNS, np.zeros((2, 2))) | {"loss": np.hstack([[[1.0], [1.0]], losses])}
        book = Ledger(np.array([0, 1]), np.array([1, 2]), np.array([7, 8]), columns)
    doubts = find_doubts({Sum("learning"): np.array([[1.0, 0.0]])}, book)
    assert len(doubts["learning"]) == 1
    assert re.search(rf"0 for all examples of 1 of 2 queries\. .*{reason}", doubts["learning"][0])


def test_queries_with_different_reasons_get_a_sentence_each() -> None:
    columns = dict.fromkeys(COLUMNS, np.zeros((1, 4))) | {"loss": np.array([[400.0, 0.0, 0.0, -3.0]])}
    book = Ledger(np.array([0]), np.array([1]), np.array([7, 8, 9, 10]), columns)
    scores = {Sum("learning"): np.zeros((2, 4))}
    negative, never, always = find_doubts(scores, book, query_ids=book.query_ids, negative=[10])["learning"]
    assert "below 0 for 1 of 4 queries, so they are no -log of a probability" in negative
    assert "1 of 4 queries. Their losses were above 170 nats" in never
    assert "2 of 4 queries. Their losses were 0" in always


def test_with_candidates_each_query_has_its_own() -> None:
    scores = {Sum("learning"): np.array([0.0, 1.0, 0.0, 0.0])}
    doubts = find_doubts(scores, None, np.array([0, 2, 4, 4]))
    assert "1 of 3 queries" in doubts["learning"][0]


def test_a_store_repeats_the_doubts_and_warns_once_for_each_kind(tmp_path: Path) -> None:
    manifest = {"doubts": {"update": ["`update` is in doubt: noise"]}}
    scores = {"dot": np.ones((2, 1)), "update": np.ones((2, 1))}
    store = ScoreStore.write(tmp_path / "s", np.arange(2), np.array([5]), scores, manifest)
    assert store.doubts("update") == ["`update` is in doubt: noise"]
    assert store.doubts("dot") == store.doubts() == []
    with pytest.warns(UserWarning, match=r"`update` is in doubt: noise") as caught:
        store.top(5, kind="update")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.top(5, kind="update")
        store.top(5, kind="dot")


def test_a_store_of_another_method_has_none(tmp_path: Path) -> None:
    assert ScoreStore.write(tmp_path / "s", np.arange(2), np.array([5]), {"dot": np.ones((2, 1))}).doubts() == []
