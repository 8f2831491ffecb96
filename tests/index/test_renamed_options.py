"""Old names of options: each still works, with a warning that says the new one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from ftrace.attribution import AttributionMethod, TrackStar
from ftrace.callbacks import GradientIndexWriter
from ftrace.index import FeatureSettings, GradientIndex, begin_index
from helpers.made_index import Two, change_manifest, make_index

OLD = {"side": 3, "groups": 2, "correction": "none"}
NEW = {"projection_side": 3, "layer_groups": 2, "preconditioner": "none"}


@pytest.mark.parametrize("old", OLD)
def test_arguments_of_the_writer(old: str, tmp_path: Path) -> None:
    new = dict(zip(OLD, NEW, strict=True))[old]
    with pytest.warns(FutureWarning, match=f"GradientIndexWriter: {old} is now called {new}"):
        writer = GradientIndexWriter(tmp_path, **{old: OLD[old]})  # type: ignore[arg-type]
    assert writer.settings == GradientIndexWriter(tmp_path, **{new: OLD[old]}).settings  # type: ignore[arg-type]
    assert writer.settings != GradientIndexWriter(tmp_path).settings


def parsed(base: type, class_path: str, init_args: dict[str, Any]) -> Any:
    """An object as a YAML config makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "made")
    return parser.instantiate(parser.parse_object({"made": {"class_path": class_path, "init_args": init_args}})).made


def test_configs_of_the_writer() -> None:
    with pytest.warns(FutureWarning) as warned:
        old = parsed(Callback, "ftrace.callbacks.GradientIndexWriter", OLD)
    assert len(warned) == len(OLD)
    assert old.settings == parsed(Callback, "ftrace.callbacks.GradientIndexWriter", NEW).settings


def test_configs_of_trackstar() -> None:
    path = "ftrace.attribution.TrackStar"
    with pytest.warns(FutureWarning) as warned:
        old = parsed(AttributionMethod, path, {**OLD, "correct_queries": False})
    assert "trackstar: correct_queries is now called precondition_queries" in str(warned[-1].message)
    new = TrackStar(**NEW, precondition_queries=False)  # type: ignore[arg-type]
    assert old == new
    assert old.options() == new.options()
    assert not old.options().keys() & {*OLD, "correct_queries"}


def test_an_option_under_both_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="side: expected one of projection_side and side, its old name, found both"):
        GradientIndexWriter(tmp_path, projection_side=4, side=5)


@pytest.mark.parametrize(("old", "new"), [("normal", "gaussian"), ("signs", "rademacher")])
def test_entries_of_a_projection(old: Any, new: Any) -> None:
    with pytest.warns(FutureWarning, match=f"{old} is now called {new}"):
        settings = FeatureSettings(entries=old)
    assert settings == FeatureSettings(entries=new)


@pytest.mark.filterwarnings("error")
def test_an_index_on_disk_that_has_old_names_is_read_and_gone_on_with(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", [[0, 1, 2]])
    file = tmp_path / "index" / "index.json"
    manifest = json.loads(file.read_text())
    features = manifest["settings"]["features"]
    for old, new in zip(OLD, NEW, strict=True):
        features[old] = features.pop(new)
    features["entries"] = "normal"
    change_manifest(tmp_path / "index", **manifest)
    assert GradientIndex(tmp_path / "index").settings == index.settings
    other = replace(index.settings, features=replace(index.settings.features, projection_side=7))
    names = [name for name, _ in Two().named_parameters()]
    begin_index(tmp_path / "index", index.settings, Two(), names, {})
    with pytest.raises(ValueError, match="projection_side: 2 there, 7 asked"):
        begin_index(tmp_path / "index", other, Two(), names, {})
