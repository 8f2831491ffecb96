"""The second half of ``ftrace fit``, as the section ``trace`` of a config asks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ftrace.causal import CausalSettings
from ftrace.commands import attribute, causal_trace
from ftrace.commands.evaluate import Protocol, compare
from ftrace.commands.ledger import ledger_sentence
from ftrace.data import fill_in
from ftrace.evaluation.retrieval import render_table, write_tables
from ftrace.report import WorkedQuery, plot_ledger, render_worked_query
from ftrace.runs import Run
from ftrace.scores import ScoreStore

Baseline = Literal["bm25", "tracin", "embed", "random-target"]


@dataclass(frozen=True)
class AfterTraining:
    """Settings of what ``ftrace fit`` does once the model is trained.

    Args:
        baselines: Methods to compare the online scores with.
        worked_queries: How many learned queries to show with their strongest examples.
        kind: Kind of online score to show them with; the first kind if the run hasn't recorded that one.
        causal: Whether to run causal tracing on the queries, too, and to join it to the online scores by layer.
    """

    baselines: tuple[Baseline, ...] = ("bm25", "tracin")
    worked_queries: int = 3
    kind: str = "learning"
    causal: bool = False


def trace_run(folder: Path, settings: AfterTraining) -> None:
    """Compare a run's online scores with baselines, show some queries, and say where everything is.

    Args:
        folder: The run's log folder.
        settings: The section ``trace`` of its config.
    """
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
    paths = {"run": folder, "data": run.data.data_path, "table": files[0].parent}
    if settings.causal:
        console.print("\nWhere do the facts live? Noise on the subject, and one layer's states put right again:\n")
        tracing = CausalSettings(window=1, only_correct=bool(learned))
        try:
            causal_trace.causal_trace(tracing, run=str(folder), scores=f"online:{kind}", pictures=4, effects_csv=False)
            paths["causal traces"] = folder / "causal"
        except ValueError as error:  # a model that answers nothing correctly, for example
            console.print(f"Not traced: {error}", soft_wrap=True, markup=False)
    if stores["online"].ledger is not None:
        console.print(f"\n{ledger_sentence(stores['online'])}", soft_wrap=True)
        paths["ledger"] = plot_ledger(stores["online"].ledger, folder / "ledger.png")
    console.print("\nWhere everything is:")
    for name, path in {**paths, **{f"scores, {name}": store.path for name, store in stores.items()}}.items():
        console.print(f"  {name:16} {os.path.relpath(path)}", soft_wrap=True, highlight=False)


def _sentence(row: dict[str, Any]) -> str:
    return fill_in(row["inputs_pretokenized"], row["targets_pretokenized"])
