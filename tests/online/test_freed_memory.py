"""Freed memory is given back, and not so often that a small model would spend its time on getting it again."""

from __future__ import annotations

import pytest

from ftrace.online import freed_memory


def test_memory_is_given_back_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    clock = [100.0]
    monkeypatch.setattr(freed_memory, "_malloc_trim", lambda: calls.append)
    monkeypatch.setattr(freed_memory, "_last", -freed_memory._SECONDS)
    monkeypatch.setattr(freed_memory.time, "monotonic", lambda: clock[0])
    for seconds in (0.0, 0.1, 0.5, 0.6, 0.1):
        clock[0] += seconds
        freed_memory.give_back_freed_memory()
    assert len(calls) == 2


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_malloc_trim", lambda: None)
    freed_memory.give_back_freed_memory()
