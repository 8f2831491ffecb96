"""``ftrace ledger``: an account of the fall of the queries' losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ftrace.arguments import Name, checked
from ftrace.console import PlainConsole
from ftrace.scores import ScoreStore


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("store", type=str, help="Folder of the score store.")
    command.add_function_arguments(show_ledger, skip={"store"})


def command(**options: Any) -> None:
    """Print and draw what explains the fall of the queries' losses, from a store that OnlineTracIn has written."""
    show_ledger(**options)


@checked
def show_ledger(store: Name, output: Name | None = None, queries: Sequence[int] | None = None) -> None:
    """Print and draw what explains the fall of the queries' losses, from a store that OnlineTracIn has written.

    Args:
        store: Folder of the score store.
        output: File of the picture; default: ledger.png beside the store.
        queries: Ids of the queries to draw; default: six that were learned at different times.

    Raises:
        ValueError: If the store has no ledger.
    """
    opened = ScoreStore.open(store)
    if opened.ledger is None:
        raise ValueError(f"{store}: no ledger in it. Train with OnlineTracIn(ledger=True)")
    from ftrace.report import plot_ledger  # imports matplotlib

    file = Path(output) if output else opened.path.with_name("ledger.png")
    plot_ledger(opened.ledger, file, queries)
    console = PlainConsole()
    console.print(ledger_sentence(opened), soft_wrap=True)
    console.print(f"Wrote {file}", soft_wrap=True)


def ledger_sentence(store: ScoreStore) -> str:
    """Summarize a store's ledger in a sentence, and say what speaks against it."""
    assert store.ledger is not None
    sentence = str(store.ledger.summary())
    described = store.manifest.get("ledger", {})
    if described.get("balanced") is False:
        sentence += (
            f". The books don't balance: accounts are off by up to {described['worst_imbalance']:.1%} of an interval"
        )
    doubts = store.doubts("update") if "update" in store.kinds else []
    return ". ".join(f"{text[:1].upper()}{text[1:]}" for text in (sentence, *doubts)) + "."
