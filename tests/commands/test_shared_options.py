"""Which queries, which stores of which run, which processes: the same options in every command that has them."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftrace.attribution import TrackStar
from ftrace.callbacks import GradientIndexWriter
from ftrace.cli import main
from ftrace.commands.options import ProcessSettings
from ftrace.commands.query_choice import QueryChoice
from ftrace.commands.stores import open_stores_of_run
from ftrace.files.manifests import write_json
from ftrace.index import ApproximateSettings, FeatureSettings, IndexSettings, SearchSettings, WhiteningSettings
from ftrace.runs import Run
from helpers import small_run
from helpers.small_run import SmallRun

NEEDED = {
    "evaluate": ["store"], "tail-patch": ["store"], "counterfactual": ["store"], "learned-when": ["store"],
    "attribute": ["--method=bm25", "--run=x"], "index": ["--run=x"], "search": ["--index=x"], "causal-trace": [],
}  # fmt: skip


def options(command: str, capsys: pytest.CaptureFixture[str], *given: str) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        main([command, *NEEDED[command], *given, "--print_config"])
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def names(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    ("command", "queries"),
    [
        ("evaluate", "learned"), ("tail-patch", "learned"), ("counterfactual", "learned"), ("learned-when", "all"),
        ("attribute", "all"), ("search", "all"), ("causal-trace", "all"),
    ],
)  # fmt: skip
def test_which_queries(command: str, queries: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = options(command, capsys)
    assert names(QueryChoice) <= found.keys()
    assert (found["queries"], found["rule"], found["sample"], found["seed"]) == (queries, None, None, 0)


@pytest.mark.parametrize("command", ["evaluate", "tail-patch", "counterfactual", "learned-when"])
def test_which_stores_of_which_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = options(command, capsys)
    assert (found["stores"], found["run"]) == (["store"], None)


@pytest.mark.parametrize("command", ["attribute", "index", "causal-trace"])
def test_which_processes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(ProcessSettings) <= options(command, capsys).keys()


def test_options_of_an_index_are_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """The command, the callback and the method have each option by the settings' name, with the settings' default."""
    of_index = {field.name: field.default for field in (*fields(FeatureSettings), *fields(IndexSettings))}
    del of_index["features"]
    command = options("index", capsys)
    callback = {name: given.default for name, given in signature(GradientIndexWriter).parameters.items()}
    assert of_index.keys() <= command.keys() & callback.keys()
    others = {"shard_bytes", "preconditioner"}  # a text; "auto"
    assert {name: command[name] for name in of_index.keys() - others} == {
        name: value for name, value in of_index.items() if name not in others
    }
    others = {"shard_bytes"}  # smaller while training
    assert {name: callback[name] for name in of_index.keys() - others} == {
        name: value for name, value in of_index.items() if name not in others
    }
    method = {name: given.default for name, given in signature(TrackStar).parameters.items()}
    left_out = {"entries", "whitening"}
    for kind in (FeatureSettings, WhiteningSettings, SearchSettings):
        for field in fields(kind):
            assert field.name in left_out or method[field.name] == field.default, field.name


def test_options_of_a_search_are_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    command = options("search", capsys)
    for kind in (WhiteningSettings, SearchSettings, ApproximateSettings):
        for field in fields(kind):
            assert field.name == "whitening" or command[field.name] == field.default, field.name


@pytest.mark.parametrize("command", NEEDED)
def test_help_has_the_line_under_each_field(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in options(command, capsys).keys() - {"config", "stores"}:
        described = text.partition(f" --{name} ")[2].partition("(type:")[0].partition("(default:")[0]
        assert len(described.split()) > 2, (name, described)


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("index", "--side=3", "projection_side"),
        ("index", "--groups=2", "layer_groups"),
        ("index", "--correction=auto", "preconditioner"),
        ("search", "--correct_queries=false", "precondition_queries"),
    ],
)
def test_old_flags_say_the_new_one(command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = old.removeprefix("--").partition("=")[0]
    with pytest.warns(FutureWarning, match=f"ftrace {command}: {name} is now called {new}"):
        assert main([command, *NEEDED[command], old]) == 2  # there is no such run, no such index
    assert name not in options(command, capsys)


# Choosing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make("decoder-only", tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(run: SmallRun, tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    folder = small_run.write_run_folder(run, tmp_path / "runs" / "version_0")
    opened = Run(folder)
    ids = opened.data.query_rows["query_id"]
    known = {
        rule: {
            "rule": rule, "query_ids": learned, "asked": len(ids), "right_at_last": len(learned), "known_at_first": 0,
            "snapshots": [], "key": opened.learned_key(snapshots),
        }
        for rule, learned, snapshots in (
            ("paper", ids[:1], [opened.snapshots[0], opened.last_snapshot]), ("last", ids[:3], [opened.last_snapshot]),
        )
    }  # fmt: skip
    write_json(folder / "learned_queries.json", known)
    return folder


@pytest.mark.parametrize(
    ("choice", "count", "description"),
    [
        (QueryChoice("all"), 4, "all"),
        (QueryChoice(), 1, "learned, of 4"),
        (QueryChoice(rule="last"), 3, "learned, of 4"),
        (QueryChoice(rule="last", sample=2), 2, "a sample of 3: learned, of 4"),
        (QueryChoice("all", sample=9), 4, "a sample of 4: all"),
    ],
)
def test_queries_are_chosen_alike_with_and_without_ground_truth(
    choice: QueryChoice, count: int, description: str, folder: Path
) -> None:
    opened = Run(folder)
    evaluated = choice.evaluated(opened)
    assert evaluated.description == description
    assert len(evaluated) == count
    assert evaluated.query_ids.tolist() == choice.ids(opened).tolist()


def test_another_seed_takes_other_queries(folder: Path) -> None:
    opened = Run(folder)
    drawn = {tuple(QueryChoice("all", sample=2, seed=seed).ids(opened).tolist()) for seed in range(8)}
    assert len(drawn) > 2


def test_a_run_is_found_by_the_folder_of_its_versions(folder: Path) -> None:
    named, stores = open_stores_of_run([], str(folder.parent))
    assert (named.folder, stores) == (folder, {})
    with pytest.raises(ValueError, match="expected score stores or --run, found neither"):
        open_stores_of_run([], None)
