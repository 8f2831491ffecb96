"""Every option of every command: whatever it is given, the answer is one line and exit code 2, or right.

Commands are asked for runs and stores that there aren't, so that none does any work, whatever it accepts.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest
from jsonargparse import ArgumentParser

import ftrace.cli
from ftrace.callbacks import CheckpointSnapshots, GradientIndexWriter, OnlineTracIn
from ftrace.cli import COMMANDS, main, make_parser
from ftrace.commands.after_training import AfterTraining
from ftrace.commands.readable_errors import readable
from ftrace.data import FactCorpus, FtraceSynth, FtraceTrex
from ftrace.models import FactLM
from helpers.wrong_values import bases

NEEDED = {
    "synth": ["--output_path=OUT", "--num_entities=12", "--num_relations=4", "--num_facts=20",
              "--num_test_utterances=5"],
    "show": ["absent"], "ask": ["absent", "who"], "report": ["absent"], "attribute": ["--method=bm25", "--run=absent"],
    "evaluate": ["absent"], "index": ["--run=absent"], "search": ["--index=absent"],
    "counterfactual": ["absent"], "causal-trace": ["--run=absent"], "ledger": ["absent"], "learned-when": ["absent"],
    "tail-patch": ["absent"], "study": ["--settings={name: a, question: b, variants: {c: {config: absent.yaml}}}"],
}  # fmt: skip
TEXTS = (
    "0", "-1", "-5", "1000000000000000", "1.5", "nan", ".nan", "inf", ".inf", "1e400", "true", "null", "", " ", "[]",
    "[[]]", "{}", "{a: 1}", "[1, x]", "never-heard-of", "#16", "half \udc80", "line\nbreak", "'", "!!python/name:os.x",
    "notes.txt", "folder",
    "/", ".", "{a: 1, a: 2}", "x" * 5000,
)  # fmt: skip
PARSERS = functools.cache(make_parser)
EVERY = 2  # an option is given half of them
NO_NUMBERS = ("1.5", "nan", ".nan", "true", "[]", "[[]]", "{}", "{a: 1}", "never-heard-of", "half \udc80", "")


def options_of(parser: ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the options of a parser that take a value."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and action.dest not in ("help", "config", "print_config"):
            yield action


@pytest.fixture(autouse=True)
def one_parser_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftrace.cli, "make_parser", PARSERS)


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_an_option_is_given_the_answer_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no file of ours\n")
    (tmp_path / "folder").mkdir()
    parser = PARSERS(command)._subcommands_action._name_parser_map[command]  # type: ignore[union-attr]
    wrong = []
    for place, action in enumerate(options_of(parser)):
        name = action.option_strings[-1]
        for text in TEXTS[place % EVERY :: EVERY]:
            code = ended(command, *needed(command, name), f"{name}={text}")
            error = capsys.readouterr().err
            is_right = code == 2 or (command == "synth" and code == 0)
            lines = len(error.splitlines())
            is_readable = code == 0 or (lines == 1 and len(error) < 1100 and not re.search("Errno|<class|Union", error))
            if not is_right or not is_readable:
                wrong.append((f"{name}={text[:40]!r}", code, error[-500:]))
    assert not wrong, f"ftrace {command}"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_number_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options whose values are whole numbers alone refuse all else before anything is looked for."""
    monkeypatch.chdir(tmp_path)
    parser = PARSERS(command)._subcommands_action._name_parser_map[command]  # type: ignore[union-attr]
    for action in options_of(parser):
        kinds = set(bases(getattr(action, "_typehint", action.type)))
        if not kinds <= {int, type(None)} or int not in kinds:
            continue
        name = action.option_strings[-1]
        for text in (*NO_NUMBERS, "-5"):
            assert ended(command, *needed(command, name), f"{name}={text}") == 2
            error = capsys.readouterr().err
            assert f"{name.strip('-').rpartition('.')[2]}" in error.partition("expected")[0], (text, error)


def needed(command: str, option: str) -> list[str]:
    """What a command can't do without, other than the option."""
    return [given for given in NEEDED[command] if not given.startswith(f"{option}=")]


def ended(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as end:  # of --help and --print_config
        return int(end.code or 0)


# What ftrace fit makes of its config

MADE = (OnlineTracIn, CheckpointSnapshots, GradientIndexWriter, FactLM, FtraceSynth, FtraceTrex, FactCorpus,
        AfterTraining)  # fmt: skip
GIVEN: dict[type, dict[str, Any]] = {
    CheckpointSnapshots: {"every_n_steps": 1},
    FactLM: {"config": {"model_type": "t5"}},
    FactCorpus: {"train": "absent", "queries": "absent"},
}


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.__name__)
def test_what_fit_makes_of_an_option_is_refused_by_name_or_right(made: type) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(made, "it")
    for action in options_of(parser):
        name = action.option_strings[-1].removeprefix("--it.")
        kinds = set(bases(getattr(action, "_typehint", str)))
        if not kinds & {int, float, bool} and not any(get_origin(kind) is Literal for kind in kinds):
            continue
        for text in ("1.5", "-5", "nan", "[]", "{}", "never-heard-of", "half \udc80", ""):
            others = {key: value for key, value in GIVEN.get(made, {}).items() if key != name}
            message = ""
            try:
                parsed = parser.parse_args([f"--it.{name}={text}"], parser.parse_object({"it": others}))
                parser.instantiate(parsed)
            except Exception as error:
                message = readable(error)
            may_be = str in kinds or (text in ("1.5", "-5") and float in kinds)
            assert (not message and may_be) or name.rpartition(".")[2] in message.partition("expected")[0], (name, text)
