"""Pictures of a report: what is in them is what the report says, whatever texts it has, byte by byte the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from ftrace.report.explorer.format import Answered, Head, QueryChunk
from ftrace.report.figures import choose_queries, write_figures
from ftrace.report.figures.by_part import draw_parts
from ftrace.report.figures.compared import draw_comparison, overlaps
from ftrace.report.figures.one_query import draw_query
from ftrace.report.figures.run_figures import draw_evaluation, draw_ledger
from ftrace.report.figures.token_heat import draw_tokens
from ftrace.report.figures.where import draw_where
from ftrace.report.style import look
from helpers.drawn import texts
from helpers.made_report import TITLES, made_head, made_query

OF_QUERY = (draw_query, draw_comparison, draw_parts, draw_tokens, draw_where)
OF_RUN = (draw_evaluation, draw_ledger)


@pytest.fixture(autouse=True)
def _in_the_look() -> Iterator[None]:
    with look():
        yield


def drawn(draw: Callable[..., Figure | None], *content: Any) -> Figure:
    figure = draw(*content)
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def test_each_view_is_a_png_and_a_pdf_of_the_same_bytes_whatever_a_reader_has_set(tmp_path: Path) -> None:
    first = write_figures(tmp_path / "new", made_head(), [made_query(12)])
    views = ["run-evaluation", "run-ledger"]
    views += [f"query-12{view}" for view in ("", "-methods", "-parts", "-tokens", "-layers")]
    assert [file.name for file in first] == [f"{view}.{ending}" for view in views for ending in ("png", "pdf")]
    assert {file.name for file in (tmp_path / "new").iterdir()} == {file.name for file in first}
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "axes.facecolor": "yellow", "savefig.dpi": 20}):
        second = write_figures(tmp_path / "again", made_head(), [made_query(12)])
        assert matplotlib.rcParams["text.usetex"]  # settings are put back
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes()[:4] in (b"\x89PNG", b"%PDF")
        assert one.read_bytes() == other.read_bytes(), one.name
        assert b"CreationDate" not in one.read_bytes()


def test_what_a_report_does_not_know_is_left_out(tmp_path: Path) -> None:
    head, query = made_head(), made_query()
    head["run"].update({"evaluation": None, "ledger": None})
    query.update(
        {"parts": [], "tokens": None, "causal": None, "loss": None, "said": None, "prompt": None, "answer": None}
    )
    query["lists"] = [None, *query["lists"][1:2], None]
    files = write_figures(tmp_path, head, [query])
    assert [file.name for file in files] == ["query-0.png", "query-0.pdf"]
    query["lists"] = [None, None, None]
    assert write_figures(tmp_path, head, [query]) == []


def bars(figure: Figure) -> list[list[float]]:
    return [[bar.get_height() for bar in found] for axes in figure.axes for found in axes.containers]


def test_a_query_s_bars_are_its_scores() -> None:
    query = made_query()
    lists = query["lists"][0]
    assert lists is not None
    assert lists["opponents"] is not None
    figure = drawn(draw_query, made_head(), query)
    shown = [[bar.get_width() for bar in found] for axes in figure.axes for found in axes.containers]
    wanted = [
        [query["examples"][position]["places"][0]["score"] for position in positions]  # type: ignore[index]
        for positions in (lists["proponents"][:6], lists["opponents"][:4])
    ]
    assert shown == wanted
    said = texts(figure)
    assert {"answer: Norway", "the model said (wrong, 25%): Sweden", "Scores are small.", "learned at step 20"} <= set(
        said
    )
    assert any(axes.lines and axes.lines[0].get_xdata()[0] == 0 for axes in figure.axes)  # type: ignore[index]
    for position in lists["proponents"][:6]:
        assert query["examples"][position]["text"] in said


def test_near_duplicates_take_one_line() -> None:
    query = made_query()
    lists = query["lists"][0]
    assert lists is not None
    first, second, third = lists["proponents"][:3]
    for position in (second, third):
        query["examples"][position]["alike"] = first
    said = "\n".join(texts(drawn(draw_query, made_head(), query)))
    assert "2 listed like it" in said
    assert query["examples"][second]["text"] not in said.split("\n")


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        ({"state": "never", "step": -1, "text": ""}, "never right"),
        (None, None),
        ({"state": "learned", "step": 3, "text": ""}, "learned at step 3"),
        ({"state": "known", "step": 0, "text": ""}, "known at step 0"),
        ({"state": "forgotten", "step": 3, "text": ""}, "first right at step 3, forgotten"),
    ],
)
def test_a_step_is_marked_where_it_is_known(answered: Answered | None, words: str | None) -> None:
    query = made_query()
    assert query["loss"] is not None
    query["answered"] = answered
    said = [text for text in texts(drawn(draw_query, made_head(), query)) if "never right" in text or "at step" in text]
    assert said == ([] if words is None else [words])


def test_overlaps_are_those_of_the_first_k() -> None:
    query = made_query()
    lists = [of_method["proponents"] for of_method in query["lists"] if of_method is not None]
    for other in (1, 2):
        depth = min(len(lists[0]), len(lists[other]))
        wanted = [len(set(lists[0][:k]) & set(lists[other][:k])) / k for k in range(1, depth + 1)]
        assert overlaps(query, 0, other) == pytest.approx(wanted)


def test_methods_are_joined_by_example() -> None:
    query = made_query()
    figure = drawn(draw_comparison, made_head(), query)
    slopes, curves = figure.axes
    firsts = [of_method["proponents"][:10] for of_method in query["lists"] if of_method is not None]
    joins = sorted(
        ((column, column + 1), (first.index(position) + 1, after.index(position) + 1))
        for column, (first, after) in enumerate(pairwise(firsts))
        for position in set(first) & set(after)
    )
    found = sorted((tuple(line.get_xdata()), tuple(line.get_ydata())) for line in slopes.lines)  # type: ignore[arg-type]
    assert found == joins
    assert curves.get_legend() is None
    assert set(TITLES) <= set(texts(figure))
    ends = {text.get_text() for text in curves.texts}
    assert ends == {"tracin dot", "bm25"}


def test_methods_that_do_not_know_the_query_are_named() -> None:
    query = made_query()
    query["lists"] = [*query["lists"][:2], None]
    assert "don't know the query: bm25" in "\n".join(texts(drawn(draw_comparison, made_head(), query)))


def test_bars_by_part_are_the_numbers() -> None:
    query = made_query()
    figure = drawn(draw_parts, made_head(), query)
    wanted = [values for row in zip(*(parts["values"][:5] for parts in query["parts"]), strict=True) for values in row]
    assert bars(figure) == wanted
    assert {"online learning, by layer", "by epoch", "in model.h", "0", "1", "2"} <= set(texts(figure))


def test_each_token_has_its_number_and_the_unit_is_said() -> None:
    query = made_query()
    said = texts(drawn(draw_tokens, made_head(), query))
    for text in ("Oslo", "is", "far", "+4.00", "−1.00", "0"):  # noqa: RUF001
        assert said.count(text) == 6
    assert any("Numbers are in 1e-03." in text for text in said)


def test_long_texts_tell_how_many_tokens_are_left_out() -> None:
    query = made_query()
    assert query["tokens"] is not None
    sequence = {"name": "text", "tokens": [f" word{number}" for number in range(300)], "values": [0.5] * 300}
    cast("dict[str, Any]", query["tokens"]["examples"][0])["sequences"] = [sequence]
    said = texts(drawn(draw_tokens, made_head(), query))
    shown = sum(text.startswith("word") for text in said)
    assert 10 < shown < 300
    assert f"… +{300 - shown}" in said


def test_the_map_s_scale_is_not_made_for_where_the_answer_is_read_off() -> None:
    query = made_query()
    assert query["causal"] is not None
    figure = drawn(draw_where, made_head(), query)
    maps = [
        mesh
        for axes in figure.axes
        for mesh in axes.collections
        if isinstance(mesh, QuadMesh) and axes.get_title("left")
    ]
    mediators = query["causal"]["stacks"][0]["mediators"]
    assert [mesh.axes.get_title("left") for mesh in maps] == [mediator["title"] for mediator in mediators]
    counted = [np.array(mediators[0]["effects"])[:-1], np.array(mediators[1]["effects"])]
    largest = max(np.abs(values).max() for values in counted)
    for mesh, mediator, values in zip(maps, mediators, counted, strict=True):
        assert mesh.norm.vmax == largest
        assert np.ma.getdata(mesh.get_array()).tolist() == mediator["effects"]
        ring = next(line for line in mesh.axes.lines if line.get_markerfacecolor() == "none")
        place = tuple(int(np.ravel(values)[0]) for values in (ring.get_ydata(), ring.get_xdata()))
        assert place == np.unravel_index(values.argmax(), values.shape)
        assert len([patch for patch in mesh.axes.patches if patch.get_hatch()]) == len(mediator["readout"])
    profile = query["causal"]["profile"]
    assert profile is not None
    assert bars(figure) == [[1, 4, 2, 0], profile["scores"]]
    said = texts(figure)
    assert {"Oslo*", "is", "×: not traced", "rank correlation +0.50"} <= set(said)  # noqa: RUF001


def test_without_marks_nothing_explains_them() -> None:
    query = made_query()
    assert query["causal"] is not None
    stack = query["causal"]["stacks"][0]
    cast("dict[str, Any]", stack).update({"subject": (0, 0)})
    query["causal"]["profile"] = None
    for mediator in stack["mediators"]:
        cast("dict[str, Any]", mediator).update({"peak": None, "readout": []})
    said = "\n".join(texts(drawn(draw_where, made_head(), query)))
    for absent in ("ring", "*", "hatched", "not traced", "not drawn", "correlation"):
        assert absent not in said


def test_the_ceiling_is_drawn_wherever_a_metric_has_one() -> None:
    figure = drawn(draw_evaluation, made_head())
    with_ceiling, without = figure.axes
    places = [line.get_xdata() for line in with_ceiling.lines if list(line.get_ydata()) == [0, 1]]
    assert places == [[37, 37]]
    assert "ceiling 37" in [text.get_text() for text in with_ceiling.texts]
    assert with_ceiling.get_xlim()[1] < 42  # 34 of 37 is near the end, as it should look
    assert "ceiling" not in "".join(text.get_text() for text in without.texts)
    assert " ".join(without.get_title("left").split()) == "O@10, lower is better"
    dots = [tuple(np.ravel(line.get_xdata())) for line in with_ceiling.lines if line.get_marker() == "o"]
    assert dots == [(34,)] * 3
    lines = [tuple(line.get_xdata()) for line in with_ceiling.lines if len(np.ravel(line.get_xdata())) == 2]  # type: ignore[arg-type]
    assert lines.count((31, 36)) == 3
    assert [label.get_text() for label in with_ceiling.get_yticklabels()] == list(TITLES)


@pytest.mark.parametrize("has_intervals", [True, False])
def test_intervals_are_named_where_there_are_any(has_intervals: bool) -> None:
    head = made_head()
    assert head["run"]["evaluation"] is not None
    if not has_intervals:
        for row in head["run"]["evaluation"]["rows"]:
            for cell in row["cells"]:
                cell.update({"low": None, "high": None})
    assert any("dots are intervals" in text for text in texts(drawn(draw_evaluation, head))) is has_intervals


def test_the_ledger_s_bars_are_its_accounts() -> None:
    figure = drawn(draw_ledger, made_head())
    assert bars(figure) == [[1.5, 0.75], [-0.25, 0]]
    assert "The scores explain 90%" in texts(figure)


HOSTILE = (
    "$\\frac{1}{0}$ $x_1^2 \x1b[31mred\x1b[0m\n\r\t \u202eleft\u2066 \ue123 \U0010ffff half \ud800 "
    "中文 العربية עברית देव \U0001f469\u200d\U0001f467 e\u0301 <script>alert(1)</script> %s {0} \\n \\textbf{a}"
)


def everywhere(content: Any, text: str) -> Any:
    """Put a text in place of each text that comes from data."""
    data = {"text", "prompt", "answer", "name", "title", "layer", "sentence", "note", "snapshot"}
    lists = {"tokens", "warnings", "notes", "layers", "doubts", "metrics"}
    if isinstance(content, dict):
        return {
            key: text if key in data and isinstance(value, str) else
            [text] * len(value) if key in lists and isinstance(value, list | tuple) else everywhere(value, text)
            for key, value in content.items()
        }  # fmt: skip
    return [everywhere(value, text) for value in content] if isinstance(content, list) else content


@pytest.mark.parametrize("text", [HOSTILE, "", "   ", "x" * 4000])
def test_texts_are_data(text: str, tmp_path: Path) -> None:
    """Whatever they are, all is drawn, without warnings of missing signs, and nothing is taken for mathematics."""
    head = cast("Head", everywhere(copy.deepcopy(made_head()), text))
    query = cast("QueryChunk", everywhere(copy.deepcopy(made_query()), text))
    head["methods"][0]["axes"] = {"layer": [text, f"{text}.", text], "epoch": [text, text]}  # type: ignore[typeddict-item]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [drawn(draw, head, query) for draw in OF_QUERY] + [drawn(draw, head) for draw in OF_RUN]
        if text == HOSTILE:
            write_figures(tmp_path, head, [query])
    for figure in figures:
        assert not set("".join(texts(figure))) & set("\x1b\u202e\u2066\ue123\ud800\r")
        assert not any(part.get_parse_math() for part in figure.findobj(Text))  # type: ignore[attr-defined]
    if text == HOSTILE:
        said = "".join(texts(figures[0]))
        for escaped in ("$\\frac{1}{0}$ $x_1^2", "\\x1b[31mred", "\\u202eleft", "\\ue123"):
            assert escaped in said


def test_texts_that_were_left_out_are_said_to_be() -> None:
    query = made_query()
    query.update({"prompt": None, "answer": None})
    for example in query["examples"]:
        example["text"] = None
    said = texts(drawn(draw_query, made_head(), query))
    assert "(text left out)" in said
    assert "answer: (left out)" in said


def test_well_chosen_queries_show_what_there_is() -> None:
    queries = cast("Any", made_head(6)["queries"])
    assert choose_queries(queries) == [0]
    queries.update({
        "precisions": [[0.1, 0.9, 0.9, 0.2, 0.3, None]], "first_losses": [9.0] * 6, "last_losses": [1, 2, 1, 5, 8, 1],
        "disagreements": [0.1, 0.2, 0.3, 0.9, None, 0], "said_right": [True, True, True, None, False, False],
    })  # fmt: skip
    assert choose_queries(queries) == [2, 3, 4]  # precise and learned most; in dispute; wrong with the largest loss
    queries["disagreements"] = [0, 0, 9, 0, 0, 0]
    assert choose_queries(queries) == [2, 4]  # each once
    queries["precisions"] = [[None] * 6]
    assert choose_queries(queries)[0] == 0  # without ground truth, the one that was learned most
