"""Ids of all types: right, or an error whose remedy works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn
from ftrace.data import WithExampleIds
from ftrace.online import batches
from ftrace.online.batches import batch_ids
from ftrace.scores import ScoreStore, stable_id
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer

BEYOND = 2**63
NAMES = ["a", "é", "e\u0301", ""]


def found(ids: Any, names: dict[int, str] | None = None) -> list[int]:
    tensor = batch_ids({"example_id": ids}, "example_id", "id_key", names)
    assert tensor.dtype == torch.int64
    return tensor.tolist()


class Column:
    """As a column of a data frame: no sequence, and no array."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([3, 4]), torch.tensor([3, 4], dtype=torch.int8), torch.tensor([3, 4], dtype=torch.uint64),
        np.array([3, 4]), np.array([3, 4], ">i8"), np.array([3, 4], np.uint64), np.array([3, 4], object),
        [3, 4], (3, 4), range(3, 5), [np.int64(3), np.uint64(4)], [torch.tensor(3), torch.tensor(4)],
        Column(np.array([3, 4])), np.array([0, 3, 0, 4])[1::2],
    ],
    ids=lambda ids: f"{type(ids).__name__} {getattr(ids, 'dtype', '')}",
)  # fmt: skip
def test_whole_numbers_of_all_types(ids: Any) -> None:
    assert found(ids) == [3, 4]


def test_the_largest_and_the_smallest_number() -> None:
    ends = [BEYOND - 1, -BEYOND]
    for ids in (ends, torch.tensor(ends), np.array(ends), np.array(ends, object)):
        assert found(ids) == ends
    assert found(torch.tensor([BEYOND - 1], dtype=torch.uint64)) == [BEYOND - 1]


@pytest.mark.parametrize(
    "ids",
    [
        NAMES, tuple(NAMES), np.array(NAMES), np.array(NAMES, object), [np.str_(name) for name in NAMES],
        Column(np.array(NAMES)), np.array(NAMES, np.dtypes.StringDType()),
    ],
    ids=lambda ids: f"{type(ids).__name__} {getattr(ids, 'dtype', '')}",
)  # fmt: skip
def test_names_of_all_types(ids: Any) -> None:
    names: dict[int, str] = {}
    assert found(ids, names) == [stable_id(name) for name in NAMES]
    assert list(names.values()) == NAMES
    assert {type(name) for name in names.values()} == {str}
    assert found(ids, names) == found(ids) == list(names)


LARGE = [BEYOND, 5]


@pytest.mark.parametrize(
    ("ids", "message", "remedy"),
    [
        (torch.tensor(LARGE, dtype=torch.uint64), "found 9223372036854775808. Give them as names",
         lambda ids: [str(id) for id in ids.tolist()]),
        (np.array(LARGE, np.uint64), r"Give them as names: \[str\(id\) for id in ids.tolist\(\)\]",
         lambda ids: [str(id) for id in ids.tolist()]),
        (np.array(LARGE, object), "Give them as names", lambda ids: [str(id) for id in ids.tolist()]),
        (LARGE, r"expected whole numbers from -2\^63 to 2\^63 - 1, .*\[str\(id\) for id in ids\]$",
         lambda ids: [str(id) for id in ids]),
        ([np.uint64(BEYOND)], "Give them as names", lambda ids: [str(id) for id in ids]),
        ([-BEYOND - 1], "found -9223372036854775809. Give them as names", lambda ids: [str(id) for id in ids]),
        ([10**5000], "found a longer one. Give them as names", lambda ids: ["a name"]),
        (torch.tensor([1.0, 2.0]), r"found torch.float32 \(2,\). Make them whole numbers: ids.long\(\)",
         lambda ids: ids.long()),
        (np.array([1.0]), r'of an array or a column ids.astype\("int64"\)$', lambda ids: ids.astype("int64")),
        (torch.ones(3, 1, dtype=torch.int64).cumsum(0), r"found torch.int64 \(3, 1\). Flatten them: ids.reshape\(-1\)",
         lambda ids: ids.reshape(-1)),
        (torch.tensor(7), r"found torch.int64 \(\). Flatten them: ids.reshape\(-1\)", lambda ids: ids.reshape(-1)),
        (np.array([["a"], ["b"]]), "Give each example one whole number, or one name", lambda ids: ids.reshape(-1)),
        (torch.ones(3, 2, dtype=torch.int64), r"found torch.int64 \(3, 2\). Give each example one id",
         lambda ids: ids[:, 0]),
        (torch.tensor([True]), "found torch.bool .*Number the rows of the data set, not of the batch", None),
        (torch.tensor([1j]), "found torch.complex64", None),
        (["a", 1], "found .*Give all ids as names, or all as numbers", lambda ids: list(map(str, ids))),
        ([b"a", b"b"], r"found bytes, .*Make them text: \[id.decode\(\) for id in ids\]",
         lambda ids: [id.decode() for id in ids]),
        (np.array([b"a", b"b"]), "found bytes", lambda ids: [id.decode() for id in ids]),
        ("doc-1", "found the text 'doc-1'. Give a list of names, one for each example", lambda ids: [ids]),
        (b"doc-1", "found bytes, b'doc-1'", lambda ids: [ids.decode()]),
        (["\ud83d"], "expected a name that is text, found half of a surrogate pair", lambda ids: ["\U0001f600"]),
        ([None, 1], "Give each example one whole number, or one name", None),
        (np.array(["2020-01-01"], "datetime64[D]"), "Give each example one whole number", lambda ids: ids.astype(str)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_ids_that_are_refused_and_what_to_do(ids: Any, message: str, remedy: Callable[[Any], Any] | None) -> None:
    with pytest.raises(ValueError, match=message):
        found(ids)
    if remedy is not None:
        assert len(found(remedy(ids))) == len(remedy(ids))


def test_names_and_numbers_are_not_mixed_up() -> None:
    names: dict[int, str] = {}
    found(["a", "b"], names)
    for ids in (torch.tensor([1, 2]), [1], np.array([3])):
        with pytest.raises(ValueError, match=r"expected names, such as 'a', in all batches, found numbers. Give all"):
            found(ids, names)
    several = [{"example_id": torch.tensor([1, 2])}, {"example_id": ["a", "b"]}]
    for of_loaders in (several, several[::-1], dict(zip("xy", several, strict=True))):
        with pytest.raises(ValueError, match="expected names, such as 'a', in all batches, found numbers"):
            batch_ids(of_loaders, "example_id", "id_key", {})
    apart = [{"example_id": ["1", "2"]}, {"example_id": ["a", "b"]}]
    assert len(batch_ids(apart, "example_id", "id_key", {})) == 4


def test_two_names_with_one_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "stable_id", len)
    names: dict[int, str] = {}
    assert found(["a", "bc", "a"], names) == [1, 2, 1]
    with pytest.raises(ValueError, match=r"another number for each name, found 2 for 'bc' and for 'de'\. Rename"):
        found(["de"], names)
    with pytest.raises(ValueError, match="found 1 for 'a' and for 'b'"):
        found(["a", "b"])


def test_what_to_do_about_missing_ids_works(tmp_path: Path) -> None:
    """Examples and queries, of dictionaries and of tuples."""
    rows = [{name: value for name, value in row.items() if name != "id"} for row in replay.rows(6, "id")]
    asked = rows[:3]

    def fit(examples: Any, queries: Any, name: str = "online") -> ScoreStore:
        callback = OnlineTracIn(DataLoader(queries, batch_size=3), tmp_path / name, refresh_every_n_steps=1)
        trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(
            replay.Net(OPTIMIZERS["adamw"]), DataLoader(examples, batch_size=2)
        )
        return ScoreStore.open(tmp_path / name)

    numbered = WithExampleIds(rows)
    message = "batch has no \"query_id\": found keys ['x', 'word']. Add ids with ftrace.data.WithExampleIds(dataset, "
    with pytest.raises(ValueError, match=re.escape(f'{message}key="query_id"), or pass query_id_key=...')):
        fit(numbered, asked)
    message = (
        "batch has no \"example_id\": found keys ['x', 'word']. Add ids with ftrace.data.WithExampleIds(dataset), or"
    )
    with pytest.raises(ValueError, match=re.escape(f"{message} pass id_key=...")):
        fit(rows, WithExampleIds(asked, key="query_id"))
    tuples = TensorDataset(*(torch.stack([row[name] for row in asked]) for name in ("x", "word")))
    message = (
        'found a list. Add ids with ftrace.data.WithExampleIds(dataset, key="query_id", names=("x", "y")), or pass'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(numbered, tuples)
    stores = [
        fit(numbered, WithExampleIds(asked, key="query_id")),
        fit(numbered, WithExampleIds(tuples, key="query_id", names=("x", "word")), "tuples"),
    ]
    assert stores[0].query_ids.tolist() == stores[1].query_ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(*[store.matrix("dot") for store in stores])


@pytest.mark.parametrize("callback", [OnlineTracIn, GradientIndexWriter])
def test_numbers_then_names(tmp_path: Path, callback: Any) -> None:
    examples = replay.rows(6, "example_id")

    def collate(rows: list[replay.Row]) -> dict[str, Any]:
        batch = torch.utils.data.default_collate(rows)
        is_first = rows[0] is examples[0]
        return batch if is_first else {**batch, "example_id": [str(one) for one in batch["example_id"].tolist()]}

    given = {} if callback is GradientIndexWriter else {"queries": DataLoader(replay.rows(2, "query_id"), batch_size=2)}
    settings = {"parameters": ("*net*weight",), "preconditioner": "none"} if callback is GradientIndexWriter else {}
    made = callback(output_dir=tmp_path / "out", **given, **settings)
    module = replay.Net(lambda p: torch.optim.SGD(p[0]["params"] + p[1]["params"], lr=0.1))
    loader = DataLoader(examples, batch_size=2, collate_fn=collate)
    with pytest.raises(ValueError, match=r"expected numbers, as in earlier batches, found names, such as '15'"):
        trainer(tmp_path, callbacks=[made], max_epochs=1).fit(module, loader)
