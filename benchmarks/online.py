"""What OnlineTracIn and GradientIndexWriter cost beside plain training, and beside the least that they could cost.

    python benchmarks/online.py
    python benchmarks/online.py --ways options
    python benchmarks/online.py --ways whitened
    python benchmarks/online.py --ways index --steps 60
    python benchmarks/online.py --setting.device cuda --setting.layers 12 --setting.width 768 \
        --setting.vocabulary 50257 --setting.batch_size 16 --setting.tokens 512 --setting.queries 128

A GPT-2 of random weights learns random tokens with AdamW. Plain training and training with OnlineTracIn (projected to
16 x 16, refresh every 10 steps; exact, refresh every step) take turns in one process; a table shows medians.
The floor is what no implementation can avoid: the plain step, the queries' pass without weight gradients, and the
operations of products and projections at the rate of a large matrix product. Peak memory is taken in processes of their
own, one for each way of training.

Before the first step, the training step is rehearsed to find out whose rows are whose, and a few times later on: the
table has the time of the first step and the passes in it.

An index has no queries while it is written: its floor is the plain step and the projections of the weights that it
sees. Its segment begins within the time that is measured, so that a snapshot is saved and second moments are factored.

Limits: projected, and with an index, 1.15 times plain and 1.05 times its floor; exact 1.25 times its floor.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse import auto_cli
from process_peaks import in_own_process, resident_peak_gib
from random_gpt2 import Setting, make_module, matmul_rate, query_pass, random_rows, weight_shapes, weights_of
from rich.console import Console
from rich.table import Table

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn, Whitening


@dataclass(frozen=True)
class Way:
    """A way of training: with OnlineTracIn, with GradientIndexWriter, or with neither."""

    name: str
    projection_side: int | None = None
    refresh: int | None = None
    limits: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    writes_index: bool = False

    def callbacks(self, setting: Setting, folder: str) -> list[pl.Callback]:
        """The callbacks that make it."""
        if self.writes_index:
            assert self.projection_side is not None
            place = Path(folder) / self.name.replace(" ", "-")
            return [GradientIndexWriter(place, projection_side=self.projection_side, **dict(self.options))]
        if self.refresh is None:
            return []
        loader = random_rows(setting, setting.queries, "query_id", seed=1)
        online = OnlineTracIn(
            loader,
            Path(folder) / self.name.replace(" ", "-"),
            query_losses=lambda module, batch: module.losses(batch),
            refresh_every_n_steps=self.refresh,
            projection_side=self.projection_side,
            **dict(self.options),
        )
        return [online]

    def weights(self, setting: Setting) -> dict[str, tuple[int, int]]:
        """The matrices that are covered, with their inputs and outputs."""
        globs = dict(self.options).get("parameters", ("*",))
        shapes = weights_of(setting)
        return {name: shape for name, shape in shapes.items() if any(fnmatchcase(name, glob) for glob in globs)}


_STANDARD = Setting()
_UPDATE = ("scores", ("update",))
_BOTH = ("scores", ("dot", "update", "cosine"))
_TRAPEZOID = ("integration", "trapezoid")
_FOLLOWED = ("momentum", "exact")
_WHITENED = ("scores", ("whitened",))
_FROM_STEP_10 = ("steps", ((10, 10**9),))
_UNDIVIDED = ("whitening", Whitening(preconditioner="none"))
WAYS = {
    "standard": (
        Way("plain"),
        Way("projected, K=16, refresh 10", 16, 10, "1.15 plain, 1.05 floor"),
        Way("exact, refresh 1", None, 1, "1.25 floor"),
    ),
    "options": (
        Way("plain"),
        Way("exact, refresh 1, no ledger", None, 1, "", (("ledger", False),)),
        Way("exact, refresh 10", None, 10),
        Way("exact, refresh 10, trapezoid", None, 10, "", (_TRAPEZOID,)),
        Way("exact, refresh 10, update", None, 10, "", (_UPDATE,)),
        Way("exact, refresh 10, all kinds", None, 10, "", (_BOTH,)),
        Way("projected, refresh 10, no ledger", 16, 10, "", (("ledger", False),)),
        Way("projected, refresh 10, trapezoid", 16, 10, "", (_TRAPEZOID,)),
        Way("projected, refresh 10, update", 16, 10, "", (_UPDATE,)),
        Way("projected, refresh 10, update, exact momentum", 16, 10, "", (_UPDATE, _FOLLOWED)),
    ),
    "index": (
        Way("plain"),
        Way("index, K=16, rank-1 V", 16, None, "1.15 plain, 1.05 floor", (_FROM_STEP_10,), True),
        Way("index, undivided", 16, None, "", (_FROM_STEP_10, ("preconditioner", "none")), True),
        Way("index, elementwise V", 16, None, "", (_FROM_STEP_10, ("preconditioner", "elementwise")), True),
    ),
    "whitened": (
        Way("plain"),
        Way("dot, K=16", 16, 10),
        Way("cosine, K=16", 16, 10, "", (("scores", ("cosine",)),)),
        Way("whitened, K=16", 16, 10, "", (_WHITENED,)),
        Way("whitened, K=16, undivided", 16, 10, "", (_WHITENED, _UNDIVIDED)),
        Way("whitened, K=8", 8, 10, "", (_WHITENED,)),
    ),
}


class StepTimes(pl.Callback):
    """When each step began; the last entry is when training ended.

    Args:
        waits: The steps before which a GPU is waited for; None: all.
    """

    def __init__(self, waits: Sequence[int] | None = None) -> None:
        self.times: list[float] = []
        self._waits = waits

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Look at the clock, before any other callback."""
        self._look(pl_module, self._waits is None or index in self._waits)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock for the last time."""
        self._look(pl_module, True)

    def _look(self, pl_module: pl.LightningModule, waits: bool) -> None:
        if waits and pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


@dataclass(frozen=True)
class Timing:
    """What one turn of training took.

    Args:
        step: Mean seconds of the steps that follow the first ones.
        first: Seconds of the very first step, before which the training step is rehearsed.
        forward: Forward passes of the training step that rehearsals have run without a backward pass.
        backward: Those with one.
        steps: Seconds of each step that follows the first ones.
        peak_gib: Peak memory of the turn, in GiB: the device's on CUDA; on a CPU 0, as a process has one peak.
        kept_gib: Memory that was in use once the turn had ended, likewise.
    """

    step: float
    first: float
    forward: int = 0
    backward: int = 0
    steps: tuple[float, ...] = ()
    peak_gib: float = 0.0
    kept_gib: float = 0.0


def rehearsed(folder: str) -> tuple[int, int]:
    """Passes that were run to find out whose rows are whose, as the manifests count them."""
    manifests = [*Path(folder).glob("*/manifest.json"), *Path(folder).glob("*/segment-*/segment.json")]
    if not manifests:
        return 0, 0
    manifest = json.loads(manifests[0].read_text())
    passes = manifest.get("rehearsals", manifest["rows"])["passes"]
    return passes.get("forward", 0), passes.get("backward", 0)


def train(
    setting: Setting,
    way: Way,
    steps: int,
    warm_up: int,
    observers: Sequence[pl.Callback] = (),
    waits_each_step: bool = True,
) -> Timing:
    """Train, and time it.

    Args:
        steps: How many.
        warm_up: How many of them aren't timed.
        observers: Callbacks that come first of all.
        waits_each_step: Whether each step begins when a GPU has finished the one before. Otherwise it is only waited
            for at both ends of the time that is measured, and ``steps`` of the result says nothing.
    """
    on_gpu = setting.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    module = make_module(setting)
    loader = random_rows(setting, steps * setting.batch_size, "example_id", seed=0)
    clock = StepTimes(None if waits_each_step else (0, 1, warm_up))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator=setting.device,
            devices=1,
            precision=setting.precision,
            callbacks=[*observers, clock, *way.callbacks(setting, folder)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        passes = rehearsed(folder)
    del module, trainer
    gc.collect()
    peak = kept = 0.0
    if on_gpu:  # what the allocator keeps of one way may be in pieces too small for the next
        torch.cuda.empty_cache()
        peak, kept = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.memory_allocated() / 2**30
    times = [end - begin for begin, end in pairwise(clock.times)]
    return Timing(statistics.mean(times[warm_up:]), times[0], *passes, tuple(times[warm_up:]), peak, kept)


def operations(setting: Setting, way: Way) -> tuple[float, float]:
    """Operations of the products, for each step and for each refresh, by the least that each weight takes."""
    B, T, Q, K = setting.batch_size, setting.tokens, setting.queries, way.projection_side
    step, refresh = 0.0, 0.0
    if way.writes_index:
        assert K is not None
        seen = weight_shapes(setting)[:-1]  # not the head
        return sum(2 * B * T * (size_in + size_out) * K + 2 * B * T * K**2 for size_in, size_out in seen), 0.0
    for size_in, size_out in way.weights(setting).values():
        if K is not None:
            step += 2 * B * T * (size_in + size_out) * K + 2 * B * T * K**2 + 2 * B * Q * K**2
            refresh += 2 * Q * T * (size_in + size_out) * K + 2 * Q * T * K**2
            continue
        gram = 2 * B * T * Q * T * (size_in + size_out)
        materialised = 2 * B * size_in * size_out * (T + Q)
        step += min(gram, materialised)
        refresh += 2 * Q * T * size_in * size_out if materialised < gram else 0
    return step, refresh


def floor_of(setting: Setting, way: Way, plain: float, passes: float, rate: float) -> float:
    """Seconds of the least that a step could take.

    Args:
        plain: Seconds of a plain step.
        passes: Seconds of the queries' pass.
        rate: Operations a second of a large matrix product.
    """
    if way.projection_side is None and way.refresh is None:
        return plain
    step, refresh = operations(setting, way)
    floor = plain + step / rate
    return floor if way.refresh is None else floor + (passes + refresh / rate) / way.refresh


def _peak_gib(setting: Setting, way: Way, queue: Any) -> None:
    """Peak memory of a process that trains for a few steps."""
    timing = train(setting, way, steps=3, warm_up=0)
    queue.put(timing.peak_gib if setting.device == "cuda" else resident_peak_gib())


def peak_gib(setting: Setting, way: Way) -> float:
    """Peak memory of training that way, in GiB: the device's on CUDA, else the process's (Linux only)."""
    return in_own_process(_peak_gib, setting, way)


def main(
    setting: Setting = _STANDARD,
    ways: Literal["standard", "options", "whitened", "index"] = "standard",
    rounds: int = 3,
    steps: int = 20,
    memory: bool = True,
) -> None:
    """Measure and print a table.

    Args:
        setting: What is trained.
        ways: Which ways of training: the two that have limits, what each option costs, what whitening costs, or what an
            index costs.
        rounds: How often each way of training takes its turn.
        steps: Steps of a turn that are timed, a multiple of 10.
        memory: Measure peak memory too.
    """
    turns: dict[str, list[Timing]] = {way.name: [] for way in WAYS[ways]}
    passes, rates = [], []
    for _ in range(rounds):
        for way in WAYS[ways]:
            turns[way.name].append(train(setting, way, steps + 10, warm_up=10))
        passes.append(query_pass(setting))
        rates.append(matmul_rate(setting))
    seconds = {name: [turn.step for turn in several] for name, several in turns.items()}
    plain = statistics.median(seconds["plain"])
    table = Table(
        "training", "ms a step", "min to max", "tokens/s", "of plain", "floor, ms", "of floor", "limits",
        "first step, of plain", "of these passes", "GiB",
    )  # fmt: skip
    for way in WAYS[ways]:
        first = statistics.median(turn.first for turn in turns[way.name])
        last = turns[way.name][-1]
        found = statistics.median(seconds[way.name])
        floor = floor_of(setting, way, plain, statistics.median(passes), statistics.median(rates))
        table.add_row(
            way.name,
            f"{1e3 * found:.1f}",
            f"{1e3 * min(seconds[way.name]):.1f} to {1e3 * max(seconds[way.name]):.1f}",
            f"{setting.batch_size * setting.tokens / found:,.0f}",
            f"{found / plain:.3f}",
            f"{1e3 * floor:.1f}",
            f"{found / floor:.3f}",
            way.limits,
            f"{first / plain:.1f}",
            f"{last.forward} forward, {last.backward} with backward" if last.forward + last.backward else "",
            f"{peak_gib(setting, way):.2f}" if memory else "",
        )
    console = Console(width=170)
    console.print(setting, table)
    console.print(
        f"queries' pass {1e3 * statistics.median(passes):.1f} ms; "
        f"large matrix product {statistics.median(rates) / 1e9:.0f} GFLOP/s; medians of {rounds} turns of {steps} steps"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    auto_cli(main, as_positional=False)
