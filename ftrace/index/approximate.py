"""Approximate search with faiss, for indexes that are too large to read for each search (pip install ftrace[faiss]).

A faiss index holds one task's whitened rows of unit norm, in eight bits a number, in lists by nearest centroid; a
search looks into some of the lists. What it finds is scored again with the exact rows, so scores are exact, and only
the choice of examples is approximate: its recall is measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ftrace.arguments import Positive, checked
from ftrace.index.gradient_index import GradientIndex
from ftrace.index.kept_files import is_kept, keep
from ftrace.index.search import SegmentQueries, TopExamples, score_rows
from ftrace.index.settings import ApproximateSettings
from ftrace.index.whitening import Whitening

_ROWS_AT_A_TIME = 4096
_TRAINING_ROWS_OF_A_LIST = 64
_CANDIDATES = 4  # that are scored exactly for each example that is asked for


def open_approximate(index: GradientIndex, whitening: Whitening, settings: ApproximateSettings) -> Any:
    """Open the faiss index of a task; it is made where there is none, and kept in the index's folder.

    Args:
        index: Of one segment, with one row for each example.
        whitening: Of the task.
        settings: How many lists there are, and how many a search looks into.

    Raises:
        ValueError: If faiss is not installed, or an example may have several rows.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError("approximate search needs faiss: pip install ftrace[faiss]") from error
    if len(index.segments) > 1 or index.segments[0].manifest["examples"] < len(index.segments[0]):
        raise ValueError(
            "approximate search: expected one row for each example, found several, whose scores add up. Leave "
            "--approximate out"
        )
    segment = index.segments[0]
    if settings.lists is not None and settings.lists > len(segment):
        raise ValueError(f"lists: expected at most {len(segment)}, as there are rows, found {settings.lists}")
    lists = settings.lists or max(1, min(len(segment) // _TRAINING_ROWS_OF_A_LIST, round(4 * len(segment) ** 0.5)))
    folder = index.folder / "approximate"
    file = folder / f"{whitening.key}-{lists}.faiss"
    opened: Any
    if is_kept(file, segment, at_once=False):
        opened = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    else:
        for _ in segment.checked_shards():  # what is made of damaged rows would be kept
            pass
        generator = np.random.default_rng(0)
        count = min(len(segment), lists * _TRAINING_ROWS_OF_A_LIST)
        sample = np.sort(generator.choice(len(segment), count, replace=False))
        opened = faiss.index_factory(index.size, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        opened.train(_white_rows(segment.rows_at(sample), whitening))
        for start in range(0, len(segment), _ROWS_AT_A_TIME):
            rows = segment.rows(start, min(start + _ROWS_AT_A_TIME, len(segment)))
            opened.add(_white_rows(rows, whitening))
        with keep(file, segment) as temporary:
            faiss.write_index(opened, str(temporary))
    opened.nprobe = min(settings.probes, lists)
    return opened


def _white_rows(rows: torch.Tensor, whitening: Whitening) -> np.ndarray:
    white = whitening.white(rows.float())
    normalized: np.ndarray = torch.nn.functional.normalize(white, dim=1).numpy()
    return normalized


@checked
def approximate_top_k(
    index: GradientIndex, opened: Any, queries: SegmentQueries, white_queries: torch.Tensor, k: Positive
) -> tuple[TopExamples, TopExamples]:
    """Find each query's strongest proponents and opponents among the lists that are searched.

    Args:
        index: Of one segment.
        opened: As :func:`open_approximate` returns it.
        queries: What rows are multiplied with, for exact scores.
        white_queries: The queries' whitened rows, ``[Q, D]``.
        k: How many.

    Returns:
        Exact scores of what was found; ids -1 and scores NaN where a query's lists held fewer than k.
    """
    segment = index.segments[0]
    strongest = []
    for sign in (1, -1):
        wanted = min(_CANDIDATES * k, len(segment))
        _, positions = opened.search(sign * white_queries.float().numpy(), wanted)
        ids = np.full((len(positions), k), -1, np.int64)
        scores = np.full((len(positions), k), np.nan, np.float32)
        for query, of_query in enumerate(positions):
            candidates = np.unique(of_query[of_query >= 0])
            if not len(candidates):
                continue
            exact = sign * score_rows(segment, queries, candidates)[:, query].numpy()
            order = np.argsort(-exact, kind="stable")[:k]
            ids[query, : len(order)] = segment.ids[candidates[order]]
            scores[query, : len(order)] = sign * exact[order]
        strongest.append(TopExamples(ids, scores))
    return strongest[0], strongest[1]


def recall(approximate: TopExamples, exact: TopExamples) -> float:
    """Compute the recall of the exact top k, averaged over queries.

    Example:
        >>> ids, scores = np.array([[1, 2]]), np.array([[0.5, 0.25]])
        >>> recall(TopExamples(np.array([[1, 7]]), scores), TopExamples(ids, scores))
        0.5
    """
    pairs = zip(approximate.ids, exact.ids, strict=True)
    return float(np.mean([len(np.intersect1d(found, wanted)) / len(wanted) for found, wanted in pairs]))
