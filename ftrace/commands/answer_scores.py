"""Scores of the examples of a gradient index for answers that a model gives, or might have given."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ftrace.attribution import Task, measured
from ftrace.commands.asking import Question, Row
from ftrace.commands.index import index, make_plan, settings_at
from ftrace.commands.index_corpus import Corpus, batches_of
from ftrace.evaluation import seeded_sample
from ftrace.index import GradientIndex, IndexSettings, SearchSettings, prepare_search, readable, scored_chunks
from ftrace.index.gradient_index import MANIFEST
from ftrace.models import FactLM
from ftrace.runs import Run

MOST_SECONDS, MOST_BYTES = 120.0, 2 * 2**30  # of an index that is made without asking
_TASK_QUERIES = 512


class IndexTooLarge(ValueError):
    """A gradient index that is missing, and takes too long to be made without asking."""


@dataclass(frozen=True)
class AnswerScores:
    """Scores of all examples for some answers to a question.

    Args:
        ids: Of the examples, int64 ``[N]``, ascending.
        scores: ``[N, A]``.
    """

    ids: np.ndarray
    scores: np.ndarray


def score_answers(
    opened: GradientIndex,
    corpus: Corpus,
    question: Question,
    answers: Sequence[Row],
    settings: SearchSettings = SearchSettings(),  # noqa: B008 - frozen
) -> AnswerScores:
    """Score all examples of an index for answers to a question, as ``ftrace search`` scores them for a run's queries.

    R is mixed with the run's own queries, as in a search for all of them, so that scores don't depend on what is asked
    together.

    Args:
        opened: The index.
        corpus: What it is of.
        question: The question.
        answers: Queries that have the answers.
        settings: How examples are scored.
    """
    of_rows = opened.manifest.get("output")
    output: Callable[[FactLM, Any], Tensor] | None = None
    if of_rows in ("margin", "logit"):
        output = measured(of_rows)
    queries = corpus.run.data.query_rows
    sample = sorted(seeded_sample(range(len(queries)), min(_TASK_QUERIES, len(queries)), seed=0))
    prepared = prepare_search(
        opened, corpus.run.model_at, [question.batch([row]) for row in answers], question.losses, settings,
        batches_of(corpus.run.data, list(queries.select(sample))), output, snapshots=corpus.run.folder / "snapshots",
    )  # fmt: skip
    ids, scores = zip(*scored_chunks(opened, prepared.queries), strict=True)
    return AnswerScores(np.concatenate(ids), torch.cat(scores).numpy())


def find_index(run: Run, given: str | None = None, step: int | None = None) -> tuple[GradientIndex | None, list[str]]:
    """Find the index of a run to search in.

    Args:
        run: The run.
        given: The folder of one, or its name in the run's folder; default: of those in the run's folder, the one that
            was written while training, or else that of the latest step.
        step: Take one at this step alone.

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
    if step is not None:
        usable = [each for each in usable if [segment.step for segment in each.segments] == [step]]
    if not usable:
        return None, notes
    best = max(usable, key=lambda each: (len(each.segments), each.segments[-1].step))
    others = [each.folder.name for each in usable if each is not best]
    if others:
        notes.append(f"Searched in {best.folder.name}; --index takes another: {', '.join(others)}")
    return best, notes


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
    index(str(run.folder), step, may_lack_moments=True)
    return GradientIndex(folder)
