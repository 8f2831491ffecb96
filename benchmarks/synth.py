"""Time and peak memory of generating FTRACE-SYNTH at its full size: 3,190,000 rows.

    python benchmarks/synth.py

Limits: 90 seconds and 4 GB on two cores. The floor beside it is writing the same rows with pyarrow alone, read back
from the file.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from ftrace.data import SynthSettings, write_synth


def main() -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = write_synth(Path(folder) / "synth", SynthSettings(), progress=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux

        rows = pq.read_table(path / "train.parquet")
        start = time.perf_counter()
        pq.write_table(rows, Path(folder) / "again.parquet")
        floor = time.perf_counter() - start
        size = (path / "train.parquet").stat().st_size / 2**20

    table = Table("rows", "seconds", "floor, seconds", "peak GB", "MB on disk")
    table.add_row(f"{len(rows):,}", f"{seconds:.1f}", f"{floor:.1f}", f"{peak:.2f}", f"{size:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
