"""Ids that stand for two examples are found; examples that come again are not taken for such."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
)

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn
from ftrace.data import WithExampleIds
from ftrace.scores import ScoreStore
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer

ASKED = replay.rows(2, "query_id", seed=1)


def plain(count: int, seed: int = 0) -> list[replay.Row]:
    """Rows without ids."""
    return [{name: value for name, value in row.items() if name != "id"} for row in replay.rows(count, "id", seed)]


def own(ids: Sequence[Any], seed: int = 0) -> list[replay.Row]:
    """Rows with ids of their own."""
    return [{**row, "example_id": id} for row, id in zip(plain(len(ids), seed), ids, strict=True)]


A, B = plain(8), plain(8, seed=5)


class Several(replay.Net):
    """Of one loader or of several, whose batches run one after another."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if "x" in batch:
            return self.example_losses(batch).mean()
        several = batch.values() if isinstance(batch, dict) else batch
        return torch.cat([self.example_losses(one) for one in several if one is not None]).mean()


def fit(tmp_path: Path, loader: Any, online: Any = (), **settings: Any) -> ScoreStore:
    callback = OnlineTracIn(DataLoader(ASKED, batch_size=2), tmp_path / "online", **dict(online))  # type: ignore[arg-type]
    trainer(tmp_path, **{"max_epochs": 1, "callbacks": [callback], **settings}).fit(
        Several(OPTIMIZERS["adamw"]), loader
    )
    return ScoreStore.open(tmp_path / "online")


def of(dataset: Any, size: int = 2, **settings: Any) -> DataLoader:
    return DataLoader(dataset, batch_size=size, **settings)


ALIKE = (
    'two data sets number their rows alike: expected another "example_id" for each row, found 8 ids in both, such as '
    "0. Number them apart, WithExampleIds(b, first=8), or in one loader together, WithExampleIds(ConcatDataset([a, b]))"
)


@pytest.mark.parametrize(
    "loader",
    [
        lambda: of(ConcatDataset([WithExampleIds(A), WithExampleIds(B)]), shuffle=True),
        lambda: {"a": of(WithExampleIds(A)), "b": of(WithExampleIds(B))},
        lambda: [of(WithExampleIds(A), 4), of(WithExampleIds(B))],
        lambda: CombinedLoader([of(WithExampleIds(A)), of(WithExampleIds(B))], "max_size"),
        lambda: of(ConcatDataset([WithExampleIds(A), ConcatDataset([Subset(WithExampleIds(B), range(8))])])),
    ],
)
def test_data_sets_that_number_their_rows_alike_are_refused_when_training_starts(tmp_path: Path, loader: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(ALIKE)):
        fit(tmp_path, loader())
    writer = GradientIndexWriter(tmp_path / "index", parameters=("*net*weight",))
    with pytest.raises(ValueError, match=re.escape(ALIKE)):
        trainer(tmp_path, callbacks=[writer], max_epochs=1).fit(Several(OPTIMIZERS["adamw"]), loader())
    with pytest.warns(UserWarning, match="two data sets number their rows alike: .* the same id are added up"):
        store = fit(tmp_path, loader(), {"strict": False})
    assert len(store.example_ids) == 8


def test_what_to_do_about_them_works(tmp_path: Path) -> None:
    together = fit(tmp_path / "together", of(WithExampleIds(ConcatDataset([A, B]))))
    apart = fit(tmp_path / "apart", of(ConcatDataset([WithExampleIds(A), WithExampleIds(B, first=8)])))
    assert together.example_ids.tolist() == apart.example_ids.tolist() == list(range(16))
    np.testing.assert_array_equal(together.matrix("dot"), apart.matrix("dot"))
    loaders = [of(WithExampleIds(A)), of(WithExampleIds(B, first=8))]
    assert fit(tmp_path / "loaders", loaders).example_ids.tolist() == list(range(16))


def test_overlaps_are_told_by_the_rows_that_are_used(tmp_path: Path) -> None:
    first, second = WithExampleIds(A), WithExampleIds(B, first=5)
    with pytest.raises(ValueError, match=r"found 3 ids in both, such as 5. Number .*, WithExampleIds\(b, first=13"):
        fit(tmp_path, [of(first), of(second)])
    with pytest.raises(ValueError, match="found 1 ids in both, such as 6"):
        fit(tmp_path, [of(Subset(first, [0, 6])), of(second)])
    with pytest.raises(ValueError, match='another "row" for each row'):
        fit(tmp_path, [of(WithExampleIds(A, key="row")), of(WithExampleIds(B, key="row"))], {"id_key": "row"})
    disjoint = [of(Subset(first, range(5))), of(Subset(second, [0, 4, 7, 3, 1]))]
    assert fit(tmp_path / "subsets", disjoint).example_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 12]
    concatenated = Subset(ConcatDataset([first, second]), [0, 4, 8, 15])
    assert fit(tmp_path / "subset", of(concatenated)).example_ids.tolist() == [0, 4, 5, 12]


NUMBERED = WithExampleIds(A)


@pytest.mark.parametrize(
    ("loader", "batches"),
    [
        (lambda: of(ConcatDataset([NUMBERED, NUMBERED])), 8),
        (lambda: of(ConcatDataset([WithExampleIds(A), WithExampleIds(A)])), 8),
        (lambda: [of(NUMBERED), of(NUMBERED, shuffle=True)], 4),
        (lambda: [of(WithExampleIds(A)), of(WithExampleIds(A), shuffle=True)], 4),
        (lambda: of(Subset(NUMBERED, [0, 1, 2, 2, 2, 3, 4, 5, 6, 7])), 5),
        (lambda: of(ConcatDataset([NUMBERED, Subset(NUMBERED, [3])])), 5),
        (lambda: of(ConcatDataset([Subset(NUMBERED, range(8)), Subset(NUMBERED, [3])])), 5),
        (lambda: [of(WithExampleIds(B, first=8), 1), of(NUMBERED, 4)], 8),  # the shorter one begins anew
        (lambda: of(NUMBERED, sampler=RandomSampler(NUMBERED, replacement=True, num_samples=20)), 10),
        (lambda: of(NUMBERED, sampler=RandomSampler(NUMBERED, num_samples=16)), 8),
        (lambda: of(NUMBERED, sampler=WeightedRandomSampler([1.0] * 8, 20)), 10),
        (lambda: of(NUMBERED, sampler=[0, 1, 0, 2, 3, 4, 5, 6, 7]), 5),
        (lambda: DataLoader(NUMBERED, batch_sampler=[[0, 1], [1, 2, 3], [4, 5, 6, 7]]), 3),
        (lambda: of(NUMBERED, sampler=DistributedSampler(NUMBERED, 1, 0)), 4),
        (lambda: of(Stream(NUMBERED)), 8),
        (lambda: of(NUMBERED, shuffle=True, drop_last=True), 4),
    ],
)
def test_rows_that_are_drawn_again_are_the_same_examples(tmp_path: Path, loader: Any, batches: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(number their rows|expected an id)")
        store = fit(tmp_path, loader(), max_epochs=2)
    assert set(range(8)) <= set(store.example_ids.tolist())
    assert store.manifest["steps"] == 2 * batches


class Stream(IterableDataset):
    """Its rows twice."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[replay.Row]:
        for _ in range(2):
            yield from (self.rows[place] for place in range(len(self.rows)))


def numbered_by_batch(rows: list[replay.Row]) -> dict[str, Any]:
    return {**default_collate(rows), "example_id": torch.arange(len(rows))}


def prebatched(*ids: list[int]) -> list[dict[str, Any]]:
    return [default_collate(own(of_batch)) for of_batch in ids]


@pytest.mark.parametrize(
    ("loader", "repeated"),
    [
        (lambda: of(ConcatDataset([own(range(8)), own(range(6, 14), 1)])), "6"),
        (lambda: of(own([*range(8), 7])), "7"),
        (lambda: of(own([*range(7), 3, 3]), 9, shuffle=True), "3"),
        (lambda: of(A, collate_fn=numbered_by_batch), "0"),
        (lambda: of(own(["a", "b", "c", "a"])), "'a'"),
        (lambda: [of(own(range(4))), of(own(range(3, 7), 1))], "3"),
        (lambda: [of(own(range(4)), 1), of(own(range(16), 1), 8)], "0"),  # before the shorter one begins anew
        (lambda: DataLoader(prebatched([0, 1, 2], [3, 4, 1]), batch_size=None), "1"),
        (lambda: DataLoader(own([5, 6, 5]), batch_sampler=BatchSampler(SequentialSampler(range(3)), 2, False)), "5"),
        (lambda: of(own([-1, -2, -1])), "-1"),
    ],
)
def test_an_id_that_comes_twice_where_each_row_is_drawn_once(tmp_path: Path, loader: Any, repeated: str) -> None:
    message = f'batch["example_id"]: expected an id for each row of the data, found {repeated} twice in epoch 0, though'
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(tmp_path, loader())
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        fit(tmp_path, loader(), {"strict": False}, max_epochs=2)
    assert sum("expected an id" in str(one.message) for one in caught) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*expected an id")
        fit(tmp_path / "shared", loader(), {"shared_ids": True})


def test_the_index_writer_finds_it_too(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", parameters=("*net*weight",), correction="none")
    module = replay.Net(lambda p: torch.optim.SGD(p[0]["params"] + p[1]["params"], lr=0.1))
    with pytest.raises(ValueError, match="found 2 twice in epoch 0, though the loader draws each row once"):
        trainer(tmp_path, callbacks=[writer], max_epochs=1).fit(module, of(own([1, 2, 3, 2])))


def test_where_it_comes_twice_in_a_later_epoch(tmp_path: Path) -> None:
    class Changing(list):  # type: ignore[type-arg]
        drawn = 0

        def __getitem__(self, place: Any) -> Any:
            Changing.drawn += 1
            row = super().__getitem__(place)
            return {**row, "example_id": 0} if Changing.drawn == 16 else row

    with pytest.raises(ValueError, match="found 0 twice in epoch 1, though"):
        fit(tmp_path, of(Changing(own(range(8)))), max_epochs=3)


@pytest.mark.parametrize("count", [4, 7])
def test_a_batch_may_have_several_rows_of_an_example(tmp_path: Path, count: int) -> None:
    """Views of one row, which its collate function makes; the last batch is a smaller one."""

    def views(rows: list[replay.Row]) -> dict[str, Any]:
        return default_collate([row for row in rows for _ in range(3)])

    store = fit(tmp_path, of(WithExampleIds(A[:count]), 4, collate_fn=views))
    assert len(store.example_ids) == count
    in_batches = DataLoader(prebatched([0, 0, 1], [2, 3, 3]), batch_size=None)
    assert fit(tmp_path / "prebatched", in_batches).example_ids.tolist() == [0, 1, 2, 3]


def test_a_run_that_is_resumed_goes_on(tmp_path: Path) -> None:
    def begun(**settings: Any) -> Any:
        online = OnlineTracIn(DataLoader(ASKED, batch_size=2), tmp_path / "online")  # type: ignore[arg-type]
        return trainer(tmp_path, callbacks=[online], **settings)

    first = begun(max_epochs=1, max_steps=3)
    first.fit(Several(OPTIMIZERS["adamw"]), of(NUMBERED, shuffle=True))
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = begun(max_epochs=3)
    again.fit(Several(OPTIMIZERS["adamw"]), of(NUMBERED, shuffle=True), ckpt_path=tmp_path / "last.ckpt")
    assert ScoreStore.open(tmp_path / "online").example_ids.tolist() == list(range(8))
