"""The score store of a run: sums of all processes, reduced by example id and written by process 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftrace.online.processes import gather_objects, gather_rows, num_processes, process_rank
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.traced_run import TracedRun
from ftrace.scores import ScoreStore, Sum, find_doubts
from ftrace.scores.row_ranges import RANGE_BYTES


def write_store(output_dir: Path, run: TracedRun, facts: Mapping[str, Any], *, alone: bool) -> ScoreStore | None:
    """Sum scores over processes by example id and write one store, by process 0.

    Args:
        output_dir: The store's folder.
        facts: The store's manifest.
        alone: Whether other processes may be gone; then process 0 writes only its own scores.

    Returns:
        The store, on process 0; None on others.
    """
    sums, names = run.sums, run.example_names
    all_names = dict(names) | run.queries.names
    described = run.descriptions.gather(alone=alone)
    if num_processes() > 1 and not alone:
        for of_process in gather_objects(dict(names)):
            all_names |= of_process
        reduced = _reduced(sums)
        if reduced is None:
            return None
        sums = reduced
    elif process_rank() > 0:
        return None
    ids, scores = sums.sorted()
    offsets = None
    if sums.is_ragged:
        assert isinstance(sums.candidates, Mapping)
        counts = [len(sums.candidates[query]) for query in sums.query_ids]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    query_ids = np.array(sums.query_ids, dtype=np.int64)
    answers = run.answers.record(query_ids)
    ledger = None if run.ledger is None else run.ledger.ledger(query_ids, answers)
    check = run.refresher.probabilities
    doubts = find_doubts(scores, ledger, offsets, query_ids, () if check is None else check.negative)
    examples, queries = run.descriptions.texts(described, np.unique(ids), query_ids)
    return ScoreStore.write(
        output_dir, ids, query_ids, scores,
        {**facts, "doubts": doubts, "processes_in_store": 1 if alone else num_processes()},
        candidate_offsets=offsets, ledger=ledger, answers=answers, names=all_names, examples=examples, queries=queries,
    )  # fmt: skip


def _reduced(sums: ScoreAccumulator) -> ScoreAccumulator | None:
    """Sum over all processes by example id, on process 0; by ranges of rows, so that memory stays bounded."""
    ids, scores = sums.sorted()
    given = gather_objects((sums.keys, len(ids)))
    keys = sorted({Sum(*key) for keys, _ in given for key in keys}, key=tuple)
    longest = max(count for _, count in given)
    total = None
    if process_rank() == 0:
        total = ScoreAccumulator((), sums.query_ids, sums.dtype, sums.candidates, sums.make_zeros)
    shape = () if sums.is_ragged else (len(sums.query_ids),)
    step = max(1, RANGE_BYTES // (max(1, math.prod(shape)) * sums.dtype.itemsize))
    for key in keys:
        for start in range(0, longest, step):
            rows = np.arange(min(start, len(ids)), min(start + step, len(ids)))
            values = np.zeros((len(rows), *shape)) if key not in scores else scores[key][rows]
            all_ids = gather_rows(torch.from_numpy(ids[rows]))
            all_values = gather_rows(torch.from_numpy(values).to(sums.dtype))
            if total is None or all_ids is None or all_values is None:
                continue
            for ids_there, values_there in zip(all_ids, all_values, strict=True):
                total.add_rows(key, ids_there, values_there, start)
    return total
