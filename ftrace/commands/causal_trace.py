"""``ftrace causal-trace``: where in a model facts live, and who wrote them there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser

from ftrace.arguments import Count, Name, checked
from ftrace.causal import MEDIATORS, CausalSettings, ModelLayout, NoiseSettings, Outcome, Stack
from ftrace.commands.endings import say_kept
from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.join_settings import JoinSettings
from ftrace.commands.options import ProcessSettings, add_trust, take
from ftrace.commands.query_choice import ALL_QUERIES, QueryChoice
from ftrace.commands.stores import open_with_kind
from ftrace.data import FactPrompt, read_prompts
from ftrace.files.claims import claimed
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.scores import ScoreStore


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: those of :class:`CausalSettings` as its own, lists without brackets."""
    for name, known in (("mediators", MEDIATORS), ("stacks", get_args(Stack))):
        command.add_argument(f"--{name}", nargs="+", choices=known, help=f"Some of {', '.join(known)}; default: all.")
    command.add_class_arguments(CausalSettings, skip={"mediators", "stacks"})
    command.add_function_arguments(causal_trace, skip={"settings", "choice", "processes", "trust"})
    add_trust(command)
    command.add_class_arguments(QueryChoice)
    command.set_defaults({"queries": ALL_QUERIES.queries})
    command.add_class_arguments(ProcessSettings)


def command(**options: Any) -> None:
    """Trace where in a model facts live: clean, corrupted and restored runs, as Meng et al. (2022)."""
    for name in ("mediators", "stacks"):
        options[name] = None if options[name] is None else tuple(options[name])
    settings, choice = take(CausalSettings, options), take(QueryChoice, options)
    processes = take(ProcessSettings, options)
    causal_trace(settings, **options, choice=choice, processes=processes)


@checked
def causal_trace(
    settings: CausalSettings,
    run: Name | None = None,
    model: Name | None = None,
    prompts: Name | None = None,
    output_dir: Name | None = None,
    tokenizer: Name | None = None,
    snapshot: Literal["last", "first"] | Count = "last",
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto",
    noise: NoiseSettings = NoiseSettings(),  # noqa: B008
    layouts: dict[Stack, ModelLayout] | None = None,
    choice: QueryChoice = ALL_QUERIES,
    outcome: Outcome = "probability",
    scores: Name | None = None,
    join: JoinSettings = JoinSettings(),  # noqa: B008
    pictures: Count = 8,
    effects_csv: bool = True,
    processes: ProcessSettings = ProcessSettings(),  # noqa: B008
    trust: bool = False,
) -> None:
    """Trace where in a model facts live; repeated after a kill, or with more prompts, it continues.

    Args:
        settings: What to trace.
        run: The log folder of a run that ftrace trained, or the folder that its versions are in: the newest is taken.
            Its queries are the prompts, unless a file is given.
        model: Or a pretrained model, by hub name or folder.
        prompts: A file of prompts, JSON or JSON lines: "prompt", "subject" and "answer", or as the known_1000 file.
        output_dir: Where results go; default: "causal" in the run's folder, else runs/causal/MODEL.
        tokenizer: The model's tokenizer; default: its own.
        snapshot: Of a run: "last", "first", or a step.
        dtype: Of a pretrained model's weights; default: as they are stored.
        noise: How subjects are corrupted.
        layouts: Names of modules, by stack, for models that none are known for.
        choice: Which of the run's queries. The sample is how many prompts to trace that the model knows, of queries or
            of a file: they are looked at in an order drawn by the seed, until so many are traced. The seed is also that
            of bootstrap intervals.
        outcome: What pictures and the table show. Files have all outcomes.
        scores: FOLDER[:KIND] of a score store of the run's queries, broken down by layer, such as online:learning, to
            set beside where facts live which layers they were written in, and who wrote them.
        join: How scores are joined.
        pictures: How many prompts to draw one by one.
        effects_csv: Whether to write every cell of every prompt to effects.csv.
        processes: Which processes share the prompts.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    of_run = _run(run, model, prompts, trust)
    store, join = _scores(of_run, prompts, scores, join, settings)
    chosen = None if prompts is None else _prompts_of_file(prompts, choice)
    from lightning.pytorch.utilities import rank_zero_only  # with it and these come torch and transformers

    from ftrace.causal import TraceTask
    from ftrace.commands.causal_results import Shown, finish
    from ftrace.commands.causal_subjects import check_joinable, load_model, load_trained, prompts_of_run, trace_quietly

    use_free_cores()
    if of_run is None:
        assert model is not None
        traced = load_model(model, tokenizer, dtype)
    else:
        traced = load_trained(of_run, snapshot)
    if chosen is None:
        assert of_run is not None
        chosen = prompts_of_run(of_run, choice)
    folder = Path(output_dir) if output_dir else traced.folder
    as_trained = of_run is not None
    task = TraceTask(
        traced.model, traced.tokenizer, chosen, folder, settings, noise, layouts, as_trained, choice.sample, choice.seed
    )
    if store is not None:
        check_joinable(store, chosen, join, task)
    with claimed(folder, "ftrace causal-trace", by_this_process=not getattr(rank_zero_only, "rank", 0)):
        say_kept(f"Finished prompts are kept in {folder}; the same command goes on with them.")
        found = trace_quietly(task, processes)
        finish(task, found, Shown(outcome, pictures, choice.seed, effects_csv), of_run, store, join)


def _run(run: str | None, model: str | None, prompts: str | None, trust: bool) -> Run | None:
    """Open the run whose model is traced; None for a pretrained model."""
    if (run is None) == (model is None):
        given = "neither" if run is None else f"both, {run!r} and {model!r}: set the other to null"
        raise ValueError(f"expected a run or a model, found {given}")
    if run is not None:
        return Run(newest_run(run), trust)
    if prompts is None:
        raise ValueError("prompts: expected a file of prompts for a pretrained model, found none")
    return None


def _prompts_of_file(file: str, choice: QueryChoice) -> list[FactPrompt]:
    if choice.queries == "learned" or choice.rule is not None:
        raise ValueError("queries: expected a run's own queries to choose the learned ones of, found a file")
    return read_prompts(Path(file))


def _scores(
    run: Run | None, prompts: str | None, scores: str | None, join: JoinSettings, settings: CausalSettings
) -> tuple[ScoreStore | None, JoinSettings]:
    """Open the store that is joined, before anything is traced, and complete how it is joined."""
    if scores is None:
        return None, join
    if run is None or prompts is not None:
        raise ValueError("scores: expected a run and its own queries, whose ids a score store knows")
    if settings.mediators is not None and join.mediator not in settings.mediators:
        raise ValueError(
            f"join.mediator: expected one of those that are traced, {list(settings.mediators)}, found {join.mediator!r}"
        )
    store, kind = open_with_kind(run.folder, scores)
    if "layer" not in store.breakdown:
        raise ValueError(
            f"scores: {store.path} is not broken down by layer. Train with OnlineTracIn(breakdown=['layer'])"
        )
    chosen = replace(join, kind=kind or join.kind)
    if chosen.kind is not None and chosen.kind not in store.kinds:
        raise ValueError(
            f"scores: expected one of the kinds {list(store.kinds)} of {store.path}, found {chosen.kind!r}"
        )
    return store, chosen
