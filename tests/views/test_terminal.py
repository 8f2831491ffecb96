"""How views look: in narrow and wide terminals, in a pipe, without colour; and that texts stay texts."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from ftrace.views import (
    CUT,
    Said,
    StoreSource,
    make_query_line,
    make_query_view,
    print_view,
    query_rows,
    render_queries,
    render_query,
)
from ftrace.views.terminal import percent, said_text, score_text
from helpers.made_store import EXAMPLES, QUERIES, SCORES, make_ledger, make_store

HOSTILE = [
    "[red]markup[/red] [link=file:///etc/passwd]here[/]",
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil\x07link",
    "\u202eright to left\u202c \u2066isolated",
    "two\nlines\rback",
    "zero\u200bwidth" + "\ufeff",
    "w" * 300,
    "東京都は日本の首都です。" * 10,
    "[/] [[ ]] \\[bold]",
]


def printed(view: RenderableType, width: int, terminal: bool = True, **options: object) -> str:
    file = StringIO()
    print_view(view, Console(file=file, force_terminal=terminal, width=width, **options))  # type: ignore[arg-type]
    return file.getvalue()


def view_of(folder: Path, texts: list[str] | None = None, **options: int) -> RenderableType:
    texts = texts or [row["text"] for row in EXAMPLES]
    rows = [{"example_id": row["example_id"], "text": text} for row, text in zip(EXAMPLES, texts, strict=False)]
    query = {**QUERIES[0], "text": f"The capital {texts[0]}", "answer": texts[1], "answers": texts, "said": texts[2]}
    store = make_store(folder / "[b]on line", examples=rows, queries=[query], ledger=make_ledger(),
                       manifest={"doubts": {"learning": [f"Doubt {texts[0]}"]}})  # fmt: skip
    other = make_store(folder / "other", {"bm25": np.maximum(SCORES, 0)}, examples=None, queries=None)
    return render_query(make_query_view([StoreSource(store), StoreSource(other)], 0, **options))


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("first", range(len(HOSTILE)))
def test_hostile_texts_come_out_as_text(width: int, first: int, tmp_path: Path) -> None:
    texts = (HOSTILE + HOSTILE)[first : first + len(EXAMPLES)]
    out = printed(view_of(tmp_path, texts), width, color_system=None)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]", out)
    assert max(cell_len(line) for line in out.splitlines()) <= width
    together = "".join(out.split())
    for text in ("[red]markup[/red][link=file:///etc/passwd]here[/]", r"\u202erighttoleft\u202c", "two↵lines"):
        if any(text[:6] in "".join(known.split()) or text[:6] in ascii(known) for known in texts):
            assert text in "".join(printed(view_of(tmp_path, texts), 200, terminal=False).split())
    assert "[b]" in together


def test_a_terminal_gets_its_width_and_marks(tmp_path: Path) -> None:
    store = make_store(tmp_path / "online", ledger=make_ledger())
    view = make_query_view([StoreSource(store)], 0, said=Said("Bergen", 0.25, False, "step-30"))
    out = printed(render_query(view), 80, color_system=None)
    assert [line.rstrip() for line in out.splitlines()] == [
        "query 0: The capital of Norway is",
        "  answer          Oslo  also accepted: Christiania",
        "  the model said  Bergen  25%  wrong  at step-30",
        "  loss            6 → 0.25 nats; first answered right at step 20",
        "",
        "proponents: they lowered the loss, by online learning",
        "                    states",
        "rank  score  share  fact    training example",
        "   1  +4.00   100%  yes     The capital of Norway is Oslo.  #3  +1 alike",
        "   3  +1.00    25%  no      Oslo lies on a fjord.  #8",
        "   4  -0.50   -12%  no      It snows.  #12",
        "   5  -2.00   -50%  no      The capital of Sweden is Stockholm.  #11",
        "  5 examples are ranked, no more",
        "  only 3 of these scores are positive; no other is a proponent's",
        "",
        "opponents: they raised it, by online learning",
        "                    states",
        "rank  score  share  fact    training example",
        "   1  -2.00   -50%  no      The capital of Sweden is Stockholm.  #11",
        "   2  -0.50   -12%  no      It snows.  #12",
    ]
    assert "\x1b[1;36mcapital\x1b[0m" in printed(render_query(view), 80, color_system="standard")
    colourless = printed(render_query(view), 80, color_system="standard", no_color=True)
    assert "\x1b[1mcapital\x1b[0m" in colourless
    assert not re.search(r"\x1b\[[\d;]*3\dm", colourless)


def test_a_pipe_gets_whole_lines(tmp_path: Path) -> None:
    long = "It snows and " * 200
    store = make_store(tmp_path / "online", examples=[{**EXAMPLES[0], "text": f"{long}rains."}, *EXAMPLES[1:]])
    view = make_query_view([StoreSource(store)], 0)
    lines = printed(render_query(view), 80, terminal=False, color_system=None).splitlines()
    (line,) = [line for line in lines if "#3" in line]
    assert f"{long}rains.  #3" in line
    assert all(line == line.rstrip() for line in lines)
    cut = printed(render_query(view, CUT), 80)
    assert "…" in cut
    assert len(cut) < len(line)


def test_several_stores_side_by_side(tmp_path: Path) -> None:
    first = make_store(tmp_path / "online")
    second = make_store(tmp_path / "bm25", {"bm25": np.array([[1.0, 0], [0, 0], [2, 0], [2, 0], [0, 0]])})
    view = make_query_view([StoreSource(first), StoreSource(second)], 0, k=2)
    lines = [line.rstrip() for line in printed(render_query(view), 80, terminal=False).splitlines()]
    assert lines[5:] == [
        "online learning             bm25  fact    training example",
        " 1  +4.00  100%   3  +1.00   50%  yes     The capital of Norway is Oslo.  #3  +1 alike",
        " 3  +1.00   25%  =1  +2.00  100%  no      Oslo lies on a fjord.  #8",
        " 5  -2.00  -50%  =1  +2.00  100%  no      The capital of Sweden is Stockholm.  #11",
        "  bm25 has 0 of the first 2 of online learning",
        "",
        "opponents: they raised it",
        "                        states",
        "online learning   bm25  fact    training example",
        " 1  -2.00  -50%      -  no      The capital of Sweden is Stockholm.  #11",
        " 2  -0.50  -12%      -  no      It snows.  #12",
    ]


def test_a_list_of_queries(tmp_path: Path) -> None:
    sources = [StoreSource(make_store(tmp_path / "online", ledger=make_ledger()))]
    lines = [make_query_line(sources, query, query_rows(sources, [query])[0]) for query in (0, 17)]
    out = printed(render_queries(lines), 100, terminal=False)
    assert out.splitlines()[1:] == [
        "0      The capital of Norway is  Oslo       6 → 0.25          20  The capital of Norway is Oslo.",
        "17     The capital of Sweden is  Stockholm  5 → 5          never  The capital of Sweden is Stockholm.",
    ]
    narrow = printed(render_queries(lines, width=80), 80)
    assert "strongest" not in narrow
    without = [StoreSource(make_store(tmp_path / "bare", examples=None, queries=None))]
    bare = printed(render_queries([make_query_line(without, 17, {})]), 100, terminal=False)
    assert bare.splitlines()[1].split() == ["17", "#11"]


def test_numbers() -> None:
    assert [percent(share) for share in (-0.5, 0.05, 1.0)] == ["-50%", "5.0%", "100%"]
    assert [score_text(0.0, largest) for largest in (0.0, 0.4)] == ["0", "0"]
    small = [score_text(score, 0.9) for score in (0.9, 0.0006, -3e-7)]  # as beside an example that is the query itself
    assert small == ["+0.900", "+0.000600", "-3.00e-07"]
    assert score_text(-0.00123, 0.0045) == "-0.00123"
    assert said_text(Said(None, 0.5, False)).plain == "(no end to its answer)  50%  wrong"


def test_many_stores_leave_room_for_texts(tmp_path: Path) -> None:
    sources = [StoreSource(make_store(tmp_path / f"store{number}")) for number in range(5)]
    view = make_query_view(sources, 0, k=2)
    for width, scores in ((200, "1  +4.00  100%"), (100, "1  +4.00"), (40, "1")):
        table = printed(render_query(view, width=width), 200, terminal=False).splitlines()
        (first,) = [line for line in table if "+1 alike" in line]
        assert first.split("yes")[0].split() == scores.split() * 5
