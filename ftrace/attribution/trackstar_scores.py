"""Scores of all examples of a task by a gradient index, which is written first where there is none."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from ftrace.attribution.index_pass import answer_lengths, index_corpus, measured
from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.task import Task
from ftrace.index import (
    FeatureSettings,
    GradientIndex,
    IndexSettings,
    PreparedSearch,
    SearchSettings,
    prepare_search,
    scored_chunks,
)
from ftrace.models import Output
from ftrace.scores import ScoreStore, ScoreWriter


def make_index(
    task: Task, snapshot: Literal["last", "first"] | int, features: FeatureSettings, output: Output
) -> GradientIndex:
    """Write the index of a task's examples at a snapshot, beside where its store goes.

    Raises:
        ValueError: If there is no such snapshot.
    """
    (folder,) = task.choose_snapshots(snapshot)
    beside = task.output_dir.with_name(f"{task.output_dir.name}-index")
    return index_corpus(replace(task, output_dir=beside), folder, IndexSettings(features), output)


def score_by_index(
    method: AttributionMethod,
    task: Task,
    index: GradientIndex,
    settings: SearchSettings,
    answers: Literal["one", "any"] | None,
    output: Output,
) -> ScoreStore:
    """Score a task's examples by an index.

    Args:
        method: In whose name.
        task: What to score.
        index: The index, with rows of all examples.
        settings: Of the search.
        answers: What a query's loss is; None: as the run's.
        output: What is differentiated, of queries as of examples.

    Raises:
        ValueError: If the index lacks an example.
    """
    if getattr(rank_zero_only, "rank", 0):  # the first process writes the store
        torch.distributed.barrier()
        return ScoreStore.open(task.output_dir)
    prepared = prepare_search(
        index, task.model_at, task.query_batches(), measured("loss", answers), settings,
        output=measured(output, answers), snapshots=task.snapshots[0].parent if task.snapshots else None,
        lengths=answer_lengths,
    )  # fmt: skip
    facts = {
        "index": str(index.folder),
        "mix": [whitening.mix for whitening in prepared.whitenings],
        "coverage": {"blocks": index.blocks, "left_out": index.manifest["left_out"]},
    }
    store = write_scores(method, task, prepared, facts, "cosine" if settings.unit_norm else "dot")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    return store


def write_scores(
    method: AttributionMethod, task: Task, prepared: PreparedSearch, facts: dict[str, Any], kind: str
) -> ScoreStore:
    """Write the store of all scores, of one kind, chunk by chunk.

    Raises:
        ValueError: If the index lacks an example.
    """
    known = np.concatenate([np.asarray(segment.ids) for segment in prepared.index.segments])
    missing = np.setdiff1d(task.examples, known)
    if len(missing):
        raise ValueError(
            f"expected rows of all {len(task.examples)} examples in {str(prepared.index.folder)!r}, found none of "
            f"{len(missing)}, such as {missing[:3].tolist()}"
        )
    dtype = np.float64 if prepared.index.settings.dtype == "float64" else np.float32
    with ScoreWriter(task.output_dir, task.examples, task.queries, [kind], dtype) as writer:
        for ids, scores in scored_chunks(prepared.index, prepared.queries):
            _, rows, positions = np.intersect1d(task.examples, ids, assume_unique=True, return_indices=True)
            if len(rows):
                writer.put(kind, scores[torch.from_numpy(positions)].numpy(), slice(rows[0], rows[-1] + 1))
        return writer.finish(
            {**task.describe(method), **facts, "seconds": round(time.perf_counter() - task.started, 3)}, *task.texts()
        )
