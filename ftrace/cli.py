"""The ``ftrace`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from ftrace.causal import CausalSettings
from ftrace.commands import attribute, causal_trace, counterfactual, evaluate, learned_when, search, tail_patch
from ftrace.commands.evaluate import Protocol, compare
from ftrace.commands.index import index
from ftrace.data import SynthSettings, fill_in, write_synth
from ftrace.evaluation.retrieval import render_table, write_tables
from ftrace.report import WorkedQuery, plot_ledger, render_worked_query
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from ftrace.studies.command import study

Baseline = Literal["bm25", "tracin", "embed", "random-target"]


@dataclass(frozen=True)
class TraceSettings:
    """What ``train.py fit`` does once the model is trained.

    Args:
        baselines: Methods to compare the online scores with.
        worked_queries: How many learned queries to work out for the reader.
        kind: Which online score to work them out with; without it, the first that there is.
        causal: Whether to trace, too, where in the model the queries' facts live, and to join that to the online
            scores by layer.
    """

    baselines: tuple[Baseline, ...] = ("bm25", "tracin")
    worked_queries: int = 3
    kind: str = "learning"
    causal: bool = False


def synth(output_path: str, settings: SynthSettings) -> None:
    """Generate FTRACE-SYNTH.

    Args:
        output_path: Folder to write Parquet files and a manifest to.
        settings: The generator's flags.
    """
    folder = write_synth(output_path, settings, progress=True)
    Console().print(f"Wrote FTRACE-SYNTH to {folder}", soft_wrap=True)


def show_ledger(store: str, output: str | None = None, queries: Sequence[int] | None = None) -> None:
    """Say and draw what explains the fall of the queries' losses, from a store that OnlineTracIn has written.

    Args:
        store: Folder of the score store.
        output: Where the picture goes; default: ledger.png beside the store.
        queries: Whose losses to draw; default: six that were learned at different times.
    """
    opened = ScoreStore.open(store)
    if opened.ledger is None:
        raise ValueError(f"{store}: no ledger in it. Train with OnlineTracIn(ledger=True)")
    file = Path(output) if output else opened.path.with_name("ledger.png")
    plot_ledger(opened.ledger, file, queries)
    console = Console()
    console.print(_sentence_of(opened), soft_wrap=True)
    console.print(f"Wrote {file}", soft_wrap=True)


def _sentence_of(store: ScoreStore) -> str:
    """What the ledger says, and whether its books balance."""
    assert store.ledger is not None
    sentence = str(store.ledger.summary())
    found = store.manifest.get("ledger", {})
    if found.get("balanced") is False:
        sentence += (
            f". The books don't balance: accounts are off by up to {found['worst_imbalance']:.1%} of an interval"
        )
    return f"{sentence[:1].upper()}{sentence[1:]}."


def trace_run(folder: Path, settings: TraceSettings) -> None:
    """The second half of the main job: baselines, the table, and some queries worked out."""
    console = Console()
    run = Run(folder)
    stores = {"online": ScoreStore.open(folder / "online")}
    for method in settings.baselines:
        stores[method] = attribute.run_method(method, run, folder / method)
    learned = run.learned_queries()
    if not learned:
        console.print(
            "\nNo query has been learned, so there is little to trace: here are all of them. Train for longer."
        )
    evaluation = compare(stores, run, Protocol(queries="learned" if learned else "all"))
    files = write_tables(evaluation, folder / "evaluation")
    console.print(
        "\nWhich training examples taught the model? online: summed up while it trained; others: afterwards.\n"
    )
    console.print(render_table(evaluation))

    console.print("\nSome queries worked out, by the online scores (+ lowered the query's loss, - raised it):\n")
    rows = run.data.train_rows
    chosen = learned or [row["query_id"] for row in run.data.query_rows]
    step = max(1, len(chosen) // max(1, settings.worked_queries))
    worked = set(chosen[::step][: settings.worked_queries])
    kind = settings.kind if settings.kind in stores["online"].kinds else stores["online"].kinds[0]
    for row in run.data.query_rows:
        if row["query_id"] in worked:
            answer = row["targets_pretokenized"].removeprefix("<extra_id_0> ")
            others = [other for other in row["answers"] if other != answer]
            query = WorkedQuery(row["query_id"], row["inputs_pretokenized"], answer, others, row["proponent_ids"])
            console.print(render_worked_query(query, stores["online"], kind, lambda i: _sentence(rows[i])))
    places = {"run": folder, "data": run.data.data_path, "table": files[0].parent}
    if settings.causal:
        console.print("\nWhere do the facts live? Noise on the subject, and one layer's states put right again:\n")
        tracing = CausalSettings(window=1, only_correct=bool(learned))
        try:
            causal_trace.causal_trace(tracing, run=str(folder), scores=f"online:{kind}", pictures=4, effects_csv=False)
            places["causal traces"] = folder / "causal"
        except ValueError as error:  # of a model that answers nothing rightly, for one
            console.print(f"Not traced: {error}", soft_wrap=True, markup=False)
    if stores["online"].ledger is not None:
        console.print(f"\n{_sentence_of(stores['online'])}", soft_wrap=True)
        places["ledger"] = plot_ledger(stores["online"].ledger, folder / "ledger.png")
    console.print("\nWhere everything is:")
    for name, place in {**places, **{f"scores, {name}": store.path for name, store in stores.items()}}.items():
        console.print(f"  {name:16} {os.path.relpath(place)}", soft_wrap=True, highlight=False)


def _sentence(row: dict[str, Any]) -> str:
    return fill_in(row["inputs_pretokenized"], row["targets_pretokenized"])


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ftrace", description="Which training examples taught a language model this fact?", exit_on_error=False
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, function in _COMMANDS.items():
        assert function.__doc__ is not None
        command = ArgumentParser(description=function.__doc__.splitlines()[0], exit_on_error=False)
        command.add_argument("--config", action="config", help="A YAML file with any of these options.")
        if name == "synth":
            command.add_argument("--output_path", type=str, required=True, help="Folder to write the data set to.")
            command.add_class_arguments(SynthSettings)
        elif name == "evaluate":
            evaluate.add_arguments(command)
        elif name == "ledger":
            command.add_argument("store", type=str, help="Folder of the score store.")
            command.add_function_arguments(function, skip={"store"})
        elif name == "learned-when":
            learned_when.add_arguments(command)
        elif name == "search":
            search.add_arguments(command)
        elif name == "causal-trace":
            causal_trace.add_arguments(command)
        elif name == "tail-patch":
            tail_patch.add_arguments(command)
        elif name == "counterfactual":
            counterfactual.add_arguments(command)
        elif name == "attribute":
            attribute.add_arguments(command)
        else:
            command.add_function_arguments(function)
        commands.add_subcommand(name, command)
    return parser


_COMMANDS: dict[str, Callable[..., None]] = {
    "synth": synth,
    "attribute": attribute.attribute,
    "evaluate": evaluate.command,
    "index": index,
    "search": search.search,
    "counterfactual": counterfactual.leave_out_and_compare,
    "causal-trace": causal_trace.command,
    "ledger": show_ledger,
    "learned-when": learned_when.compare_by_learned_step,
    "tail-patch": tail_patch.patch_stores,
    "study": study,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; bad input is one line on stderr and exit code 2."""
    name = ""
    try:
        parser = _parser()
        config = parser.parse_args(attribute.with_class_paths(sys.argv[1:] if args is None else args))
        name = config["command"]
        options = parser.instantiate(config)[name]
        options.pop("config", None)
        if name == "synth":
            output_path = options.pop("output_path")
            synth(output_path, SynthSettings(**vars(options)))
        else:
            _COMMANDS[name](**vars(options))
    except (ArgumentError, ValueError, OSError) as error:
        print(f"ftrace {name}".strip() + f": {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
