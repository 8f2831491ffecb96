"""What commands write: nothing while another works there, nothing half when the disk is full, and no leftovers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ftrace.files.claims import claimed
from helpers import small_run
from helpers.command_line import code
from helpers.small_disk import room_for

# By command: its arguments, with RUN for the run's folder and OUT for where results go.
COMMANDS = {
    "attribute": ["--method=bm25", "--run=RUN", "--output_dir=OUT"],
    "attribute in passes": ["--method=tracin", "--run=RUN", "--output_dir=OUT", "--accelerator=cpu"],
    "attribute by an index": ["--method=trackstar", "--run=RUN", "--output_dir=OUT", "--accelerator=cpu"],
    "index": ["--run=RUN", "--output_dir=OUT", "--accelerator=cpu"],
    "causal-trace": ["--run=RUN", "--output_dir=OUT", "--accelerator=cpu", "--only_correct=false", "--pictures=0",
                     "--queries=all", "--noise.sigma=0.1"],
    "tail-patch": ["bm25", "--run=RUN", "--output_dir=OUT", "--queries=all", "-k=1"],
    "counterfactual": ["bm25", "--run=RUN", "--output_dir=OUT", "--queries=all", "--subsets=3"],
    "evaluate": ["bm25", "--run=RUN", "--output_dir=OUT", "--queries=all"],
    "report": ["RUN/bm25", "--out=OUT"],
    "synth": ["--output_path=OUT", "--num_entities=8", "--num_relations=3", "--num_facts=8", "--num_test_utterances=2",
              "--num_facts_per_utterance=1"],
}  # fmt: skip
WAIT = {"evaluate"}
TRAINS = {"counterfactual"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    small_run.write_run_folder(small_run.make("decoder-only", folder), folder / "run")
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({**config, "seed_everything": 0, "trainer": trainer}))
    assert code("attribute", "--method=bm25", f"--run={folder / 'run'}") == 0
    return folder / "run"


def call(name: str, run: Path, out: Path) -> int:
    arguments = [argument.replace("RUN", str(run)).replace("OUT", str(out)) for argument in COMMANDS[name]]
    return code(name.split()[0], *arguments)


def one_line(capsys: pytest.CaptureFixture[str], name: str) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ftrace ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"ftrace {name.split()[0]}: ")
    return lines[0]


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WAIT))
def test_the_second_is_told_who_works_there(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "out", "another command"):
        assert call(name, run, tmp_path / "out") == 2
    assert "out' is being written by another command (process" in one_line(capsys, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - TRAINS))
def test_a_full_disk_is_one_line_and_nothing_half_written(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in run.iterdir())
    with room_for(512):
        assert call(name, run, tmp_path / "out") == 2
    message = one_line(capsys, name)
    assert "File too large" in message
    assert "can't be written" in message
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert not [path for path in left if path.endswith((".tmp", ".claim")) or "partial" in path]
    assert sorted(path.name for path in run.iterdir()) == before
    assert call(name, run, tmp_path / "out") == 0  # with room, it goes on with what there is
