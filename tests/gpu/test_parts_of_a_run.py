"""A run in parts keeps what was found, whatever comes of a part; no GPU is needed."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

QUIET = Console(quiet=True)


def finding(*arguments: Any, **options: Any) -> Any:
    return importlib.import_module("gpu_parts.findings").Finding(*arguments, **options)


def works(given: Any) -> Iterator[Any]:
    yield finding("time", {"ms": 1.0})
    yield finding("time", {"ms": 2.5, "of plain": 1.25})
    yield finding("kernels", text="a | table")


def is_wrong(given: Any) -> Iterator[Any]:
    yield finding("bits", {"figure": "1 differ"}, False)


def fails(given: Any) -> Iterator[Any]:
    yield finding("before", {"ms": 3})
    raise RuntimeError("out of\nmemory")


def hangs(given: Any) -> Iterator[Any]:
    yield finding("before", {"ms": 4})
    time.sleep(600)


def dies(given: Any) -> Iterator[Any]:
    yield finding("before", {"ms": 5})
    os._exit(3)


def run(folder: Path, *parts: tuple[Callable[[Any], Iterator[Any]], float], seconds: float) -> Any:
    running, findings = (importlib.import_module(f"gpu_parts.{name}") for name in ("running", "findings"))
    report = findings.Report(folder, "python gpu.py")
    given = [running.Part(work.__name__, of_part, work) for work, of_part in parts]
    running.run_parts(given, report, device="cpu", tiny=True, seconds=seconds, console=QUIET)
    return report


def test_a_part_that_fails_hangs_or_dies_keeps_what_it_found_and_the_next_goes_on(tmp_path: Path) -> None:
    given = ((fails, 30.0), (dies, 30.0), (hangs, 1.0), (works, 30.0))
    report = run(tmp_path, *given, seconds=60)
    written = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["status"] for part in written.values()] == ["failed", "failed", "stopped", "done"]
    assert [written[name]["findings"]["before"]["figures"]["ms"] for name in ("fails", "dies", "hangs")] == [3, 5, 4]
    assert "RuntimeError: out of\nmemory" in written["fails"]["error"]
    assert written["dies"]["error"] == "its process ended with exit code 3"
    assert "s were up" in written["hangs"]["error"]
    assert written["works"]["findings"]["time"]["figures"] == {"ms": 2.5, "of plain": 1.25}
    assert [part.is_right for part in report.parts.values()] == [False, False, False, True]


def test_the_tables_have_the_last_of_each_finding_and_its_verdict(tmp_path: Path) -> None:
    report = run(tmp_path, (works, 30.0), (is_wrong, 30.0), seconds=60)
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert "|  | ms | of plain |" in lines
    assert "| time | 2.5 | 1.25 |" in lines
    assert "| bits | 1 differ | WRONG |" in lines
    assert "a | table" in lines
    assert [part.is_right for part in report.parts.values()] == [True, False]


def test_a_part_for_which_too_little_time_is_left_is_skipped_and_says_so(tmp_path: Path) -> None:
    report = run(tmp_path, (works, 6000.0), seconds=60)
    assert report.parts["works"].status == "skipped"
    assert "of the 6000 s that it should have" in report.parts["works"].error
    assert report.parts["works"].findings == {}


def test_an_error_of_cuda_ends_the_part_and_others_are_said_in_a_line() -> None:
    in_short = importlib.import_module("gpu_parts.findings").in_short
    assert in_short(ValueError("one\ntwo")) == "ValueError: one"
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory"):
        in_short(broken)
