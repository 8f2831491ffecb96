"""Training rows of all kinds, traced: streamed, augmented, of other classes, in batches whose class has attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, SequentialSampler
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from ftrace.hf import OnlineTracInCallback
from ftrace.scores import ScoreStore
from helpers.hf_trainers import make_model, make_queries, model_folder, query_losses


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("hf"))


def tokens(model: str, count: int = 6) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [tokenizer(f"Place {i} lies by the sea.").input_ids[: 7 + i % 3] for i in range(count)]
    return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in rows]


def make(
    model: str,
    folder: Path,
    rows: Any,
    kind: type[Trainer] = Trainer,
    collator: Any = None,
    callbacks: Any = None,
    **options: Any,
) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model)
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=2, report_to=[], save_strategy="no", use_cpu=True, learning_rate=1e-2,
        disable_tqdm=True, logging_strategy="no", **{"num_train_epochs": 2, **options},
    )  # fmt: skip
    return kind(
        make_model(model, torch.float64), args, train_dataset=rows, callbacks=callbacks,
        data_collator=collator or DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip


def trained(trainer: Any, model: str, store: Path, **settings: Any) -> ScoreStore:
    OnlineTracInCallback(trainer, make_queries(model), store, query_losses, **{"scores": ("dot",), **settings})
    trainer.train()
    return ScoreStore.open(store)


class Rows(Dataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place]


class Augmented(Rows):
    """Rows of which another token is hidden each time they are read."""

    def __getitem__(self, place: int) -> Any:
        labels = list(self.rows[place]["labels"])
        labels[int(torch.randint(1, len(labels), ()))] = -100
        return {**self.rows[place], "labels": labels}


def test_rows_that_are_augmented_as_they_are_read_are_not_disturbed(model: str, tmp_path: Path) -> None:
    """To find out whether rows have ids, one of them is read, which draws random numbers."""
    plain = make(model, tmp_path, Augmented(tokens(model)))
    plain.train()
    traced = make(model, tmp_path, Augmented(tokens(model)))  # sets the seed again
    trained(traced, model, tmp_path / "scores")
    for one, other in zip(plain.model.parameters(), traced.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Streamed(IterableDataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{**row, "example_id": f"row {place}"} for place, row in enumerate(self.rows)])


def test_epochs_of_streamed_rows_are_counted(model: str, tmp_path: Path) -> None:
    """By passes over the rows: the trainer's own fraction is of the largest number of steps."""
    trainer = make(model, tmp_path, Streamed(tokens(model)), max_steps=7)
    store = trained(trainer, model, tmp_path / "scores", breakdown=("epoch",))
    assert sorted(store.example_names_of(store.example_ids)) == [f"row {place}" for place in range(6)]
    parts = store.parts(0, "epoch").values()
    assert [int((part != 0).sum()) for part in parts] == [6, 6, 2]  # three steps, three, and one


class StopEpoch(TrainerCallback):
    """Ends each epoch after two steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step % 2 == 0


def test_epochs_that_a_callback_ends_early_are_counted(model: str, tmp_path: Path) -> None:
    trainer = make(model, tmp_path, Rows(tokens(model)), callbacks=[StopEpoch()], num_train_epochs=3)
    store = trained(trainer, model, tmp_path / "scores")
    assert trainer.state.global_step == 6
    assert np.abs(store.matrix("dot")).max() > 0


class WithAttributes(Trainer):
    """A trainer that reads entries of a batch as attributes, which a BatchEncoding has."""

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits[:, :-1]
        labels = inputs.labels[:, 1:]
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / num_items_in_batch


def test_batches_keep_their_class(model: str, tmp_path: Path) -> None:
    stores = [
        trained(make(model, tmp_path, Rows(tokens(model)), kind), model, tmp_path / kind.__name__)
        for kind in (Trainer, WithAttributes)
    ]
    # The model's own loss, the first one, is in float32.
    np.testing.assert_allclose(stores[0].matrix("dot"), stores[1].matrix("dot"), rtol=1e-4)


class Sampling(Trainer):
    """A trainer whose sampler uses an attribute of its data set."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset.order)  # type: ignore[union-attr]


def test_a_sampler_may_use_attributes_of_the_data_set(model: str, tmp_path: Path) -> None:
    rows = Rows(tokens(model))
    rows.order = range(4)  # type: ignore[attr-defined]
    store = trained(make(model, tmp_path, rows, Sampling), model, tmp_path / "scores")
    assert store.example_ids.tolist() == [0, 1, 2, 3]


def test_rows_that_are_no_dictionaries_are_refused(model: str, tmp_path: Path) -> None:
    rows: Any = [tuple(row.values()) for row in tokens(model)]
    trainer = make(model, tmp_path, Rows(rows), collator=lambda rows: rows, remove_unused_columns=False)
    with pytest.raises(ValueError, match="expected dictionaries in train_dataset, found a row of type tuple"):
        trained(trainer, model, tmp_path / "scores")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: sorted(rows, key=lambda row: -len(row["input_ids"])), "another order. Leave rows in their order"),
        (lambda rows: [row for row in rows for _ in range(2)], "2 of each. Make them in the data set"),
    ],
)
def test_collators_that_give_ids_to_other_rows_are_refused(
    change: Callable[[Any], Any], found: str, model: str, tmp_path: Path
) -> None:
    collate = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(model))
    trainer = make(model, tmp_path, Rows(tokens(model)), collator=lambda rows: collate(change(rows)))
    with pytest.raises(ValueError, match=f"expected a collator that makes one row .*, found {found}"):
        trained(trainer, model, tmp_path / "scores")
