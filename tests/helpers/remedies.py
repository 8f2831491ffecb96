"""Runs that are refused, and what their messages say to do: taken out of the message and carried out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ftrace.scores import ScoreStore
from helpers import own_parts
from helpers.own_parts import QUERIES, Own, batches, losses, mean_loss, mlp


@dataclass(frozen=True)
class Run:
    """All that a message may want changed.

    Args:
        make: ``(**how)``: makes the module.
        how: What it is made with.
        online: The callback's arguments.
        settings: The trainer's.
    """

    make: Callable[..., Any] = lambda: Own(mean_loss, net=mlp())
    how: dict[str, Any] = field(default_factory=dict)
    data: Any = field(default_factory=batches)
    queries: Any = field(default_factory=lambda: QUERIES)
    losses: Any = losses
    online: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def go(self, folder: Path) -> ScoreStore:
        module = self.make(**self.how)
        return own_parts.traced(
            module, self.data, folder, self.queries, self.losses, self.settings, **{"ledger": True, **self.online}
        )

    def asked(self, **online: Any) -> Run:
        return replace(self, online={**self.online, **online})

    def made(self, **how: Any) -> Run:
        return replace(self, how={**self.how, **how})

    def with_ids(self, of_batch: Callable[[Any], Any]) -> Run:
        return replace(self, data=[{**one, "example_id": of_batch(one["example_id"])} for one in self.data])


def said(message: str, pattern: str) -> str:
    """The last place in a message that looks so, or the group in it."""
    places = re.findall(pattern, message)
    assert places, (pattern, message)
    return str(places[-1])


def argument(name: str) -> Callable[[Run, str], Run]:
    """Pass an argument of the callback as the message has it."""
    return lambda run, message: run.asked(**{name: eval(said(message, rf"\b{name}=(\([^)]*\)|\w+)"))})


leave_out = argument("parameters")


def of_the_module_s(name: str) -> Callable[[Run, str], Run]:
    """Set something in the model as the message has it."""
    return lambda run, message: run.made(**{name: eval(said(message, rf"\b{name}=(\w+)"))})


def carry_out_remedy(run: Run, problem: str, carry_out: Callable[[Run, str], Run], folder: Path) -> None:
    """Check that a run is refused, and that it gets through with what the message says."""
    with pytest.raises((ValueError, RuntimeError), match=problem) as refusal:
        fresh(run).go(folder)
    remedied = carry_out(fresh(run), str(refusal.value))
    store = remedied.go(folder / "again")
    assert store.manifest["complete"]
    assert store.matrix("dot").any()


def go_on_where_the_message_says_so(run: Run, problem: str, folder: Path) -> None:
    """Check that a run is refused, and that it gets through with ``strict=False`` where the message names that."""
    with pytest.raises((ValueError, RuntimeError), match=problem) as refusal:
        fresh(run).go(folder)
    if "strict=False" in str(refusal.value):
        assert fresh(run).asked(strict=False).go(folder / "again").matrix("dot").any()


def fresh(run: Run) -> Run:
    """Loaders of its own."""
    return replace(run, data=run.data()) if callable(run.data) else run
