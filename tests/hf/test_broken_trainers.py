"""What users do with trainers that are traced, and what it must say or leave as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from ftrace.hf import OnlineTracInCallback
from ftrace.scores import ScoreStore
from helpers.hf_trainers import make_model, make_queries, make_trainer, model_folder, query_losses


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("hf"))


def traced(trainer: Any, model: str, store: Path, kind: type[Any] = OnlineTracInCallback) -> Any:
    return kind(trainer, make_queries(model), store, query_losses, scores=("dot",))


def test_a_second_callback_is_refused(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("trainer", model, tmp_path)
    traced(trainer, model, tmp_path / "one")
    with pytest.raises(ValueError, match="expected one such callback for a trainer, found a second"):
        traced(trainer, model, tmp_path / "two")


def test_something_else_than_a_trainer_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a transformers\.Trainer, .* found a LlamaForCausalLM"):
        traced(make_model(model, torch.float32), model, tmp_path)


def test_a_callback_that_was_added_twice_traces_once(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("trainer", model, tmp_path, num_train_epochs=1)
    callback = traced(trainer, model, tmp_path / "scores")
    trainer.add_callback(callback)
    trainer.add_callback(callback)
    trainer.train()
    assert ScoreStore.open(tmp_path / "scores").manifest["steps"] == 5
    assert trainer.callback_handler.callbacks.count(callback) == 1


def test_a_trainer_without_rows_says_so_itself(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("trainer", model, tmp_path)
    trainer.train_dataset = None
    traced(trainer, model, tmp_path / "scores")
    with pytest.raises(ValueError, match="training requires a train_dataset"):
        trainer.train()


class OtherLoss(Trainer):
    """A trainer whose step differentiates another loss than that of ``compute_loss``."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:  # type: ignore[override]
        self.compute_loss(model, dict(inputs), num_items_in_batch=num_items_in_batch)
        loss = model(**{name: value for name, value in inputs.items() if name != "example_id"}).loss
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_step_of_another_loss_is_refused_and_leaves_nothing_behind(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("trainer", model, tmp_path / "one")
    trainer.__class__ = OtherLoss
    before = {name: value for name, value in vars(trainer).items() if callable(value)}
    traced(trainer, model, tmp_path / "scores")
    with pytest.raises(ValueError, match=r"expected a training_step that differentiates what self\.compute_loss"):
        trainer.train()
    after = {name: value for name, value in vars(trainer).items() if callable(value)}
    assert after.pop("train") is not None
    assert after.keys() == before.keys()
    other = make_trainer("trainer", model, tmp_path / "two", num_train_epochs=1)
    other.train()  # hooks on all optimizers are gone
    assert other.state.global_step == 5


class Mine(OnlineTracInCallback):
    """A subclass, under whose own name a trainer saves its state."""


@pytest.mark.parametrize("kind", [OnlineTracInCallback, Mine])
def test_a_checkpoint_is_resumed_by_a_subclass_too(kind: type[Any], model: str, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    first = make_trainer("trainer", model, tmp_path / "run", **options)
    traced(first, model, tmp_path / "scores", kind)
    first.train()
    second = make_trainer("trainer", model, tmp_path / "run", **options)
    traced(second, model, tmp_path / "scores", kind)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    manifest = ScoreStore.open(tmp_path / "scores").manifest
    assert manifest["complete"] is True
    assert manifest["steps"] == 5


def test_a_checkpoint_without_scores_is_resumed_and_saved_with_them(model: str, tmp_path: Path) -> None:
    """Transformers itself knows nothing of callbacks that a checkpoint hasn't."""
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    make_trainer("trainer", model, tmp_path / "run", **options).train()
    trainer = make_trainer("trainer", model, tmp_path / "run", **options)
    traced(trainer, model, tmp_path / "scores")
    with pytest.warns(UserWarning, match="scores begin at step 2"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert ScoreStore.open(tmp_path / "scores-incomplete").manifest["complete"] is False
    assert '"OnlineTracInCallback"' in (tmp_path / "run" / "checkpoint-4" / TRAINER_STATE_NAME).read_text()


def test_a_callback_of_another_trainer_is_refused(model: str, tmp_path: Path) -> None:
    first, second = (make_trainer("trainer", model, tmp_path / name) for name in ("first", "second"))
    second.add_callback(OnlineTracInCallback(first, make_queries(model), tmp_path / "scores", query_losses))
    with pytest.raises(ValueError, match="expected the trainer that it was made for, found another"):
        second.train()


def test_queries_are_rows_of_lists_of_any_length_and_shown_without_their_answers(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("sft", model, tmp_path / "run")
    tokenizer = trainer.processing_class
    asked = [("Where does Velland lie?", " In Karmora."), ("Where does Quenby lie now?", " In Marrow.")]
    rows = []
    for number, (question, answer) in enumerate(asked):
        given, told = tokenizer(question).input_ids, tokenizer(answer).input_ids
        rows.append({"input_ids": given + told, "labels": [-100] * len(given) + told, "query_id": number})
    trainer.add_callback(OnlineTracInCallback(trainer, rows, tmp_path / "scores"))
    trainer.train()
    store = ScoreStore.open(tmp_path / "scores")
    assert store.query_texts_of([0, 1]) == [question for question, _ in asked]
    assert [row["answer"] for row in store.queries.rows([0, 1])] == ["In Karmora.", "In Marrow."]  # type: ignore[union-attr,index]


def test_a_query_without_labels_is_refused(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("trainer", model, tmp_path / "run")
    query = {"input_ids": [5, 6, 7], "labels": [-100, -100, -100], "query_id": 0}
    trainer.add_callback(OnlineTracInCallback(trainer, [query], tmp_path / "scores"))
    with pytest.raises(ValueError, match='expected "labels" of each query\'s answer, found none but -100'):
        trainer.train()
