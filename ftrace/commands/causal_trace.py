"""``ftrace causal-trace``: where in a model facts live, and who wrote them there."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ftrace.arguments import Count, Name, checked
from ftrace.causal import (
    MEDIATORS,
    Averages,
    CausalSettings,
    ModelLayout,
    NoiseSettings,
    Outcome,
    PromptTrace,
    Stack,
    TracedPrompts,
    TraceTask,
    average_effects,
    trace_prompts,
)
from ftrace.causal.mediators import Mediator, make_cell
from ftrace.commands.endings import say_kept
from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.joined import JoinSettings
from ftrace.commands.joined import join as join_to_scores
from ftrace.commands.options import ProcessSettings, add_trust, take
from ftrace.commands.query_choice import ALL_QUERIES, QueryChoice
from ftrace.commands.stores import open_with_kind
from ftrace.console import PlainConsole
from ftrace.data import FactPrompt, prompts_of_queries, read_prompts
from ftrace.files.claims import claimed
from ftrace.models.pretrained import load_pretrained
from ftrace.progress import track
from ftrace.report import (
    plot_average,
    plot_lines,
    plot_prompt,
    render_averages,
    write_averages_csv,
    write_effects_csv,
)
from ftrace.report.joined_tables import render_joined
from ftrace.report.pictures import remove_pictures
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from ftrace.shown_text import counted

_MOST_LISTED = 12


@dataclass(frozen=True)
class _Subject:
    """The model that is traced.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        run: The run that trained it, if one did.
        folder: Where results go by default.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    run: Run | None
    folder: Path


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
    use_free_cores()
    traced = _subject(run, model, prompts, tokenizer, snapshot, dtype, trust)
    store, join = _scores(traced.run, prompts, scores, join, settings)
    chosen = _prompts(traced.run, prompts, choice)
    folder = Path(output_dir) if output_dir else traced.folder
    as_trained = traced.run is not None
    task = TraceTask(
        traced.model, traced.tokenizer, chosen, folder, settings, noise, layouts, as_trained, choice.sample, choice.seed
    )
    if store is not None:
        _check_joinable(store, chosen, join, task)
    with claimed(folder, "ftrace causal-trace", by_this_process=not getattr(rank_zero_only, "rank", 0)):
        say_kept(f"Finished prompts are kept in {folder}; the same command goes on with them.")
        with _quiet():
            found = trace_prompts(task, **asdict(processes))
        shown = _Shown(outcome, pictures, choice.seed, effects_csv)
        _finish(task, found, shown, traced.run, store, join)


@dataclass(frozen=True)
class _Shown:
    """The options of what is written of traces: see :func:`causal_trace`."""

    outcome: Outcome
    pictures: int
    seed: int
    effects_csv: bool


@rank_zero_only
def _finish(
    task: TraceTask,
    found: TracedPrompts,
    shown: _Shown,
    run: Run | None,
    store: ScoreStore | None,
    join: JoinSettings,
) -> None:
    console = PlainConsole()
    traces = found.traces
    tell_sample(task, found, console)
    tell_left_out(traces, console)
    _check_some_traced(traces)
    averages = average_effects(traces, seed=shown.seed)
    console.print(render_averages(averages, shown.outcome))
    written = write_results(task.folder, traces, averages, shown.outcome, shown.pictures, effects_csv=shown.effects_csv)
    if store is not None:
        assert run is not None
        joined = join_to_scores(traces, store, run.data, task.layer_names, task.folder, join, shown.outcome, shown.seed)
        console.print(render_joined(joined.joined))
        written += [*(file.name for file in joined.tables), *(["joined/"] if joined.pictures else [])]
    console.print(f"Wrote {', '.join(written)} to {task.folder}", soft_wrap=True)


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


def _subject(
    run: str | None,
    model: str | None,
    prompts: str | None,
    tokenizer: str | None,
    snapshot: Literal["last", "first"] | int,
    dtype: str,
    trust: bool,
) -> _Subject:
    if (run is None) == (model is None):
        given = "neither" if run is None else f"both, {run!r} and {model!r}: set the other to null"
        raise ValueError(f"expected a run or a model, found {given}")
    if run is not None:
        of_run = Run(newest_run(run), trust)
        trained = of_run.model_at(of_run.snapshot(snapshot))
        own_tokenizer = of_run.data.tokenizer
        assert own_tokenizer is not None
        return _Subject(trained.model, own_tokenizer, of_run, of_run.folder / "causal")
    assert model is not None
    if prompts is None:
        raise ValueError("prompts: expected a file of prompts for a pretrained model, found none")
    try:
        loaded = load_pretrained(model, dtype=dtype)
        words = AutoTokenizer.from_pretrained(tokenizer or model, trust_remote_code=False)
    except OSError as error:
        raise ValueError(f"model: can't load {model!r}: {error}") from error
    return _Subject(loaded.eval(), words, None, Path("runs", "causal", re.sub(r"[^\w.-]+", "-", model).strip("-")))


def _prompts(run: Run | None, file: str | None, choice: QueryChoice) -> list[FactPrompt]:
    if file is not None:
        if choice.queries == "learned" or choice.rule is not None:
            raise ValueError("queries: expected a run's own queries to choose the learned ones of, found a file")
        prompts = read_prompts(Path(file))
    else:
        assert run is not None
        prompts = prompts_of_queries(run.data)
    if choice.queries == "learned":
        assert run is not None
        learned = set(replace(choice, sample=None).ids(run).tolist())
        prompts = [prompt for prompt in prompts if prompt.query_id in learned]
    return prompts


def _check_joinable(store: ScoreStore, prompts: Sequence[FactPrompt], join: JoinSettings, task: TraceTask) -> None:
    """Find out before tracing what would make joining fail after it."""
    lacking = sorted(
        {prompt.query_id for prompt in prompts if prompt.query_id is not None} - set(store.query_ids.tolist())
    )
    if lacking:
        raise ValueError(
            f"scores: expected scores of each query that is traced, {store.path} has none of {lacking[:3]}"
        )
    for names in task.layer_names.values():
        layers = range(len(names))
        cells = {
            make_cell(cast(Mediator, join.mediator), layer, 0, len(names), task.settings.window) for layer in layers
        }
        if len(names) > 1 and len(cells) == 1:
            raise ValueError(
                f"window: expected a window smaller than the stack to tell its {len(names)} layers apart, found "
                f"{task.settings.window}. Take --window 1"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning logs of itself when prediction begins."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_some_traced(traces: Sequence[PromptTrace]) -> None:
    if any(trace.status == "traced" for trace in traces):
        return
    ranked = sorted((trace.rank, trace.name) for trace in traces if trace.rank is not None)
    best = ", ".join(f"{name} (rank {rank})" for rank, name in ranked[:5])
    raise ValueError(
        f"expected at least one prompt that the model answers rightly, found none of {len(traces)}."
        + (f" The best ranks of answers' first tokens: {best}. --only_correct false traces them all" if best else "")
    )


def write_results(
    folder: Path,
    traces: Sequence[PromptTrace],
    averages: Averages,
    outcome: Outcome,
    pictures: int,
    *,
    effects_csv: bool = True,
) -> list[str]:
    """Write tables and pictures of traced prompts.

    Args:
        folder: Where they go.
        traces: Of all prompts.
        averages: Of those that were traced.
        outcome: What pictures show.
        pictures: How many prompts to draw.
        effects_csv: Whether to write every cell of every prompt.

    Returns:
        What was written, by name.
    """
    write_averages_csv(averages, folder / "average_effects.csv")
    plot_average(averages, folder / "average.png", outcome)
    plot_lines(averages, folder / "lines.png", outcome)
    remove_pictures(folder / "pictures")
    drawn = [trace for trace in traces if trace.status == "traced"][:pictures]
    for trace in track(drawn, "Drawing"):
        plot_prompt(trace, outcome, folder / "pictures" / f"{trace.name}.png")
    written = ["prompts/", "average_effects.csv", "average.png", "lines.png", *(["pictures/"] if drawn else [])]
    if effects_csv:
        write_effects_csv(traces, folder / "effects.csv")
        written.insert(1, "effects.csv")
    return written


def tell_sample(task: TraceTask, found: TracedPrompts, console: Console) -> None:
    """Say how many prompts were looked at for a sample, and what a folder had already."""
    looked, traced = len(found.traces), sum(trace.status == "traced" for trace in found.traces)
    if task.sample is not None:
        among = f"{looked:,} of {len(task.prompts):,} prompts, in an order drawn by seed {task.seed}"
        if traced < task.sample:
            console.print(f"Looked at all {looked:,} prompts: {traced:,} are traced, of {task.sample:,} asked for.")
        else:
            console.print(f"Looked at {among}, until {traced:,} were traced, as asked.")
    if found.kept:
        added = looked - found.kept
        console.print(
            f"{found.kept:,} of {looked:,} prompts were in the folder already and are kept; {added:,} were added."
        )
    if found.others:
        console.print(
            f"The folder also has {counted(found.others, 'trace')} of other prompts, not part of these results."
        )
    if found.sigma is not None:
        console.print(f"The unit of noise is that of the folder's first traces, {found.sigma:.4g}.")


def tell_left_out(traces: Sequence[PromptTrace], console: Console) -> None:
    """List the prompts that were left out, and why."""
    counts: Mapping[str, int] = Counter(trace.status for trace in traces)
    if counts["wrong"]:
        console.print(f"{counts['wrong']} of {len(traces)} prompts are left out: the model answers them wrongly.")
    refused = [trace for trace in traces if trace.status == "refused"]
    if refused:
        console.print(f"{len(refused)} of {len(traces)} prompts can't be traced:")
    for trace in refused[:_MOST_LISTED]:
        console.print(f"  {trace.name}: {trace.reason}", soft_wrap=True)
    if len(refused) > _MOST_LISTED:
        console.print(f"  ... and {len(refused) - _MOST_LISTED} more; each has its reason in its file in prompts/")
