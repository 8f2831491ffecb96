"""A search over ten gigabytes of rows: seconds, and gigabytes a second."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from search import SHARD, measured, write_index

from gpu_parts.findings import Finding
from gpu_parts.running import Given

SIDE, BLOCKS = 16, 8
ROWS_BYTES = 10 * 10**9


def search(given: Given) -> Iterator[Finding]:
    """Write an index of rows in bfloat16, and search it by the processor: its rows are mapped files."""
    rows = 2000 if given.tiny else ROWS_BYTES // (2 * BLOCKS * SIDE**2)
    gigabytes = rows * 2 * BLOCKS * SIDE**2 / 1e9
    with tempfile.TemporaryDirectory() as temporary:
        place, begun = Path(temporary) / "index", time.perf_counter()
        write_index(place, rows, SIDE, BLOCKS, "bfloat16", repeated=True)
        seconds = time.perf_counter() - begun
        about = {"rows": rows, "GB": gigabytes, "threads": torch.get_num_threads(), "files": -(-rows // SHARD)}
        yield Finding("writing", {"s": seconds, "GB/s": gigabytes / seconds, **about})
        found = measured(place, 1 if given.tiny else 3)
        names = {
            "norms": "norms of rows, once",
            "read": "one read",
            "1": "1 query, top 10",
            "100": "100 queries, top 10",
        }
        for key, name in names.items():
            yield Finding(name, {"s": found[key], "GB/s": gigabytes / found[key]})
        yield Finding("memory besides mapped files", {"GB": found["memory"] / 1e9})
