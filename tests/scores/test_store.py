"""The score store: what was written is what is read, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.scores import Ledger, ScoreStore, ScoreWriter, Sum, stable_id

IDS, QUERIES = np.array([7, 2, 5]), np.array([11, 10])
DOT = np.array([[1.0, -3.0], [2.0, 0.0], [-1.0, 4.0]], dtype=np.float32)


def write(path: Path, **scores: Any) -> ScoreStore:
    return ScoreStore.write(path, IDS, QUERIES, scores or {"dot": DOT, "cosine": DOT / 10}, {"method": "test"})


def test_what_was_written_is_read_in_the_order_of_ids(tmp_path: Path) -> None:
    write(tmp_path / "store")
    store = ScoreStore.open(tmp_path / "store")
    assert store.example_ids.tolist() == [2, 5, 7]
    assert store.query_ids.tolist() == [11, 10]
    assert store.scores(10, "dot").tolist() == [0.0, 4.0, -3.0]
    assert store.scores(10, "dot").dtype == np.float32
    assert store.kinds == ("dot", "cosine")
    assert store.manifest["method"] == "test"


def test_top_gives_proponents_and_opponents(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    assert [part.tolist() for part in store.top(11, k=2, kind="dot")] == [[2, 7], [2.0, 1.0]]
    assert [part.tolist() for part in store.top(11, k=9, kind="dot", largest=False)] == [[5, 7, 2], [-1.0, 1.0, 2.0]]


@pytest.mark.parametrize("ragged", [False, True])
def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path, ragged: bool) -> None:
    generator = np.random.default_rng(0)
    ids = generator.permutation(1000)[:300]  # more than numpy sorts by insertion, which keeps the order of ties
    values = generator.integers(0, 3, (300, 1)).astype(np.float32)
    offsets = np.array([0, 300]) if ragged else None
    scores = {"dot": values[:, 0] if ragged else values}
    store = ScoreStore.write(tmp_path / "store", ids, QUERIES[:1], scores, candidate_offsets=offsets)
    by_id = sorted(zip(ids.tolist(), values[:, 0].tolist(), strict=True))
    for largest in (True, False):
        expected = sorted(by_id, key=lambda pair: -pair[1] if largest else pair[1])  # Python keeps the order of ties
        for k in (7, 150, 300):  # within a group of equal scores, and all
            found = store.top(11, k=k, largest=largest)
            assert list(zip(*(part.tolist() for part in found), strict=True)) == expected[:k]


def test_numpy_opens_it_without_ftrace(tmp_path: Path) -> None:
    write(tmp_path / "store")
    queries = np.load(tmp_path / "store" / "query_ids.npy")
    scores = np.load(tmp_path / "store" / "dot.npy", mmap_mode="r")
    assert scores[:, queries == 10].ravel().tolist() == [0.0, 4.0, -3.0]
    assert scores.flags.f_contiguous  # a query's scores lie side by side


def test_arrays_are_mapped_only_when_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "store")
    store = ScoreStore.open(tmp_path / "store")
    (tmp_path / "store" / "dot.npy").unlink()
    assert isinstance(store.matrix("cosine"), np.memmap)
    with pytest.raises(ValueError, match=r"dot.npy' is missing"):
        store.matrix("dot")


def test_float64_is_kept(tmp_path: Path) -> None:
    store = write(tmp_path / "store", dot=DOT.astype(np.float64))
    assert store.matrix().dtype == np.float64


def test_an_earlier_store_is_replaced_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "store")
    write(tmp_path / "store", dot=2 * DOT)
    assert ScoreStore.open(tmp_path / "store").scores(11, "dot").tolist() == [4.0, -2.0, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="expected nothing or an earlier score store"):
        write(tmp_path / "other")
    (tmp_path / "store" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"it also holds 'notes\.txt'"):
        write(tmp_path / "store")
    monkeypatch.chdir(tmp_path / "store")
    with pytest.raises(ValueError, match="it is the working directory"):
        write(Path("."))
    (tmp_path / "store" / "notes.txt").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "link", dot=3 * DOT)
    assert ScoreStore.open(tmp_path / "store").scores(11, "dot").tolist() == [6.0, -3.0, 3.0]
    (tmp_path / "link").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="it is a file"):
        write(tmp_path / "file")


def test_a_write_that_fails_leaves_the_earlier_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "store")
    monkeypatch.setattr(np, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "store", dot=2 * DOT)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert ScoreStore.open(tmp_path / "store").scores(11, "dot").tolist() == [2.0, -1.0, 1.0]


def damage_truncate(store: Path) -> None:
    data = (store / "dot.npy").read_bytes()
    (store / "dot.npy").write_bytes(data[:-4])


def damage_empty(store: Path) -> None:
    (store / "dot.npy").write_bytes(b"")


def damage_shape(store: Path) -> None:
    np.save(store / "dot.npy", DOT[:2])


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_shape])
def test_a_damaged_array_is_a_clear_error(damage: Any, tmp_path: Path) -> None:
    write(tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(ValueError, match=r"dot\.npy"):
        ScoreStore.open(tmp_path / "store").check()
    with pytest.raises(ValueError, match=r"dot\.npy' is damaged: expected \d+ bytes, found \d+"):
        ScoreStore.open(tmp_path / "store").scores(10, "dot")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "is not a score store: can't read its manifest.json"),
        ("{", "is not a score store: can't read"),
        ("[]", "is not a score store: .* expected a JSON object, found list"),
        (json.dumps({"format": "other"}), "doesn't say format 'ftrace-scores'"),
        (json.dumps({"format": "ftrace-scores", "version": 1}), "missing required field kinds"),
        (json.dumps({"format": "ftrace-scores", "version": 99}), "of version 99, and this ftrace reads 2"),
    ],
)
def test_foreign_folders_are_refused(manifest: str | None, message: str, tmp_path: Path) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=message):
        ScoreStore.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        ScoreStore.open(tmp_path / "nowhere")


def test_unknown_queries_kinds_and_ks(tmp_path: Path) -> None:
    store = write(tmp_path / "store")
    with pytest.raises(KeyError, match=r"no query 3; the store has 2 queries, the nearest \[10, 11\]"):
        store.scores(3, "dot")
    with pytest.raises(ValueError, match=r"expected one of the kinds \['dot', 'cosine'\], found 'update'"):
        store.scores(10, "update")
    assert store.scores(10).tolist() == store.scores(10, "dot").tolist()
    with pytest.raises(ValueError, match=r"no kind was given, so 'dot' was taken, .* Pass kind='cosine'"):
        write(tmp_path / "others", cosine=DOT, update=DOT).scores(10)
    with pytest.raises(ValueError, match="k: expected a whole number from 1 on, found 0"):
        store.top(10, k=0, kind="dot")


def test_shapes_and_ids_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected scores of kind 'dot' of shape \(3, 2\), found \(2, 2\)"):
        write(tmp_path / "store", dot=DOT[:2])
    with pytest.raises(ValueError, match="expected query_ids without duplicates, found 1 of them"):
        ScoreStore.write(tmp_path / "store", IDS, np.array([1, 1]), {"dot": DOT})
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"dot": np.array([["a"], ["b"]])}, "expected scores of kind 'dot' that are real numbers, found <U1"),
        ({"dot": np.array([[1j], [2j]])}, "that are real numbers, found complex128"),
        ({"dot": np.array([[{}], [None]])}, "that are real numbers, found object"),
        ({5: np.zeros((2, 1))}, r"scores\[5\]: expected a text, found 5"),
        ({"": np.zeros((2, 1))}, "expected kinds of scores that can be names of files"),
        ({"a\nb": np.zeros((2, 1))}, "expected kinds of scores that can be names of files"),
        ([np.zeros((2, 1))], "scores: expected a mapping"),
        (None, "scores: expected a mapping"),
    ],
)
def test_scores_that_are_none_are_refused(scores: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreStore.write(tmp_path / "store", [3, 8], [0], scores)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("largest", [True, False])
def test_scores_that_are_not_finite_have_no_rank(tmp_path: Path, largest: bool) -> None:
    scores = np.array([np.nan, 3.0, np.inf, -1.0, -np.inf, 2.0])[:, None]
    store = ScoreStore.write(tmp_path / "store", np.arange(6), np.array([0]), {"dot": scores})
    order = [1, 5, 3] if largest else [3, 5, 1]
    for k in (1, 2, 5):
        ids, found = store.top(0, k, largest=largest)
        assert ids.tolist() == order[:k]
        assert found.tolist() == scores[order[:k], 0].tolist()


@pytest.mark.parametrize(
    ("ids", "message", "remedy"),
    [
        (np.array([1, 2**63], np.uint64), r"from -2\^63 to 2\^63 - 1, found 9223372036854775808. Number them as", str),
        (np.array([1, 2**70], object), "found others .*Number them as names: ftrace.scores.stable_id", str),
        (np.array(["a", "b"]), "found <U1. Number them as names", str),
        (np.array(["a", "b"], object), "found others .*Number them as names", str),
        (np.array([0.0, 1.0]), r'found float64. Make them whole numbers: ids.astype\("int64"\)', int),
    ],
)  # fmt: skip
def test_ids_that_would_become_others_are_refused(ids: np.ndarray, message: str, remedy: Any, tmp_path: Path) -> None:
    for given in ((ids, QUERIES), (np.array([1, 2]), ids)):
        with pytest.raises(ValueError, match=message):
            ScoreStore.write(tmp_path / "store", *given, {"dot": np.zeros((2, 2))})
        with pytest.raises(ValueError, match=message):
            ScoreWriter(tmp_path / "store", *given, ["dot"])
    assert not list(tmp_path.iterdir())
    numbered = [stable_id(str(one)) if remedy is str else int(one) for one in ids.tolist()]
    store = ScoreStore.write(tmp_path / "store", np.array(numbered), QUERIES, {"dot": np.zeros((2, 2))})
    assert store.example_ids.tolist() == sorted(numbered)


def test_ids_of_all_whole_types_are_taken(tmp_path: Path) -> None:
    for ids in (np.array([3, 1], np.uint64), np.array([3, 1], np.int8), np.array([3, 1], object), [3, 1]):
        store = ScoreStore.write(tmp_path / "store", ids, QUERIES, {"dot": np.eye(2)})  # type: ignore[arg-type]
        assert store.example_ids.tolist() == [1, 3]
        assert store.matrix().tolist() == [[0, 1], [1, 0]]


def test_ids_that_had_no_name_are_their_own(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "store", IDS, QUERIES, {"dot": DOT}, names={7: "seven"})
    assert store.example_names is not None
    assert store.example_names.tolist() == ["2", "5", "seven"]
    assert store.query_names is None


def test_what_is_no_candidate_of_a_query_has_no_score(tmp_path: Path) -> None:
    pairs, offsets = np.array([3, 9, 3, 1]), np.array([0, 2, 4])
    scores = np.array([1.0, -2.0, 3.0, 4.0])
    store = ScoreStore.write(tmp_path / "store", pairs, QUERIES, {"dot": scores}, candidate_offsets=offsets)
    assert store.example_ids.tolist() == [1, 3, 9]
    np.testing.assert_array_equal(store.scores(11), [np.nan, 1, -2])
    np.testing.assert_array_equal(store.scores(10), [4, 3, np.nan])
    assert store.top(11, largest=False)[0].tolist() == [9, 3]
    with pytest.raises(ValueError, match=r"each query has candidates of its own. Ask for scores\(query_id\)"):
        store.matrix()


def test_notes_of_ones_own_change_nothing_that_a_store_says_of_itself(tmp_path: Path) -> None:
    notes = {"kinds": ["mine"], "num_examples": 7, "method": "test"}
    whole = ScoreStore.write(tmp_path / "whole", IDS, QUERIES, {"dot": DOT}, notes)
    with ScoreWriter(tmp_path / "blocks", np.sort(IDS), QUERIES, ["dot"]) as writer:
        blocks = writer.finish(notes)
    for store in (whole, blocks):
        store.check()
        assert (store.kinds, len(store.example_ids), store.manifest["method"]) == (("dot",), 3, "test")


def test_a_store_with_a_ledger_is_replaced_too(tmp_path: Path) -> None:
    for _ in range(2):
        store = ScoreStore.write(tmp_path / "store", IDS, QUERIES, {"dot": DOT}, ledger=Ledger.empty())
    assert store.ledger is not None
    assert write(tmp_path / "store").ledger is None


def test_an_empty_store_can_be_written_and_read(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "store", np.array([], int), QUERIES, {"dot": np.zeros((0, 2))})
    assert store.scores(10).shape == (0,)


def test_accumulator_adds_up_by_id_in_any_order() -> None:
    sums = ScoreAccumulator(("dot",), query_ids=[7, 8])
    sums.add(torch.tensor([5, 3]), {Sum("dot"): torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    sums.add(torch.tensor([3, 9, 3]), {Sum("dot"): torch.ones(3, 2)})
    ids, found = sums.sorted()
    assert ids.tolist() == [3, 5, 9]
    assert found[Sum("dot")][:].tolist() == [[5.0, 6.0], [1.0, 2.0], [1.0, 1.0]]
