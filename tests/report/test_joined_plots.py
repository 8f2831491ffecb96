"""Causal tracing joined to attribution: the pictures, the table and the files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ftrace.causal import Stack
from ftrace.causal.joined import Joined, join_profiles
from ftrace.evaluation.layer_profiles import ScoreProfile
from ftrace.report.joined_plots import Teacher, plot_joined
from ftrace.report.joined_tables import render_joined, write_joined
from helpers.made_traces import made_trace


def made(queries: int = 12, *, encoder: bool = False) -> Joined:
    stacks: list[Stack] = ["encoder", "decoder"] if encoder else ["decoder"]
    names = {stack: [f"{stack}.block.{layer}" for layer in range(3)] for stack in stacks}
    parts = ["model.shared", *[f"model.{name}" for own in names.values() for name in own]]
    generator = np.random.default_rng(1)
    traces = [
        replace(
            made_trace(f"query {query}", seed=query, decoder_tokens=("<pad>", "<mask>") if encoder else ()),
            query_id=query, fact=f"fact {query}", prompt="The $x_1$ of [Łódź] is", answers=("a_b $1",),
        )
        for query in range(queries)
    ]  # fmt: skip
    profiles = [
        ScoreProfile(query, dict(zip(parts, generator.random(len(parts)).tolist(), strict=True)), np.array([3]),
                     np.array([1.0]))
        for query in range(queries)
    ]  # fmt: skip
    return join_profiles(traces, profiles, names, kind="update", summed_over="the 10 strongest proponents")


@pytest.mark.parametrize("encoder", [False, True])
def test_all_of_a_query_is_drawn(tmp_path: Path, encoder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = made(2, encoder=encoder)
    shown: list[str] = []

    def keep(figure: object, file: Path) -> tuple[Path, Path]:
        from matplotlib.text import Text

        shown.extend(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]
        return file, file

    teachers = [
        Teacher(123456, 0.25, "Łódź is in $Poland_1", states_the_fact=True),
        Teacher(7, -3e-7, "no" * 400, False),
    ]
    monkeypatch.setattr("ftrace.report.joined_plots.save_png_and_pdf", keep)
    plot_joined(joined.queries[0], joined, teachers, tmp_path / "query")
    text = "\n".join(shown)
    stacks = ("encoder", "decoder") if encoder else ()
    for expected in (
        "query 0: The $x_1$ of [Łódź] is", "answer: a_b $1", "P* = ", "Space*", "Needle*", "MLP window", "+0.25",
        "123456", "Łódź is in $Poland_1", "yes", "causal effect, summed over tokens", "percentage points",
        "score of the 10 strongest proponents", "update (nats)", "rank correlation of both", *stacks,
    ):  # fmt: skip
        assert expected in text
    assert all(len(line) < 130 for line in shown if line.startswith("nono"))


def test_nothing_in_a_picture_overlaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = made(2, encoder=True)
    figures = []
    monkeypatch.setattr(
        "ftrace.report.joined_plots.save_png_and_pdf", lambda figure, file: figures.append(figure) or (file, file)
    )
    teachers = [Teacher(10**6 + place, 0.1, "a long sentence " * 30, place % 2 == 0) for place in range(5)]
    plot_joined(joined.queries[0], joined, teachers, tmp_path / "query")
    (figure,) = figures
    figure.draw_without_rendering()
    upper, lower = figure.subfigs
    boxes = [text.get_window_extent() for text in lower.texts]
    bottom = min(part.get_tightbbox().y0 for part in upper.subfigs) * figure.dpi
    for place, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= bottom
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_files_are_written(tmp_path: Path) -> None:
    file = plot_joined(made(2).queries[0], made(2), [], tmp_path / "a" / "query")
    assert [one.name for one in file] == ["query.png", "query.pdf"]
    assert all(one.stat().st_size > 1000 for one in file)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["query.pdf", "query.png"]


def test_table_shows_some_queries_and_the_mean() -> None:
    joined = made()
    console = Console(width=200, record=True)
    console.print(render_joined(joined, most=5))
    text = console.export_text()
    assert "... and 7 more" in text
    assert text.count("The $x_1$ of [Łódź]") == 5
    assert f"Mean rank correlation of 12 queries over 3 layers: {joined.agreement.matched.mean:+.2f}" in text
    assert "summed over tokens" in text
    assert "model.shared" in text


def test_tables_on_disk(tmp_path: Path) -> None:
    joined = made(3, encoder=True)
    files = write_joined(joined, tmp_path / "new")
    assert [file.name for file in files] == ["layer_profiles.csv", "joined.csv", "joined.json"]
    rows = list(csv.DictReader(files[0].open(encoding="utf-8")))
    assert len(rows) == 3 * 7
    for query in joined.queries:
        own = [row for row in rows if row["query_id"] == str(query.query_id)]
        assert [float(row["causal_effect"]) for row in own[:-1]] == query.effects.tolist()
        assert [float(row["score"]) for row in own[:-1]] == query.scores.tolist()
        assert sum(float(row["score_share"]) for row in own) == pytest.approx(1)
        assert own[-1]["part"] == "model.shared"
        assert own[-1]["causal_effect"] == ""
    queries = list(csv.DictReader(files[1].open(encoding="utf-8")))
    assert [float(row["rank_correlation"]) for row in queries] == joined.agreement.by_query.tolist()
    assert queries[0]["example_ids"] == "3"
    summary = json.loads(files[2].read_text())
    assert summary["rank_correlation"]["mean"] == joined.agreement.matched.mean
    assert [one["part"] for one in summary["by_layer"]] == [layer.part for layer in joined.layers]
    assert summary["outside"]["parts"] == ["model.shared"]
    assert summary["reduction"] == "sum"
