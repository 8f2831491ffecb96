"""Does a false answer go away when what taught it is left out? Retrains the real demo without the strongest rows.

    python benchmarks/real_leave_out.py [RUN] [--methods online:learning bm25 random] [-k 20]

RUN is a run of configs/real_demo.yaml, whose rumours state something false about a few people. For each query whose
answer is false, the k strongest proponents by a method are left out, all queries' together, and the model is trained
again with as many steps. ``random`` leaves out as many rows by chance; ``false`` all rows that state the false answer,
the best that could be done. Printed are the mean probabilities of the false and the true answers, and for how many
people the false one is given. Four minutes a method on two cores; outcomes are kept in RUN/leave_out.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from ftrace.files.whole_files import whole_file
from ftrace.retraining.retrainer import Retrainer
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.scores import ScoreStore


def left_out(run: Run, method: str, queries: list[int], k: int) -> np.ndarray:
    """Return the ids of the rows that a method leaves out."""
    if method == "nothing":
        return np.zeros(0, np.int64)
    if method == "false":
        return np.unique(np.concatenate([run.data.proponents[query] for query in queries]))
    if method == "random":
        generator = np.random.default_rng(0)
        return generator.choice(len(run.data.train_rows), min(k * len(queries), len(run.data.train_rows)), False)
    name, _, kind = method.partition(":")
    store = ScoreStore.open(run.folder / name)
    return np.unique(np.concatenate([store.top(query, k, kind or store.kinds[0])[0] for query in queries]))


def outcome(run: Run, retrainer: Retrainer, method: str, k: int, queries: list[int]) -> dict[str, Any]:
    """Train without what a method leaves out, unless that is known, and return each query's loss and answer."""
    file = run.folder / "leave_out" / f"{method.replace(':', '-')}-{k}.json"
    if file.exists():
        known: dict[str, Any] = json.loads(file.read_text())
        return known
    without = left_out(run, method, queries, k)
    is_kept = ~np.isin(np.array(run.data.train_rows["example_id"]), without)
    found = retrainer.query_outcome(is_kept)
    facts = {"left_out": without.tolist(), "losses": found.losses.tolist(), "right": found.learned.tolist()}
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(facts))
    return facts


def main() -> None:
    """Retrain, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/real_demo", help="The run, or the folder of its versions.")
    parser.add_argument("--methods", nargs="+", default=["online:learning", "bm25", "random", "false"])
    parser.add_argument("-k", type=int, default=20, help="Rows for each false answer.")
    options = parser.parse_args()
    run = Run(newest_run(options.run))
    rows = list(run.data.query_rows)
    names = [str(row["name"]) for row in rows]
    false = [place for place, name in enumerate(names) if name.startswith("false")]
    true = [names.index(names[place].replace("false", "true")) for place in false]
    queries = [int(rows[place]["query_id"]) for place in false]
    retrainer = Retrainer(run, "steps")
    print("| left out | rows | stating it | p of the false answer | false given | p of the true answer | true given |")
    print("|---|---|---|---|---|---|---|")
    stating = left_out(run, "false", queries, options.k)
    for method in ("nothing", *options.methods):
        found = outcome(run, retrainer, method, options.k, queries)
        p, right = np.exp(-np.array(found["losses"])), np.array(found["right"])
        print(
            f"| {method} | {len(found['left_out'])} | {np.isin(found['left_out'], stating).sum()} "
            f"| {p[false].mean():.3f} | {right[false].sum()} of {len(false)} "
            f"| {p[true].mean():.3f} | {right[true].sum()} of {len(true)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
