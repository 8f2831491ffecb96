"""Texts beside the scores of any training: by a function of a batch, a data set, a pair of them, or the datamodule."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ftrace.callbacks import OnlineTracIn
from ftrace.data import WithExampleIds
from ftrace.scores import ScoreStore, Texts, stable_id
from helpers import replay
from helpers.replay import OPTIMIZERS, trainer
from helpers.replay_runs import ASKED, EXAMPLES, AddQueries, queries

HOSTILE = "[red]x[/red] \x1b[31m \u202eevil <b>&amp;</b> a\r\nb\tc \U0001f600 e\u0301 \x00"
EXAMPLE_IDS = [row["example_id"] for row in EXAMPLES]
QUERY_IDS = [row["query_id"] for row in ASKED]
EXAMPLE_ROWS = [{"example_id": i, "text": f"example {i} {HOSTILE}", "answer": str(i)} for i in EXAMPLE_IDS]
QUERY_ROWS = [{"query_id": i, "text": f"query {i} {HOSTILE}", "answer": str(i)} for i in QUERY_IDS]


def fit(
    folder: Path, loader: Any = None, asked: Any = None, callbacks: Any = (), epochs: int = 1, **online: Any
) -> ScoreStore:
    shutil.rmtree(folder / "online", ignore_errors=True)
    callback = OnlineTracIn(queries() if asked is None else asked, folder / "online", ledger=False, **online)
    loader = DataLoader(EXAMPLES, batch_size=2) if loader is None else loader  # type: ignore[arg-type]
    trainer(folder, callbacks=[callback, *callbacks], max_epochs=epochs).fit(replay.Net(OPTIMIZERS["adamw"]), loader)
    return ScoreStore.open(folder / "online")


def rows_of(texts: Texts | None) -> list[dict[str, Any]]:
    assert texts is not None
    return [row for row in texts.rows(texts.ids) if row is not None]


class Describe:
    """A function of a batch that notes the batches it is called with."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        of = "query" if "query_id" in batch else "example"
        ids = batch[f"{of}_id"].tolist()
        self.ids.append(ids)
        torch.rand(2), np.random.rand(2)
        return {
            "text": [f"{of} {i} {HOSTILE}" for i in ids],
            "answer": tuple(map(str, ids)),
            "input_ids": [[1, 2]] * len(ids),  # nobody reads these
            "x": batch["x"],
        }


class MapStyle(Dataset):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "x": torch.zeros(3), "input_ids": [3, 4, 5]}


class IterableStyle(IterableDataset):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


FORMS: dict[str, Callable[[], Any]] = {
    "function": Describe,
    "list": lambda: [*QUERY_ROWS, *EXAMPLE_ROWS],
    "map-style": lambda: MapStyle([*EXAMPLE_ROWS, *QUERY_ROWS]),
    "iterable-style": lambda: IterableStyle([*EXAMPLE_ROWS, *QUERY_ROWS]),
    "pair of lists": lambda: (EXAMPLE_ROWS, QUERY_ROWS),
    "pair of Hugging Face's": lambda: (
        datasets.Dataset.from_list(EXAMPLE_ROWS),
        datasets.Dataset.from_list(QUERY_ROWS),
    ),
    "pair with other columns": lambda: (
        datasets.Dataset.from_list([{**row, "input_ids": [1, 2]} for row in EXAMPLE_ROWS]).with_format("torch"),
        MapStyle(QUERY_ROWS),
    ),
    "pair of frames": lambda: (pd.DataFrame(EXAMPLE_ROWS), pd.DataFrame(QUERY_ROWS)),
    "pair of tables": lambda: (pa.Table.from_pylist(EXAMPLE_ROWS), pa.Table.from_pylist(QUERY_ROWS)),
    "pair of texts": lambda: (Texts.of(EXAMPLE_ROWS, "example_id"), Texts.of(QUERY_ROWS, "query_id")),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_beside_the_scores_byte_for_byte(form: str, tmp_path: Path) -> None:
    store = fit(tmp_path, describe=FORMS[form]())
    assert rows_of(store.examples) == EXAMPLE_ROWS
    assert rows_of(store.queries) == QUERY_ROWS


def test_a_function_is_called_only_for_batches_with_new_ids(tmp_path: Path) -> None:
    describe = Describe()
    fit(tmp_path, describe=describe, epochs=2)
    assert describe.ids == [QUERY_IDS[:2], QUERY_IDS[2:], *(EXAMPLE_IDS[i : i + 2] for i in range(0, 8, 2))]


@pytest.mark.parametrize("form", ["function", "map-style", "pair of Hugging Face's"])
def test_training_is_the_same_with_and_without(form: str, tmp_path: Path) -> None:
    """Bit by bit, random numbers included."""
    ends = []
    for describe in (None, FORMS[form]()):
        torch.manual_seed(0)
        np.random.seed(0)
        module = replay.Dropout(OPTIMIZERS["adamw"])
        shutil.rmtree(tmp_path / "online", ignore_errors=True)
        callback = OnlineTracIn(queries(), tmp_path / "online", ledger=False, describe=describe)
        loader = DataLoader(EXAMPLES, batch_size=3, shuffle=True)  # type: ignore[arg-type]
        trainer(tmp_path, callbacks=[callback]).fit(module, loader)
        weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        ends.append((weights, torch.get_rng_state(), np.random.rand()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]


def test_rows_that_the_store_does_not_have_are_left_out(tmp_path: Path) -> None:
    more = [{"example_id": 10_000, "text": "not trained"}, *EXAMPLE_ROWS[:5], {**EXAMPLE_ROWS[0], "text": "again"}]
    store = fit(tmp_path, describe=(more, None))
    assert rows_of(store.examples) == EXAMPLE_ROWS[:5]
    assert store.queries is None


@pytest.mark.parametrize(
    "candidates", [EXAMPLE_IDS[2:4], dict.fromkeys(QUERY_IDS, EXAMPLE_IDS[2:4])], ids=["list", "each"]
)
@pytest.mark.parametrize("form", ["function", "list"])
def test_only_candidates_have_texts(form: str, candidates: Any, tmp_path: Path) -> None:
    describe = FORMS[form]()
    store = fit(tmp_path, describe=describe, candidates=candidates)
    assert rows_of(store.examples) == EXAMPLE_ROWS[2:4]
    assert len(rows_of(store.queries)) == 3
    if isinstance(describe, Describe):
        assert describe.ids[2:] == [EXAMPLE_IDS[2:4]]


def test_ids_that_are_names_keep_them(tmp_path: Path) -> None:
    def named(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_collate([{name: value for name, value in row.items() if name != "example_id"} for row in rows])
        return {**batch, "example_id": [f"train/{row['example_id']}" for row in rows]}

    def by_function(batch: dict[str, Any]) -> dict[str, Any]:
        names = batch.get("example_id", ["who?"] * len(batch["x"]))
        return {"text": [f"text of {name}" for name in names]}

    names = [f"train/{i}" for i in EXAMPLE_IDS]
    in_rows = [{"example_id": name, "text": f"text of {name}"} for name in names]
    for describe in (by_function, (in_rows, None), (datasets.Dataset.from_list(in_rows), None)):
        store = fit(tmp_path, DataLoader(EXAMPLES, batch_size=2, collate_fn=named), describe=describe)  # type: ignore[arg-type]
        rows = store.examples.rows([stable_id(name) for name in names])  # type: ignore[union-attr]
        assert [(row["text"], row["name"]) for row in rows if row] == [(f"text of {name}", name) for name in names]


def test_keys_may_have_other_names(tmp_path: Path) -> None:
    examples = [{"row": row["example_id"], "x": row["x"], "word": row["word"]} for row in EXAMPLES]
    asked = [{"question": row["query_id"], "x": row["x"], "word": row["word"]} for row in ASKED]
    renamed = (
        [{"row": row["example_id"], "text": row["text"], "answer": row["answer"]} for row in EXAMPLE_ROWS],
        datasets.Dataset.from_list(QUERY_ROWS).rename_column("query_id", "question"),
    )

    def by_function(batch: dict[str, Any]) -> dict[str, Any]:
        of, ids = ("query", batch["question"]) if "question" in batch else ("example", batch["row"])
        return {"text": [f"{of} {i} {HOSTILE}" for i in ids.tolist()], "answer": [str(i) for i in ids.tolist()]}

    for describe in (renamed, by_function):
        store = fit(
            tmp_path, DataLoader(examples, batch_size=2), DataLoader(asked, batch_size=2), describe=describe,  # type: ignore[arg-type]
            id_key="row", query_id_key="question",
        )  # fmt: skip
        assert rows_of(store.examples) == EXAMPLE_ROWS
        assert rows_of(store.queries) == QUERY_ROWS


def test_batches_of_several_loaders_are_described_one_by_one(tmp_path: Path) -> None:
    class Several(replay.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return sum(super(Several, self).training_step(part, batch_idx) for part in batch.values())

    loaders = {"a": DataLoader(EXAMPLES[:4], batch_size=2), "b": DataLoader(EXAMPLES[4:], batch_size=2)}  # type: ignore[arg-type]
    callback = OnlineTracIn(queries(), tmp_path / "online", ledger=False, describe=Describe())
    trainer(tmp_path, callbacks=[callback]).fit(Several(OPTIMIZERS["adamw"]), loaders)
    assert rows_of(ScoreStore.open(tmp_path / "online").examples) == EXAMPLE_ROWS


def test_queries_that_are_added_have_texts(tmp_path: Path) -> None:
    added = [{**row, "query_id": row["query_id"] + 1000} for row in ASKED]
    store = fit(tmp_path, callbacks=[AddQueries(added)], epochs=2, describe=Describe())
    assert [row["answer"] for row in rows_of(store.queries)] == [str(row["query_id"]) for row in (*ASKED, *added)]


def test_several_rows_of_an_example_give_the_first_ones_text(tmp_path: Path) -> None:
    pieces = [{**row, "example_id": row["example_id"] % 2} for row in EXAMPLES]
    rows = [{"example_id": row["example_id"], "text": f"piece {i}"} for i, row in enumerate(pieces)]

    def by_function(batch: dict[str, Any]) -> dict[str, Any]:
        pieces_of_batch = (
            [next(i for i, row in enumerate(EXAMPLES) if torch.equal(row["x"], x)) for x in batch["x"]]
            if ("example_id" in batch)
            else [0] * len(batch["x"])
        )
        return {"text": [f"piece {i}" for i in pieces_of_batch]}

    for describe in ((rows, None), by_function):
        store = fit(
            tmp_path, DataLoader(pieces, batch_size=3), describe=describe, shared_ids=True, strict=False  # type: ignore[arg-type]
        )  # fmt: skip
        assert rows_of(store.examples) == rows[:2][:: 1 if rows[0]["example_id"] == 0 else -1]


class Data(pl.LightningDataModule):
    """A datamodule that says texts."""

    def __init__(self, described: Any) -> None:
        super().__init__()
        self.described = described
        self.called = 0

    def train_dataloader(self) -> DataLoader:
        return DataLoader(EXAMPLES, batch_size=2)  # type: ignore[arg-type]

    def query_dataloader(self) -> DataLoader:
        return queries()

    def describe(self) -> Any:
        self.called += 1
        if isinstance(self.described, Exception):
            raise self.described
        return self.described


def test_a_datamodule_says_texts_when_the_store_is_written(tmp_path: Path) -> None:
    data = Data((pa.Table.from_pylist(EXAMPLE_ROWS), QUERY_ROWS))
    store = fit(tmp_path, data)
    assert rows_of(store.examples) == EXAMPLE_ROWS
    assert rows_of(store.queries) == QUERY_ROWS
    assert data.called == 1
    other = fit(tmp_path / "other", data, describe=(EXAMPLE_ROWS[:1], None))
    assert len(rows_of(other.examples)) == data.called == 1  # one's own texts come first


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    """The scores of a run without texts."""
    return fit(tmp_path_factory.mktemp("plain"))


class FailsLater(MapStyle):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("describe", "message"),
    [
        (FailsLater(EXAMPLE_ROWS), "OSError: the disk is gone"),
        ([*EXAMPLE_ROWS, {"text": "no id"}], r"expected rows with 'example_id' or 'query_id', found keys \['text'\]"),
        ([*EXAMPLE_ROWS, {"example_id": 1}], "expected a text in each row, found 1 rows without one"),
        ([*EXAMPLE_ROWS, {**EXAMPLE_ROWS[0], "answer": 3}], "expected columns of one type each"),
        (([{"example_id": 10_000, "text": "x"}], None), 'ids of the store as "example_id", such as .*found none'),
        (Data("text"), r"describe\(\): expected a function of a batch, or a data set.*found the text 'text'"),
        (Data(KeyError("x")), "KeyError"),
    ],
    ids=["data set that fails", "no id", "no text", "types", "other ids", "no texts", "datamodule that fails"],
)  # fmt: skip
def test_what_fails_at_the_end_leaves_the_scores_whole(
    describe: Any, message: str, plain: ScoreStore, tmp_path: Path
) -> None:
    given = {"loader": describe} if isinstance(describe, Data) else {"describe": describe}
    with pytest.warns(UserWarning, match=f"{message}.*ScoreStore.put_texts"):
        store = fit(tmp_path / "a", **given)
    assert store.examples is None
    np.testing.assert_array_equal(store.matrix("dot"), plain.matrix("dot"))
    store.put_texts(Texts.of(EXAMPLE_ROWS, "example_id"))
    assert rows_of(store.examples) == EXAMPLE_ROWS


def returns(columns: Any) -> Callable[[Any], Any]:
    return lambda batch: columns


def breaks(batch: Any) -> Any:
    return batch["no such key"]


@pytest.mark.parametrize(
    ("describe", "message"),
    [
        (returns(["a", "b"]), "describe, for a batch of queries: expected columns such as .*found list"),
        (returns({"txt": ["a", "b"]}), r"expected a column \"text\", found \['txt'\]; nearest: 'txt'"),
        (returns({"text": "ab"}), "expected 2 values under \"text\", one for each row, found 'ab'"),
        (returns({"text": ["a"]}), 'expected 2 values under "text", one for each row, found 1 of them'),
        (returns({"text": ["a", "b"], "answer": ["c"]}), 'expected 2 values under "answer"'),
        (returns({"text": ["a", 7]}), 'expected texts under "text", found 7'),
        (returns({"text": ["a", "b"], "x": [1, "y"]}), "expected columns of one type each, found others in 'x'"),
        (breaks, r"the function raised KeyError: 'no such key'. The batch has the keys \['x', 'word', 'query_id'\]"),
        ("texts.jsonl", r"found the text 'texts.jsonl'. Of a file, pass list\(ftrace.data.read_texts\(file\)\[1\]\)"),
        (iter(EXAMPLE_ROWS), "a data set of rows that can be read again, found list_iterator"),
        (DataLoader(EXAMPLE_ROWS), "found DataLoader. Pass its dataset"),  # type: ignore[arg-type]
        (EXAMPLES, "expected rows with 'example_id' or 'query_id' and 'text', found .*'word'"),
        ([{"example_id": 1, "query_id": 2, "text": "a"}], r"found both. Pass two data sets: describe=\(examples, "),
        ((EXAMPLE_ROWS, EXAMPLE_ROWS), "describe, queries: expected rows with 'query_id' and 'text', found"),
        ([{"example_id": 1, "text": 5}], "expected texts under 'text', found int"),
        (pa.Table.from_pylist([{"example_id": 1, "texts": "a"}]), "expected rows with .*'texts'"),
        (WithExampleIds(["a"]), "expected samples that are dictionaries"),
        ([EXAMPLE_ROWS], "expected rows that are dictionaries, found list"),
        ([], "expected rows, found none"),
    ],
)
def test_what_is_wrong_is_said_before_training(describe: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        fit(tmp_path, describe=describe)
    assert not (tmp_path / "online").exists()


def test_what_a_function_gets_wrong_later_is_one_warning(plain: ScoreStore, tmp_path: Path) -> None:
    def describe(batch: dict[str, Any]) -> dict[str, Any]:
        columns = Describe()(batch)
        if EXAMPLE_IDS[2] in batch.get("example_id", []):
            raise RuntimeError("odd row")
        return {**columns, "answer": [7, 8]} if EXAMPLE_IDS[6] in batch.get("example_id", []) else columns

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = fit(tmp_path, describe=describe)
    about = [str(warning.message) for warning in caught if "describe" in str(warning.message)]
    assert len(about) == 1
    assert "RuntimeError: odd row" in about[0]
    assert rows_of(store.examples) == [*EXAMPLE_ROWS[:2], *EXAMPLE_ROWS[4:6]]
    np.testing.assert_array_equal(store.matrix("dot"), plain.matrix("dot"))


def test_scores_of_a_failed_run_have_texts(tmp_path: Path) -> None:
    class Fail(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit(tmp_path, callbacks=[Fail()], describe=Describe())
    store = ScoreStore.open(tmp_path / "online-incomplete")
    assert rows_of(store.examples) == EXAMPLE_ROWS[:4]
    assert rows_of(store.queries) == QUERY_ROWS
