"""One record of when each query was right: all that speaks of learned queries says the same of one run.

As of a pretrained model: six queries are right before training, one of them is forgotten, one is learned, one never is,
and one is added on the way and right at its first evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.evaluation import EvaluatedQueries
from ftrace.evaluation.retrieval import learned_when
from ftrace.online.queries.answers import AnswerKeeper
from ftrace.report import plot_ledger
from ftrace.report.explorer.content.losses import Losses, answered_in_report
from ftrace.scores import ScoreStore
from ftrace.views import StoreSource, make_query_line, render_queries
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import EXAMPLES, AddQueries

KNOWN, FORGOTTEN, LEARNED, NEVER, ADDED = [1, 8, 15, 22, 29], 36, 43, 50, 57
ASKED = replay.rows(8, "query_id", seed=1)
LATER = [{**ASKED[0], "query_id": ADDED}]
STEPS = 8  # of two epochs, the second of which begins with step 4
LEARNED_AT, FORGOTTEN_AT, ADDED_AT = 5, 3, 4
SENTENCES = {
    **dict.fromkeys(KNOWN, "answered right before training"),
    FORGOTTEN: "answered right before training, forgotten at step 3",
    LEARNED: "first answered right at step 5",
    NEVER: "never answered right",
    ADDED: "answered right at step 4, when it was first asked",
}


def is_right(query: int, step: int) -> bool:
    return query in (*KNOWN, ADDED) or (query == FORGOTTEN and step < FORGOTTEN_AT) or (
        query == LEARNED and step >= LEARNED_AT
    )  # fmt: skip


EXPECTED = np.array(
    [[-1 if query == ADDED and step < ADDED_AT else is_right(query, step) for query in SENTENCES]
     for step in range(STEPS + 1)]
)  # fmt: skip


class Pretrained(replay.Net):
    """It is right where the tests say so."""

    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["adamw"])

    def learned(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tensor([is_right(query, self.global_step) for query in batch["query_id"].tolist()])


def fit(folder: Path, asked: Any = ASKED, resume: Path | None = None, epochs: int = 2, **online: Any) -> pl.Trainer:
    given: dict[str, Any] = {"scores": ("dot",), "breakdown": ("learned",), **online}
    callback = OnlineTracIn(DataLoader(asked, batch_size=3), folder / "online", **{"refresh_every_n_steps": 1, **given})
    made = trainer(folder, callbacks=[AddQueries(LATER), callback], max_epochs=epochs)
    made.fit(Pretrained(), DataLoader(EXAMPLES, batch_size=2), ckpt_path=resume)  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    folder = tmp_path_factory.mktemp("run")
    fit(folder)
    return ScoreStore.open(folder / "online")


def hold(store: ScoreStore) -> None:
    assert store.query_ids.tolist() == list(SENTENCES)
    assert store.answers is not None
    assert store.answers.steps.tolist() == list(range(STEPS + 1))
    np.testing.assert_array_equal(store.answers.right, EXPECTED)
    assert {query: str(answered) for query, answered in store.answers.states().items()} == SENTENCES
    assert store.manifest["answers"] == {"known": 6, "learned": 1, "forgotten": 1, "never": 1}


def test_the_store_records_it(store: ScoreStore) -> None:
    hold(store)
    np.testing.assert_array_equal(np.load(store.path / "answered_right.npy"), EXPECTED)
    assert "answers: 6 known, 1 learned, 1 forgotten, 1 never" in repr(store)
    assert list(store.checked_files())


def test_the_ledger_has_both_ends_of_each_interval(store: ScoreStore) -> None:
    assert store.ledger is not None
    known = np.where(EXPECTED < 0, np.nan, EXPECTED)
    np.testing.assert_array_equal(store.ledger["right"], known[:-1])
    np.testing.assert_array_equal(store.ledger["next_right"], known[1:])
    assert store.ledger.learned_steps().tolist() == [0] * 6 + [LEARNED_AT, -1, ADDED_AT]
    table = store.ledger.to_pandas()
    np.testing.assert_array_equal(table["next_right"].to_numpy().reshape(STEPS, -1), known[1:])
    assert store.ledger._repr_html_().count("answered right before training") == 5  # of the first five queries


def test_scores_are_broken_down_by_it(store: ScoreStore, tmp_path: Path) -> None:
    """Before: the scores of a run that ends where the query is learned; nothing of one that is right when first asked.

    What comes after a query was forgotten is still after it was first right.
    """
    parts = {query: store.parts(query, "learned", "dot") for query in SENTENCES}
    for query in (*KNOWN, FORGOTTEN, ADDED):
        assert not parts[query]["before"].any()
        np.testing.assert_array_equal(parts[query]["after"], store.scores(query, "dot"))
    assert not parts[NEVER]["after"].any()
    callback = OnlineTracIn(
        DataLoader(ASKED, batch_size=3), tmp_path / "online", scores=("dot",), refresh_every_n_steps=1
    )  # type: ignore[arg-type]
    made = trainer(tmp_path, callbacks=[callback], max_steps=LEARNED_AT)
    made.fit(Pretrained(), DataLoader(EXAMPLES, batch_size=2))  # type: ignore[arg-type]
    until = ScoreStore.open(tmp_path / "online").scores(LEARNED, "dot")
    np.testing.assert_allclose(parts[LEARNED]["before"], until, rtol=1e-12)
    assert parts[LEARNED]["after"].any()


def test_queries_are_binned_shown_and_reported_by_it(store: ScoreStore, tmp_path: Path) -> None:
    of_fact = {query: [int(store.example_ids[place % 8])] for place, query in enumerate(SENTENCES)}
    bins = learned_when({"online": store}, EvaluatedQueries.of(of_fact))
    assert [(one.state, one.first, one.last, one.num_queries, one.forgotten) for one in bins] == [
        ("known", 0, ADDED_AT, 7, 1), ("learned", LEARNED_AT, LEARNED_AT, 1, 0), ("never", -1, -1, 1, 0),
    ]  # fmt: skip
    assert [one.methods["online dot"].before for one in bins] == [0, pytest.approx(0.6, abs=0.4), 1]
    source = StoreSource(store)
    for query, sentence in SENTENCES.items():
        history = source.history(query)
        assert history is not None
        assert str(history.answered) == sentence
        found = Losses([source]).of(query)
        assert found is not None
        reported = answered_in_report(found[0])
        assert reported is not None
        assert reported["text"] == sentence
    table = render_queries([make_query_line([source], query, {}) for query in SENTENCES])
    column = next(column for column in table.columns if column.header == "learned at")
    assert [str(cell) for cell in column.cells] == [*["before"] * 5, "before, forgotten", "5", "never", "before"]
    assert store.ledger is not None
    assert plot_ledger(store.ledger, tmp_path / "ledger.svg").exists()


def test_it_is_kept_without_a_ledger_and_refreshed_rarely(tmp_path: Path) -> None:
    fit(tmp_path / "every")
    fit(tmp_path / "without", ledger=False)
    without = ScoreStore.open(tmp_path / "without" / "online")
    assert without.ledger is None
    hold(without)
    history = StoreSource(without).history(LEARNED)
    assert history is not None
    assert (history.losses, str(history.answered)) == (None, SENTENCES[LEARNED])
    fit(tmp_path / "rarely", ledger=False, refresh_every_n_steps=3, breakdown=())
    rarely = ScoreStore.open(tmp_path / "rarely" / "online").answers
    assert rarely is not None
    assert rarely.steps.tolist() == [0, 3, 4, 7, 8]  # with the queries that are added, and once more at the end
    np.testing.assert_array_equal(rarely.right, EXPECTED[rarely.steps])


@pytest.mark.parametrize("ledger", [True, False])
def test_a_resumed_run_goes_on_with_it(ledger: bool, tmp_path: Path) -> None:
    fit(tmp_path, epochs=1, ledger=ledger).save_checkpoint(tmp_path / "saved.ckpt")
    fit(tmp_path, resume=tmp_path / "saved.ckpt", ledger=ledger)
    hold(ScoreStore.open(tmp_path / "online"))
    fit(tmp_path / "later", epochs=2, ledger=ledger).save_checkpoint(tmp_path / "saved.ckpt")
    fit(tmp_path / "later", [*ASKED, *LATER], tmp_path / "saved.ckpt", epochs=3, ledger=ledger)
    answers = ScoreStore.open(tmp_path / "later" / "online").answers
    assert answers is not None
    np.testing.assert_array_equal(answers.right[: STEPS + 1], EXPECTED)


def test_a_module_that_cannot_tell_leaves_no_record(tmp_path: Path) -> None:
    callback = OnlineTracIn(
        DataLoader(ASKED, batch_size=3), tmp_path / "online", scores=("dot",), refresh_every_n_steps=1
    )  # type: ignore[arg-type]
    made = trainer(tmp_path, callbacks=[callback], max_epochs=1)
    made.fit(replay.Net(OPTIMIZERS["sgd"]), DataLoader(EXAMPLES, batch_size=2))  # type: ignore[arg-type]
    store = ScoreStore.open(tmp_path / "online")
    assert store.answers is None
    assert store.ledger is not None
    assert np.isnan(store.ledger["next_right"]).all()


def test_a_state_of_earlier_versions_is_continued() -> None:
    """It had the ends of intervals and who was ever right: one who never was at an end was when first asked."""
    rows = [
        {"step": 0, "next_step": 2, "learned": torch.tensor([0.0, 1.0, 0.0])},
        {"step": 2, "next_step": 4, "learned": torch.tensor([0.0, 0.0, 0.0])},
        {"step": 4, "next_step": 6, "learned": torch.tensor([0.0, 0.0, 0.0, 0.0])},  # a query was added at step 4
    ]
    ever = torch.tensor([True, True, False, True])
    keeper = AnswerKeeper()
    keeper.load_earlier({"learned": ever, "ledger": {"rows": rows}, "last": None})
    record = keeper.record(np.arange(4))
    assert record is not None
    assert record.steps.tolist() == [0, 2, 4, 6]
    assert record.right.tolist() == [[1, -1, -1, -1], [0, 1, 0, -1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert keeper.ever_right(5).tolist() == [True, True, False, True, False]
    unknown = AnswerKeeper()
    unknown.load_earlier({"learned": None, "ledger": None, "last": None})
    assert unknown.record(np.arange(4)) is None
