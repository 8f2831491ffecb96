"""Exact search: all rows are multiplied with the queries, a chunk at a time, so memory doesn't grow with the index.

An example may have several rows: in several segments, or several times in one. Their scores are summed, as TracIn sums
over checkpoints (Pruthi et al. 2020, arXiv 2002.08484, eq. 1), so rows are taken by ranges of ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ftrace.arguments import Positive, checked
from ftrace.index.gradient_index import GradientIndex
from ftrace.index.kept_files import is_kept, keep
from ftrace.index.running_top import RunningTop
from ftrace.index.segment import Segment
from ftrace.index.whitening import Whitening
from ftrace.progress import progress, track

CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SegmentQueries:
    """The queries of one segment, ready to be multiplied with its rows.

    Args:
        vectors: ``[Q, D]``, divided by the queries' norms if scores are cosines.
        norms: Of the rows, ``[N]``; None if scores are no cosines.
        weighted: Whether rows count by their weights.
    """

    vectors: Tensor
    norms: np.ndarray | None = None
    weighted: bool = False


def prepare_queries(
    segment: Segment, rows: Tensor, whitening: Whitening, cache: Path, *, unit_norm: bool = True, weighted: bool = False
) -> SegmentQueries:
    """Prepare queries' rows at a segment's weights for search.

    Args:
        rows: The queries' rows, ``[Q, D]``.
        whitening: Of the task.
        cache: Folder in which rows' norms are kept.
        unit_norm: Whether both sides have their norms divided out.
        weighted: Whether rows count by their weights.
    """
    solved = whitening.solved(rows)
    if not unit_norm:
        return SegmentQueries(solved, None, weighted)
    norms = whitening.white(rows).norm(dim=1, keepdim=True)
    norms_of_rows = row_norms(segment, whitening, cache)
    return SegmentQueries(solved / norms.clamp(min=torch.finfo(norms.dtype).tiny), norms_of_rows, weighted)


def row_norms(segment: Segment, whitening: Whitening, cache: Path) -> np.ndarray:
    """Compute ``|R^(-1/2) phi_z|`` of all rows of a segment, ``[N]``: one pass, which checks shards; kept on disk.

    Raises:
        ValueError: If a shard is damaged.
    """
    file = cache / f"{segment.folder.name}-{whitening.key}.npy"
    if is_kept(file, segment):
        kept: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        return kept
    made: np.ndarray = np.empty(len(segment), np.float64 if segment.is_double else np.float32)
    done = 0  # into one array: small results between large ones would keep memory from being returned to the system
    for shard in track(segment.checked_shards(), "norms of rows, by shard", segment.num_shards):
        step = max(1, CHUNK_BYTES // (4 * shard.size))
        for start in range(0, shard.num_rows, step):
            rows = shard.rows(start, start + step)
            made[done : done + len(rows)] = whitening.norms(rows).numpy()
            done += len(rows)
    with suppress(OSError), keep(file, segment) as temporary, temporary.open("wb") as stream:
        np.save(stream, made)  # unless an index lies on a read-only disk
    return made


def scored_chunks(
    index: GradientIndex, queries: Sequence[SegmentQueries], chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Score all examples, in the order of their ids.

    Args:
        queries: For each segment, what its rows are multiplied with.
        chunk_bytes: Bytes of rows, and of their scores, in memory at a time, about. Scores don't depend on it.

    Yields:
        Ids, int64 ``[n]``, ascending and each once, and scores ``[n, Q]``.
    """
    num_queries = len(queries[0].vectors)
    each = max(1, chunk_bytes // (8 * index.size + 8 * num_queries) // len(index.segments))
    with progress("rows of the index", sum(map(len, index.segments))) as advance:
        for rows, ids, scores in _scored_ranges(index, queries, each):
            yield ids, scores
            advance(rows)


def _scored_ranges(
    index: GradientIndex, queries: Sequence[SegmentQueries], each: int
) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """Score examples by ranges of ids, of about ``each`` rows of a segment; with the number of rows of each range."""
    taken = [0] * len(index.segments)
    while any(start < len(segment) for start, segment in zip(taken, index.segments, strict=True)):
        ahead = [(s, start) for s, start in zip(index.segments, taken, strict=True) if start < len(s)]
        bound = min(_id_at(s, min(start + each, len(s)) - 1) for s, start in ahead)
        ids, scores, before = [], [], sum(taken)
        for number, (segment, of_segment) in enumerate(zip(index.segments, queries, strict=True)):
            start, stop = taken[number], _first_after(segment, bound, taken[number])
            taken[number] = stop
            for first in range(start, stop, each):  # many rows of one example
                positions = _positions_by_id(segment, first, min(first + each, stop))
                ids.append(np.asarray(segment.ids[positions]))
                scores.append(score_rows(segment, of_segment, positions))
        all_ids = np.concatenate(ids)
        all_scores = scores[0] if len(scores) == 1 else torch.cat([piece.T for piece in scores], 1).T
        if len(all_ids) == 1 or (all_ids[:-1] < all_ids[1:]).all():
            yield sum(taken) - before, all_ids, all_scores
        else:
            unique, inverse = np.unique(all_ids, return_inverse=True)
            total = all_scores.new_zeros(all_scores.shape[1], len(unique))
            summed = total.index_add_(1, torch.from_numpy(inverse), all_scores.T).T
            yield sum(taken) - before, unique, summed


def score_rows(segment: Segment, queries: SegmentQueries, positions: np.ndarray) -> Tensor:
    """Score the rows at some positions of a segment: ``[n, Q]``."""
    rows = segment.rows_at(positions)
    scores_Qn = queries.vectors.to(rows) @ rows.T  # a query's scores are contiguous, for what selects among them
    if queries.norms is None and not queries.weighted:
        return scores_Qn.T
    factors = np.ones(len(positions), np.float64)
    if queries.norms is not None:
        factors /= np.maximum(queries.norms[positions], np.finfo(np.float32).tiny)
    if queries.weighted:
        factors *= segment.weights[positions]
    return scores_Qn.mul_(torch.from_numpy(factors).to(scores_Qn)).T


def _positions_by_id(segment: Segment, start: int, stop: int) -> np.ndarray:
    """Find the positions of a range of rows in the order of ids."""
    return np.arange(start, stop) if segment.order is None else np.asarray(segment.order[start:stop])


def _id_at(segment: Segment, rank: int) -> int:
    return int(segment.ids[rank if segment.order is None else segment.order[rank]])


def _first_after(segment: Segment, bound: int, start: int) -> int:
    """Find the first rank in the order of ids, from ``start``, whose id is above a bound: by bisection, on disk."""
    low, high = start, len(segment)
    while low < high:
        middle = (low + high) // 2
        if _id_at(segment, middle) <= bound:
            low = middle + 1
        else:
            high = middle
    return low


@dataclass(frozen=True)
class TopExamples:
    """The strongest examples of each query, on one side.

    Args:
        ids: int64 ``[Q, k]``, strongest first; ties by id.
        scores: ``[Q, k]``.
    """

    ids: np.ndarray
    scores: np.ndarray


@checked
def top_k(
    index: GradientIndex, queries: Sequence[SegmentQueries], k: Positive, chunk_bytes: Positive = CHUNK_BYTES
) -> tuple[TopExamples, TopExamples]:
    """Find the strongest proponents and opponents of each query, exactly.

    Args:
        queries: For each segment, what its rows are multiplied with.
        k: How many; all if there are fewer examples.
        chunk_bytes: As in :func:`scored_chunks`.

    Raises:
        ValueError: If k is less than 1.
    """
    num_queries = len(queries[0].vectors)
    proponents, opponents = RunningTop(num_queries, k), RunningTop(num_queries, k, sign=-1)
    for ids, scores in scored_chunks(index, queries, chunk_bytes):
        smallest, largest = torch.aminmax(scores.T, dim=1)
        proponents.add(torch.from_numpy(ids), scores.T, largest)
        opponents.add(torch.from_numpy(ids), scores.T, smallest)
    return TopExamples(*proponents.result()), TopExamples(*opponents.result())
