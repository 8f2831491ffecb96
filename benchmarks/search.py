"""How long a search takes, against the size of the index; and that its memory doesn't grow with it.

    python benchmarks/search.py

Indexes of random rows are written, and searched for the ten strongest proponents and opponents of one query and of
100, in a process of its own for each size, whose peak memory is taken. The floor is one read of the rows from the
operating system's cache, and their products with the queries at the rate of a large matrix product.

Another table holds searches of a million short rows against the same matrix products and torch.topk on both sides, of
rows that are in memory already, in pieces of 64 MiB of scores. Both take turns; ratios are of pairs.

Limit: twice a plain product and selection, and memory that doesn't grow with queries x rows.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import nn

from ftrace.index import (
    FeatureSettings,
    GradientIndex,
    IndexSettings,
    Rows,
    SegmentQueries,
    WhiteningSettings,
    as_dtype,
    begin_index,
    close_segment,
    make_whitening,
    prepare_queries,
    readable,
    top_k,
    write_preconditioners,
    write_shard,
)

SHARD = 8192


def write_index(folder: Path, rows: int, side: int, blocks: int, dtype: str, *, repeated: bool = False) -> None:
    """An index of random rows; if ``repeated``, those of the first file are all others', too, which takes no time."""
    module = nn.ModuleList([nn.Linear(side, side, bias=False) for _ in range(blocks)])
    settings = IndexSettings(FeatureSettings(side, layout="parameter"), dtype, sample=2000)
    features = begin_index(folder, settings, module, [name for name, _ in module.named_parameters()], {})
    segment = folder / "segment-00000000"
    write_preconditioners(segment, {})
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(0, features.size)
    for start in range(0, rows, SHARD):
        count = min(SHARD, rows - start)
        ids = torch.arange(start, start + count)
        if not repeated or len(drawn) < count:
            drawn = torch.randn(count, features.size, generator=generator)
        given = Rows(drawn[:count], ids, torch.ones(count), ids * 0)
        write_shard(segment / f"shard-{start:08d}.safetensors", given, as_dtype(dtype))
    close_segment(segment, list(features.blocks), {"step": 0}, settings.sample, 0)


def _measure(folder: str, repeats: int, queue: Any) -> None:
    queue.put(measured(folder, repeats))


def measured(folder: str | Path, repeats: int) -> dict[str, float]:
    """Search an index; seconds, and bytes of memory that the process holds besides mapped files."""
    index = GradientIndex(folder)
    segment = index.segments[0]
    R = segment.autocorrelation()
    whitening = make_whitening({name: R[name] for name in index.blocks}, None, WhiteningSettings("train"))
    queries = torch.randn(100, index.size, generator=torch.Generator().manual_seed(1))
    started = time.perf_counter()
    prepared = prepare_queries(segment, queries, whitening, index.folder / "norms")
    found = {"norms": time.perf_counter() - started}
    for count in (1, 100):
        few = type(prepared)(prepared.vectors[:count], prepared.norms)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            top_k(index, [few], 10)
            seconds.append(time.perf_counter() - started)
        found[f"{count}"] = statistics.median(seconds)
    started = time.perf_counter()
    for shard in segment.shards:
        shard.column("rows").sum()
    found["read"] = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    (anonymous,) = (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
    found["memory"] = int(anonymous) * 1024
    return found


def _plainly(rows: torch.Tensor, queries: torch.Tensor, k: int) -> None:
    """Multiply, and select on both sides."""
    step = max(k, 2**26 // (4 * len(queries)))
    for start in range(0, len(rows), step):
        scores = queries @ rows[start : start + step].T
        for largest in (True, False):
            scores.topk(min(k, scores.shape[1]), dim=1, largest=largest)


def _compare(folder: str, counts: tuple[int, ...], repeats: int, queue: Any) -> None:
    index = GradientIndex(folder)
    segment = index.segments[0]
    rows = segment.rows(0, len(segment)).clone()
    found = {}
    for count in counts:
        queries = torch.randn(count, index.size, generator=torch.Generator().manual_seed(1))
        seconds = []
        for _ in range(repeats):
            times = []
            for run in (
                lambda q=queries: top_k(index, [SegmentQueries(q)], 10),
                lambda q=queries: _plainly(rows, q, 10),
            ):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
            seconds.append(times)
        found[count] = seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put((found, peak))


def compare_selection(rows: int, counts: tuple[int, ...], repeats: int, folder: str | None) -> Table:
    """Hold searches of short rows against plain products and selections."""
    table = Table("rows", "queries", "search, s", "plain, s", "search / plain, median", "range")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary) / "index"
        write_index(place, rows, 4, 1, "float32")
        queue = context.Queue()
        process = context.Process(target=_compare, args=(str(place), counts, repeats, queue))
        process.start()
        found, peak = queue.get(timeout=3000)
        process.join()
    for count, seconds in found.items():
        ratios = sorted(ours / plain for ours, plain in seconds)
        ours, plain = (statistics.median(column) for column in zip(*seconds, strict=True))
        table.add_row(
            f"{rows:,}", f"{count:,}", f"{ours:.2f}", f"{plain:.2f}", f"{statistics.median(ratios):.2f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        )  # fmt: skip
    table.caption = f"peak memory of the process, rows and torch included: {readable(peak)}"
    return table


def main(
    sizes: tuple[int, ...] = (12_500, 50_000, 200_000, 800_000),
    side: int = 16,
    blocks: int = 8,
    dtype: str = "float32",
    repeats: int = 3,
    folder: str | None = None,
    short_rows: int = 1_000_000,
    query_counts: tuple[int, ...] = (10, 100, 1000),
) -> None:
    """Measure and print a table.

    Args:
        sizes: Rows of each index.
        side: K.
        blocks: Of a row.
        dtype: Of rows on disk.
        repeats: Searches, of which the median is shown.
        folder: Where indexes are written; default: a temporary folder.
        short_rows: Rows of the second table's index.
        query_counts: Queries of its searches.
    """
    columns = ("rows", "on disk", "norms, once, s", "1 query, s", "100 queries, s", "a query of 100, ms")
    table = Table(*columns, "one read, s", "memory")
    context = multiprocessing.get_context("spawn")
    for rows in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            place = Path(temporary) / "index"
            write_index(place, rows, side, blocks, dtype)
            queue = context.Queue()
            process = context.Process(target=_measure, args=(str(place), repeats, queue))
            process.start()
            found = queue.get(timeout=3000)
            process.join()
            size = sum(file.stat().st_size for file in place.glob("segment-*/*"))
            table.add_row(
                f"{rows:,}", readable(size), f"{found['norms']:.2f}", f"{found['1']:.3f}", f"{found['100']:.3f}",
                f"{10 * found['100']:.1f}", f"{found['read']:.3f}", readable(found["memory"]),
            )  # fmt: skip
    console = Console(width=130)
    console.print(compare_selection(short_rows, query_counts, repeats, folder))
    if not sizes:
        return
    console.print(table)
    console.print(f"rows of {blocks * side**2:,} numbers, {dtype}; memory: what the process holds besides mapped files")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
