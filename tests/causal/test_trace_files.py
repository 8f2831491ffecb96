"""Traces on disk: they come back as they were, whole or not at all, and nothing foreign is taken for one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ftrace.causal import read_settings, read_trace, trace_file, write_trace
from ftrace.causal import trace_files as module
from ftrace.causal.prompt_trace import PromptTrace
from helpers.made_traces import left_out, made_trace

SETTINGS = {"noise": 3.0, "samples": 10, "mediators": ["hidden"], "window": None}


def assert_same(found: PromptTrace, expected: PromptTrace) -> None:
    for one in dataclasses.fields(PromptTrace):
        got, want = getattr(found, one.name), getattr(expected, one.name)
        if one.name in ("clean", "corrupted"):
            np.testing.assert_array_equal(got, want, strict=True)
        elif one.name != "stacks":
            assert (got, type(got)) == (want, type(want)), one.name
    assert list(found.stacks) == list(expected.stacks)
    for stack, own in expected.stacks.items():
        got = found.stacks[stack]
        assert (got.tokens, got.subject) == (own.tokens, own.subject)
        for kind in ("restored", "spread"):
            assert list(getattr(got, kind)) == list(getattr(own, kind))
            for mediator, grid in getattr(own, kind).items():
                np.testing.assert_array_equal(getattr(got, kind)[mediator], grid, strict=True)


def traces() -> list[PromptTrace]:
    odd = made_trace("odd", tokens=["東", " $x_1$", "\n", "\ud800", '"'], fact="Q1", decoder_tokens=["<pad>"])
    transposed = made_trace("transposed")
    own = transposed.stacks["decoder"]
    turned = {name: np.asfortranarray(grid) for name, grid in own.restored.items()}
    return [
        made_trace("plain"),
        odd,
        dataclasses.replace(transposed, stacks={"decoder": dataclasses.replace(own, restored=turned)}),
        dataclasses.replace(left_out(), rank=None),
        left_out("refused", "refused"),
    ]


@pytest.mark.parametrize("trace", traces(), ids=lambda trace: trace.name)
def test_a_trace_comes_back_as_it_was(trace: PromptTrace, tmp_path: Path) -> None:
    file = write_trace(tmp_path, trace, SETTINGS)
    assert_same(read_trace(file), trace)
    assert read_settings(file) == SETTINGS
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_anybody_can_read_the_numbers(tmp_path: Path) -> None:
    trace = made_trace()
    numbers = load_file(write_trace(tmp_path, trace, SETTINGS))
    assert set(numbers) == {"clean", "corrupted"} | {
        f"decoder/{mediator}/{kind}" for mediator in trace.stacks["decoder"].restored for kind in ("restored", "spread")
    }
    np.testing.assert_array_equal(numbers["decoder/mlp/restored"], trace.stacks["decoder"].restored["mlp"])


def test_names_that_file_systems_confuse_are_different_files(tmp_path: Path) -> None:
    names = [
        "a",
        "A",
        "a/b",
        "a\\b",
        "a b",
        "..",
        "a:b",
        "é",
        "e",
        "x" * 300,
        "x" * 301,
        ".a",
        "~",
        "A~",
        "a-b",
        "con.",
    ]
    files = [trace_file(tmp_path, name) for name in names]
    assert len({file.name.lower() for file in files}) == len(names)
    assert all(file.parent == tmp_path / "prompts" and len(file.name) < 120 for file in files)
    assert all(file.name.isascii() and not file.name.startswith(".") for file in files)
    for name in names:
        write_trace(tmp_path, left_out(name), {})
    assert [read_trace(file).name for file in files] == names


def test_an_earlier_trace_of_a_prompt_is_replaced(tmp_path: Path) -> None:
    for name in ("p10", "p9"):
        write_trace(tmp_path, left_out(name), SETTINGS)
    file = write_trace(tmp_path, made_trace("p9"), SETTINGS)
    assert read_trace(file).status == "traced"
    assert len(list(file.parent.iterdir())) == 2


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_trace(tmp_path, made_trace(seed=1), SETTINGS)
    before = file.read_bytes()

    def dies(tensors: Any, temporary: Path, metadata: Any) -> None:
        temporary.write_bytes(b"half")
        raise OSError("it broke")

    monkeypatch.setattr(module, "save_file", dies)
    with pytest.raises(OSError, match="it broke"):
        write_trace(tmp_path, made_trace(seed=2), SETTINGS)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_damaged_bytes_are_found(tmp_path: Path) -> None:
    file = write_trace(tmp_path, made_trace(), SETTINGS)
    whole = file.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 200).astype(int):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(file))):
            read_trace(file)
    for end in (0, 4, 300, len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"missing or damaged file .*: delete it, and trace the prompt again"):
            read_trace(file)


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts" / "a.safetensors"
    with pytest.raises(ValueError, match="missing or damaged file"):
        read_trace(file)
    file.parent.mkdir()
    save_file({"rows": np.zeros(3)}, file)
    with pytest.raises(ValueError, match=r"prompts/a.safetensors', found a safetensors file of something else"):
        read_trace(file)
    save_file({"clean": np.zeros(3)}, file, {"format": "ftrace-prompt-trace", "version": "3"})
    with pytest.raises(ValueError, match=r"in version 2 of its format in .* found version '3': update ftrace"):
        read_trace(file)
    save_file({"clean": np.zeros(3)}, file, {"format": "ftrace-prompt-trace", "version": "1", "checksum": "x"})
    with pytest.raises(ValueError, match="missing or damaged file"):
        read_trace(file)


def changed(**stack: Any) -> PromptTrace:
    trace = made_trace()
    return dataclasses.replace(trace, stacks={"decoder": dataclasses.replace(trace.stacks["decoder"], **stack)})


BAD = [
    (dataclasses.replace(made_trace(), stacks={}), "found 0 stacks of prompt 'prompt', whose status is 'traced'"),
    (dataclasses.replace(made_trace(), status="wrong"), "found 1 stacks of prompt 'prompt', whose status is 'wrong'"),
    (
        dataclasses.replace(made_trace(), clean=np.zeros(2)),
        r"expected clean of prompt 'prompt' as float64 of shape \(3,\)",
    ),
    (changed(tokens=("a",)), r"decoder/hidden/restored .* of shape \(3, 3, 1\) .* found float64 of shape \(3, 3, 5\)"),
    (changed(spread={}), r"some mediators and the spread of each, found \['hidden', .* spreads of \[\] in the decoder"),
    (changed(restored={}, spread={}), "expected some mediators"),
    (changed(restored={"mlp": np.zeros((3, 2, 5), np.float32)}, spread={"mlp": np.zeros((3, 2, 5))}), "found float32"),
    (dataclasses.replace(made_trace(), name=""), "expected a prompt's name, found an empty one"),
]


@pytest.mark.parametrize(("trace", "message"), BAD)
def test_bad_traces_are_not_written(trace: PromptTrace, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_trace(tmp_path, trace, SETTINGS)
    assert not list(tmp_path.glob("**/*.*"))


@pytest.mark.parametrize("value", [np.zeros(2), float("nan"), Path("a")])
def test_settings_must_be_json(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected settings that JSON can hold, found"):
        write_trace(tmp_path, left_out(), {"noise": value})


def test_settings_are_json_in_the_file(tmp_path: Path) -> None:
    with safe_open(write_trace(tmp_path, made_trace(), SETTINGS), "np") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["settings"]) == SETTINGS
    assert json.loads(metadata["trace"])["stacks"]["decoder"]["subject"] == [1, 3]
