"""What tracing and writing an index cost beside plain training of GPT-2 (124M): time, floor, peak memory."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from online import Timing, Way, floor_of, train
from online_pairs import paired
from random_gpt2 import Setting, make_module, matmul_rate, query_pass

from gpu_parts.findings import Finding, in_short
from gpu_parts.running import Given

WARM_UP, STEPS, ROUNDS = 10, 20, 5  # steps are a multiple of those between refreshes
PLAIN = Way("plain")
PROJECTED = Way("projected, K=16, refresh 10", 16, 10, "1.15 plain, 1.05 floor")
LEARNING = Way("learning, K=16, refresh 10", 16, 10, "", (("scores", ("learning",)),))
INDEX = Way("index, K=16, rank-1 V", 16, None, "1.05 plain", (("steps", ((10, 10**9),)),), True)


def gpt2_setting(given: Given) -> Setting:
    """GPT-2's sizes, or a very small model's."""
    sizes = dict(layers=12, width=768, vocabulary=50257, batch_size=16, tokens=512, queries=128)
    if given.tiny:
        sizes = dict(layers=2, width=64, vocabulary=101, batch_size=4, tokens=16, queries=8)
    return Setting(**sizes, precision="bf16-mixed", device=given.device)


def middle_mlps(setting: Setting) -> tuple[str, ...]:
    """The weights of the MLPs of the two blocks in the middle."""
    middle = setting.layers // 2
    return tuple(f"model.transformer.h.{block}.mlp.*" for block in (middle - 1, middle))


def ways_of(setting: Setting) -> list[Way]:
    """All ways of training, the most important first."""
    chosen = ("parameters", middle_mlps(setting))
    return [
        PLAIN, PROJECTED, INDEX, Way("exact, two MLPs, refresh 10", None, 10, "1.25 floor", (chosen,)), LEARNING,
        Way("update, K=16, refresh 10", 16, 10, "1.3 plain", (("scores", ("update",)),)),
        Way("exact, two MLPs, refresh 1", None, 1, "1.25 floor", (chosen,)),
    ]  # fmt: skip


def online(given: Given) -> Iterator[Finding]:
    """Train each way in turn, several rounds; a way that fails, such as for want of memory, is left out of the next."""
    setting = gpt2_setting(given)
    steps, rounds = (10, 1) if given.tiny else (STEPS, ROUNDS)
    rate = matmul_rate(setting)
    passes: dict[int, float] = {}
    turns: dict[str, list[Timing]] = {}
    failed: set[str] = set()
    yield Finding("large matrix product", {"TFLOP/s": rate / 1e12})
    longest = 0.0
    for number in range(rounds):
        for way in ways_of(setting):
            left = given.left
            if way.name in failed or left < 1.2 * longest:
                continue
            try:
                lowest = _lowest_block(setting, way)
                if way.refresh is not None and lowest not in passes:
                    passes[lowest] = query_pass(setting, lowest=lowest)
                turns.setdefault(way.name, []).append(train(setting, way, steps + WARM_UP, WARM_UP))
                yield _finding(setting, way, turns, passes.get(lowest, 0.0), rate)
            except Exception as error:
                failed.add(way.name)
                yield Finding(way.name, {"error": in_short(error), "GiB kept": _in_use()})
            longest = max(longest, left - given.left)
            _free(given.device)
        if number == 0 and given.left > 2 * longest:
            yield from step_by_step(setting, steps)
            yield from without_waiting(setting, steps)
            yield from all_weights(setting)


def step_by_step(setting: Setting, steps: int) -> Iterator[Finding]:
    """Train several ways at the same time, whose steps take turns: ratios of the sums of steps, and of single steps."""
    ways = (PLAIN, PROJECTED, LEARNING, INDEX)
    try:
        plain, *others = (clock.wall[WARM_UP:] for clock in paired(setting, ways, steps))
    except Exception as error:
        yield Finding("steps in turn", {"error": in_short(error)})
        return
    for way, seconds in zip(ways[1:], others, strict=True):
        usual = statistics.median(mine / other for mine, other in zip(seconds, plain, strict=True))
        figures = {"ms a step": 1e3 * statistics.mean(seconds), "of plain": sum(seconds) / sum(plain)}
        yield Finding(f"{way.name}, steps in turn", {**figures, "median step, of plain": usual})


def without_waiting(setting: Setting, steps: int) -> Iterator[Finding]:
    """Train without waiting for the GPU at each step, as nobody does who isn't measuring."""
    plain = 0.0
    for way in (PLAIN, PROJECTED, INDEX):
        name = f"{way.name}, without waiting"
        try:
            seconds = train(setting, way, steps + WARM_UP, WARM_UP, waits_each_step=False).step
            plain = plain or seconds
            yield Finding(name, {"ms a step": 1e3 * seconds, "of plain": seconds / plain})
        except Exception as error:
            yield Finding(name, {"error": in_short(error)})


def all_weights(setting: Setting) -> Iterator[Finding]:
    """Train with all weights covered, exactly, on half the tokens and queries: does it fit into memory?"""
    smaller = replace(setting, tokens=setting.tokens // 2, queries=setting.queries // 2)
    name = f"exact, all weights, refresh 1, {smaller.tokens} tokens, {smaller.queries} queries"
    of_queries = smaller.queries * sum(p.numel() for p in make_module(smaller).parameters()) * 4 / 2**30
    try:
        timing = train(smaller, Way("exact, all weights", None, 1), 4, 2)
        seconds = {"ms a step": 1e3 * timing.step, "GiB": timing.peak_gib, "GiB kept": timing.kept_gib}
        yield Finding(name, {**seconds, "GiB of queries' gradients": of_queries})
    except Exception as error:
        yield Finding(name, {"error": in_short(error), "GiB of queries' gradients": of_queries})


def _lowest_block(setting: Setting, way: Way) -> int:
    """The lowest block with a weight that is covered: queries' backward passes end there."""
    blocks = [int(name.split(".")[3]) for name in way.weights(setting) if ".h." in name]
    return min(blocks)


def _finding(setting: Setting, way: Way, turns: dict[str, list[Timing]], passes: float, rate: float) -> Finding:
    of_way, of_plain = turns[way.name], turns[PLAIN.name]
    plain = statistics.median(turn.step for turn in of_plain)
    seconds = statistics.median(turn.step for turn in of_way)
    ratios = [mine.step / other.step for mine, other in zip(of_way, of_plain, strict=False)]
    usual, plains_usual = map(_median_step, (of_way, of_plain))
    floor = floor_of(setting, way, plain, passes, rate)
    peak = max(turn.peak_gib for turn in of_way)
    of_plains_peak = max(turn.peak_gib for turn in of_plain)
    figures: dict[str, Any] = {
        "ms a step": 1e3 * seconds,
        "of plain": statistics.median(ratios),
        "of plain, range": f"{min(ratios):.3f} to {max(ratios):.3f}",
        "ms of the median step": 1e3 * usual,
        "median step, of plain": usual / plains_usual,
        "floor, ms": 1e3 * floor,
        "of floor": seconds / floor,
        "limits": way.limits,
        "queries' pass, ms": 1e3 * passes if way.refresh is not None else "",
        "first step, of plain": statistics.median(turn.first for turn in of_way) / plain,
        "GiB": peak,
        "GiB, of plain": peak / of_plains_peak if of_plains_peak else "",
        "GiB kept": of_way[-1].kept_gib,
        "tokens/s": setting.batch_size * setting.tokens / seconds,
        "turns": len(of_way),
    }
    return Finding(way.name, figures)


def _median_step(turns: list[Timing]) -> float:
    """Seconds of a step without a refresh, and without the beginning of an index's segment."""
    return statistics.median(time for turn in turns for time in turn.steps)


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _in_use() -> float:
    return torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
