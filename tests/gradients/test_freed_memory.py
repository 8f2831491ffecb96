"""Freed memory is given back, and not so often that a small model would spend its time on getting it again."""

from __future__ import annotations

import pytest

from ftrace.gradients import freed_memory


class Clock:
    """A clock that stands still until it is moved, and a ``malloc_trim`` that takes its time on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trim_takes: float) -> None:
        self.now = 100.0
        self.trim_takes = trim_takes
        self.trimmed_at: list[float] = []
        self.pages = self.given_back = 0
        monkeypatch.setattr(freed_memory, "_malloc_trim", lambda: self._trim)
        monkeypatch.setattr(freed_memory, "_next", 0.0)
        monkeypatch.setattr(freed_memory, "_left_pages", 0)
        monkeypatch.setattr(freed_memory, "_resident_pages", lambda: self.pages)
        monkeypatch.setattr(freed_memory.time, "monotonic", lambda: self.now)

    def _trim(self, _: int) -> None:
        self.trimmed_at.append(self.now)
        self.now += self.trim_takes
        self.pages -= self.given_back

    def give_back_after(self, seconds: float) -> None:
        """Let time pass, and give memory back if that is due."""
        self.now += seconds
        freed_memory.give_back_freed_memory()


def test_memory_is_given_back_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, trim_takes=0.001)
    for seconds in (0.0, 0.1, 0.5, 0.6, 0.1):
        clock.give_back_after(seconds)
    assert clock.trimmed_at == pytest.approx([100.0, 101.201])


def test_giving_memory_back_takes_a_hundredth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, trim_takes=0.1)
    for _ in range(1000):
        clock.give_back_after(0.5)
    total = clock.now - 100.0
    assert 0.009 * total < 0.1 * len(clock.trimmed_at) <= 0.011 * total


def test_giving_back_is_soon_due_again_once_it_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, trim_takes=0.1)
    clock.give_back_after(0.0)
    clock.trim_takes = 0.001
    clock.give_back_after(10.0)
    clock.give_back_after(1.0)
    assert len(clock.trimmed_at) == 3


def test_memory_that_takes_long_to_get_again_is_given_back_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, trim_takes=0.0)
    clock.given_back = 300_000  # 1.2 GB, which takes .6 s to get again
    for _ in range(300):
        clock.give_back_after(0.5)
    assert clock.trimmed_at == pytest.approx([100.5, 160.5, 220.5])


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_malloc_trim", lambda: None)
    freed_memory.give_back_freed_memory()


def test_passes_in_a_row_give_back_what_they_have_grown_by(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, trim_takes=0.001)
    for pages, given_back in ((10_000, 0), (30_000, 10_000), (30_000, 0), (36_000, 0), (37_000, 15_000), (25_000, 0)):
        clock.pages, clock.given_back = pages, given_back
        freed_memory.give_back_once_grown()
    assert len(clock.trimmed_at) == 2  # at 30,000 pages, 20,000 of which stay, and at 37,000
