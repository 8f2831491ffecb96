"""How much faster tail-patch is than one full step at a time.

    python benchmarks/tail_patch.py RUN --store online --kind learning

Takes the learned queries' best examples from a finished run of FactLM, and one SGD step on each. Times, in one process:
a loop over pairs (copy the model, backward, step, forward), a loop over examples with one backward pass each and all
their queries in one forward pass, and ``tail_patch`` with several memory budgets; the best of two times, and the ratio
to the first. The larger the model, the smaller the ratio: every example needs weights of its own, and to move those is
what a step costs at least.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ftrace.attribution.task import peak_memory_bytes
from ftrace.evaluation.tail_patch import Sgd, tail_patch
from ftrace.models import FactLM
from ftrace.runs import Run
from ftrace.scores import ScoreStore

BUDGETS = (16 * 2**20, 128 * 2**20, 2**30)
MEBI = 2**20
REPEATS = 2


def one_by_one(model: FactLM, run: Run, groups: dict[int, list[int]], rate: float) -> dict[tuple[int, int], float]:
    """A copy of the model and a step for each example; the probability of each of its queries after it."""
    collate: Any = run.data.query_dataloader().collate_fn
    place = {query: index for index, query in enumerate(run.data.query_rows["query_id"])}
    found: dict[tuple[int, int], float] = {}
    for example, queries in groups.items():
        patched = copy.deepcopy(model)
        optimizer = torch.optim.SGD(patched.parameters(), lr=rate)
        patched.training_loss(collate([run.data.train_rows[example]])).backward()
        optimizer.step()
        with torch.no_grad():
            losses = patched.example_losses(collate([run.data.query_rows[place[query]] for query in queries]))
        found |= {(query, example): float((-loss).exp()) for query, loss in zip(queries, losses, strict=True)}
    return found


def by_pair(model: FactLM, run: Run, pairs: Sequence[tuple[int, int]], rate: float) -> dict[tuple[int, int], float]:
    """A copy of the model and a step for each pair."""
    found: dict[tuple[int, int], float] = {}
    for query, example in pairs:
        found |= one_by_one(model, run, {example: [query]}, rate)
    return found


def main() -> None:
    """Time and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="Log folder of a finished run.")
    parser.add_argument("--store", default="online", help="Name of a score store in it.")
    parser.add_argument("--kind", help="Which kind of scores.")
    parser.add_argument("--k", type=int, default=10, help="How many examples of each query.")
    parser.add_argument("--pairs", type=int, default=400, help="How many pairs the loop over pairs takes.")
    parser.add_argument("--rate", type=float, default=1e-3, help="Learning rate.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    run, store = Run(arguments.run), ScoreStore.open(arguments.run / arguments.store)
    model = run.model
    top = {query: store.top(query, arguments.k, arguments.kind)[0].tolist() for query in run.learned_queries()}
    pairs = [(query, example) for query, examples in top.items() for example in examples]
    groups: dict[int, list[int]] = {}
    for query, example in pairs:
        groups.setdefault(example, []).append(query)

    console, table = (
        Console(width=100),
        Table("how", "pairs", "CPU s", "pairs per CPU s", "ratio", "largest difference"),
    )
    first = 0.0
    reference: dict[tuple[int, int], float] = {}

    def timed(name: str, count: int, work: Callable[[], dict[tuple[int, int], float]]) -> None:
        nonlocal first
        each = []
        for _ in range(REPEATS):
            begin = time.process_time()
            found = work()
            each.append(time.process_time() - begin)
        seconds = min(each)
        first = first or count / seconds
        common = found.keys() & reference.keys()
        difference = max((abs(found[pair] - reference[pair]) for pair in common), default=0.0)
        reference.update({pair: value for pair, value in found.items() if pair not in reference})
        cells = [f"{seconds:.2f}", f"{count / seconds:.0f}", f"{count / seconds / first:.1f}", f"{difference:.1e}"]
        table.add_row(name, str(count), *cells)

    def patched(budget: int) -> dict[tuple[int, int], float]:
        found = tail_patch(model, run.data, np.array(pairs), Sgd(arguments.rate), budget)
        return dict(
            zip(zip(found.query_ids.tolist(), found.example_ids.tolist(), strict=True), found.after, strict=True)
        )

    some = pairs[: arguments.pairs]
    timed("loop over pairs", len(some), lambda: by_pair(model, run, some, arguments.rate))
    timed("loop over examples", len(pairs), lambda: one_by_one(model, run, groups, arguments.rate))
    for budget in BUDGETS:
        timed(f"tail_patch, {budget // MEBI:,} MiB", len(pairs), lambda budget=budget: patched(budget))  # type: ignore[misc]
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{size:,} parameters, {len(pairs)} pairs of {len(groups)} examples and {len(top)} queries")
    console.print(table)
    console.print(f"peak memory of the process: {peak_memory_bytes(torch.device('cpu')) / MEBI:,.0f} MiB")


if __name__ == "__main__":
    main()
