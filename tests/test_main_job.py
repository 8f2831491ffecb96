"""The main job, small: train.py, then every command over the run that it has left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from ftrace.cli import main
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from helpers import warm_python

ROOT = Path(__file__).parents[1]
SMALLER = [
    "--data.init_args.synth.num_entities=24", "--data.init_args.synth.num_relations=2",
    "--data.init_args.synth.num_facts=8", "--data.init_args.synth.num_test_utterances=4",
    "--model.init_args.learning_rate=0.2", "--model.init_args.warmup_steps=5",
    "--trainer.max_epochs=30", "--trainer.enable_progress_bar=false",
]  # fmt: skip


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "160", "PYTHONPATH": str(folder)}
    return warm_python.run(ROOT / "train.py", *arguments, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("a folder")
    done = train(folder, "fit", "--config", str(ROOT / "configs" / "synth_demo.yaml"), *SMALLER)
    assert done.returncode == 0, done.stderr[-3000:]
    yield folder / "runs" / "synth_demo" / "version_0", done.stdout
    shutil.rmtree(folder)


def test_run_folder_holds_everything_and_the_working_directory_nothing(demo: tuple[Path, str]) -> None:
    run, _ = demo
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.csv", "hparams.yaml", "online", "snapshots", "bm25", "tracin", "evaluation",
        "learned_queries.json", "working_directory.txt", "ledger.png", "causal",
        "answers.json", "worked_queries.txt", "report.html",
    }  # fmt: skip
    assert {path.name for path in run.parents[2].iterdir()} == {"runs", "data_cache"}


def test_output_ends_with_the_table_worked_queries_and_places(demo: tuple[Path, str]) -> None:
    run, output = demo
    rows = json.loads((run / "evaluation" / "table.json").read_text())["rows"]
    assert list(rows) == ["online update", "online cosine", "online learning", "bm25", "tracin dot", "tracin cosine"]
    assert "ceiling" in output
    for label in ("proponents", "opponents"):
        assert len(re.findall(rf"^{label}: they .* by online learning", output, re.M)) == 3
    assert len(re.findall(r"^  the model said  .*  (?:right|wrong)  at step-", output, re.M)) == 3
    written = (run / "worked_queries.txt").read_text()
    assert written.count("proponents: ") == 3
    assert max(map(len, written.splitlines())) <= 100
    assert re.findall(r"^query \d+: .*", written, re.M) == re.findall(r"^query \d+: .*", output, re.M)
    for name in ("online", "bm25", "tracin"):
        assert f"ftrace show runs/synth_demo/version_0/{name}" in output
    assert re.search(r"^  explorer +runs/synth_demo/version_0/report.html$", output, re.M)
    assert output.index("ceiling") < output.index("query ") < output.index("Where everything is")
    assert str(Path("runs") / "synth_demo" / "version_0" / "online") in output


def test_online_scores_find_who_taught_the_learned_facts(demo: tuple[Path, str]) -> None:
    run, _ = demo
    table = json.loads((run / "evaluation" / "table.json").read_text())
    assert table["num_queries"] >= 4
    assert table["queries"].startswith("learned, of 8")
    assert table["rows"]["online cosine"]["P@10"] > 0.5  # by chance: 62 of 504 rows, .12


def test_commands_repeat_what_the_job_wrote(demo: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = demo
    for method in ("bm25", "tracin"):
        assert main(["attribute", f"--method={method}", f"--run={run}", f"--output_dir={tmp_path / method}"]) == 0
        first, again = ScoreStore.open(run / method), ScoreStore.open(tmp_path / method)
        for kind in first.kinds:
            found, expected = again.matrix(kind), first.matrix(kind)  # sums in float32 may come in another order
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    stores = [str(run / name) for name in ("online", "bm25", "tracin")]
    assert main(["evaluate", *stores, "--published=false", f"--output_dir={tmp_path / 'evaluation'}"]) == 0
    written = [json.loads((folder / "evaluation" / "table.json").read_text()) for folder in (run, tmp_path)]
    assert written[0] == written[1]
    both = ["evaluate", stores[2], str(tmp_path / "tracin"), f"--run={run}", f"--output_dir={tmp_path / 'both'}"]
    assert main(both) == 0
    rows = list(json.loads((tmp_path / "both" / "table.json").read_text())["rows"])
    assert rows == [
        "version_0/tracin dot",
        "version_0/tracin cosine",
        f"{tmp_path.name}/tracin dot",
        f"{tmp_path.name}/tracin cosine",
    ]
    assert main(["evaluate", stores[0], "--queries=all", f"--output_dir={tmp_path / 'all'}"]) == 0
    assert json.loads((tmp_path / "all" / "table.json").read_text())["num_queries"] == 8


def test_what_runs_no_model_imports_no_torch(demo: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = demo
    stores = [str(run / name) for name in ("online", "bm25")]
    commands = [
        ["show", *stores, "--query=0"],
        ["show", str(run)],
        ["evaluate", *stores, f"--output_dir={tmp_path / 'learned'}"],
        ["evaluate", *stores, "--queries=all", "--pool=candidates", f"--output_dir={tmp_path / 'pools'}"],
        ["learned-when", *stores, f"--output={tmp_path / 'when.json'}"],
        ["ledger", stores[0], f"--output={tmp_path / 'ledger.png'}"],
    ]
    check = (
        f"import sys\nfrom ftrace.cli import main\nfor arguments in {commands}:\n    assert main(arguments) == 0\n"
        "    assert not {'torch', 'lightning', 'transformers'} & sys.modules.keys(), arguments\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_ledger_is_said_and_drawn(
    demo: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = demo
    assert "The scores explain " in output
    assert "books" not in output  # they balance
    assert (run / "ledger.png").read_bytes().startswith(b"\x89PNG")
    assert main(["ledger", str(run / "online"), f"--output={tmp_path / 'ledger.svg'}", "--queries=[0, 3]"]) == 0
    drawn = (tmp_path / "ledger.svg").read_text()
    assert "query 0" in drawn
    assert "query 3" in drawn
    said = capsys.readouterr().out
    assert said.splitlines()[0] in output
    assert main(["ledger", str(run / "online"), f"--output={tmp_path / 'l.png'}", "--queries=[99]"]) == 2
    assert main(["ledger", str(run / "bm25")]) == 2
    assert "no ledger in it" in capsys.readouterr().err


def test_scores_are_compared_by_the_step_at_which_queries_were_learned(demo: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = demo
    file = tmp_path / "when.json"
    stores = [str(run / "online"), str(run / "tracin")]
    assert main(["learned-when", *stores, "--bins=2", f"--output={file}"]) == 0
    bins = json.loads(file.read_text())
    learned = [one for one in bins if one["first"] >= 0]
    assert len(learned) == 2
    assert sum(one["num_queries"] for one in bins) == 8
    assert learned[0]["last"] <= learned[1]["first"]
    for one in learned:
        assert list(one["methods"]) == [
            "online update",
            "online cosine",
            "online learning",
            "tracin dot",
            "tracin cosine",
        ]
        assert 0 <= one["methods"]["online cosine"]["before"] <= 1
        assert -1 <= one["methods"]["tracin cosine"]["rank_correlation"] <= 1
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main(["learned-when", stores[1], f"--run={run}"]) == 2


def test_a_run_is_read_from_anywhere(demo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run(demo[0]).data.data_path.parent == demo[0].parents[2] / "data_cache"
    assert list(tmp_path.iterdir()) == []


def test_nothing_learned_is_said_and_traced_all_the_same(tmp_path: Path) -> None:
    fewer = ["--data.init_args.synth.num_test_utterances=1"]  # pictures take longest, and each query has some
    config = str(ROOT / "configs" / "synth_demo.yaml")
    done = train(tmp_path, "fit", "--config", config, *SMALLER, *fewer, "--trainer.max_epochs=1", "--trace.kind=dot")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "No query has been learned" in done.stdout
    assert "2 queries (all)" in done.stdout
    assert "Where everything is" in done.stdout


def test_what_trace_needs_is_asked_for_before_training(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "synth_demo.yaml")
    done = train(tmp_path, "fit", "--config", config, *SMALLER, "--trainer.callbacks=null")
    assert done.returncode == 2
    assert "trace: expected the callback OnlineTracIn without output_dir" in done.stderr


def test_damaged_runs_are_a_clear_error(demo: tuple[Path, str], tmp_path: Path) -> None:
    config = yaml.safe_load((demo[0] / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": config["model"]}))
    with pytest.raises(ValueError, match="expected the sections model and data"):
        Run(tmp_path)
    config["model"]["class_path"] = "nowhere.Model"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"model: nowhere.Model"):
        _ = Run(tmp_path).model


USERS_MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

class Line(LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["x"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def losses(module, batch):
    return module.layer(batch["x"]).square().squeeze(1)

class Points(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([{"x": torch.ones(3) * i, "example_id": i} for i in range(4)], batch_size=2)

    def query_dataloader(self):
        return DataLoader([{"x": torch.ones(3), "query_id": 0}])
"""


@pytest.mark.parametrize("logger", [True, False])
def test_any_module_and_datamodule_by_class_path_twice(logger: bool, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS_MODULE)
    arguments = [
        "fit", "--model=mine.Line", "--data=mine.Points", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        f"--trainer.logger={str(logger).lower()}", "--trainer.callbacks=ftrace.callbacks.OnlineTracIn",
        "--trainer.callbacks.query_losses=mine.losses",
    ]  # fmt: skip
    for scores in ("first", "second"):
        done = train(tmp_path, *arguments, f"--trainer.callbacks.output_dir={scores}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert ScoreStore.open(tmp_path / scores).example_ids.tolist() == [0, 1, 2, 3]
    names = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert names == {"mine.py", "runs", "first", "first-state", "second", "second-state"}


def test_a_logger_of_the_working_directory_gets_no_config(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS_MODULE)
    arguments = [
        "fit", "--model=mine.Line", "--data=mine.Points", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        "--trainer.logger=false", "--trainer.default_root_dir=.", "--trainer.enable_checkpointing=false",
    ]  # fmt: skip
    done = train(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"mine.py"}


OF_COMMANDS = ["causal_demo.yaml"]  # tested with their commands
CONFIGS = [file for file in sorted((ROOT / "configs").glob("*.yaml")) if file.name not in OF_COMMANDS]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_parsed(config: Path, tmp_path: Path) -> None:
    done = train(tmp_path, "fit", "--config", str(config), "--print_config")
    assert done.returncode == 0, done.stderr
    assert "args parameter" not in done.stderr  # of which LightningCLI warns if it gets them as a list
    printed = yaml.safe_load(done.stdout)
    assert printed["model"]["class_path"].startswith("ftrace.models.")
    assert list(tmp_path.iterdir()) == []
