"""``ftrace fit``, ``validate``, ``test`` and ``predict``: train a model and trace its facts while it trains.

    ftrace fit --config synth_demo

LightningCLI in subclass mode: any LightningModule, LightningDataModule and callback can be named by class path, and
every option in the config overridden, such as ``--trainer.max_epochs 3`` or ``--model.init_args.answers one``. See
``ftrace fit --help``, ``--full_help`` and ``--print_config``.

Lightning takes seconds to be imported. So ``--help`` is a page of its own, and what is wrong at first sight is said
before: a recipe or file that isn't there, and an option that neither ftrace nor Lightning's Trainer has.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from ftrace.commands.endings import run_command
from ftrace.commands.examples import EXAMPLES
from ftrace.commands.free_cores import watch_cores
from ftrace.commands.help_pages import columns, examples_text, wrapped
from ftrace.named_configs import config_file, config_names

TRAINING = {
    "fit": "Train a model and trace its facts while it trains.",
    "validate": "Measure a model on the queries, as a validation loop does.",
    "test": "Measure a model on the queries, as a test loop does.",
    "predict": "Return a model's loss on each query, and whether it is learned.",
}
_SECTIONS = {
    "--config FILE|NAME": "A YAML file, or a recipe's name (below); a second one changes the first.",
    "--model CLASS": "A LightningModule, such as ftrace.models.FactLM. Its options: --model.init_args.NAME VALUE; "
    "which there are: --model.help CLASS.",
    "--data CLASS": "A LightningDataModule, such as ftrace.data.FtraceSynth. Likewise.",
    "--trainer.NAME VALUE": "Options of Lightning's Trainer, such as max_epochs, devices or callbacks.",
    "--trace.NAME VALUE": "What fit does after training: baselines, worked_queries, kind, causal, report. "
    "--trace null: nothing.",
    "--seed_everything N": "Seed of weights, order and dropout; default: 0.",
    "--ckpt_path FILE": "Go on from a checkpoint.",
    "--print_config": "Print the config that all of this makes, and end.",
    "--full_help": "List all options of all sections, and end. Lightning is imported for it, some seconds.",
}
# Of LightningCLI: options, or first parts of options, by subcommand.
_OPTIONS = {"c", "ckpt_path", "config", "data", "h", "help", "model", "print_config", "seed_everything", "trace"}
_OPTIONS |= {"trainer", "weights_only"}
_MORE_OPTIONS = {"validate": {"verbose"}, "test": {"verbose"}, "predict": {"return_predictions"}}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The subcommand and its options; default: the process's own.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if args is None else args)
    name = given[0] if given and not given[0].startswith("-") else "fit"
    if name in TRAINING and {"-h", "--help"} & set(given[:2]):
        print(help_page(name))
        return 0
    watch_cores()
    return run_command(name, lambda: _run(name, given, is_own=args is None))


def help_page(name: str) -> str:
    """Write the help of one of these subcommands, without Lightning."""
    sections = {what: line for what, line in _SECTIONS.items() if name == "fit" or "--trace" not in what}
    parts = [
        f"usage: ftrace {name} [--config FILE|NAME] [--SECTION.OPTION VALUE ...]",
        TRAINING[name],
        "options:\n" + columns(sections),
        "recipes:\n" + wrapped(", ".join(filter(_trains, config_names()))),
        examples_text(EXAMPLES[name]),
    ]
    return "\n\n".join(parts)


def _trains(recipe: str) -> bool:
    """Tell whether a recipe is one of LightningCLI, which has a trainer."""
    return "\ntrainer:" in Path(config_file(recipe)).read_text(encoding="utf-8")


def _run(name: str, given: list[str], *, is_own: bool) -> None:
    for wrong in _wrong_at_first_sight(name, given[1:]):
        raise ValueError(wrong)
    from ftrace.commands.training import train  # imports torch and Lightning

    if is_own and "--full_help" not in given:
        train(None)  # LightningCLI warns of arguments that aren't the process's own
    else:
        train(["--help" if argument == "--full_help" else argument for argument in given])


def _wrong_at_first_sight(name: str, given: Sequence[str]) -> Iterator[str]:
    """Find options that nobody has, and configs that aren't there."""
    for place, argument in enumerate(given):
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c") and (equals or place + 1 < len(given)):
            yield from _wrong_config(value if equals else given[place + 1])
        if not option.startswith("--") or option == "--full_help":
            continue
        section, _, rest = option.removeprefix("--").partition(".")
        known = _trainer_options()
        if section not in _OPTIONS | _MORE_OPTIONS.get(name, set()):
            yield f"expected known options, found {argument}. See --help"
        elif section == "trainer" and rest and known and rest.split(".")[0].rstrip("+") not in known:
            yield f"expected known options, found {argument}. See --full_help"


def _wrong_config(given: str) -> Iterator[str]:
    try:
        file = config_file(given)
    except ValueError as error:
        yield f"config: {error}"
        return
    looks_like_a_path = file.endswith((".yaml", ".yml")) and "\n" not in file
    if looks_like_a_path and not Path(file).is_file():
        yield f"config: expected its options, or a file of them, found {file!r}"


def _trainer_options() -> set[str]:
    """Read the names of the options of Lightning's Trainer from its source; none where it can't be found."""
    package = find_spec("lightning")
    folders = [] if package is None else package.submodule_search_locations or []
    for file in (Path(folder) / "pytorch" / "trainer" / "trainer.py" for folder in folders):
        if not file.is_file():
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == "Trainer":
                (made,) = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
                return {argument.arg for argument in (*made.args.args, *made.args.kwonlyargs)}
    return set()
