"""The score store of a run: sums of all processes, reduced by example id and written by process 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftrace.online.processes import gather_objects, gather_rows, num_processes, process_rank
from ftrace.online.scoring.accumulator import ScoreAccumulator
from ftrace.online.traced_run import TracedRun
from ftrace.scores import ScoreStore, Sum, find_doubts


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
    ids, arrays = sums.arrays()
    offsets = None
    if sums.is_ragged:
        assert isinstance(sums.candidates, Mapping)
        counts = [len(sums.candidates[query]) for query in sums.query_ids]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    query_ids = np.array(sums.query_ids, dtype=np.int64)
    ledger = None if run.ledger is None else run.ledger.ledger(query_ids)
    doubts = find_doubts(arrays, ledger, offsets)
    examples, queries = run.descriptions.texts(described, np.unique(ids), query_ids)
    return ScoreStore.write(
        output_dir, ids, query_ids, arrays,
        {**facts, "doubts": doubts, "processes_in_store": 1 if alone else num_processes()},
        candidate_offsets=offsets, ledger=ledger, names=all_names, examples=examples, queries=queries,
    )  # fmt: skip


def _reduced(sums: ScoreAccumulator) -> ScoreAccumulator | None:
    """Sum over all processes by example id, on process 0; one matrix after another, so that memory stays bounded."""
    ids, arrays = sums.arrays()
    keys = sorted({key for of_process in gather_objects(list(arrays)) for key in of_process}, key=tuple)
    all_ids = gather_rows(torch.from_numpy(ids))
    total = None
    if all_ids is not None:
        total = ScoreAccumulator((), sums.query_ids, sums.dtype, sums.candidates)
    for key in keys:
        empty = np.zeros((len(ids),) if sums.is_ragged else (len(ids), len(sums.query_ids)))
        values = torch.from_numpy(np.ascontiguousarray(arrays.get(Sum(*key), empty))).to(sums.dtype)
        all_values = gather_rows(values)
        if total is None or all_values is None or all_ids is None:
            continue
        for values_there, ids_there in zip(all_values, all_ids, strict=True):
            total.add_state({"ids": ids_there, "sums": [[*key, values_there]]})
    return total
