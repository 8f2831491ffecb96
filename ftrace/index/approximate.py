"""Approximate search with faiss, for indexes that are too large to read for each search (pip install ftrace[faiss]).

A faiss index holds one task's whitened rows of unit norm, in eight bits a number, in lists by nearest centroid; a
search looks into some of the lists. What it finds is scored anew with the exact rows, so scores are exact, and only
what is missed is approximate: how much, is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftrace.index.gradient_index import GradientIndex
from ftrace.index.search import Found, SegmentQueries, score_places
from ftrace.index.whitening import Whitening
from ftrace.whole_files import whole_file

_ROWS_AT_A_TIME = 4096
_TRAINING_ROWS_OF_A_LIST = 64
_MORE = 4  # candidates that are scored anew for each that is asked for


@dataclass(frozen=True)
class ApproximateSettings:
    """The options of approximate search.

    Raises:
        ValueError: If a number is less than 1.
    """

    lists: int | None = None
    """Into how many lists rows are sorted; default: four times the root of their number."""
    probes: int = 32
    """How many lists a search looks into."""

    def __post_init__(self) -> None:
        if (self.lists is not None and self.lists < 1) or self.probes < 1:
            raise ValueError(f"expected lists and probes of at least 1, found {self.lists} and {self.probes}")


def open_approximate(index: GradientIndex, whitening: Whitening, settings: ApproximateSettings) -> Any:
    """The faiss index of a task, made where there is none; kept in the index's folder.

    Args:
        index: Of one segment, with one row for each example.
        whitening: Of the task.
        settings: How approximate.

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
    newer = file.exists() and file.stat().st_mtime_ns >= (segment.folder / "segment.json").stat().st_mtime_ns
    if newer:
        opened = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    else:
        generator = np.random.default_rng(0)
        count = min(len(segment), lists * _TRAINING_ROWS_OF_A_LIST)
        sample = np.sort(generator.choice(len(segment), count, replace=False))
        opened = faiss.index_factory(index.size, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        opened.train(_white_rows(segment.rows_at(sample), whitening))
        for start in range(0, len(segment), _ROWS_AT_A_TIME):
            rows = segment.rows(start, min(start + _ROWS_AT_A_TIME, len(segment)))
            opened.add(_white_rows(rows, whitening))
        _keep(opened, file)
    opened.nprobe = min(settings.probes, lists)
    return opened


def _white_rows(rows: torch.Tensor, whitening: Whitening) -> np.ndarray:
    white = whitening.white(rows.float())
    found: np.ndarray = torch.nn.functional.normalize(white, dim=1).numpy()
    return found


def _keep(opened: Any, file: Path) -> None:
    import faiss

    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as temporary:
        faiss.write_index(opened, str(temporary))


def approximate_top_k(
    index: GradientIndex, opened: Any, queries: SegmentQueries, white_queries: torch.Tensor, k: int
) -> tuple[Found, Found]:
    """The strongest proponents and opponents of each query that some of the lists hold.

    Args:
        index: The index.
        opened: As :func:`open_approximate` gives it.
        queries: What rows are multiplied with, for exact scores.
        white_queries: The queries' whitened rows, ``[Q, D]``.
        k: How many.

    Returns:
        Exact scores of what was found; ids -1 and scores NaN where a query's lists held fewer than k.
    """
    segment = index.segments[0]
    found = []
    for sign in (1, -1):
        wanted = min(_MORE * k, len(segment))
        _, places = opened.search(sign * white_queries.float().numpy(), wanted)
        ids = np.full((len(places), k), -1, np.int64)
        scores = np.full((len(places), k), np.nan, np.float32)
        for query, of_query in enumerate(places):
            own = np.unique(of_query[of_query >= 0])
            if not len(own):
                continue
            exact = sign * score_places(segment, queries, own)[:, query].numpy()
            order = np.argsort(-exact, kind="stable")[:k]
            ids[query, : len(order)] = segment.ids[own[order]]
            scores[query, : len(order)] = sign * exact[order]
        found.append(Found(ids, scores))
    return found[0], found[1]


def recall(found: Found, exact: Found) -> float:
    """The share of the exact top k that was found, over all queries.

    Example:
        >>> ids, scores = np.array([[1, 2]]), np.array([[0.5, 0.25]])
        >>> recall(Found(np.array([[1, 7]]), scores), Found(ids, scores))
        0.5
    """
    shares = [len(np.intersect1d(own, others)) / len(others) for own, others in zip(found.ids, exact.ids, strict=True)]
    return float(np.mean(shares))
