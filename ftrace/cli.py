"""The ``ftrace`` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from ftrace.commands import (
    attribute,
    causal_trace,
    counterfactual,
    evaluate,
    fit,
    index,
    learned_when,
    search,
    tail_patch,
)
from ftrace.commands.ledger import show_ledger
from ftrace.data import SynthSettings, write_synth
from ftrace.named_configs import ConfigFileOrName
from ftrace.studies.command import study


def synth(output_path: str, settings: SynthSettings) -> None:
    """Generate FTRACE-SYNTH.

    Args:
        output_path: Folder to write Parquet files and a manifest to.
        settings: The generator's flags.
    """
    folder = write_synth(output_path, settings, progress=True)
    Console().print(f"Wrote FTRACE-SYNTH to {folder}", soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ftrace", description="Which training examples taught a language model this fact?", exit_on_error=False
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, description in fit.SUBCOMMANDS.items():  # listed for --help: main() hands them to LightningCLI
        commands.add_subcommand(name, ArgumentParser(description=description), help=description)
    for name, (function, add_arguments) in _COMMANDS.items():
        assert function.__doc__ is not None
        description = function.__doc__.splitlines()[0]
        # a shortened option is a typing error more often than it is meant, and runs are long
        command = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
        command.add_argument(
            "--config", action=ConfigFileOrName, help="A YAML file with any of these options, or a recipe's name."
        )
        add_arguments(command)
        commands.add_subcommand(name, command, help=description)
    return parser


def _add_synth(command: ArgumentParser) -> None:
    command.add_argument("--output_path", type=str, required=True, help="Folder to write the data set to.")
    command.add_class_arguments(SynthSettings)


def _add_ledger(command: ArgumentParser) -> None:
    command.add_argument("store", type=str, help="Folder of the score store.")
    command.add_function_arguments(show_ledger, skip={"store"})


def _add_study(command: ArgumentParser) -> None:
    command.add_function_arguments(study)


_COMMANDS: dict[str, tuple[Callable[..., None], Callable[[ArgumentParser], None]]] = {
    "synth": (synth, _add_synth),
    "attribute": (attribute.command, attribute.add_arguments),
    "evaluate": (evaluate.command, evaluate.add_arguments),
    "index": (index.command, index.add_arguments),
    "search": (search.command, search.add_arguments),
    "counterfactual": (counterfactual.command, counterfactual.add_arguments),
    "causal-trace": (causal_trace.command, causal_trace.add_arguments),
    "ledger": (show_ledger, _add_ledger),
    "learned-when": (learned_when.command, learned_when.add_arguments),
    "tail-patch": (tail_patch.command, tail_patch.add_arguments),
    "study": (study, _add_study),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; bad input is one line on stderr and exit code 2."""
    name = ""
    given = sys.argv[1:] if args is None else args
    if given and given[0] in fit.SUBCOMMANDS:
        fit.main(args)
        return 0
    try:
        parser = _parser()
        config = parser.parse_args(attribute.with_class_paths(given))
        name = config["command"]
        options = parser.instantiate(config)[name]
        options.pop("config", None)
        if name == "synth":
            output_path = options.pop("output_path")
            synth(output_path, SynthSettings(**vars(options)))
        else:
            _COMMANDS[name][0](**vars(options))
    except (ArgumentError, ValueError, OSError) as error:
        print(f"ftrace {name}".strip() + f": {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
