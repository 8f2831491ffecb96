"""What ``ftrace search`` does: queries are differentiated, whitened and searched for, and results are written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ftrace.attribution import answer_lengths, measured
from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.index_corpus import Corpus
from ftrace.commands.index_question import QuestionSettings, Row
from ftrace.commands.sources import listed_queries
from ftrace.commands.stores import open_with_kind
from ftrace.console import PlainConsole
from ftrace.data import FactData, fill_in, read_queries
from ftrace.evaluation.agreement import Agreement, agreement
from ftrace.evaluation.results import Passages, RetrievalResult, write_results
from ftrace.index import (
    ApproximateSettings,
    GradientIndex,
    PreparedSearch,
    SearchSettings,
    TopExamples,
    approximate_top_k,
    open_approximate,
    prepare_search,
    recall,
    scored_chunks,
    top_k,
)
from ftrace.runs import Run
from ftrace.scores import show_command
from ftrace.views import CUT, ListedSource, make_query_view, render_query

_RECALL_QUERIES = 32
_SHOWN = 3  # examples of each query that are printed, on either side


def search_index(
    index: str,
    question: QuestionSettings,
    settings: SearchSettings,
    run: str | None,
    k: int,
    approximate: ApproximateSettings | None,
    against: str | None,
    output_file: str | None,
    show: int,
    trust: bool,
) -> None:
    """Search an index; arguments are those of :func:`ftrace.commands.search.search`."""
    opened = GradientIndex(index)
    corpus = Corpus.of(opened, run, trust)
    data = corpus.run.data
    rows = question.rows(corpus.run)
    written = opened.manifest.get("output")
    of_rows: Any = written if written in ("loss", "margin", "logit") else "loss"
    task = None if question.task_queries is None else data.query_batches(read_queries(Path(question.task_queries)))
    use_free_cores()
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
