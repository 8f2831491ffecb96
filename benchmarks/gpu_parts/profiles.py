"""Where the time of a traced step goes: launches, the GPU's busy time, the longest kernels, operators and functions."""

from __future__ import annotations

import bisect
import cProfile
import io
import pstats
import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from online import Way, train
from torch.profiler import ProfilerActivity

from gpu_parts.findings import Finding
from gpu_parts.launch_lines import LaunchLines
from gpu_parts.online_costs import INDEX, LEARNING, PLAIN, PROJECTED, gpt2_setting
from gpu_parts.running import Given

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaGraphLaunch")
FIRST, REFRESH, LAST = 18, 20, 23  # steps that are profiled; queries are refreshed before one of them
TOP = 15
MARK = "traced step "


class OperatorProfile(pl.Callback):
    """PyTorch's profiler, over some steps of a training run; each step is marked.

    Args:
        on_gpu: Whether kernels are recorded, too.
    """

    def __init__(self, on_gpu: bool) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self.profiler = torch.profiler.profile(activities=activities)
        self._mark: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Begin, end, or mark another step."""
        _synchronize(pl_module)
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        if index == FIRST:
            self.profiler.start()
        if index == LAST:
            self.profiler.stop()
        if FIRST <= index < LAST:
            self._mark = torch.profiler.record_function(f"{MARK}{index}")
            self._mark.__enter__()


class FunctionProfile(pl.Callback):
    """Python's profiler, over the same steps; their backward passes run in the main thread, which it sees."""

    def __init__(self) -> None:
        self.profiler = cProfile.Profile()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Begin or end."""
        _synchronize(pl_module)
        if index == FIRST:
            torch.autograd.set_multithreading_enabled(False)
            self.profiler.enable()
        elif index == LAST:
            self.profiler.disable()
            torch.autograd.set_multithreading_enabled(True)

    def table(self, by: str) -> str:
        """The functions at the top."""
        stream = io.StringIO()
        pstats.Stats(self.profiler, stream=stream).sort_stats(by).print_stats(2 * TOP)
        return stream.getvalue()


def profile(given: Given) -> Iterator[Finding]:
    """Profile plain steps, projected ones, those of the recommended kind, and those of the index writer."""
    setting = gpt2_setting(given)
    plain: dict[str, float] = {}
    for way in (PLAIN, PROJECTED, INDEX, *([] if given.tiny else [LEARNING])):
        observer = OperatorProfile(given.device == "cuda")
        timing = train(setting, way, LAST + 2, FIRST - 8, [observer])
        seconds = statistics.median(timing.steps[:7])  # of those that come before the profile
        found = step_counts(observer.profiler, given.device)
        if way is PLAIN:
            plain = found
        ratio = found["launches a step"] / plain["launches a step"] if plain["launches a step"] else ""
        limit = "" if way is PLAIN else "below 2 plain"
        share = found["GPU busy, ms a step"] / (1e3 * seconds)
        figures: dict[str, Any] = {"ms a step, unprofiled": 1e3 * seconds, **found, "launches, of plain": ratio}
        yield Finding(way.name, {**figures, "limit": limit, "GPU's idle share": 1 - share})
        yield from _tables(way, observer.profiler, given.device)
    for way in (PLAIN, PROJECTED, INDEX, LEARNING):
        lines = LaunchLines(FIRST, REFRESH, on_gpu=given.device == "cuda")
        train(setting, way, REFRESH + 1, FIRST - 8, [lines])
        yield Finding(f"{way.name}: operators by the line of ftrace", lines.totals(), text=lines.table(2 * TOP))
    for way in (PROJECTED, INDEX):
        functions = FunctionProfile()
        train(setting, way, LAST + 2, FIRST, [functions])
        for by in ("tottime", "cumulative"):
            yield Finding(f"{way.name}: Python functions, by {by}", text=functions.table(by))


def step_counts(profiler: Any, device: str) -> dict[str, float]:
    """Count launches of kernels in each profiled step, or operators on a CPU, and sum the GPU's busy time.

    Returns:
        Launches of a step, the median, which is of one without a refresh; those of the step with most; the GPU's busy
        time in the same median.
    """
    events = list(profiler.profiler.kineto_results.events())
    marks = sorted({event.start_ns() for event in events if event.name().startswith(MARK) and not _is_on_gpu(event)})
    launches, busy = Counter[int](), Counter[int]()
    annotations = {event.name() for event in events if not _is_on_gpu(event)}  # a GPU's are called as the CPU's
    kernels = []
    for event in events:
        step = bisect.bisect(marks, event.start_ns())
        name = event.name()
        if name.startswith(LAUNCHES) or (device == "cpu" and name.startswith("aten::")):
            launches[step] += 1
        elif _is_on_gpu(event) and name not in annotations:
            kernels.append((event.start_ns(), event.start_ns() + event.duration_ns()))
    end = 0
    for begin, stop in sorted(kernels):  # those of several streams overlap
        busy[bisect.bisect(marks, begin)] += max(0, stop - max(begin, end))
        end = max(end, stop)
    steps = range(1, len(marks) + 1)
    return {
        "launches a step": statistics.median(launches[step] for step in steps),
        "launches of a step with refresh": max(launches[step] for step in steps),
        "GPU busy, ms a step": statistics.median(busy[step] for step in steps) / 1e6,
    }


def _tables(way: Way, profiler: Any, device: str) -> Iterator[Finding]:
    averages = profiler.key_averages()
    orders = {"own CPU time": "self_cpu_time_total"}
    if device == "cuda":
        orders = {"own GPU time": "self_cuda_time_total", **orders}
    for title, order in orders.items():
        text = averages.table(sort_by=order, row_limit=TOP, max_name_column_width=70)
        yield Finding(f"{way.name}: operators by {title}, {LAST - FIRST} steps", text=_narrowed(text))


def _narrowed(table: str) -> str:
    return "\n".join(line[:200] for line in table.splitlines())


def _is_on_gpu(event: Any) -> bool:
    return str(event.device_type().name) != "CPU"


def _synchronize(pl_module: pl.LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize()
