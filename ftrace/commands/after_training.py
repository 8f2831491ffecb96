"""The second half of ``ftrace fit``, as the section ``trace`` of a config asks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ftrace.arguments import Count, Name, Positive, checked
from ftrace.causal import CausalSettings, NoiseSettings
from ftrace.commands import causal_trace
from ftrace.commands.endings import kept, say_kept
from ftrace.commands.evaluate import Protocol, compare
from ftrace.commands.join_settings import JoinSettings
from ftrace.commands.ledger import ledger_sentence
from ftrace.commands.method_tasks import run_method
from ftrace.commands.query_choice import QueryChoice
from ftrace.commands.report import report_of_run
from ftrace.commands.worked_queries import work_out
from ftrace.console import PlainConsole
from ftrace.evaluation.retrieval import render_table, write_tables
from ftrace.report import plot_ledger
from ftrace.runs import Run
from ftrace.scores import ScoreStore, show_command

Baseline = Literal["bm25", "tracin", "embed", "random-target", "trackstar"]


@checked
@dataclass(frozen=True)
class CausalTracing:
    """Settings of the causal tracing that ``ftrace fit`` does, beyond those that it chooses.

    Args:
        settings: What is restored, and how; ``only_correct`` is chosen: unless no query has been learned.
        noise: How subjects are corrupted.
        prompts: How many queries to trace, of those that have been learned if any has; None: all.
        pictures: Of how many of them to draw the grids, and of how many queries what is joined.
    """

    settings: CausalSettings = CausalSettings(window=1)  # noqa: RUF009 - frozen
    noise: NoiseSettings = NoiseSettings()  # noqa: RUF009 - frozen
    prompts: Positive | None = None
    pictures: Count = 4


@checked
@dataclass(frozen=True)
class AfterTraining:
    """Settings of what ``ftrace fit`` does once the model is trained.

    Args:
        baselines: Methods to compare the online scores with.
        worked_queries: How many learned queries to show with their strongest examples.
        kind: Kind of online score to show them with; the first kind if the run hasn't recorded that one.
        causal: Whether to run causal tracing on the queries, too, and to join it to the online scores by layer; or how.
        report: Whether to write the explorer, ``report.html``, into the run's folder.
    """

    baselines: tuple[Baseline, ...] = ("bm25", "tracin")
    worked_queries: Count = 3
    kind: Name = "learning"
    causal: bool | CausalTracing = False
    report: bool = True


TRAINED = "The trained run is kept in {}: ftrace attribute, ftrace show and ftrace report go on with it."


def trace_run(folder: Path, settings: AfterTraining) -> None:
    """Compare a run's online scores with baselines, show some queries, and say where everything is.

    Args:
        folder: The run's log folder.
        settings: The section ``trace`` of its config.
    """
    say_kept(TRAINED.format(folder))
    console = PlainConsole()
    run = Run(folder, trust=True)  # it has just been trained here
    stores = {"online": ScoreStore.open(folder / "online")}
    for method in settings.baselines:
        stores[method] = run_method(method, run, folder / method)
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

    console.print("\nSome queries, and who taught them, by the online scores:\n")
    chosen = learned or list(run.data.query_rows["query_id"])
    step = max(1, len(chosen) // max(1, settings.worked_queries))
    kind = settings.kind if settings.kind in stores["online"].kinds else stores["online"].kinds[0]
    answers = run.answers()  # of all queries, so that nobody waits for them later
    worked = work_out(run, stores["online"], kind, chosen[::step][: settings.worked_queries], answers, console)
    paths = {"run": folder, "data": run.data.data_path, "table": files[0].parent, "queries": worked}
    if settings.causal:
        console.print("\nWhere do the facts live? Noise on the subject, and one layer's states put right again:\n")
        try:
            with kept(TRAINED.format(folder)):
                _trace_causally(folder, settings.causal, kind, any_learned=bool(learned))
            paths["causal traces"] = folder / "causal"
        except ValueError as error:  # a model that answers nothing correctly, for example
            console.print(f"Not traced: {error}", soft_wrap=True)
    if stores["online"].ledger is not None:
        console.print(f"\n{ledger_sentence(stores['online'])}", soft_wrap=True)
        paths["ledger"] = plot_ledger(stores["online"].ledger, folder / "ledger.png")
    if settings.report:
        try:
            paths["explorer"] = report_of_run(folder, trust=True)
        except ValueError as error:  # too large, for example
            console.print(f"\nNo explorer was written: {error}", soft_wrap=True)
    console.print("\nWhere everything is:")
    for name, path in paths.items():
        console.print(f"  {name:16} {os.path.relpath(path)}", soft_wrap=True)
    for name, store in stores.items():
        command = show_command(os.path.relpath(store.path))
        console.print(f"  {f'scores, {name}':16} {command}", soft_wrap=True)


def _trace_causally(folder: Path, causal: bool | CausalTracing, kind: str, *, any_learned: bool) -> None:
    """Run causal tracing on a run's queries, joined to its online scores."""
    tracing = causal if isinstance(causal, CausalTracing) else CausalTracing()
    few = tracing.prompts is not None and any_learned
    causal_trace.causal_trace(
        replace(tracing.settings, only_correct=any_learned),
        run=str(folder),
        noise=tracing.noise,
        choice=QueryChoice("learned" if few else "all", sample=tracing.prompts),
        scores=f"online:{kind}",
        join=JoinSettings(pictures=tracing.pictures),
        pictures=tracing.pictures,
        effects_csv=False,
        trust=True,
    )
