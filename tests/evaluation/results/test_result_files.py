"""Files of results: nothing is lost between reading and writing, and whatever is off names its place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.evaluation.results import Passages, RetrievalResult, read_results, write_results

LINE: dict[str, Any] = {
    "example_id": "trex-1",
    "query_set": "trex",
    "inputs_plaintext": "The capital of Česko is",
    "targets_plaintext": "Prague",
    "proponents": ["Prague is in Česko.", "Brno \u2028 isn't.", ""],
    "proponent_ids": ["12_3", "7", "9"],
    "proponent_scores": [0.5, 0.25, -1],
    "opponents": ["Rome."],
    "opponent_ids": ["8"],
    "opponent_scores": [-3.5],
    "fact_id": "P36,Q213,Q1085",
    "relation": "capital",
    "8b_generations": ["Prague", "Brno"],
    "8b_confidence": 0.1,
    "c4_frequency": 123456789012345678901234567890,
    "c4_frequency_bucket": None,
    "has_trex_sentence": True,
    "proponent_correct": [True, False, False],
    "proponent_ais_scores": None,
    "of our own": {"nested": [1, 1.0, None, '"\n\\'], "empty": {}},
}


def write_lines(file: Path, *lines: Any) -> Path:
    file.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines))
    return file


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in LINE.items() if name not in names}


@pytest.mark.parametrize("name", ["results.jsonl", "results.jsonl.gz"])
def test_what_was_read_is_written_back(name: str, tmp_path: Path) -> None:
    bare = dict(list(LINE.items())[:7]) | {"example_id": 5, "proponent_ids": [1, 2, 3]}
    entailed = without("proponent_correct", "opponents", "opponent_ids", "opponent_scores") | {
        "example_id": "x", "proponent_ais_scores": [1, 0.5, 0.0],
    }  # fmt: skip
    source = write_lines(tmp_path / "source.jsonl", LINE, bare, entailed)
    file = tmp_path / "new folder" / name
    assert write_results(file, read_results(source)) == 3
    opener = gzip.open if name.endswith("gz") else open
    with opener(file, "rt", encoding="utf-8") as lines:
        written = [json.loads(line) for line in lines]
    assert [json.dumps(one, sort_keys=True) for one in written] == [
        json.dumps(one, sort_keys=True) for one in (LINE, bare, entailed)
    ]
    assert list(read_results(file)) == list(read_results(source))
    assert [path.name for path in file.parent.iterdir()] == [name]


def test_fields_by_their_words(tmp_path: Path) -> None:
    (result,) = read_results(write_lines(tmp_path / "one.jsonl", LINE))
    assert (result.prompt, result.target, result.query_set) == ("The capital of Česko is", "Prague", "trex")
    assert result.proponents.ids == ("12_3", "7", "9")
    assert result.opponents == Passages(["Rome."], ["8"], [-3.5])
    assert result.states_fact == (True, False, False)
    assert result.labelled_by == "annotation"
    assert result.annotations["relation"] == "capital"
    assert "proponents" not in result.annotations


def test_labels_by_annotation_then_by_entailment() -> None:
    def result(**labels: Any) -> RetrievalResult:
        found = Passages(["a", "b"], [1, 2], [2.0, 1.0])
        return RetrievalResult(example_id=1, query_set="q", prompt="p", target="t", proponents=found, **labels)

    assert result().states_fact is None
    assert result(ais_scores=[0.5, 0.51]).states_fact == (False, True)
    assert result(ais_scores=[0.5, 0.51], correct=[True, False]).states_fact == (True, False)


def test_arrays_will_do(tmp_path: Path) -> None:
    ids, scores = np.array([4, 2]), np.array([0.5, 0.25], np.float32)
    found = Passages(["a", "b"], ids, scores)
    result = RetrievalResult(
        example_id=np.int64(3), query_set="q", prompt="p", target="t", proponents=found,
        correct=np.array([True, False]), annotations={"relation": "r0"},
    )  # fmt: skip
    write_results(tmp_path / "of-arrays.jsonl", [result])
    assert list(read_results(tmp_path / "of-arrays.jsonl")) == [result]
    assert json.loads((tmp_path / "of-arrays.jsonl").read_text()) == {
        "example_id": 3, "query_set": "q", "inputs_plaintext": "p", "targets_plaintext": "t", "proponents": ["a", "b"],
        "proponent_ids": [4, 2], "proponent_scores": [0.5, 0.25], "proponent_correct": [True, False], "relation": "r0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"expected JSON, found '\{'"),
        ("[1]", "expected a JSON object, found 1"),
        (without("query_set"), "no field 'query_set', found the fields"),
        (without("proponent_ids"), r"no field 'proponent_ids', found the fields .*nearest: \['"),
        (without("opponent_ids"), "no field 'opponent_ids'"),
        (LINE | {"inputs_plaintext": None}, "inputs_plaintext: expected text or a whole number, found None"),
        (LINE | {"example_id": 1.5}, "example_id: expected text or a whole number, found 1.5"),
        (LINE | {"example_id": True}, "example_id: expected text or a whole number"),
        (LINE | {"proponents": "one"}, "field 'proponents': expected a list, found 'one'"),
        (LINE | {"proponents": ["a", "b", 3.5]}, r"proponents: texts\[2\]: expected text or a whole number, found 3.5"),
        (LINE | {"proponents": ["a", "b"]}, "proponents: expected as many .* found 2 texts, 3 ids and 3 scores"),
        (LINE | {"opponent_scores": []}, "opponents: expected as many .* found 1 texts, 1 ids and 0 scores"),
        (LINE | {"proponent_scores": [1, float("nan"), 0]}, r"proponents: scores\[1\]: expected .* found nan"),
        (LINE | {"proponent_scores": [1, "2", 0]}, r"proponents: scores\[1\]: expected a finite number, found '2'"),
        (LINE | {"proponent_scores": [1, 10**400, 0]}, r"proponents: scores\[1\]: expected a finite number, found 100"),
        (LINE | {"proponents": ["a", "\ud83d", "c"]}, "expected text, found half of a surrogate pair"),
        (LINE | {"of our own": {"deep": ["\ud83d"]}}, "expected text, found half of a surrogate pair"),
        (json.dumps(LINE)[:-1] + ', "n": ' + "9" * 5000 + "}", "expected JSON, found a number of more than 4,300"),
        (json.dumps(LINE)[:-1] + ', "n": ' + "[" * 99_999 + "]" * 99_999 + "}", "expected JSON, found lists or obj"),
        (LINE | {"proponent_scores": None}, "field 'proponent_scores': expected a list, found None"),
        (LINE | {"proponent_correct": [1, 0, 0]}, r"proponent_correct\[0\]: expected true or false, found 1"),
        (LINE | {"proponent_correct": [True]}, "proponent_correct: expected one for each of the 3 proponents, found 1"),
        (LINE | {"proponent_ais_scores": [1, 1, None]}, r"proponent_ais_scores\[2\]: expected a finite number"),
        (LINE | {"example_id": "first"}, "expected each example_id once, found 'first' in row 1 already"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(line: Any, message: str, tmp_path: Path) -> None:
    # A line that begins with "[" is a list of rows only where it is the first.
    first = LINE | {"example_id": "first"}
    if line == "[1]":
        file, place = write_lines(tmp_path / "bad.jsonl", line), 1
    else:
        file, place = write_lines(tmp_path / "bad.jsonl", first, line), 2
    with pytest.raises(ValueError, match=rf"bad\.jsonl, row {place}: (field .*)?{message}"):
        list(read_results(file))


def test_whole_numbers_are_text(tmp_path: Path) -> None:
    line = LINE | {"inputs_plaintext": 1814, "targets_plaintext": 7, "query_set": 2, "proponents": ["a", 3, "c"]}
    (found,) = read_results(write_lines(tmp_path / "a.jsonl", line))
    assert (found.prompt, found.target, found.query_set) == ("1814", "7", "2")
    assert found.proponents.texts == ("a", "3", "c")


def test_numbers_and_text_name_the_same_query(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", LINE | {"example_id": 1}, LINE | {"example_id": "1"})
    with pytest.raises(ValueError, match="found '1' in row 1 already"):
        list(read_results(file))


@pytest.mark.parametrize("name", ["a.json", "a.parquet", "a"])
def test_other_kinds_of_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file of results that ends in \.jsonl or \.jsonl\.gz"):
        next(read_results(tmp_path / name))
    with pytest.raises(ValueError, match=r"expected a file of results that ends in"):
        write_results(tmp_path / name, [])
    with pytest.raises(ValueError, match=r"missing\.jsonl: can't be read"):
        next(read_results(tmp_path / "missing.jsonl"))


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "results.jsonl", LINE)
    (result,) = read_results(file)
    before = file.read_bytes()

    def failing() -> Iterator[RetrievalResult]:
        yield result
        raise RuntimeError("the search failed")

    with pytest.raises(RuntimeError, match="the search failed"):
        write_results(file, failing())
    with pytest.raises(ValueError, match="expected each example_id once, found 'trex-1' twice"):
        write_results(file, [result, result])
    for value in (float("nan"), {1, 2}):
        bad = RetrievalResult(
            example_id="a", query_set="", prompt="", target="", proponents=Passages([], [], []),
            annotations={"value": value},
        )  # fmt: skip
        with pytest.raises(ValueError, match="example_id 'a': annotations: expected JSON values"):
            write_results(file, [bad])
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    assert write_results(file, read_results(file)) == 1  # onto the file that they come from
    assert json.loads(file.read_text()) == LINE


def test_annotations_are_other_fields() -> None:
    with pytest.raises(ValueError, match=r"annotations: expected other fields .* found \['proponent_correct'\]"):
        RetrievalResult(
            example_id="a", query_set="", prompt="", target="", proponents=Passages([], [], []),
            annotations={"proponent_correct": []},
        )  # fmt: skip


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    long = LINE | {"proponents": ["x" * 20_000] * 3}
    peaks = []
    for count in (20, 400):
        file = write_lines(tmp_path / "long.jsonl", *[long | {"example_id": place} for place in range(count)])
        tracemalloc.start()
        assert write_results(tmp_path / "copy.jsonl", read_results(file)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
