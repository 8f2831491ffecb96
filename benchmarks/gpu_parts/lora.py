"""What tracing LoRA's adapters costs on a Llama of a billion random weights in bfloat16: time and peak memory."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator

import torch
from adapters import Setting, Way, make_model, train

from gpu_parts.findings import Finding, in_short
from gpu_parts.running import Given

STEPS, WARM_UP, ROUNDS = 20, 10, 3
PLAIN = Way("LoRA", "lora", "LoRA")
WAYS = (
    PLAIN,
    *(
        Way(f"LoRA, {score}, K=16, refresh 10", "lora", PLAIN.name,
            {"scores": (score,), "projection_side": 16, "refresh_every_n_steps": 10})
        for score in ("learning", "cosine")
    ),
    Way("LoRA, exact, refresh 10", "lora", PLAIN.name, {"scores": ("dot", "cosine"), "refresh_every_n_steps": 10}),
)  # fmt: skip


def lora_setting(given: Given) -> Setting:
    """The sizes of Llama 3.2 1B, or a very small model's."""
    sizes = dict(layers=16, width=2048, vocabulary=128256, batch_size=8, tokens=512, queries=64, rank=16)
    if given.tiny:
        sizes = dict(layers=2, width=128, vocabulary=101, batch_size=4, tokens=16, queries=8, rank=4)
    return Setting(**sizes, mlp=4, query_heads=1 if given.tiny else 4, tied=True, dtype="bfloat16", device=given.device)


def lora(given: Given) -> Iterator[Finding]:
    """Train each way in turn, several rounds; one that fails is left out of the next."""
    setting = lora_setting(given)
    on_gpu = given.device == "cuda"
    model = make_model(setting, "lora")
    counts = [sum(p.numel() for p in model.parameters() if not trained or p.requires_grad) for trained in (True, False)]
    yield Finding("weights", {"trained": counts[0], "in all": counts[1]})
    del model
    turns: dict[str, list[tuple[float, float]]] = {way.name: [] for way in WAYS}
    peaks: dict[str, float] = {}
    failed: set[str] = set()
    longest = 0.0
    steps, rounds = (10, 1) if given.tiny else (STEPS, ROUNDS)
    for _ in range(rounds):
        for way in WAYS:
            left = given.left
            if way.name in failed or left < 1.2 * longest:
                continue
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                turns[way.name].append(train(setting, way, steps + WARM_UP, WARM_UP))
            except Exception as error:
                failed.add(way.name)
                yield Finding(way.name, {"error": in_short(error)})
                continue
            longest = max(longest, left - given.left)
            peaks[way.name] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
            of_way, plain = ([step for step, _ in turns[name]] for name in (way.name, PLAIN.name))
            ratios = [mine / other for mine, other in zip(of_way, plain, strict=False)]
            figures = {
                "ms a step": 1e3 * statistics.median(of_way),
                "of plain": statistics.median(ratios),
                "of plain, range": f"{min(ratios):.3f} to {max(ratios):.3f}",
                "first step, of plain": statistics.median(first for _, first in turns[way.name]) / plain[-1],
                "GiB": peaks[way.name],
                "turns": len(of_way),
            }
            yield Finding(way.name, figures)
