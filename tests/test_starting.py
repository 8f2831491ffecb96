"""Help, versions and messages come at once: nothing that takes seconds to import is imported for them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import ftrace
from ftrace.cli import COMMANDS, make_parser
from ftrace.commands.examples import EXAMPLES
from ftrace.commands.fit import TRAINING
from helpers.command_line import code

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "lightning", "transformers", "datasets", "matplotlib", "bm25s"}
WRONG = [
    ["shwo"],
    ["fit", "--config", "synth_dmeo"],
    ["fit", "--config", "absent.yaml"],
    ["fit", "--config", "synth_demo", "--trainer.max_epoch", "3"],
    ["fit", "--config", "synth_demo", "--modle", "FactLM"],
    ["attribute", "--method", "tracing", "--run", "absent"],
    ["attribute", "--method.help", "tracing"],
    ["attribute", "--method", "tracin", "--run", "absent"],
    ["attribute", "--method", "trackstar", "--run", "absent", "--method.laiout=layer"],
    ["attribute", "--method", "bm25", "--run", "absent", "--method.text=all"],
    ["attribute", "--method", "ensemble", "--run", "absent", "--method.members=[online:dot]"],
    ["causal-trace"],
    ["causal-trace", "--run", "absent"],
    ["causal-trace", "--run", "absent", "--window", "0"],
    ["causal-trace", "--run", "absent", "--noise.kind", "pink"],
    ["causal-trace", "--run", "absent", "--join.k", "0"],
    ["causal-trace", "--model", "gpt2"],
    ["causal-trace", "--model", "gpt2", "--prompts", "absent.jsonl"],
    ["counterfactual", "--run", "absent", "--subsets", "many"],
    ["evaluate", "absent"],
    ["evaluate", "absent.jsonl"],
    ["evaluate", "absent", "--pool", "some"],
    ["index", "--run", "absent"],
    ["learned-when", "absent", "--run", "absent"],
    ["report", "absent"],
    ["search", "--index", "absent"],
    ["search", "--index", "absent", "--k", "many"],
    ["show", "absent"],
    ["ask", "absent", "who"],
    ["tail-patch", "absent", "--run", "absent"],
]
METHODS = ("bm25", "dense", "embed", "ensemble", "random-target", "tracin", "trackstar")
LAZY = ("attribution", "causal", "data", "evaluation", "index", "models", "report", "retraining", "studies")
LAZY += tuple(f"evaluation.{part}" for part in ("counterfactual", "results", "retrieval", "tail_patch"))


def python(check: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that has imported nothing yet."""
    command = [sys.executable, "-c", check, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_help_and_messages_import_nothing_slow() -> None:
    asked = [[name, "--help"] for name in (*TRAINING, *COMMANDS)]
    asked += [
        given
        for name in METHODS
        for given in (["attribute", f"--method={name}", "--help"], ["attribute", "--method.help", name])
    ]
    misspelt = [[name, "--opption=1"] for name in (*TRAINING, *COMMANDS)]
    check = (
        "import sys\nfrom ftrace.cli import main\n"
        f"answered = {[['--help'], ['--version'], *asked]}\n"
        f"for arguments in [*answered, *{[*misspelt, *WRONG]}]:\n"
        "    try:\n        code = main(arguments)\n"
        "    except SystemExit as end:\n        code = end.code\n"
        "    assert code == (0 if arguments in answered else 2), (arguments, code)\n"
        f"    slow = {HEAVY} & sys.modules.keys()\n"
        "    assert not slow, (arguments, slow)\n"
    )
    done = python(check)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stderr.splitlines()
    assert len(lines) == len(misspelt) + len(WRONG), done.stderr
    assert all(line.startswith("ftrace") and ": " in line for line in lines)


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ftrace", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"ftrace {ftrace.__version__}", done.stderr


def test_every_command_has_examples() -> None:
    assert EXAMPLES.keys() == TRAINING.keys() | COMMANDS.keys()
    for name, examples in EXAMPLES.items():
        for line, _ in examples:
            assert shlex.split(line)[:2] == ["ftrace", name]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_parsed_and_in_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line, _ in EXAMPLES[name]:
        given = shlex.split(line)[1:]
        if "--method.help" in given:
            assert code(*given) == 0
            continue
        if name == "attribute":
            from ftrace.commands.attribute import with_class_paths

            given = with_class_paths(given)
        assert make_parser(name).parse_args(given)["command"] == name
    capsys.readouterr()
    assert code(name, "--help") == 0
    said = capsys.readouterr().out
    assert all(f"  {line}\n      {what}" in said for line, what in EXAMPLES[name])


@pytest.mark.parametrize("name", TRAINING)
def test_examples_of_training_are_parsed_and_in_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line, _ in EXAMPLES[name]:
        given = line.replace("runs/synth_demo/version_0/config.yaml", "synth_demo")
        assert code(*shlex.split(given)[1:], "--print_config") == 0
    capsys.readouterr()
    assert code(name, "--help") == 0
    said = capsys.readouterr().out
    assert all(f"  {line}\n      {what}" in said for line, what in EXAMPLES[name])


def test_short_names_of_our_classes_and_the_full_help_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["fit", "--model=FactLM", "--data=FtraceSynth", "--trainer.callbacks=OnlineTracIn", "--print_config"]
    # In a process of its own: a class of the same name that another test has made is a second one to choose from.
    done = subprocess.run([sys.executable, "-m", "ftrace", *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "class_path: ftrace.data.FtraceSynth" in done.stdout
    assert code("fit", "--full_help") == 0
    said = capsys.readouterr().out
    for option in ("--trainer.max_epochs", "--trace ", "--seed_everything"):
        assert option in said


def test_options_of_training_are_those_of_lightning() -> None:
    from lightning.pytorch import Trainer

    from ftrace.commands import fit

    assert fit._trainer_options() == {"self", *inspect.signature(Trainer.__init__).parameters}
    for right in (["--trainer.max_epochs=x"], ["--trainer.callbacks+=OnlineTracIn"], ["-c", "synth_demo"]):
        assert not list(fit._wrong_at_first_sight("fit", right))
    assert list(fit._wrong_at_first_sight("fit", ["--verbose"]))
    assert not list(fit._wrong_at_first_sight("validate", ["--verbose", "false"]))


@pytest.mark.parametrize("part", LAZY)
def test_late_names_are_all_that_a_package_promises(part: str) -> None:
    package = importlib.import_module(f"ftrace.{part}")
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)  # a module of that name would take its place once it is imported
    with pytest.raises(AttributeError, match=f"module 'ftrace.{part}' has no attribute 'nothing'"):
        _ = package.nothing


def test_public_names_are_there_without_their_packages_modules() -> None:
    done = python(
        "import sys\n"
        f"for part in {LAZY}:\n    __import__(f'ftrace.{{part}}')\n"
        f"assert not {HEAVY} & sys.modules.keys()\n"
        "from ftrace.data import SENTINEL, FactData\n"
        "import torch, ftrace.data\nassert ftrace.data.FactData is FactData\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_options_of_indexes_are_what_the_engine_takes() -> None:
    from ftrace.gradients import projection
    from ftrace.index import settings
    from ftrace.index.features import as_dtype

    assert settings.ProjectionSide == projection.ProjectionSide
    assert get_args(settings._Entries) == get_args(projection.Entries)
    assert settings.OLD_ENTRIES == projection.OLD_ENTRIES
    for name, size in settings.DTYPES.items():
        assert as_dtype(name).itemsize == size


def test_methods_are_found_by_short_names_and_names_of_classes() -> None:
    from ftrace.attribution.method import describe_methods, find_method, known_methods

    ours = {name: kind for name, kind in known_methods().items() if kind.__module__.startswith("ftrace.attribution.")}
    assert sorted(ours) == sorted(METHODS)
    assert describe_methods()["ensemble"] == "Mean of scores of finished stores."
    assert find_method("bm25") is find_method("Bm25") is ours["bm25"]
    with pytest.raises(ValueError, match=r"found 'tracing'. Did you mean 'tracin'\?"):
        find_method("tracing")
    with pytest.raises(ValueError, match=r"found 'guess'. There are: 'bm25', 'dense'"):
        find_method("guess")
