"""What tracing costs beside plain training, step by step: the same steps of all ways of training take turns.

    python benchmarks/online_pairs.py
    python benchmarks/online_pairs.py --ways '["learning", "index"]' --runs 3

``online.py`` lets whole trainings take turns, between which a shared machine may change. Here each way trains in a
thread of its own, and the threads hand over before every step, so the n-th steps of all ways lie side by side. A run's
ratio is that of the sums of its steps, refreshes included; the table has the median of the runs and their range.
Model, ways, floor and limits are those of ``online.py``. Processor time counts what all threads of the process do.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from online import Way, floor_of, train
from random_gpt2 import Setting, matmul_rate, query_pass
from rich.console import Console
from rich.table import Table

WARM_UP = 10
PLAIN = Way("plain")
_DOT, _UPDATE, _LEARNING = (("scores", (kind,)) for kind in ("dot", "update", "learning"))
WAYS = {
    "projected": Way("projected, K=16, refresh 10", 16, 10, "1.10 plain, 1.03 floor"),
    "exact": Way("exact, refresh 1", None, 1, "1.12 floor"),
    "learning": Way("learning, K=16, refresh 10", 16, 10, "1.3 plain", (_LEARNING,)),
    "update": Way("update, K=16, refresh 10", 16, 10, "1.3 plain", (_UPDATE,)),
    "exact-dot": Way("exact dot, refresh 10", None, 10, "", (_DOT,)),
    "exact-update": Way("exact update, refresh 10", None, 10, "1.5 of exact dot", (_UPDATE,)),
    "index": Way("index, K=16, rank-1 V", 16, None, "1.05 plain", (("steps", ((10, 10**9),)),), True),
}
_STANDARD = Setting()
_ALL = ("projected", "exact", "learning", "update", "exact-dot", "exact-update", "index")


class Turns:
    """Turns of several threads, one after the other."""

    def __init__(self, count: int) -> None:
        self._left = list(range(count))
        self._changed = threading.Condition()
        self._current = 0

    def wait(self, number: int) -> None:
        """Wait until it is a thread's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._current == number)

    def hand_over(self, number: int, *, leaves: bool = False) -> None:
        """Let the next thread go on."""
        with self._changed:
            place = self._left.index(number)
            self._current = self._left[(place + 1) % len(self._left)]
            if leaves:
                self._left.remove(number)
            self._changed.notify_all()


class OneStepAtATime(pl.Callback):
    """Hands over before each step, and times what lies between.

    Attributes:
        wall: Seconds of each step.
        processor: Processor seconds of each step.
    """

    def __init__(self, turns: Turns, number: int) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self._turns, self._number = turns, number
        self._begun: tuple[float, float] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Note the previous step, and wait for the next turn."""
        self.note(pl_module)
        self._turns.hand_over(self._number)
        self._turns.wait(self._number)
        self._begun = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the last step."""
        self.note(pl_module)

    def note(self, pl_module: pl.LightningModule) -> None:
        """Note a step, once it has ended on a GPU, too."""
        if self._begun is not None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.wall.append(time.perf_counter() - self._begun[0])
            self.processor.append(time.process_time() - self._begun[1])
            self._begun = None


def paired(setting: Setting, ways: Sequence[Way], steps: int) -> list[OneStepAtATime]:
    """Train all ways, step by step in turn."""
    turns = Turns(len(ways))
    clocks = [OneStepAtATime(turns, number) for number in range(len(ways))]

    def run(number: int) -> None:
        turns.wait(number)
        try:
            train(setting, ways[number], steps + WARM_UP, WARM_UP, [clocks[number]])
        finally:
            turns.hand_over(number, leaves=True)

    with ThreadPoolExecutor(len(ways)) as pool:
        for future in [pool.submit(run, number) for number in range(len(ways))]:
            future.result()
    return clocks


def main(setting: Setting = _STANDARD, ways: Sequence[str] = _ALL, runs: int = 3, steps: int = 20) -> None:
    """Measure and print a table.

    Args:
        setting: What is trained.
        ways: Which ways of training: names of ``WAYS``.
        runs: How often all of them are trained.
        steps: Steps of a run that are timed, a multiple of 10.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    chosen = [PLAIN, *(WAYS[name] for name in ways)]
    ratios: dict[str, list[tuple[float, float, float]]] = {way.name: [] for way in chosen}
    floors: dict[str, list[float]] = {way.name: [] for way in chosen}
    for _ in range(runs):
        clocks = paired(setting, chosen, steps)
        passes, rate = query_pass(setting), matmul_rate(setting)
        plain = clocks[0]
        mean = statistics.mean(plain.wall[WARM_UP:])
        for way, clock in zip(chosen, clocks, strict=True):
            wall, processor = sum(clock.wall[WARM_UP:]), sum(clock.processor[WARM_UP:])
            usual = statistics.median(a / b for a, b in zip(clock.wall[WARM_UP:], plain.wall[WARM_UP:], strict=True))
            of_plain = wall / sum(plain.wall[WARM_UP:]), processor / sum(plain.processor[WARM_UP:]), usual
            ratios[way.name].append(of_plain)
            floors[way.name].append(of_plain[0] * mean / floor_of(setting, way, mean, passes, rate))
    table = Table("training", "of plain", "processor time, of plain", "median step, of plain", "of floor", "limits")
    for way in chosen:
        columns = [*zip(*ratios[way.name], strict=True), floors[way.name]]
        table.add_row(way.name, *map(_median_and_range, columns), way.limits)
    console = Console(width=170)
    console.print(setting, table)
    console.print(f"{runs} runs of {steps} steps after {WARM_UP}, {torch.get_num_threads()} threads: median (range)")


def _median_and_range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    auto_cli(main, as_positional=False)
