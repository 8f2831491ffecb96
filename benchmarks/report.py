"""How long a report takes to make, how large it is and how much memory it takes, by the size of what it is of.

    python benchmarks/report.py
    python benchmarks/report.py --examples 5000 --queries 50 --out report

Texts and scores are drawn (``drawn_stores.py``), in a process of their own, so that the memory is the report's alone.
``report_in_browsers.py`` measures what a reader then waits for.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from drawn_stores import METHODS, open_stores, write_stores
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from ftrace.report.explorer.content.content import Content, ContentSettings
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.report.explorer.page.chunks import encode_chunk, island
from ftrace.report.explorer.page.writing import write_report
from ftrace.views import StoreSource


class _Clock:
    """Seconds, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def spent_on(self, what: str) -> None:
        """Book the time since the last call."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0) + now - self._last
        self._last = now

    def chunks(self, chunks: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Book the time in which chunks are made, and that in which they are written."""
        for name, chunk in chunks:
            self.spent_on(f"making {name.partition('-')[0]}")
            yield name, chunk
            self.spent_on(f"encoding {name.partition('-')[0]}")


def main(
    examples: int = 100_000,
    queries: int = 1_000,
    words: int = 35,
    k: int = 100,
    opponents: int = 20,
    seed: int = 0,
    stores: str | None = None,
    out: str | None = None,
) -> None:
    """Make a report, and print what it took.

    Args:
        examples: Number of examples.
        queries: Number of queries.
        words: Words of a text, on average.
        k: Proponents of each method.
        opponents: Opponents of each method.
        seed: Of texts and scores.
        stores: Where the stores are kept, or were kept before; default: a temporary folder.
        out: Where the report is kept; default: a temporary folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(stores or temporary)
        clock = _Clock()
        if not (folder / METHODS[-1]).is_dir():
            drawing = get_context("spawn").Process(target=write_stores, args=(folder, examples, queries, words, seed))
            drawing.start()
            drawing.join()
        clock.spent_on("drawing texts and scores")
        sources = [StoreSource(store) for store in open_stores(folder)]
        ranked = RankedQueries(sources, sources[0].query_ids, k, opponents)
        clock.spent_on("ranking")
        content = Content(ranked, "benchmark", ContentSettings())
        clock.spent_on("reading texts")
        sizes: dict[str, int] = {}

        def size_of(name: str, chunk: Mapping[str, Any]) -> int:
            sizes[name] = len(island(name, encode_chunk(chunk)))
            return sizes[name]

        estimate = content.estimated_size(size_of)
        clock.spent_on("estimating the size")
        written = write_report(
            Path(out or Path(temporary) / "report"), clock.chunks(content.chunks()), title="benchmark"
        )
        clock.spent_on("putting it in its place")
        whole = written if written.name != "index.html" else written.parent
        size = sum(file.stat().st_size for file in ([whole] if whole.is_file() else whole.rglob("*")) if file.is_file())
        of_queries = [bytes_ for name, bytes_ in sizes.items() if name.startswith("query")]
    table = Table("", "seconds", title=f"{examples:,} examples x {queries:,} queries x {len(METHODS)} methods")
    for what, seconds in clock.seconds.items():
        table.add_row(what, f"{seconds:.1f}")
    spent = sum(clock.seconds.values()) - clock.seconds["drawing texts and scores"]
    table.add_row("all but drawing", f"{spent:.1f}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{size / 1e6:.1f} MB, estimated as {estimate / 1e6:.1f} MB; {np.mean(of_queries) / 1e3:.0f} kB a query; "
        f"{content.num_examples:,} examples listed; {memory:.1f} GiB of memory at most, mapped "
        "files included"
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
