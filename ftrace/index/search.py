"""Exact search: all rows are multiplied with the queries, a chunk at a time, so memory doesn't grow with the index.

An example may have several rows: in several segments, or several times in one. Their scores are added up, as TracIn
sums over checkpoints (Pruthi et al. 2020, arXiv 2002.08484, eq. 1), so rows are taken by ranges of ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ftrace.index.gradient_index import GradientIndex
from ftrace.index.segment import Segment
from ftrace.index.whitening import Whitening
from ftrace.whole_files import whole_file

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class SegmentQueries:
    """What rows of one segment are multiplied with.

    Args:
        vectors: ``[Q, D]``, over the queries' own norms where these count.
        norms: Of the rows, ``[N]``; None where they don't count.
        weighted: Whether rows count by their weights.
    """

    vectors: Tensor
    norms: np.ndarray | None = None
    weighted: bool = False


def prepare_queries(
    segment: Segment, rows: Tensor, whitening: Whitening, cache: Path, *, unit_norm: bool = True, weighted: bool = False
) -> SegmentQueries:
    """Make ready for search what queries' gradients are at a segment's weights.

    Args:
        segment: The segment.
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
    """``|R^(-1/2) phi_z|`` of all rows of a segment, ``[N]``: one pass, kept on disk. It checks the shards as well.

    Raises:
        ValueError: If a shard is damaged.
    """
    file = cache / f"{segment.folder.name}-{whitening.key}.npy"
    with suppress(OSError, ValueError, EOFError):
        found: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        newer = file.stat().st_mtime_ns >= (segment.folder / "segment.json").stat().st_mtime_ns
        if newer and found.shape == (len(segment),):
            return found
    made: np.ndarray = np.empty(len(segment), np.float64 if segment.is_double else np.float32)
    done = 0  # into memory of its own: small results between large ones would keep the latter's from the system
    for shard in segment.shards:
        shard.check()
        step = max(1, CHUNK_BYTES // (4 * shard.size))
        for start in range(0, shard.num_rows, step):
            rows = shard.rows(start, start + step)
            made[done : done + len(rows)] = whitening.norms(rows).numpy()
            done += len(rows)
    with suppress(OSError):  # an index may lie where nothing can be written
        cache.mkdir(exist_ok=True)
        with whole_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, made)
    return made


def scored_chunks(
    index: GradientIndex, queries: Sequence[SegmentQueries], chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Scores of all examples, in the order of their ids.

    Args:
        index: The index.
        queries: For each segment, what its rows are multiplied with.
        chunk_bytes: Of rows that are in memory at a time, about. Scores don't depend on it.

    Yields:
        Ids, int64 ``[n]``, ascending and each once, and scores ``[n, Q]``.
    """
    each = max(1, chunk_bytes // (4 * index.size) // len(index.segments))
    taken = [0] * len(index.segments)
    while any(place < len(segment) for place, segment in zip(taken, index.segments, strict=True)):
        ahead = [(s, place) for s, place in zip(index.segments, taken, strict=True) if place < len(s)]
        bound = min(_id_at(s, min(place + each, len(s)) - 1) for s, place in ahead)
        ids, scores = [], []
        for number, (segment, of_segment) in enumerate(zip(index.segments, queries, strict=True)):
            start, stop = taken[number], _first_after(segment, bound, taken[number])
            taken[number] = stop
            for first in range(start, stop, each):  # many rows of one example
                places = _places(segment, first, min(first + each, stop))
                ids.append(np.asarray(segment.ids[places]))
                scores.append(score_places(segment, of_segment, places))
        all_ids, all_scores = np.concatenate(ids), torch.cat(scores)
        if len(all_ids) == 1 or (np.diff(all_ids) > 0).all():
            yield all_ids, all_scores
        else:
            unique, inverse = np.unique(all_ids, return_inverse=True)
            total = all_scores.new_zeros(len(unique), all_scores.shape[1])
            yield unique, total.index_add_(0, torch.from_numpy(inverse), all_scores)


def score_places(segment: Segment, queries: SegmentQueries, places: np.ndarray) -> Tensor:
    """Scores ``[n, Q]`` of rows in some places of a segment."""
    rows = segment.rows_at(places)
    scores = rows @ queries.vectors.to(rows).T
    factors = np.ones(len(places), np.float64)
    if queries.norms is not None:
        factors /= np.maximum(queries.norms[places], np.finfo(np.float32).tiny)
    if queries.weighted:
        factors *= segment.weights[places]
    return scores * torch.from_numpy(factors).to(scores).unsqueeze(1)


def _places(segment: Segment, start: int, stop: int) -> np.ndarray:
    """Places of rows from one to another by the order of ids."""
    return np.arange(start, stop) if segment.order is None else np.asarray(segment.order[start:stop])


def _id_at(segment: Segment, place: int) -> int:
    return int(segment.ids[place if segment.order is None else segment.order[place]])


def _first_after(segment: Segment, bound: int, start: int) -> int:
    """The first place by the order of ids, from one on, of a row with an id above a bound: by bisection, on disk."""
    low, high = start, len(segment)
    while low < high:
        middle = (low + high) // 2
        if _id_at(segment, middle) <= bound:
            low = middle + 1
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Found:
    """The strongest examples of each query.

    Args:
        ids: int64 ``[Q, k]``, strongest first; ties by id.
        scores: ``[Q, k]``.
    """

    ids: np.ndarray
    scores: np.ndarray


def top_k(
    index: GradientIndex, queries: Sequence[SegmentQueries], k: int, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Found, Found]:
    """The strongest proponents and opponents of each query, exactly.

    Args:
        index: The index.
        queries: For each segment, what its rows are multiplied with.
        k: How many; all, where there are fewer examples.
        chunk_bytes: As in :func:`scored_chunks`.

    Raises:
        ValueError: If k is less than 1.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    best: list[tuple[Tensor, Tensor] | None] = [None, None]
    for ids, scores in scored_chunks(index, queries, chunk_bytes):
        for side, sign in enumerate((1, -1)):
            best[side] = _merged(best[side], torch.from_numpy(ids), sign * scores.T, k)
    proponents, opponents = best
    assert proponents is not None
    assert opponents is not None
    return Found(proponents[0].numpy(), proponents[1].numpy()), Found(opponents[0].numpy(), -opponents[1].numpy())


def _merged(best: tuple[Tensor, Tensor] | None, ids: Tensor, scores_Qn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best of what there was and of a chunk, whose ids are larger: so a stable order keeps ties by id."""
    if best is not None and best[1].shape[1] == k:  # ties go to smaller ids, which came before
        better = (scores_Qn > best[1][:, -1:]).any(0)
        if not better.any():
            return best
        ids, scores_Qn = ids[better], scores_Qn[:, better]
    ids_Qn = ids.expand(len(scores_Qn), -1)
    if scores_Qn.shape[1] > 8 * k:  # few can be among the best: all that are not below the k-th
        least = scores_Qn.topk(k, dim=1).values[:, -1:]
        most = int((scores_Qn >= least).sum(1).max())
        order = torch.sort((scores_Qn < least).to(torch.uint8), dim=1, stable=True).indices[:, :most]
        ids_Qn, scores_Qn = ids_Qn.gather(1, order), scores_Qn.gather(1, order)
    if best is not None:
        ids_Qn, scores_Qn = torch.cat([best[0], ids_Qn], 1), torch.cat([best[1], scores_Qn], 1)
    order = torch.sort(scores_Qn, dim=1, descending=True, stable=True).indices[:, :k]
    return ids_Qn.gather(1, order), scores_Qn.gather(1, order)
