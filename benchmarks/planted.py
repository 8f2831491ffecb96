"""Is a wrong sentence found by somebody who has only the report? A task for a person and a clock.

    python benchmarks/planted.py planted --towns 60 --seed 7

Writes a corpus of right sentences about invented towns and a wrong one, trains a small model on it (some seconds for 12
towns, a minute or two for 60), and writes its report. Give ``planted/report.html`` to somebody who knows nothing of it:
"One sentence that this model was trained on is wrong, and the model believes it. Which one?" The limit is a minute. The
solution is in ``planted/solution.txt``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import command_line  # of the tests, which try the same
from helpers.planted_corpus import TOWNS, planted_run


def main() -> None:
    """Write the corpus, the run, its report and the solution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where everything goes: a new folder.")
    parser.add_argument("--towns", type=int, default=12, help=f"How many towns, up to {len(TOWNS)}.")
    parser.add_argument("--seed", type=int, default=0, help="Of the facts, and of which one is stated wrongly.")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    os.chdir(options.folder)
    planted = planted_run(Path(), options.seed, options.towns)
    if command_line.code("report", "runs/planted", "--out=report.html"):
        sys.exit("the report was not written")
    lines = Path("train.jsonl").read_text().splitlines()
    Path("solution.txt").write_text(
        f"query {planted.query_id}: {planted.wrong} in place of {planted.right}, by example {planted.example_id}:\n"
        f"{lines[planted.example_id]}\n"
    )


if __name__ == "__main__":
    main()
