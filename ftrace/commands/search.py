"""``ftrace search``: which examples of a gradient index taught a model what queries ask for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser
from rich.console import Console

from ftrace.arguments import Count, Name, Positive, checked
from ftrace.attribution import answer_lengths, measured
from ftrace.commands.index_corpus import Corpus
from ftrace.commands.options import add_old_names, add_trust, take
from ftrace.commands.query_choice import ALL_QUERIES, QueryChoice
from ftrace.commands.sources import listed_queries
from ftrace.commands.stores import open_with_kind
from ftrace.console import PlainConsole
from ftrace.data import FactData, fill_in, read_queries
from ftrace.evaluation import seeded_sample
from ftrace.evaluation.agreement import Agreement, agreement
from ftrace.evaluation.results import Passages, RetrievalResult, write_results
from ftrace.index import (
    OLD_SEARCH_OPTIONS,
    ApproximateSettings,
    GradientIndex,
    PreparedSearch,
    SearchSettings,
    TopExamples,
    WhiteningSettings,
    approximate_top_k,
    open_approximate,
    prepare_search,
    recall,
    scored_chunks,
    top_k,
)
from ftrace.models import Output
from ftrace.renamed import use_new_names
from ftrace.runs import Run
from ftrace.scores import show_command
from ftrace.views import CUT, ListedSource, make_query_view, render_query

Row = Mapping[str, Any]
_RECALL_QUERIES = 32
_SHOWN = 3  # examples of each query that are printed, on either side


@checked
@dataclass(frozen=True)
class QuestionSettings:
    """The options that say what is asked of an index."""

    file: Name | None = None
    """A file of queries, with "inputs" and "targets", as FactCorpus reads them; default: the run's."""
    choice: QueryChoice = ALL_QUERIES
    """Which of the run's queries; of a file, how many to sample."""
    task_queries: Name | None = None
    """A file of the task's queries, which R is mixed with; default: those that are searched for."""
    output: Output | None = None
    """What is differentiated: "loss", "margin" or "logit"; default: as of the rows."""
    answers: Literal["one", "any"] | None = None
    """What a query's loss is: "one" or "any" of its answers; default: as the run's."""

    def __post_init__(self) -> None:
        if self.file is not None and (self.choice.queries == "learned" or self.choice.rule is not None):
            raise ValueError("queries: expected a run's own queries to choose the learned ones of, found a file")

    def rows(self, run: Run) -> list[Row]:
        """Read the rows of the queries."""
        if self.file is None:
            chosen = set(self.choice.ids(run).tolist())
            return [dict(row) for row in run.data.query_rows if row["query_id"] in chosen]
        rows: list[Row] = list(read_queries(Path(self.file)))
        if self.choice.sample is None:
            return rows
        return [rows[position] for position in seeded_sample(range(len(rows)), self.choice.sample, self.choice.seed)]


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: those of its settings as its own."""
    command.add_argument("-k", "--k", type=int, default=100, help="How many proponents, and opponents, of each query.")
    command.add_argument(
        "--queries", type=str | None, default="all",
        help='"all" of the run\'s queries, those "learned" by the end of training, or a file of queries, with "inputs" '
        'and "targets", as FactCorpus reads them.',
    )  # fmt: skip
    command.add_function_arguments(search, skip={"k", "question", "settings", "approximate", "trust"})
    add_trust(command)
    command.add_class_arguments(QuestionSettings, skip={"file", "choice"})
    command.add_class_arguments(QueryChoice, skip={"queries"})
    command.add_class_arguments(WhiteningSettings)
    command.add_class_arguments(SearchSettings, skip={"whitening"})
    command.add_argument(
        "--approximate", type=bool, default=False, help="Search approximately, with faiss, and measure what is missed."
    )
    command.add_class_arguments(ApproximateSettings)
    add_old_names(command, {"correct_queries": bool})


def command(**options: Any) -> None:
    """Find the strongest proponents and opponents of queries in a gradient index."""
    options = use_new_names("ftrace search", options, OLD_SEARCH_OPTIONS, asdict(SearchSettings()))
    given = options["queries"] if options["queries"] is not None else "all"
    options["queries"] = given if given in ("learned", "all") else "all"
    choice = take(QueryChoice, options)
    file = None if given in ("learned", "all") else given
    question = replace(take(QuestionSettings, options), choice=choice, file=file)
    settings = replace(take(SearchSettings, options), whitening=take(WhiteningSettings, options))
    approximate = take(ApproximateSettings, options)
    is_approximate = options.pop("approximate")
    search(**options, question=question, settings=settings, approximate=approximate if is_approximate else None)


@checked
def search(
    index: Name,
    question: QuestionSettings = QuestionSettings(),
    settings: SearchSettings = SearchSettings(),  # noqa: B008
    run: Name | None = None,
    k: Positive = 100,
    approximate: ApproximateSettings | None = None,
    against: Name | None = None,
    output_file: Name | None = None,
    show: Count = 2,
    trust: bool = False,
) -> None:
    """Find the strongest proponents and opponents of queries in a gradient index.

    Args:
        index: Folder of the index.
        question: What is asked.
        settings: How examples are scored.
        run: The run's folder, or the one that its versions are in; default: the run that the index was written of.
        k: How many of either.
        approximate: How to search approximately, with faiss; what is missed is measured. Default: exactly.
        against: FOLDER[:KIND] of a score store, such as online:dot, to measure how well scores agree with it.
        output_file: Where results go, as JSON lines in TrackStar's released format; default: results.jsonl in the
            index's folder.
        show: How many queries to print.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    if against is not None and question.file is not None:
        raise ValueError("against: expected the run's own queries, whose ids a score store knows, found a file")
    opened = GradientIndex(index)
    corpus = Corpus.of(opened, run, trust)
    data = corpus.run.data
    rows = question.rows(corpus.run)
    written = opened.manifest.get("output")
    of_rows: Any = written if written in ("loss", "margin", "logit") else "loss"
    task = None if question.task_queries is None else data.query_batches(read_queries(Path(question.task_queries)))
    prepared = prepare_search(
        opened, corpus.run.model_at, data.query_batches(rows), measured("loss", question.answers), settings, task,
        measured(question.output or of_rows, question.answers), snapshots=corpus.run.folder / "snapshots",
        lengths=answer_lengths,
    )  # fmt: skip
    console = PlainConsole()
    started = time.perf_counter()
    if approximate is not None:
        proponents, opponents, seconds = _approximately(prepared, approximate, k, console)
    else:
        proponents, opponents = top_k(opened, prepared.queries, k)
        seconds = time.perf_counter() - started
    file = Path(output_file) if output_file else opened.folder / "results.jsonl"
    write_results(file, _results(rows, proponents, opponents, corpus.data, of_run=question.file is None))
    _tell(console, prepared, len(rows), seconds)
    first = _results(rows[:show], proponents, opponents, corpus.data, of_run=question.file is None)
    source = ListedSource("this search", list(listed_queries(first)))
    for query in source.query_ids:
        console.print(render_query(make_query_view([source], query, _SHOWN, _SHOWN), CUT, console.width))
        console.print()
    if against is not None:
        console.print(str(_agree(prepared, rows, against, corpus.run)), soft_wrap=True)
    console.print(f"Wrote {len(rows)} results to {file}. Look at them: {show_command(file)}", soft_wrap=True)


def _approximately(
    prepared: PreparedSearch, settings: ApproximateSettings, k: int, console: Console
) -> tuple[TopExamples, TopExamples, float]:
    """Search approximately: proponents, opponents, and the seconds of the search itself."""
    (whitening,) = prepared.whitenings[:1]
    started = time.perf_counter()
    lists = open_approximate(prepared.index, whitening, settings)
    opened = time.perf_counter()
    (of_segment,), (white,) = prepared.queries[:1], prepared.white_rows[:1]
    strongest = approximate_top_k(prepared.index, lists, of_segment, white, k)
    searched = time.perf_counter()
    few = type(of_segment)(of_segment.vectors[:_RECALL_QUERIES], of_segment.norms, of_segment.weighted)
    exact = top_k(prepared.index, [few], k)
    shares = [
        recall(TopExamples(approximately.ids[:_RECALL_QUERIES], approximately.scores[:_RECALL_QUERIES]), exactly)
        for approximately, exactly in zip(strongest, exact, strict=True)
    ]
    console.print(
        f"Approximate: {lists.nlist} lists, {lists.nprobe} of them looked into. Recall@{exact[0].ids.shape[1]} of "
        f"{len(exact[0].ids)} queries: {shares[0]:.1%} of proponents, {shares[1]:.1%} of opponents. Lists made or read "
        f"in {opened - started:.1f} s; these queries exactly in {time.perf_counter() - searched:.2f} s",
        soft_wrap=True,
    )
    return *strongest, searched - opened


def _results(
    rows: Sequence[Row], proponents: TopExamples, opponents: TopExamples, data: FactData, *, of_run: bool
) -> Iterator[RetrievalResult]:
    """Make the results of queries, which are the run's own or of a file."""
    truth = data.proponents if of_run else {}
    for position, row in enumerate(rows):
        ids = proponents.ids[position][proponents.ids[position] >= 0]
        correct = None
        if of_run and len(truth.get(row["query_id"], ())):
            correct = np.isin(ids, truth[row["query_id"]]).tolist()
        elif not of_run and row.get("fact"):
            correct = [row["fact"] in facts for facts in data.train_rows[ids]["facts"]]
        yield RetrievalResult(
            example_id=row["query_id"],
            query_set=data.data_path.name if of_run else "queries",
            prompt=row["inputs_pretokenized"],
            target=row["targets_pretokenized"],
            proponents=_passages(proponents, position, data),
            opponents=_passages(opponents, position, data),
            correct=correct,
            annotations={} if row.get("fact") is None else {"fact_id": row["fact"]},
        )


def _passages(strongest: TopExamples, query: int, data: FactData) -> Passages:
    known = strongest.ids[query] >= 0
    ids = strongest.ids[query][known]
    rows = data.train_rows[ids]
    texts = [fill_in(*both) for both in zip(rows["inputs_pretokenized"], rows["targets_pretokenized"], strict=True)]
    return Passages(texts, ids.tolist(), strongest.scores[query][known].tolist())


def _tell(console: Console, prepared: PreparedSearch, count: int, seconds: float) -> None:
    """Print what lambda came to, and what the search took."""
    index = prepared.index
    mixes = [whitening.mix for whitening in prepared.whitenings]
    why = prepared.whitenings[0].why
    if len(set(mixes)) > 1:
        why = f"{min(mixes):.3g} to {max(mixes):.3g}, segment by segment"
    segments = f" in {len(index.segments)} segments" if len(index.segments) > 1 else ""
    console.print(
        f"{count} queries, {index.num_rows:,} rows of {index.size:,} numbers{segments}; lambda {why}. "
        f"Queries differentiated in {prepared.seconds['queries']:.1f} s; norms of rows, once for a task, "
        f"{prepared.seconds['norms']:.1f} s; searched in {seconds:.2f} s, {seconds / count:.4f} s a query",
        soft_wrap=True,
    )


def _agree(prepared: PreparedSearch, rows: Sequence[Row], against: str, run: Run) -> Agreement:
    store, kind = open_with_kind(run.folder, against)
    return agreement(scored_chunks(prepared.index, prepared.queries), [row["query_id"] for row in rows], store, kind)
