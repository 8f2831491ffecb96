"""What rankings miss because of facts that mirror each other.

    python benchmarks/mirrored.py runs/studies/runs/T5/seed-? --stores online embed tracin-all

Two facts of FTRACE-SYNTH mirror each other if one says of A and B what the other says of B and A. Models take them for
one another while they learn, and rankings follow (``displaced.py`` asks whether they are right to). Reports the report
half of the learned queries: all of them, those whose fact has a mirror, and the others.
"""

from __future__ import annotations

import argparse
import re

import numpy as np
from rich.console import Console
from rich.table import Table

from ftrace.commands.evaluate import compare
from ftrace.evaluation.formatting import with_interval
from ftrace.evaluation.retrieval import Evaluation, over_runs
from ftrace.runs import Run
from ftrace.scores import ScoreStore

METRICS = ("MRR", "P@10", "R@n")
FACT = re.compile(r"(r\d+)-(e\d+)-(e\d+)")


def has_mirror(run: Run, facts: tuple[str, ...]) -> np.ndarray:
    """Which facts have a mirror among those that the run was trained on, bool."""
    trained = {fact for of_row in run.data.train_rows["facts"] for fact in of_row}
    return np.array([FACT.sub(r"\1-\3-\2", fact) in trained for fact in facts])


def main() -> None:
    """Evaluate and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", help="Log folders of runs on FtraceSynth.")
    parser.add_argument("--stores", nargs="+", default=["online"], help="Names of score stores in each run's folder.")
    arguments = parser.parse_args()
    runs = [Run(folder) for folder in arguments.runs]
    stores = [{name: ScoreStore.open(run.folder / name) for name in arguments.stores} for run in runs]
    whole = over_runs(compare(one, run) for one, run in zip(stores, runs, strict=True)).in_half("report")
    masks = [has_mirror(run, own.queries.facts) for run, own in zip(runs, whole.runs, strict=True)]
    table = Table("queries", "scores", *METRICS)
    groups = {"all": [np.ones_like(mask) for mask in masks], "mirrored": masks, "others": [~mask for mask in masks]}
    for name, of_runs in groups.items():
        kept = [(own, mask) for own, mask in zip(whole.runs, of_runs, strict=True) if mask.any()]
        if not kept:
            continue
        part = Evaluation(tuple(own.where(mask) for own, mask in kept))
        count = sum(int(mask.sum()) for _, mask in kept)
        for row, estimates in part.estimates.items():
            table.add_row(f"{count} {name}", row, *[with_interval(estimates[metric]) for metric in METRICS])
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
