"""Scores of the examples of a gradient index for answers that a model gives, or might have given."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ftrace.attribution import Task, answer_lengths, measured
from ftrace.commands.asking import GivenAnswer, Question, Row
from ftrace.commands.index import index, settings_at
from ftrace.commands.index_corpus import Corpus
from ftrace.commands.index_plan import make_plan
from ftrace.commands.stores import open_with_kind
from ftrace.data import FactData
from ftrace.evaluation import seeded_sample
from ftrace.index import GradientIndex, IndexSettings, SearchSettings, prepare_search, readable, scored_chunks
from ftrace.index.gradient_index import MANIFEST
from ftrace.models import FactLM
from ftrace.runs import Run
from ftrace.shown_text import plain
from ftrace.views import StoreSource

MOST_SECONDS, MOST_BYTES = 120.0, 2 * 2**30  # of an index that is made without asking
_TASK_QUERIES = 512


class IndexTooLarge(ValueError):
    """A gradient index that is missing, and takes too long to be made without asking."""


@dataclass(frozen=True)
class AnswerScores:
    """Scores of all examples for some answers to a question.

    Args:
        answers: The answers.
        ids: Of the examples, int64 ``[N]``, ascending.
        scores: ``[N, A]``.
        data: The data set that the ids are of.
        lines: What the scores are, and what a reader should know of them.
    """

    answers: tuple[GivenAnswer, ...]
    ids: np.ndarray
    scores: np.ndarray
    data: FactData
    lines: tuple[str, ...] = ()


def scores_of_index(
    run: Run, snapshot: Path, question: Question, answers: Sequence[GivenAnswer], given: str | None = None
) -> AnswerScores:
    """Score all examples for answers by the gradient index of a run; a small one that is missing is made, and kept.

    Args:
        run: The run.
        snapshot: The snapshot that was asked.
        question: The question.
        answers: The answers.
        given: The folder of the index, or its name in the run's folder; default: as :func:`find_index`.

    Raises:
        IndexTooLarge: If there is none, and it takes minutes to make one.
        ValueError: If it is of other data, or another model.
    """
    opened, notes = find_index(run, snapshot, given)
    if opened is None:
        opened = make_small_index(run, snapshot)
    corpus = Corpus.of(opened, run)
    ids, scores = score_answers(opened, corpus, question, [question.row(answer.text) for answer in answers])
    steps = sorted({segment.step for segment in opened.segments})
    at = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps from {steps[0]} to {steps[-1]}, summed"
    what = f"Scores: cosines of gradients at {at}, from {opened.folder}. + taught an answer, - argued against it"
    return AnswerScores(tuple(answers), ids, scores, corpus.data, (*notes, what))


def scores_of_store(run: Run, question: Question, answers: Sequence[GivenAnswer], given: str) -> AnswerScores:
    """Read the scores of a store for the right answer to one of a run's queries: it has scores of no other.

    Args:
        run: The run.
        question: The question.
        answers: The answers, of which others than the right one are left out.
        given: STORE[:KIND], a folder or a name in the run's folder.

    Raises:
        ValueError: If the question is none of the run's queries, or no answer is right.
    """
    query = question.query
    right = [answer for answer in answers if answer.right]
    if query is None or not right:
        expected = "one of the run's queries as the question" if query is None else "the right answer"
        raise ValueError(
            f"scores: expected {expected}, since a store has scores of no other. Leave it out, and a gradient index is "
            "searched"
        )
    store, kind = open_with_kind(run.folder, given)
    source = StoreSource(store, kind)
    values = store.scores(int(query["query_id"]), source.kind)
    lines = [f"Scores: {source.kind}, from {store.path}. + taught the answer, - argued against it"]
    lines += [f"Left out, since they aren't of it: {answer.text}" for answer in answers if not answer.right]
    lines += [f"Doubtful: {doubt}" for doubt in source.doubts()]
    names = [right[0].text, *right[0].forms]
    of_query = question.forms(query["targets_pretokenized"])[0]  # the loss is that of the query's own answer
    asked = replace(right[0], text=of_query, forms=tuple(name for name in names if name != of_query))
    return AnswerScores((asked,), np.asarray(store.example_ids), values[:, None], run.data, tuple(lines))


def score_answers(
    opened: GradientIndex,
    corpus: Corpus,
    question: Question,
    answers: Sequence[Row],
    settings: SearchSettings = SearchSettings(),  # noqa: B008 - frozen
) -> tuple[np.ndarray, np.ndarray]:
    """Score all examples of an index for answers to a question, as ``ftrace search`` scores them for a run's queries.

    R is mixed with the run's own queries, as in a search for all of them, so that scores don't depend on what is asked
    together.

    Args:
        opened: The index.
        corpus: What it is of.
        question: The question.
        answers: Queries that have the answers.
        settings: How examples are scored.

    Returns:
        Ids of the examples, int64 ``[N]``, ascending, and scores, ``[N, A]``.
    """
    of_rows = opened.manifest.get("output")
    output: Callable[[FactLM, Any], Tensor] | None = None
    if of_rows in ("margin", "logit"):
        output = measured(of_rows)
    queries = corpus.run.data.query_rows
    sample = sorted(seeded_sample(range(len(queries)), min(_TASK_QUERIES, len(queries)), seed=0))
    prepared = prepare_search(
        opened, corpus.run.model_at, [question.batch([row]) for row in answers], question.losses, settings,
        corpus.run.data.query_batches(list(queries.select(sample))), output, snapshots=corpus.run.folder / "snapshots",
        lengths=answer_lengths,
    )  # fmt: skip
    ids, scores = zip(*scored_chunks(opened, prepared.queries), strict=True)
    return np.concatenate(ids), torch.cat(scores).numpy()


def find_index(run: Run, snapshot: Path, given: str | None = None) -> tuple[GradientIndex | None, list[str]]:
    """Find the index of a run to search in.

    Args:
        run: The run.
        snapshot: The snapshot that was asked.
        given: The folder of one, or its name in the run's folder; default: of those in the run's folder, one that was
            written while training if the last snapshot was asked, or else one at the snapshot.

    Returns:
        The index, None if there is none; and a line for each that is there and was passed over.

    Raises:
        ValueError: If the given one is none, or is unfinished.
    """
    if given is not None:
        inside = run.folder / given
        return GradientIndex(inside if inside.is_dir() else given), []
    usable, notes = [], []
    for file in sorted(run.folder.glob(f"*/{MANIFEST}")):
        try:
            usable.append(GradientIndex(file.parent))
        except ValueError as error:
            notes.append(f"Passed over: {error}")
    others = [each.folder.name for each in usable]
    step = int(snapshot.name.removeprefix("step-"))
    usable = [
        each
        for each in usable
        if (_is_of_training(each) and snapshot == run.last_snapshot) or [s.step for s in each.segments] == [step]
    ]
    if not usable:
        return None, notes
    best = max(usable, key=lambda each: (len(each.segments), each.segments[-1].step))
    others.remove(best.folder.name)
    if others:
        notes.append(f"Searched in {best.folder.name}; --index takes another: {', '.join(others)}")
    return best, notes


def _is_of_training(index: GradientIndex) -> bool:
    """Tell whether an index knows the steps of a training, and not the weights of one step alone."""
    return len(index.segments) > 1 or index.manifest.get("written_by") != "ftrace index"


def make_small_index(run: Run, snapshot: Path) -> GradientIndex:
    """Make the index of a run's examples at a snapshot, if that takes a minute or two; it is kept for later questions.

    Args:
        run: The run.
        snapshot: The snapshot's folder.

    Raises:
        IndexTooLarge: If it would take longer; the message has the command that makes it.
    """
    step: Literal["last"] | int = "last"
    if snapshot != run.last_snapshot:
        step = int(snapshot.name.removeprefix("step-"))
    folder = run.folder / f"index-{snapshot.name}"
    task = Task(run.data, folder, run.snapshots, run.model_at, run_dir=run.folder)
    settings = settings_at(snapshot, IndexSettings())
    plan = make_plan(task, snapshot, settings, "loss", len(task.examples), hours=1.0, seconds=1.0)
    seconds = plan.machine_hours * 3600
    if seconds > MOST_SECONDS or plan.bytes > MOST_BYTES:
        command = ["ftrace", "index", "--run", str(run.folder), *([] if step == "last" else ["--snapshot", str(step)])]
        raise IndexTooLarge(
            f"expected a gradient index of the run, found none, and one of {plan.examples:,} examples takes about "
            f"{seconds / 60:,.0f} minutes and {readable(plan.bytes)} here. Make it with: {shlex.join(command)}"
        )
    print(
        f"Making a gradient index of {plan.examples:,} examples at {plain(snapshot.name)}, once: about "
        f"{seconds:,.0f} s, {readable(plan.bytes)} ...",
        file=sys.stderr,
    )
    with _quiet(), redirect_stdout(sys.stderr):
        index(str(run.folder), step, may_lack_moments=True, trust=run.trust)
    return GradientIndex(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling which devices there are."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
