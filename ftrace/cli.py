"""The ``ftrace`` command.

Each command is a module with ``add_arguments(parser)`` and ``command(**options)``. It is imported when it is called,
and what it needs to know its options imports no torch: so help, messages about options, and commands that run no model
answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

import ftrace
import ftrace.commands.options  # settings of all parsers
from ftrace.commands.endings import run_command
from ftrace.commands.examples import EXAMPLES
from ftrace.commands.fit import TRAINING
from ftrace.commands.fit import main as train
from ftrace.commands.free_cores import watch_cores
from ftrace.commands.help_pages import HelpFormatter, examples_text
from ftrace.console import escape_unknown_characters
from ftrace.named_configs import ConfigFileOrName

# By name: the module, and the first line of its command's docstring.
COMMANDS: dict[str, tuple[str, str]] = {
    "synth": ("ftrace.commands.synth", "Generate FTRACE-SYNTH."),
    "show": (
        "ftrace.commands.show",
        "Show queries and who taught them: texts, scores, what the model said; several stores side by side.",
    ),
    "ask": (
        "ftrace.commands.ask",
        "Ask a run's model a question: what it answers, how surely, who taught it that, and who taught another answer.",
    ),
    "report": (
        "ftrace.commands.report",
        "Make the explorer of scores: one file or folder that opens by double-click, without a network.",
    ),
    "attribute": (
        "ftrace.commands.attribute",
        "Score training examples for queries with one method, over a finished run.",
    ),
    "check": (
        "ftrace.commands.check",
        "Verify what ftrace has written: every file against the size and digest that its manifest notes.",
    ),
    "evaluate": (
        "ftrace.commands.evaluate",
        "Compare score stores, or files of results: one table, all rows on the same queries.",
    ),
    "index": (
        "ftrace.commands.index",
        "Write the gradient index of a corpus at one snapshot of a run; repeated after a kill, it continues.",
    ),
    "search": ("ftrace.commands.search", "Find the strongest proponents and opponents of queries in a gradient index."),
    "counterfactual": (
        "ftrace.commands.counterfactual",
        "Do scores predict what happens without some training data? Retrains, and compares: LDS and leave-out.",
    ),
    "causal-trace": (
        "ftrace.commands.causal_trace",
        "Trace where in a model facts live: clean, corrupted and restored runs, as Meng et al. (2022).",
    ),
    "ledger": (
        "ftrace.commands.ledger",
        "Print and draw what explains the fall of the queries' losses, from a store that OnlineTracIn has written.",
    ),
    "learned-when": (
        "ftrace.commands.learned_when",
        "Compare scores by the step at which queries were learned: online ones, and those of snapshots.",
    ),
    "tail-patch": (
        "ftrace.commands.tail_patch",
        "Take one step on each of the best examples of each query, and say how much likelier the answer becomes.",
    ),
    "study": (
        "ftrace.studies.command",
        "Train, score and compare what a study asks for, and write a table and a picture.",
    ),
}


def make_parser(name: str = "") -> ArgumentParser:
    """Make the parser of all commands.

    Args:
        name: The command that knows its arguments, and whose module is imported; default: none.
    """
    parser = ArgumentParser(
        prog="ftrace",
        formatter_class=HelpFormatter,
        description="Which training examples taught a language model this fact?",
        epilog="Help on a command, with examples: ftrace COMMAND --help",
        exit_on_error=False,
        version=ftrace.__version__,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for each, description in {**TRAINING, **{each: line for each, (_, line) in COMMANDS.items()}}.items():
        # a shortened option is a typing error more often than it is meant, and runs are long
        command = ArgumentParser(
            description=description,
            epilog=examples_text(EXAMPLES[each]),
            exit_on_error=False,
            allow_abbrev=False,
        )
        if each == name:
            command.add_argument(
                "--config", action=ConfigFileOrName, help="A YAML file with any of these options, or a recipe's name."
            )
            _module(name).add_arguments(command)
        commands.add_subcommand(each, command, help=description)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; bad input is one line on stderr and exit code 2, a signal is a line and 128 plus its number."""
    escape_unknown_characters()
    given = list(sys.argv[1:] if args is None else args)
    first = given[0] if given else ""
    if first in TRAINING:
        return train(args)
    watch_cores()
    name = first if first in COMMANDS else ""
    return run_command(name, lambda: _run(name, given))


def _run(name: str, given: list[str]) -> None:
    """Run a command that has a parser of ours."""
    if name == "attribute":
        given = _module(name).with_class_paths(given)
    parser = make_parser(name)
    options = parser.instantiate(parser.parse_args(given))[name]
    options.pop("config", None)
    _module(name).command(**vars(options))


def _module(name: str) -> Any:
    """Import the module of a command."""
    return importlib.import_module(COMMANDS[name][0])


if __name__ == "__main__":
    sys.exit(main())
