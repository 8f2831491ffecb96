"""``ftrace search``: which examples of a gradient index taught a model what queries ask for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftrace.attribution import measured
from ftrace.commands.index import corpus_of
from ftrace.commands.stores import open_with_kind
from ftrace.data import FactData, fill_in, read_queries
from ftrace.evaluation.agreement import Agreement, agreement
from ftrace.evaluation.results import Passages, RetrievalResult, write_results
from ftrace.index import (
    ApproximateSettings,
    Found,
    GradientIndex,
    PreparedSearch,
    SearchSettings,
    WhiteningSettings,
    approximate_top_k,
    open_approximate,
    prepare_search,
    recall,
    scored_chunks,
    top_k,
)
from ftrace.models import Output
from ftrace.runs import Run

Row = Mapping[str, Any]
_RECALL_QUERIES = 32


@dataclass(frozen=True)
class Corpus:
    """What an index is of.

    Args:
        run: The run whose model it is.
        data: The rows that its ids are of.
    """

    run: Run
    data: FactData

    @staticmethod
    def of(index: GradientIndex, run: str | None) -> Corpus:
        """The corpus of an index.

        Raises:
            ValueError: If the index doesn't say which run it is of, or its rows are other rows by now.
        """
        noted = index.manifest.get("run")
        folder = Path(run) if run else (index.folder / noted if noted else index.folder.absolute().parent)
        opened = Run(folder.resolve())
        files = index.manifest.get("corpus")
        data = opened.data if files is None else corpus_of(opened, files)
        known = index.manifest.get("data")
        if known is not None and known != data.fingerprint:
            raise ValueError(
                f"{str(index.folder)!r} is of other data than {str(data.data_path)!r}: expected the fingerprint "
                f"{known}, found {data.fingerprint}"
            )
        return Corpus(opened, data)


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments, with the letter that people know for how many."""
    command.add_argument("-k", "--k", type=int, default=100, help="How many proponents, and opponents, of each query.")
    command.add_function_arguments(search, skip={"k"})


def search(
    index: str,
    queries: str | None = None,
    k: int = 100,
    run: str | None = None,
    output_file: str | None = None,
    autocorrelation: Literal["mixed", "train", "none"] = "mixed",
    mix: float | None = None,
    task_queries: str | None = None,
    rank_share: float = WhiteningSettings.rank_share,
    damping: float = WhiteningSettings.damping,
    unit_norm: bool = True,
    weighted: bool = False,
    precondition_queries: bool = True,
    learning: bool = False,
    output: Output | None = None,
    answers: Literal["one", "any"] | None = None,
    against: str | None = None,
    approximate: bool = False,
    lists: int | None = None,
    probes: int = 32,
    show: int = 2,
) -> None:
    """Find the strongest proponents and opponents of queries in a gradient index.

    Args:
        index: Folder of the index.
        queries: A file of queries, with "inputs" and "targets", as FactCorpus reads them; default: the run's.
        k: How many of either.
        run: The run's folder; default: the one that the index was written of.
        output_file: Where results go, as JSON lines in TrackStar's released format; default: results.jsonl in the
            index's folder.
        autocorrelation: R of the rows, "mixed" with that of the task's queries; of the rows alone, "train"; "none".
        mix: lambda, what queries count of the mixture; default: by the rule on both spectra.
        task_queries: A file of the task's queries, which R is mixed with; default: those that are searched for.
        rank_share: Where the rule looks, as a share of all dimensions.
        damping: Of R, as a share of its mean eigenvalue.
        unit_norm: Whether norms are divided out.
        weighted: Whether rows count by their learning rate times clip factor, as TracIn weighs them.
        precondition_queries: Whether the queries' gradients are divided by second moments too.
        learning: Whether segments count by p (1 - p), where p is the probability of the query's answer at their
            weights, so that those count in which it was being learned.
        output: What is differentiated: "loss", "margin" or "logit"; default: as of the rows.
        answers: What a query's loss is: "one" or "any" of its answers; default: as the run's.
        against: FOLDER[:KIND] of a score store, such as online:dot, to measure how well scores agree with it.
        approximate: Search approximately, with faiss, and measure what is missed.
        lists: Of the approximate search: into how many lists rows are sorted.
        probes: Of the approximate search: how many lists it looks into.
        show: How many queries to print.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    opened = GradientIndex(index)
    corpus = Corpus.of(opened, run)
    data = corpus.run.data
    rows = _rows_of_queries(data, queries)
    if against is not None and queries is not None:
        raise ValueError("against: expected the run's own queries, whose ids a score store knows, found a file")
    written = opened.manifest.get("output")
    of_rows: Any = written if written in ("loss", "margin", "logit") else "loss"
    whitening = WhiteningSettings(autocorrelation, mix, rank_share, damping)
    settings = SearchSettings(whitening, unit_norm, weighted, precondition_queries, learning)
    task = None if task_queries is None else _batches(data, read_queries(Path(task_queries)))
    prepared = prepare_search(
        opened, corpus.run.model_at, _batches(data, rows), measured("loss", answers), settings, task,
        measured(output or of_rows, answers), snapshots=corpus.run.folder / "snapshots",
    )  # fmt: skip
    console = Console()
    started = time.perf_counter()
    if approximate:
        proponents, opponents, seconds = _approximately(prepared, ApproximateSettings(lists, probes), k, console)
    else:
        proponents, opponents = top_k(opened, prepared.queries, k)
        seconds = time.perf_counter() - started
    file = Path(output_file) if output_file else opened.folder / "results.jsonl"
    write_results(file, _results(rows, proponents, opponents, corpus.data, own=queries is None))
    _tell(console, prepared, len(rows), seconds)
    for place in range(min(show, len(rows))):
        console.print(_worked_out(rows[place], proponents, opponents, place, corpus.data))
    if against is not None:
        console.print(str(_agree(prepared, rows, against, corpus.run)), soft_wrap=True)
    console.print(f"Wrote {len(rows)} results to {file}", soft_wrap=True)


def _rows_of_queries(data: FactData, file: str | None) -> list[Row]:
    return [dict(row) for row in data.query_rows] if file is None else list(read_queries(Path(file)))


def _batches(data: FactData, rows: Sequence[Row]) -> list[dict[str, torch.Tensor]]:
    loader = data.query_dataloader()
    size = loader.batch_size or 1
    return [loader.collate_fn(list(rows[start : start + size])) for start in range(0, len(rows), size)]


def _approximately(
    prepared: PreparedSearch, settings: ApproximateSettings, k: int, console: Console
) -> tuple[Found, Found, float]:
    """Proponents, opponents, and the seconds of the search itself."""
    (whitening,) = prepared.whitenings[:1]
    started = time.perf_counter()
    lists = open_approximate(prepared.index, whitening, settings)
    opened = time.perf_counter()
    (of_segment,), (white,) = prepared.queries[:1], prepared.white_rows[:1]
    found = approximate_top_k(prepared.index, lists, of_segment, white, k)
    searched = time.perf_counter()
    few = type(of_segment)(of_segment.vectors[:_RECALL_QUERIES], of_segment.norms, of_segment.weighted)
    exact = top_k(prepared.index, [few], k)
    shares = [
        recall(Found(own.ids[:_RECALL_QUERIES], own.scores[:_RECALL_QUERIES]), other)
        for own, other in zip(found, exact, strict=True)
    ]
    console.print(
        f"Approximate: {lists.nlist} lists, {lists.nprobe} of them looked into. Recall@{exact[0].ids.shape[1]} of "
        f"{len(exact[0].ids)} queries: {shares[0]:.1%} of proponents, {shares[1]:.1%} of opponents. Lists made or read "
        f"in {opened - started:.1f} s; these queries exactly in {time.perf_counter() - searched:.2f} s",
        soft_wrap=True,
    )
    return *found, searched - opened


def _results(
    rows: Sequence[Row], proponents: Found, opponents: Found, data: FactData, *, own: bool
) -> Iterator[RetrievalResult]:
    truth = data.proponents if own else {}
    for place, row in enumerate(rows):
        found = proponents.ids[place][proponents.ids[place] >= 0]
        correct = None
        if own and len(truth.get(row["query_id"], ())):
            correct = np.isin(found, truth[row["query_id"]]).tolist()
        elif not own and row.get("fact"):
            correct = [row["fact"] in facts for facts in data.train_rows[found]["facts"]]
        yield RetrievalResult(
            example_id=row["query_id"],
            query_set=data.data_path.name if own else "queries",
            prompt=row["inputs_pretokenized"],
            target=row["targets_pretokenized"],
            proponents=_passages(proponents, place, data),
            opponents=_passages(opponents, place, data),
            correct=correct,
            annotations={} if row.get("fact") is None else {"fact_id": row["fact"]},
        )


def _passages(found: Found, place: int, data: FactData) -> Passages:
    known = found.ids[place] >= 0
    ids = found.ids[place][known]
    rows = data.train_rows[ids]
    texts = [fill_in(*both) for both in zip(rows["inputs_pretokenized"], rows["targets_pretokenized"], strict=True)]
    return Passages(texts, ids.tolist(), found.scores[place][known].tolist())


def _tell(console: Console, prepared: PreparedSearch, count: int, seconds: float) -> None:
    index = prepared.index
    mixes = [one.mix for one in prepared.whitenings]
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


def _worked_out(row: Row, proponents: Found, opponents: Found, place: int, data: FactData) -> Table:
    answer = fill_in(row["inputs_pretokenized"], row["targets_pretokenized"])
    table = Table(title=Text(f"query {row['query_id']}: {answer}"), title_justify="left", box=None)
    for column in ("", "score", "training example", "id"):
        table.add_column(column, justify="right" if column in ("score", "id") else "left")
    for name, found in (("proponents", proponents), ("opponents", opponents)):
        passages = _passages(found, place, data)
        for rank in range(min(3, len(passages))):
            score = f"{passages.scores[rank]:+.3f}"
            table.add_row(name if not rank else "", score, Text(passages.texts[rank]), str(passages.ids[rank]))
    return table


def _agree(prepared: PreparedSearch, rows: Sequence[Row], against: str, run: Run) -> Agreement:
    store, kind = open_with_kind(run.folder, against)
    return agreement(scored_chunks(prepared.index, prepared.queries), [row["query_id"] for row in rows], store, kind)
