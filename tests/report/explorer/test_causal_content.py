"""What a report shows of causal tracing, against the files themselves."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ftrace.causal import PromptTrace, average_effects, write_trace
from ftrace.causal.joined import join_profiles
from ftrace.evaluation.layer_profiles import ScoreProfile
from ftrace.report.causal_tables import write_averages_csv
from ftrace.report.causal_words import UNITS, mediator_title
from ftrace.report.explorer.content.causal_content import CausalContent
from ftrace.report.explorer.run_page.causal_facts import causal_facts
from ftrace.report.joined_tables import write_joined
from helpers.made_traces import left_out, made_trace

QUERIES = range(6)
SETTINGS = {
    "settings": {"window": 1}, "noise": {"kind": "gaussian", "scale": 3.0, "samples": 10},
}  # fmt: skip


def traces(*, encoder: bool = False) -> list[PromptTrace]:
    decoder_tokens = ("<pad>", "<mask>") if encoder else ()
    return [
        replace(
            made_trace(f"query-{query}", seed=query, fact=f"f{query}", decoder_tokens=decoder_tokens), query_id=query
        )
        for query in QUERIES
    ]


def make_run(folder: Path, *, encoder: bool = False) -> list[PromptTrace]:
    """Write traces, averages, and effects joined to scores, as commands do."""
    made, causal = traces(encoder=encoder), folder / "causal"
    for trace in made:
        write_trace(causal, trace, {})
    write_trace(causal, replace(left_out("query-9"), query_id=9), {})
    write_averages_csv(average_effects(made, resamples=50), causal / "average_effects.csv")
    names = {stack: [f"{stack}.{layer}" for layer in range(3)] for stack in made[0].stacks}
    generator = np.random.default_rng(1)
    parts = ["model.shared", *[f"model.{name}" for of_stack in names.values() for name in of_stack]]
    profiles = [
        ScoreProfile(query, dict(zip(parts, generator.normal(size=len(parts)).tolist(), strict=True)), np.arange(3),
                     np.ones(3))
        for query in QUERIES
    ]  # fmt: skip
    write_joined(join_profiles([*made, left_out()], profiles, names, kind="learning", summed_over="the top"), causal)
    (causal / "settings.json").write_text(json.dumps(SETTINGS))
    return made


@pytest.mark.parametrize("encoder", [False, True])
def test_maps_are_what_the_file_holds(encoder: bool, tmp_path: Path) -> None:
    made = make_run(tmp_path, encoder=encoder)
    content = CausalContent(tmp_path)
    for query in QUERIES:
        shown, trace = content.of(query), made[query]
        assert shown is not None
        assert (shown["status"], shown["reason"]) == ("traced", "")
        arrays = load_file(tmp_path / "causal" / "prompts" / f"query-{query}.safetensors")
        assert shown["clean"] == pytest.approx(arrays["clean"][0], rel=1e-5)
        assert shown["corrupted"] == pytest.approx(arrays["corrupted"][0], rel=1e-5)
        assert [stack["name"] for stack in shown["stacks"]] == list(trace.stacks)
        for stack in shown["stacks"]:
            traced = trace.stacks[stack["name"]]  # type: ignore[index]
            assert list(stack["tokens"]) == list(traced.tokens)
            assert tuple(stack["subject"]) == traced.subject
            titles = {mediator_title(name): name for name in traced.restored}
            assert {mediator["title"] for mediator in stack["mediators"]} == titles.keys()
            for mediator in stack["mediators"]:
                restored = arrays[f"{stack['name']}/{titles[mediator['title']]}/restored"][0]
                expected = 100 * (restored - arrays["corrupted"][0]).T  # tokens, layers
                np.testing.assert_allclose(np.array(mediator["effects"], float), expected, rtol=5.01e-3, atol=1e-8)


def test_numbers_have_three_digits(tmp_path: Path) -> None:
    make_run(tmp_path)
    shown = CausalContent(tmp_path).of(0)
    assert shown is not None
    cells = [cell for row in shown["stacks"][0]["mediators"][0]["effects"] for cell in row]
    assert all(cell is not None and float(f"{cell:.3g}") == cell for cell in cells)


def test_no_peak_is_where_the_answer_is_read_off(tmp_path: Path) -> None:
    """These cells are marked, keep their numbers, and are not what a scale of colours is made for."""
    trace = traces()[0]
    trace.stacks["decoder"].restored["hidden"][0, :, -1] = 9.0  # far above all others
    trace.stacks["decoder"].restored["mlp"][0, 1, -1] = 9.0
    write_trace(tmp_path / "causal", trace, {})
    shown = CausalContent(tmp_path).of(0)
    assert shown is not None
    hidden, _, mlp = shown["stacks"][0]["mediators"]
    assert hidden["readout"] == [(4, 0), (4, 1), (4, 2)]
    assert hidden["effects"][4][0] is not None
    assert hidden["effects"][4][0] > 800
    counted = np.array(hidden["effects"], float)[:4]
    assert hidden["peak"] == np.unravel_index(counted.argmax(), counted.shape)
    assert mlp["readout"] == []
    assert mlp["peak"] == (4, 1)


def test_effects_stand_beside_the_scores_of_their_layers(tmp_path: Path) -> None:
    make_run(tmp_path)
    content = CausalContent(tmp_path)
    with (tmp_path / "causal" / "layer_profiles.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["query_id"] == "3"]
    with (tmp_path / "causal" / "joined.csv").open() as lines:
        (correlation,) = [row["rank_correlation"] for row in csv.DictReader(lines) if row["query_id"] == "3"]
    shown = content.of(3)
    assert shown is not None
    profile = shown["profile"]
    assert profile is not None
    assert list(profile["layers"]) == ["0", "1", "2", "model.shared"]
    assert profile["effects"][3] is None  # no causal effect to compare
    assert profile["effects"][:3] == [pytest.approx(100 * float(row["causal_effect"]), rel=5e-3) for row in rows[:3]]
    assert profile["scores"] == [pytest.approx(float(row["score"]), rel=5e-3) for row in rows]
    assert profile["correlation"] == pytest.approx(float(correlation), abs=1e-3)
    notes = " ".join(profile["notes"])
    for words in ("indirect effect of 'mlp'", "score: learning, summed over the top", "percentage points"):
        assert words in notes


def test_layers_of_two_stacks_are_told_apart(tmp_path: Path) -> None:
    make_run(tmp_path, encoder=True)
    shown = CausalContent(tmp_path).of(0)
    assert shown is not None
    assert shown["profile"] is not None
    assert list(shown["profile"]["layers"])[2:5] == ["encoder 2", "decoder 0", "decoder 1"]


def test_prompts_that_were_left_out_say_why(tmp_path: Path) -> None:
    make_run(tmp_path)
    content = CausalContent(tmp_path)
    shown = content.of(9)
    assert shown is not None
    assert (shown["status"], shown["reason"], shown["clean"], shown["stacks"]) == ("wrong", "rank 7", None, [])
    assert shown["profile"] is None
    assert content.of(77) is None
    assert CausalContent(tmp_path / "nowhere").of(0) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_trace_is_a_sentence(damage: str, tmp_path: Path) -> None:
    make_run(tmp_path)
    file = tmp_path / "causal" / "prompts" / "query-0.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-3] ^= 0xFF
    if damage == "other":
        content = bytearray((file.parent / "query-1.safetensors").read_bytes())
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    shown = CausalContent(tmp_path).of(0)
    assert shown is not None
    assert shown["status"] == "refused"
    assert "causal/prompts/query-0.safetensors" in shown["reason"]
    assert str(tmp_path) not in shown["reason"]
    assert CausalContent(tmp_path).of(1) is not None


@pytest.mark.parametrize("name", ["layer_profiles.csv", "joined.csv", "joined.json"])
@pytest.mark.parametrize("content", [b"", b"a,b\n1\n", b"\xff\xfe\x00", b"[]", b'{"notes": 3}'])
def test_damaged_profiles_are_a_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "causal" / name).write_bytes(content)
    shown = CausalContent(tmp_path).of(0)
    assert shown is not None
    assert shown["status"] == "traced"
    profile = shown["profile"]
    assert profile is not None
    assert not profile["layers"]
    assert "is damaged" in profile["notes"][0]


@pytest.mark.parametrize("encoder", [False, True])
def test_averages_are_those_of_the_table(encoder: bool, tmp_path: Path) -> None:
    made = make_run(tmp_path, encoder=encoder)
    facts = dict(causal_facts(tmp_path) or [])
    averages, unit = average_effects(made, resamples=50), UNITS["probability"]
    assert facts["prompts"] == "6 traced"
    assert unit.text(averages.clean["probability"].mean) in facts["probability of the answer"]
    for stack, of_stack in averages.stacks.items():
        for mediator in of_stack.effects:
            peak = of_stack.peak(mediator)
            assert peak is not None
            said = facts[f"{stack}: {mediator_title(mediator)}" if encoder else mediator_title(mediator)]
            assert said == f"{unit.effect(peak.effect)} in layer {peak.layer}, {peak.group}"
    joined = json.loads((tmp_path / "causal" / "joined.json").read_text())
    assert f"{joined['rank_correlation']['mean']:+.2f}" in facts["effects and scores"]
    assert facts["prompts left out"].startswith("1:")
    assert facts["how"] == "gaussian noise on the subject, scale 3, 10 samples; windows of 1 layer"


@pytest.mark.parametrize("name", ["average_effects.csv", "joined.json", "settings.json"])
@pytest.mark.parametrize("content", [b"", b"a,b\n1\n", b"\xff\xfe\x00", b"[]", b'{"noise": 3, "left_out": 1}'])
def test_damaged_averages_are_a_sentence(name: str, content: bytes, tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "causal" / name).write_bytes(content)
    facts = causal_facts(tmp_path)
    assert facts is not None
    assert [value for label, value in facts if label == "damaged" and value.startswith(f"causal/{name}")]


def test_nobody_traced(tmp_path: Path) -> None:
    assert causal_facts(tmp_path) is None
