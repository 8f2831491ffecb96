"""Hugging Face's and TRL's trainers, traced: scores against plain autograd, and training that isn't disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftrace.hf import OnlineTracInCallback
from ftrace.scores import ScoreStore, stable_id
from helpers.hf_trainers import (
    KINDS,
    Recorder,
    expected_scores,
    make_queries,
    make_trainer,
    model_folder,
    query_losses,
)

BOUND = {"trainer": 1e-9, "sft": 1e-5, "dpo": 1e-5, "grpo": 1e-5}  # TRL's own loss is in float32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("hf"))


def traced(trainer: Any, model: str, folder: Path, **settings: Any) -> OnlineTracInCallback:
    callback = OnlineTracInCallback(
        trainer, make_queries(model), folder / "scores", query_losses, **{"scores": ("dot",), **settings}
    )
    trainer.add_callback(callback)
    return callback


@pytest.mark.parametrize("lora", [False, True])
def test_documents_without_padding_have_the_scores_of_padded_rows(lora: bool, model: str, tmp_path: Path) -> None:
    """In SFT's padding-free batches, each document is an example."""
    stores = []
    for name, options in (("padded", {}), ("free", {"padding_free": True, "max_length": None})):
        trainer = make_trainer("sft", model, tmp_path / name, lora=lora, **options)
        traced(trainer, model, tmp_path / f"of-{name}")
        trainer.train()
        stores.append(ScoreStore.open(tmp_path / f"of-{name}" / "scores"))
    padded, free = stores
    assert padded.example_ids.tolist() == free.example_ids.tolist()
    largest = np.abs(padded.matrix("dot")).max()
    assert np.abs(padded.matrix("dot") - free.matrix("dot")).max() <= 1e-3 * largest
    assert padded.example_texts_of(padded.example_ids) == free.example_texts_of(padded.example_ids)


def test_documents_of_packed_rows_are_numbered_by_their_places(model: str, tmp_path: Path) -> None:
    trainer = make_trainer("sft", model, tmp_path / "packed", packing=True, max_length=48)
    traced(trainer, model, tmp_path)
    trainer.train()
    store = ScoreStore.open(tmp_path / "scores")
    assert store.example_ids.tolist() == list(range(10))
    assert trainer.train_dataset.num_rows < 10
    assert "example_id" not in trainer.train_dataset.column_names
    assert len(set(store.example_texts_of(store.example_ids))) == 10
    assert "Where does" in store.example_texts_of([3])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_projected_and_learning_scores_are_computed_too(kind: str, model: str, tmp_path: Path) -> None:
    """And agree with exact ones, as far as projections to 8 x 8 can."""
    stores = []
    for side in (None, 8):
        trainer = make_trainer(kind, model, tmp_path / str(side))
        kinds = ("dot", "learning") if side else ("dot",)
        traced(trainer, model, tmp_path / f"of-{side}", scores=kinds, projection_side=side, refresh_every_n_steps=1)
        trainer.train()
        stores.append(ScoreStore.open(tmp_path / f"of-{side}" / "scores"))
    exact, projected = (store.matrix("dot").ravel() for store in stores)
    assert np.corrcoef(exact, projected)[0, 1] > 0.6
    assert np.abs(stores[1].matrix("learning")).max() > 0
    lines = {line["parameter"]: line for line in stores[1].manifest["coverage"]}
    assert {line["status"] for line in lines.values()} == {"covered"}
    assert lines["lm_head.weight"]["rules"] == ["Linear"]  # also where TRL's fused head uses it


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_autograd_one_example_at_a_time(
    kind: str, accumulated: int, lora: bool, model: str, tmp_path: Path
) -> None:
    """Of the trainer's own loss; and weights are those of a training without the callback, bit by bit."""
    options = {"gradient_accumulation_steps": accumulated}
    plain = make_trainer(kind, model, tmp_path / "plain", lora=lora, **options)
    plain.train()
    trainer = make_trainer(kind, model, tmp_path / "traced", lora=lora, **options)
    recorder = Recorder(trainer, traced(trainer, model, tmp_path))
    trainer.train()
    for (name, one), other in zip(plain.model.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    store = ScoreStore.open(tmp_path / "scores")
    expected = expected_scores(recorder, kind, make_queries(model))
    ids = [stable_id(id_) if isinstance(id_, str) else id_ for id_ in expected]
    assert sorted(ids) == store.example_ids.tolist()
    order = np.searchsorted(store.example_ids, ids)
    found, right = store.matrix("dot")[order], np.stack(list(expected.values()))
    assert np.abs(found - right).max() <= BOUND[kind] * np.abs(right).max()
    assert np.abs(right).max() > 0
