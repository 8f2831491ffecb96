"""Studies: what is trained, what is not done twice, and what the tables say."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from ftrace.attribution import Bm25, Embed, Ensemble
from ftrace.cli import main, make_parser
from ftrace.files.manifests import write_json
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from ftrace.studies import Study, StudyRun, Variant, do_study
from ftrace.studies.results import report_study
from ftrace.studies.settings import merged

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
SYNTH = {"num_facts": 14, "num_entities": 10, "num_relations": 4, "num_test_utterances": 6}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    small = {"synth": SYNTH, "batch_size": 16, "data_dir": str(tmp_path_factory.mktemp("data"))}
    return Study(
        name="tiny",
        question="Which?",
        variants={
            "plain": Variant(str(ROOT / "configs" / "synth_numbered.yaml")),
            "rare refresh": Variant("synth_numbered", online={"refresh_every_n_steps": 50}),
        },
        methods={
            "bm25": Bm25(),
            "embed": Embed(layers=["encoder.0", "encoder.2"]),
            "both": Ensemble(members=["bm25:bm25", "embed:encoder.0"], standardize=True),
        },
        seeds=(0, 1),
        changes={"trainer": {"max_epochs": 3}, "data": {"init_args": small}},
        online={"scores": ["learning"], "projection_side": 4, "integration": "left", "momentum": "eventual"},
        snapshots={"steps": [0, 159]},
        choose=("embed*:P@10",),
        against="bm25",
    )


@pytest.fixture(scope="module")
def done(study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[StudyRun], Path]:
    folder = tmp_path_factory.mktemp("study")
    return do_study(study, folder, jobs=2), folder


def test_each_variant_is_trained_with_each_seed_and_scored_by_each_method(
    study: Study, done: tuple[list[StudyRun], Path]
) -> None:
    runs, folder = done
    assert {(run.variant, run.seed) for run in runs} == {(v, s) for v in study.variants for s in (0, 1)}
    refreshes = {}
    for run in runs:
        assert run.folder == (folder / run.variant / f"seed-{run.seed}").absolute()
        stores = run.stores(study)
        assert list(stores) == ["online", "bm25", "embed", "both"]
        assert stores["online"].kinds == ("learning",)
        assert min(run.cost["seconds"], run.cost["cpu_seconds"]) > 0
        refreshes[run.variant] = len(stores["online"].manifest["refreshes"])
        config = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert config["data"]["init_args"]["synth"]["seed"] == config["seed_everything"] == run.seed
    assert refreshes["plain"] > 3 * refreshes["rare refresh"]


def test_what_is_done_is_not_done_again(study: Study, done: tuple[list[StudyRun], Path]) -> None:
    runs, folder = done
    files = [run.folder / name / "manifest.json" for run in runs for name in ("online", "bm25", "embed", "both")]
    before = [file.stat().st_mtime_ns for file in files]
    other = replace(study, methods={**study.methods, "bm25": Bm25(text="target")})
    do_study(other, folder, ROOT / "train.py")
    changed = [file.parent.name for file, then in zip(files, before, strict=True) if file.stat().st_mtime_ns != then]
    assert changed == ["bm25", "both"] * len(runs)  # an ensemble is made of what has changed
    do_study(study, folder, ROOT / "train.py")


def test_tables_hold_what_the_stores_say(study: Study, done: tuple[list[StudyRun], Path], tmp_path: Path) -> None:
    runs, _ = done
    console = Console(file=io.StringIO(), width=100)
    files = report_study(study, runs, tmp_path / "tiny", console)
    assert files[0].read_text().startswith("# Which?")
    assert files[1].read_bytes().startswith(b"\x89PNG")
    table = json.loads((tmp_path / "tiny" / "plain" / "evaluation" / "table.json").read_text())
    expected = []
    for run in (one for one in runs if one.variant == "plain"):
        opened, store = Run(run.folder), ScoreStore.open(run.folder / "online")
        half = opened.queries()
        learned = [q for q in opened.learned_queries() if q in set(half.query_ids[~half.is_development].tolist())]
        best = [store.top(query, 10)[0] for query in learned]
        hits = [np.isin(ids, opened.data.proponents[query]).mean() for ids, query in zip(best, learned, strict=True)]
        expected.append(np.mean(hits))
    found = table["rows"]["online learning"]["P@10"]
    found = found["mean"] if isinstance(found, dict) else found
    np.testing.assert_allclose(found, np.mean(expected), atol=1e-9)
    assert "online learning" in console.file.getvalue()  # type: ignore[attr-defined]


def test_queries_are_binned_by_when_they_were_learned(
    study: Study, done: tuple[list[StudyRun], Path], tmp_path: Path
) -> None:
    runs, _ = done
    files = report_study(replace(study, report="learned"), runs, tmp_path, Console(file=io.StringIO()))
    text = files[0].read_text()
    counts = [int(line.split(" queries)")[0].split("(")[-1]) for line in text.split("first right")[1].splitlines()
              if "| online learning |" in line]  # fmt: skip
    whole = next(line for line in text.splitlines() if line.startswith("| plain ") and "online learning" in line)
    assert sum(counts) == int(whole.split(" queries)")[0].split("(")[-1])


def test_runs_without_learned_queries_are_left_out(
    study: Study, done: tuple[list[StudyRun], Path], tmp_path: Path
) -> None:
    runs, _ = done
    file = runs[0].folder / "learned_queries.json"
    before = file.read_text()
    known = json.loads(before)
    write_json(file, {**known, "paper": {**known["paper"], "query_ids": []}})
    with pytest.warns(UserWarning, match=r"plain: no query was learned with the seeds \[0\]"):
        report_study(replace(study, choose=(), report="learned"), runs, tmp_path, Console(file=io.StringIO()))
    table = json.loads((tmp_path / "plain" / "evaluation" / "table.json").read_text())
    file.write_text(before)
    assert table["num_runs"] == 1


def test_variants_are_compared_with_the_first_one(
    study: Study, done: tuple[list[StudyRun], Path], tmp_path: Path
) -> None:
    runs, _ = done
    files = report_study(replace(study, report="variants"), runs, tmp_path, Console(file=io.StringIO()))
    lines = [line for line in files[0].read_text().splitlines() if " x |" in line]
    assert lines[0].startswith("| plain |")
    assert "| 1.00 x | 1.000 |" in lines[0]
    assert float(lines[1].split("|")[4]) < 1


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_studies_can_be_read_from_anywhere(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser = make_parser("study")
    found = parser.instantiate(parser.parse_args(["study", "--config", str(file)]))["study"]["settings"]
    assert found.name == file.stem
    for variant in found.variants.values():
        settings = variant.settings(found)
        assert settings["trace"] is None
        online = next(one for one in settings["trainer"]["callbacks"] if one["class_path"].endswith("OnlineTracIn"))
        assert "learning" in online["init_args"]["scores"]


def test_a_study_names_methods_by_class_without_a_path(tmp_path: Path) -> None:
    """In a process of its own: here, tests have imported the classes."""
    methods = {"words": {"class_path": "Bm25", "init_args": {"tokens": "words"}}, "tracin": "TracIn"}
    settings = {"name": "x", "question": "x", "variants": {"a": {"config": "synth_demo"}}, "methods": methods}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"settings": settings}))
    command = [sys.executable, "-m", "ftrace", "study", "--config", str(tmp_path / "study.yaml"), "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)["settings"]["methods"]
    assert {name: method["class_path"] for name, method in printed.items()} == {
        "words": "ftrace.attribution.Bm25",
        "tracin": "ftrace.attribution.TracIn",
    }
    assert printed["words"]["init_args"]["tokens"] == "words"


def test_changes_are_merged_and_nothing_else_is_touched() -> None:
    base: dict[str, Any] = {"a": {"b": [1, 2], "c": 3}, "d": 4}
    assert merged(base, {"a": {"b": [5]}, "e": {"f": 6}}) == {"a": {"b": [5], "c": 3}, "d": 4, "e": {"f": 6}}
    assert base == {"a": {"b": [1, 2], "c": 3}, "d": 4}


def test_bad_studies_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = Variant(str(ROOT / "configs" / "synth_numbered.yaml"))
    with pytest.raises(ValueError, match="expected at least one variant and one seed"):
        Study("x", "x", {})
    with pytest.raises(ValueError, match='expected other names than "online"'):
        Study("x", "x", {"a": variant}, {"online": Bm25()})
    with pytest.raises(ValueError, match=r"train_script: expected a script, found nothing .* Leave it out"):
        do_study(Study("x", "x", {"a": variant}), tmp_path, tmp_path / "train.py")
    with pytest.raises(ValueError, match=r"expected a file or one of .*synth_demo, .*, found 'synth_dem'"):
        Variant("synth_dem").settings(Study("x", "x", {"a": variant}))
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ValueError, match=r"empty\.yaml.: expected names and values as YAML"):
        Variant(str(tmp_path / "empty.yaml")).settings(Study("x", "x", {"a": variant}))
    (tmp_path / "none.yaml").write_text("{trainer: {callbacks: []}, data: {}}")
    with pytest.raises(ValueError, match=r"expected one ftrace\.callbacks\.OnlineTracIn .* found 0"):
        Variant(str(tmp_path / "none.yaml")).settings(Study("x", "x", {"a": variant}))
    broken = Study(
        "x", "x", {"a": replace(variant, changes={"model": {"init_args": {"optimizer": "none"}}})}, seeds=(0,)
    )
    with pytest.raises(ValueError, match=r"training a with seed 0 failed: see .*seed-0.log"):
        do_study(broken, tmp_path / "runs", ROOT / "train.py")
    assert main(["study", "--config", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in capsys.readouterr().err
