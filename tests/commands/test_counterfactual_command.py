"""`ftrace counterfactual` over a small run that is retrained in a fraction of a second."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from ftrace.cli import main
from ftrace.files.manifests import write_json
from helpers.made_run import data_of, make_run, write_scores

GIVEN = ["--subsets=3", "--seeds=2", "--ceiling_subsets=3", "--queries=all"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    made = make_run(folder / "run", folder / "data", [])
    config = yaml.safe_load((made / "config.yaml").read_text())
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1}
    (made / "config.yaml").write_text(yaml.safe_dump({**config, "seed_everything": 3, "trainer": trainer}))
    for name, noise in (("online", 0.5), ("exact", 0.0)):
        write_scores(made / name, data_of(folder / "data"), {"dot": noise, "update": noise / 2})
    return made


def test_one_command_one_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_out = ["--leave_out_k", "31", "62", "--leave_out_facts", "1", "--leave_out_queries=2"]
    assert main(["counterfactual", str(run / "exact"), *GIVEN, *leave_out]) == 0
    assert "noise-free prediction" in capsys.readouterr().out
    folder = run / "counterfactual-fact"
    table = json.loads((folder / "table.json").read_text())
    rows = ["exact dot", "exact update", "ground truth"]
    assert list(table["subsets"])[:3] == rows
    assert list(table["left_out"]) == ["the top 31", "the top 62", "all facts of the top 1"]
    assert list(table["left_out"]["the top 62"]) == [*rows, "random"]
    assert table["left_out"]["the top 62"]["exact dot"]["proponents"]["mean"] == 1
    done = {file.stem for file in (folder / "retrainings").iterdir()}
    trainings = {f"subset-{index:05d}-training-{training}" for index in range(3) for training in range(2)}
    assert trainings < done
    # The run itself; for 31 of two queries' rows by two kinds (which are the same), the truth, and at random; whole
    # facts, which two queries may share; and random ones.
    assert 1 + 2 * 3 + 1 + 2 + 1 <= len(done - trainings) <= 1 + 2 * 3 + 2 + 2 + 2

    before = {file: file.stat().st_mtime_ns for file in (folder / "retrainings").iterdir()}
    assert main(["counterfactual", "exact", "online", f"--run={run}", *GIVEN]) == 0
    assert {file: file.stat().st_mtime_ns for file in (folder / "retrainings").iterdir()} == before
    table = json.loads((folder / "table.json").read_text())
    assert list(table["subsets"])[:5] == ["exact dot", "exact update", "online dot", "online update", "ground truth"]


def test_a_retraining_that_diverged_is_left_out_and_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "counterfactual", "exact", f"--run={run}", "--subsets=5", "--seeds=2", "--ceiling_subsets=4", "--queries=all",
        "--leave_out_k", "31", "--leave_out_queries=2", f"--output_dir={tmp_path}",
    ]  # fmt: skip
    assert main(given) == 0
    before = json.loads((tmp_path / "table.json").read_text())
    for training in (0, 1):
        file = tmp_path / "retrainings" / f"subset-00001-training-{training}.json"
        outcome = json.loads(file.read_text())
        write_json(file, {**outcome, "losses": [None] * len(outcome["losses"])})
    capsys.readouterr()
    assert main(given) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not in the LDS: 8 losses (in 1 of 5 trainings, of 8 queries) that are NaN or infinite" in shown
    assert "not in the ceiling: 16 losses (in 2 of 8 trainings, of 8 queries)" in shown
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["not_finite"]["LDS"] == {"trainings": 1, "num_trainings": 5, "queries": 8, "losses": 8}
    assert table["left_out"] == before["left_out"]
    with (tmp_path / "per_query.csv").open() as lines:
        counts = {line["subsets"] for line in csv.DictReader(lines) if line["figure"] == "LDS" and line["subsets"]}
    assert counts == {"4"}


def test_a_folder_with_other_settings_is_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["counterfactual", f"--run={run}", "--subsets=3", "--queries=all", f"--output_dir={tmp_path}"]
    assert main([*given, "--unit=row"]) == 0  # without stores, for the ground truth alone
    assert list(json.loads((tmp_path / "table.json").read_text())["subsets"]) == ["ground truth"]
    capsys.readouterr()
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "holds retrainings with {'unit': 'row'}, expected {'unit': 'fact'}. Name another: --output_dir" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected score stores or --run, found neither"),
        (["{}/nothing"], "expected the folder of a score store, found nothing at"),
        (["{}/online", "--run={}/online"], "is not the folder of a run"),
        (["{}/online", "--subsets=2"], "subsets: expected 3 to 100,000, found 2"),
        (["{}/online", "--seeds=0"], "seeds: expected 1 to 1,000, found 0"),
        (["{}/online", "--ceiling_subsets=1"], "ceiling_subsets: expected 3 to 100,000, found 1"),
        (["{}/online", "--jobs=0"], "jobs: expected at least 1, found 0"),
        (["{}/online", "--queries=all", "--keep=1"], "keep: expected a share that keeps 1 to 7 of 8 facts, found 1.0"),
        (["{}/online", "--unit=word"], "unit"),
        (
            ["{}/online"],
            "found none (learned, of 8; 1 known at step 0, before training). Train for longer, or take --queries all",
        ),
        (["{}/online", "--queries=all", "--leave_out_k", "504"], "k: expected 1 to 503 of 504 training rows"),
        (["{}/online", "--queries=all", "--leave_out_queries=0"], "leave_out_queries: expected at least 1, found 0"),
        (["{}/online", "{}/online"], "expected each score store once"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("{}", str(run)) for argument in arguments]
    assert main(["counterfactual", *given, f"--output_dir={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help_says_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["counterfactual", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for said in ("noise ceiling", "each query's top K examples", "all rows that state a fact of its top K"):
        assert said in shown
