"""What is shown of a question to a model, and lists that are ordered by one source of several."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, RenderableType

from ftrace.scores import ScoreStore, Texts
from ftrace.views import (
    AskedAbout,
    QuestionView,
    Said,
    StoreSource,
    make_query_view,
    print_view,
    render_examples,
    render_question,
)


def printed(view: RenderableType, width: int = 80, *, terminal: bool = True) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    print_view(view, console)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def question() -> QuestionView:
    said = (Said("Oslo", 0.75, True), Said("Bergen", 0.0204, False), Said("Oslo and …", 0.01))
    others = (AskedAbout("Stockholm", 0.00001, (), "your answer"), AskedAbout("Oslo", 0.75, ("Christiania",), "right"))
    forms = (("Christiania", "Oslo city"), (), ())
    return QuestionView("the capital of Norway is", 17, said, forms, others, "step-9", ("It doesn't know 'xyzzy'",))


def test_a_question_with_answers() -> None:
    assert printed(render_question(question())) == [
        "the capital of Norway is  query 17 of the run",
        "  the model, at step-9    75%  Oslo  or Christiania; Oslo city  right",
        "                         2.0%  Bergen                           wrong",
        "                         1.0%  Oslo and …",
        "  your answer           <0.1%  Stockholm",
        "  right                   75%  Oslo  or Christiania",
        "  It doesn't know 'xyzzy'",
    ]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("hostile", ["[red]x[/red]", "[/]", "\x1b[31mx", "\u202ex", "x\ny", "x" * 300, "東京" * 60])
def test_texts_come_out_as_text(hostile: str, width: int) -> None:
    view = QuestionView(
        hostile, None, (Said(hostile, 0.5),), ((hostile, hostile),), (AskedAbout(hostile, 0.5, (hostile,), hostile),),
        hostile, (hostile,),
    )  # fmt: skip
    lines = printed(render_question(view), width)
    assert not any(character in line for line in lines for character in "\x1b\u202e")
    letters = "".join("".join(lines).split())
    assert "".join(hostile.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e").replace("\n", "↵").split()) in letters


def make_stores(folder: Path) -> list[StoreSource]:
    rows = [{"example_id": example, "text": f"text {example}"} for example in (3, 5, 8)]
    texts = Texts.of(rows, "example_id")
    ids, query = np.array([3, 5, 8]), np.array([0])
    for name, scores in (("first", [1.0, -2, 3]), ("second", [5.0, 4, -6])):
        ScoreStore.write(folder / name, ids, query, {"dot": np.array(scores)[:, None]}, examples=texts)
    return [StoreSource(ScoreStore.open(folder / name), name=name) for name in ("first", "second")]


def test_lists_are_ordered_by_the_first_source_alone(tmp_path: Path) -> None:
    view = make_query_view(make_stores(tmp_path), 0, 2, 2, by_first=True)
    assert [example.example_id for example in view.proponents.examples] == [8, 3]
    assert view.opponents is not None
    assert [example.example_id for example in view.opponents.examples] == [5]
    assert printed(render_examples(view, "[up]", "down"), terminal=False) == [
        "",
        "[up]",
        "rank    dot  share  second dot  training example",
        "   1  +3.00   100%       -6.00  text 8  #8",
        "   2  +1.00    33%       +5.00  text 3  #3",
        "",
        "down",
        "rank    dot  share  second dot  training example",
        "   1  -2.00   -67%       +4.00  text 5  #5",
    ]


def test_without_opponents(tmp_path: Path) -> None:
    view = make_query_view(make_stores(tmp_path), 0, 1, 0, by_first=True)
    assert view.opponents is None
    assert "down" not in printed(render_examples(view, "up", "down"))
