"""What a store's files may not say: each is refused with one line, and nothing else is shown in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.files import digests
from ftrace.files.digests import DamagedError, finish_background_checks
from ftrace.scores import ScoreStore, Texts
from ftrace.scores.sums import Sum
from helpers.edited_json import as_version_1, edit_json, note_files
from helpers.made_store import make_ledger, make_store


def write(folder: Path, kind: str = "dot") -> ScoreStore:
    return ScoreStore.write(folder / "s", np.array([1, 2]), np.array([0]), {kind: np.ones((2, 1))})


def with_candidates(folder: Path) -> ScoreStore:
    offsets, scores = np.array([0, 2, 3]), np.array([0.5, -1.0, 2.0], np.float32)
    return ScoreStore.write(
        folder / "c", np.array([3, 8, 8]), np.array([0, 1]), {"dot": scores}, candidate_offsets=offsets
    )


@pytest.mark.parametrize("kind", ["example_ids", "a/b", "", "x" * 300])
def test_a_kind_can_be_the_name_of_a_file_of_its_own(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected kinds of scores that can be names of files"):
        write(tmp_path, kind)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": "dot"}, "entry 'kinds': expected array, found str"),
        ({"kinds": None}, "entry 'kinds': expected array, found null"),
        ({"kinds": [3]}, r"entry 'kinds\[0\]': expected str, found int"),
        ({"kinds": ["../dot"]}, "expected kinds of scores that can be names of files"),
        ({"kinds": ["dot", "dot"]}, "each once"),
        ({"breakdown": {"a/b": ["x"]}}, "axes that can be names of files"),
        ({"breakdown": ["layer"]}, "entry 'breakdown': expected object, found array"),
        ({"doubts": ["x"]}, "entry 'doubts': expected object, found array"),
        ({"doubts": {"dot": "x"}}, "expected array, found str"),
        ({"num_examples": "2"}, "entry 'num_examples': expected int, found str"),
        ({"num_examples": -1}, "entry 'num_examples': expected int >= 0"),
        ({"num_examples": 2.5}, "entry 'num_examples': expected int, found float"),
        ({"num_queries": True}, "entry 'num_queries': expected int, found bool"),
        ({"num_pairs": 1.5}, "entry 'num_pairs': expected int"),
        ({"dtype": {"dot": "complex64"}}, "complex64"),
        ({"ledger": ["x"]}, "entry 'ledger': expected object"),
        ({"complete": "no"}, "entry 'complete': expected bool, found str"),
        ({"files": []}, "entry 'files': expected object, found array"),
        ({"files": {"dot.npy": {"bytes": "9"}}}, "entry 'files"),
        ({"version": 3}, "of version 3, and this ftrace reads 2. Update ftrace"),
        ({"version": 0}, "of version 0"),
        ({"version": True}, "of version True"),
        ({"format": "others"}, "is not a score store"),
    ],
)
def test_a_manifest_says_what_a_store_says(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    store = write(tmp_path)
    edit_json(store.path / "manifest.json", changes)
    with pytest.raises(ValueError, match=message) as caught:
        ScoreStore.open(store.path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="won't write scores"):  # and isn't replaced as an earlier store
        write(tmp_path)


def test_what_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    ids, scores = np.array([1]), {"dot": np.ones((1, 1))}
    for manifest, message in [
        ({"ledger": [1]}, "entry 'ledger': expected object"),
        ({"doubts": {"dot": 3}}, "doubts"),
        ({"x": np.ones(2)}, "expected values that JSON can hold"),
        ({"x": float("nan")}, "expected values that JSON can hold"),
    ]:
        with pytest.raises(ValueError, match=message):
            ScoreStore.write(tmp_path / "s", ids, ids, scores, manifest)
    assert not list(tmp_path.iterdir())


ARRAYS: list[tuple[str, np.ndarray, str]] = [
    ("dot", np.array([["a"], ["b"]]), "expected float64, found <U1"),
    ("dot", np.ones((2, 1), np.complex64), "expected float64, found complex64"),
    ("dot", np.ones((2, 1), np.float32), "expected float64, found float32"),
    ("dot", np.ones((1, 2)), r"expected shape \(2, 1\) as in the manifest, found \(1, 2\)"),
    ("dot", np.zeros(0), "expected shape"),
    ("example_ids", np.array([2, 1]), "expected ids in ascending order"),
    ("example_ids", np.array([1, 1]), "expected ids in ascending order"),
    ("example_ids", np.array([1.0, 2.0]), "expected int64, found float64"),
    ("query_ids", np.array([0], np.int32), "expected int64, found int32"),
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("name", "array", "message"), ARRAYS)
def test_arrays_are_of_their_types_and_shapes(
    name: str, array: np.ndarray, message: str, version: int, tmp_path: Path
) -> None:
    store = write(tmp_path)
    np.save(store.path / f"{name}.npy", array)
    note_files(store.path / "manifest.json")
    if version == 1:
        as_version_1(store.path / "manifest.json")
    opened = ScoreStore.open(store.path)
    with pytest.raises(DamagedError, match=rf"{name}(\.npy'|'\.npy) is damaged: {message}"):
        opened.top(0)
    with pytest.raises(DamagedError, match=message):
        list(opened.checked_files())


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("candidate_offsets", np.array([0, 2, 2]), "ascend from 0 to 3"),
        ("candidate_offsets", np.array([0, 4, 3]), "ascend from 0 to 3"),
        ("candidate_offsets", np.array([0, 3]), "expected shape"),
        ("candidate_ids", np.array([3, 9, 8]), "expected known ids, each once, for 0"),
        ("candidate_ids", np.array([8, 8, 8]), "expected known ids, each once, for 0"),
    ],
)
def test_candidates_are_known_examples(name: str, array: np.ndarray, message: str, tmp_path: Path) -> None:
    store = with_candidates(tmp_path)
    np.save(store.path / f"{name}.npy", array)
    note_files(store.path / "manifest.json")
    with pytest.raises(DamagedError, match=message):
        ScoreStore.open(store.path).scores(0)
    with pytest.raises(DamagedError, match=message):
        list(ScoreStore.open(store.path).checked_files())


def test_candidates_are_checked_when_they_are_written(tmp_path: Path) -> None:
    ids, queries, scores = np.array([3, 8]), np.array([0, 1]), {"dot": np.ones(2)}
    for offsets in ([0, 1], [0, 1, 3], [0, 3, 2], [1, 1, 2], [0.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="expected candidate_offsets"):
            ScoreStore.write(tmp_path / "s", ids, queries, scores, candidate_offsets=np.array(offsets))


def test_a_store_of_version_1_is_read_as_it_is(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", ledger=make_ledger())
    expected = store.top(0, texts=True)
    as_version_1(store.path / "manifest.json")
    opened = ScoreStore.open(store.path)
    assert [np.asarray(part).tolist() for part in opened.top(0, texts=True)] == [
        np.asarray(part).tolist() for part in expected
    ]
    assert list(opened.checked_files()) == []  # nothing is noted of its files
    assert opened.ledger is not None


def damage(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SMALL", 1000)
    monkeypatch.setattr(digests, "BLOCK", 256)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("candidates", [False, True])
def test_of_a_large_array_only_what_is_read_is_verified(
    candidates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, kinds = np.random.default_rng(0), ("dot", "learning")
    ids, queries = np.arange(100), np.arange(20)
    scores = {kind: generator.normal(size=(100, 20)).astype(np.float32) for kind in kinds}
    if candidates:
        flat = {kind: values.T.ravel() for kind, values in scores.items()}
        offsets = np.arange(0, 2001, 100)
        store = ScoreStore.write(tmp_path / "s", np.tile(ids, 20), queries, flat, candidate_offsets=offsets)
    else:
        store = ScoreStore.write(tmp_path / "s", ids, queries, scores)
    begin = (store.path / "dot.npy").stat().st_size - 20 * 400
    damage(store.path / "dot.npy", begin + 7 * 400 + 200)  # in the middle of query 7
    opened = ScoreStore.open(store.path)
    opened.check()  # sizes alone
    for query in (0, 5, 9, 19):
        np.testing.assert_array_equal(opened.scores(query, "dot"), scores["dot"][:, query])
    np.testing.assert_array_equal(opened.scores(7, "learning"), scores["learning"][:, 7])
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"dot\.npy' is damaged from byte"):
            opened.scores(7, "dot")
    with pytest.raises(DamagedError, match=r"dot\.npy' is damaged: its digest is"):
        list(opened.checked_files())


def use(store: ScoreStore) -> None:
    store.matrix()
    finish_background_checks()


@pytest.mark.usefixtures("small_blocks")
def test_a_large_matrix_is_verified_in_the_background(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "s", np.arange(100), np.arange(20), {"dot": np.zeros((100, 20))})
    damage(store.path / "dot.npy")
    opened = ScoreStore.open(store.path)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(DamagedError, match="its digest is"):
        use(opened)
    with pytest.raises(DamagedError, match="its digest is"):
        opened.matrix()


def test_new_texts_leave_the_rest_as_it_was_verified(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", ledger=make_ledger())
    facts = dict(store.manifest["files"])
    texts = Texts.of([{"query_id": 17, "text": "Where is Stockholm?", "answer": "Sweden"}], "query_id")
    store.put_texts(queries=texts)
    for opened in (store, ScoreStore.open(store.path)):
        assert {name for name in facts if facts[name] != opened.manifest["files"][name]} == {"queries.parquet"}
        assert opened.queries is not None
        assert [row and row["text"] for row in opened.queries.rows([0, 17])] == [None, "Where is Stockholm?"]
        assert [Path(file).name for file in opened.checked_files()] == sorted(facts)
    damage(store.path / "learning.npy")
    store.put_texts(queries=texts)  # which doesn't make damage right
    with pytest.raises(DamagedError, match=r"learning\.npy"):
        ScoreStore.open(store.path).top(0)


def test_parts_have_files_of_their_own(tmp_path: Path) -> None:
    scores = {Sum("dot"): np.ones((1, 1)), Sum("dot", "layer", "a"): np.ones((1, 1)),
              Sum("dot.layer.0000"): np.zeros((1, 1))}  # fmt: skip
    with pytest.raises(ValueError, match=r"'dot\.layer\.0000' would be the same file for"):
        ScoreStore.write(tmp_path / "s", np.array([1]), np.array([0]), scores)


def test_a_store_is_plain_json_and_arrays(tmp_path: Path) -> None:
    store = write(tmp_path)
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("ftrace-scores", 2)
    assert manifest["files"].keys() == {"dot.npy", "example_ids.npy", "query_ids.npy"}
