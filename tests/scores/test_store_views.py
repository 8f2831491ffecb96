"""What prompts and notebooks show of stores and ledgers; whatever texts say, they are shown as texts."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.scores import Ledger, ScoreStore, Sum, Texts
from ftrace.scores.html import facts_and_tables, table
from ftrace.shown_text import plain, shortened
from helpers.made_stores import HOSTILE, SCORES, made_ledger, named_store


class Cells(HTMLParser):
    """The texts of a page's cells, and the tags that it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)
        if tag in ("td", "th", "b", "caption"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


TAGS = {"div", "b", "table", "caption", "thead", "tbody", "tr", "th", "td", "bdi"}


def test_a_prompt_shows_what_a_store_holds(tmp_path: Path) -> None:
    store = named_store(tmp_path / "store")
    assert repr(store).splitlines() == [
        f"ScoreStore('{tmp_path}/store'): 4 examples x 2 queries",
        "  kinds: dot, learning (float32)",
        "  method: by hand",
        "  texts: of examples and queries",
    ]


def test_it_says_what_is_special_and_what_is_wrong(tmp_path: Path) -> None:
    facts = {
        "complete": False,
        "doubts": {"dot": ["`dot` is in doubt: try \x1b[1mmore"]},
        "ledger": {"summary": "all is well"},
    }
    store = ScoreStore.write(
        tmp_path / "store", np.array([4, 2]), np.array([1]),
        {Sum("dot"): np.ones(2), Sum("dot", "layer", "a"): np.ones(2)},
        facts, candidate_offsets=np.array([0, 2]), ledger=made_ledger([1]),
    )  # fmt: skip
    assert repr(store).splitlines()[1:] == [
        "  kinds: dot (float64)",
        "  broken down by: layer (1)",
        "  candidates: each query has its own, 2 pairs in all",
        "  texts: none",
        "  ledger: all is well",
        "  incomplete: the scores don't cover the run from its first step to its last",
        "  in doubt: `dot` is in doubt: try \\x1b[1mmore",
    ]
    cells = Cells(store._repr_html_()).cells
    assert "2 examples x 1 query" in cells[0]
    assert "`dot` is in doubt: try \\x1b[1mmore" in cells


def test_a_notebook_shows_the_first_queries_with_their_strongest_proponents(tmp_path: Path) -> None:
    page = Cells(named_store(tmp_path / "store")._repr_html_())
    begin = page.cells.index("query")
    shown = plain(HOSTILE)
    assert page.cells[begin - 1] == "The queries, each with its strongest proponent by dot"
    assert page.cells[begin:] == [
        "query", "text", "answer", "dot", "strongest proponent", "its text",
        "who", f"who is {shown}?", "me", "2", "wiki/2", "Oslo, Norway",
        "where", "where is Oslo?", "Norway", "4", "wiki/3", "a lie",
    ]  # fmt: skip
    assert page.tags == TAGS


def test_without_texts_names_are_enough(tmp_path: Path) -> None:
    cells = Cells(named_store(tmp_path / "store", texts=False, learning=-SCORES, cosine=SCORES * 0)._repr_html_()).cells
    begin = cells.index("query")
    assert cells[begin:] == ["query", "learning", "strongest proponent", "who", "8", "wiki/4", "where", "3", "wiki/1"]


def test_a_query_without_proponents_has_none(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "store", np.arange(4), np.arange(9), {"dot": np.zeros((4, 9))})
    cells = Cells(store._repr_html_()).cells
    assert "The first 5 of 9 queries, each with its strongest proponent by dot" in cells
    assert cells[-3:] == ["4", "", "none"]


def test_hostile_names_and_kinds_are_texts(tmp_path: Path) -> None:
    examples = Texts.of([{"example_id": 1, "text": HOSTILE * 99}], "example_id")
    store = ScoreStore.write(
        tmp_path / "a<b>",
        np.array([1]),
        np.array([2]),
        {"<i>": np.ones((1, 1))},
        {"method": HOSTILE},
        names={1: HOSTILE, 2: "<img src=x>"},
        examples=examples,
    )
    page = Cells(store._repr_html_())
    assert page.tags == TAGS
    assert plain(HOSTILE) in page.cells
    assert page.cells[-1].endswith("…")
    for shown in (repr(store), store._repr_html_()):
        assert not {"\x1b", "\u202e"} & set(shown)


@pytest.mark.parametrize("name", ["dot.npy", "examples.parquet", "query_ids.npy"])
def test_a_damaged_store_is_shown_and_says_so(tmp_path: Path, name: str) -> None:
    named_store(tmp_path / "store")
    (tmp_path / "store" / name).write_bytes(b"no")
    store = ScoreStore.open(tmp_path / "store")
    assert "4 examples x 2 queries" in repr(store)
    assert any(f"{name}' is damaged" in cell for cell in Cells(store._repr_html_()).cells)


def test_a_store_of_nothing_is_shown(tmp_path: Path) -> None:
    nothing = np.array([], int)
    store = ScoreStore.write(tmp_path / "store", nothing, nothing, {"dot": np.zeros((0, 0))})
    assert "0 examples x 0 queries" in repr(store)
    assert store._repr_html_()


def test_a_ledger_says_what_explains_what_was_learned() -> None:
    ledger = made_ledger([7, 3])
    assert repr(ledger).splitlines()[:2] == ["Ledger: 2 intervals x 2 queries, steps 0 to 8", f"  {ledger.summary()}"]
    cells = Cells(ledger._repr_html_()).cells
    assert str(ledger.summary()) in cells
    begin = cells.index("examples")
    assert cells[begin : begin + 3] == ["examples", "0.8", "80.0%"]
    assert cells[-8:] == [
        "7", "4", "2", "first answered right at step 8", "3", "4", "4", "never answered right",
    ]  # fmt: skip
    assert repr(Ledger.empty()).startswith("Ledger: 0 intervals x 0 queries\n")
    assert Ledger.empty()._repr_html_()


def test_a_ledger_in_doubt_says_so() -> None:
    ledger = made_ledger([7, 3])
    ledger.columns["projection"] = np.full((2, 2), 50.0)
    assert ledger.doubts()
    assert all(sentence in repr(ledger) for sentence in ledger.doubts())
    assert all(sentence in Cells(ledger._repr_html_()).cells for sentence in ledger.doubts())


def test_tables_escape_what_they_are_given() -> None:
    page = Cells(facts_and_tables("<u>", [("<s>", "</td>")], table("<h1>", ["<h2>"], [["<h3>\x00"]])))
    assert page.cells == ["<u>", "<s>", "</td>", "<h1>", "<h2>", "<h3>\\x00"]
    assert table("nothing", ["a"], []) == ""


def test_texts_are_cut_after_they_are_made_plain() -> None:
    assert shortened("\x00" * 9, 8) == "\\x00\\x0…"
    assert shortened("a" * 8, 8) == "a" * 8
    assert plain("a\r\nb\tc\u2028\ud800\U000e0041") == "a ↵ b c ↵ \\ud800\\U000e0041"
