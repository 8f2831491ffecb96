"""The `ftrace` command: help, configs, and one readable line with exit code 2 for bad input."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ftrace.cli import COMMANDS, TRAINING
from ftrace.named_configs import config_file
from helpers import warm_python
from helpers.command_line import code

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = [
    "--num_entities=12", "--num_relations=4", "--num_facts=20", "--num_test_utterances=5",
]  # fmt: skip


@pytest.mark.parametrize(
    "command", ["synth", "show", "ask", "attribute", "evaluate", "tail-patch", "counterfactual", "index", "search"]
)
def test_help_and_print_config(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code(command, "--help") == 0
    assert "--config" in capsys.readouterr().out
    given = {
        "synth": ["--output_path=x"], "show": [], "ask": ["x", "who"],
        "attribute": ["--method=bm25", "--run=x"], "evaluate": ["store"],
        "tail-patch": ["x"],
        "counterfactual": ["--run=x"], "index": ["--run=x"], "search": ["--index=x"],
    }  # fmt: skip
    assert code(command, *given[command], "--print_config") == 0
    assert isinstance(yaml.safe_load(capsys.readouterr().out), dict)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_line_of_a_command_is_that_of_its_docstring(command: str) -> None:
    module, line = COMMANDS[command]
    assert importlib.import_module(module).command.__doc__.splitlines()[0] == line


def test_help_lists_all_commands_and_imports_none() -> None:
    check = (
        "import sys\nfrom ftrace.cli import main\n"
        "for arguments in (['--help'], ['show', '--help']):\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        "assert not {'torch', 'lightning', 'transformers'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=CONFIGS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    for command, line in {**TRAINING, **{name: line for name, (_, line) in COMMANDS.items()}}.items():
        assert f"{command} {line}" in words


def test_synth_has_the_published_flags_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    code("synth", "--output_path=x", "--print_config")
    config = yaml.safe_load(capsys.readouterr().out)
    published = {
        "output_path": "x", "num_entities": 5000, "num_relations": 37, "num_facts": 50000, "num_test_utterances": 5000,
        "num_entity_words": 1, "num_expressions_per_entity": 4, "num_facts_per_utterance": 2, "entity_vocabulary": None,
        "relation_vocabulary": None, "seed": 0, "separator": " ", "collisions": "allow",
        "entities": "numbered",
    }  # fmt: skip
    assert config == published


def test_synth_writes_a_data_set(tmp_path: Path) -> None:
    assert code("synth", "--output_path", str(tmp_path / "a b"), *SMALL) == 0
    assert json.loads((tmp_path / "a b" / "manifest.json").read_text())["num_queries"] == 10


def test_synth_writes_readable_entities(tmp_path: Path) -> None:
    arguments = ["--output_path", str(tmp_path / "named"), *SMALL, "--num_entities=40", "--entities=readable"]
    assert code("synth", *arguments) == 0
    assert json.loads((tmp_path / "named" / "manifest.json").read_text())["entities"][0]["type"] == "company"


def test_options_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "synth.yaml").write_text(f"output_path: {tmp_path / 'out'}\nnum_facts: 6\nnum_entities: 9\n")
    arguments = ["--config", str(tmp_path / "synth.yaml"), "--num_relations=2", "--num_test_utterances=2"]
    assert code("synth", *arguments) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["num_facts"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synth", *SMALL], "output_path"),
        (["synth", "--output_path={}", *SMALL, "--num_facts=48"], "num_facts: expected at most"),
        (["synth", "--output_path={}", *SMALL, "--num_test_utterances=21"], "num_test_utterances: expected at most"),
        (["synth", "--output_path={}", *SMALL, "--num_relations=99"], "num_relations: expected at most 48"),
        (["synth", "--output_path={}", *SMALL, "--num_entity_words=2"], "num_entity_words: expected 1, found 2"),
        (["synth", "--output_path={}", *SMALL, "--collisions=maybe"], "collisions"),
        (["synth", "--output_path={}", "--num_entities=many"], "num_entities"),
        (["synth", "--output_path={}", *SMALL, "--seeds=1"], "seeds"),
        (["synth", "--output_path={}", *SMALL, "--num_ent=12"], "num_ent"),  # not expanded
        (["attribute", "--method=bm25", "--run={}"], "is not the folder of a run"),
        (["attribute", "--method=guess", "--run={}"], "method"),
        (["evaluate", "{}/nothing"], "expected the folder of a score store, found nothing at"),
        (["evaluate"], "stores"),
        (["unheard-of"], "unheard-of"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code(*[argument.replace("{}", str(tmp_path / "out")) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert code("synth", f"--output_path={tmp_path / 'file' / 'data'}", *SMALL) == 2
    assert code("synth", f"--output_path={tmp_path / 'file'}", *SMALL) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_config_by_name_by_path_and_inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = []
    for given in ("causal_demo", str(CONFIGS / "causal_demo.yaml"), (CONFIGS / "causal_demo.yaml").read_text()):
        assert code("causal-trace", "--config", given, "--print_config") == 0
        printed.append(capsys.readouterr().out)
    assert "run: runs/synth_demo" in printed[0]
    assert printed[0] == printed[1] == printed[2]


def test_a_file_goes_before_a_config_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "causal_demo").write_text("run: mine\n")
    (tmp_path / "synth_demo").mkdir()
    assert code("causal-trace", "--config", "causal_demo", "--print_config") == 0
    assert "run: mine" in capsys.readouterr().out
    assert Path(config_file("synth_demo")).samefile(CONFIGS / "synth_demo.yaml")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "causal-trace"])
def test_a_wrong_name_of_a_config_lists_the_known_ones(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ftrace"])
    assert code(command, "--config", "synth_dem") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected a file or one of causal_demo, counterfactual, real_demo, studies/answers" in error
    assert error.endswith("trex_mt5, found 'synth_dem'")


def test_it_is_a_command(tmp_path: Path) -> None:
    done = warm_python.run("-m", "ftrace.cli", "synth", "--output_path", tmp_path, "--num_facts", "0")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("num_facts: expected 1 to 10,000,000, found 0")
