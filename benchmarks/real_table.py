"""The end of ``make real-demo``: the table with all methods, the dense one too, and where the pictures are.

python benchmarks/real_table.py [RUN]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ftrace.cli import main as ftrace
from ftrace.run_folder import newest_run

METHODS = ("online", "bm25", "dense", "tracin", "trackstar")  # `embed` has a row for each of thirty layers


def main() -> int:
    """Print the table, and a query beside two methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/real_demo", help="The run, or the folder of its versions.")
    run = newest_run(parser.parse_args().run)
    stores = [str(run / name) for name in METHODS if (run / name).exists()]
    code = ftrace(["evaluate", *stores])
    if not code:
        code = ftrace(["show", str(run / "online:learning"), str(run / "bm25"), "--query", "0", "-k", "4"])
    print("Where facts are read and written:", *sorted(Path(run, "causal", "joined").glob("*.png")), sep="\n  ")
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
