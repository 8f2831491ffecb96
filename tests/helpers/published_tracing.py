"""Causal tracing of GPT-2 as Meng et al. (2022) define and lay it out: the clean run is the first row of every batch.

The other rows are corrupted, with the same noise in every cell and prompt. Written from the definition, apart from
:mod:`helpers.per_cell`: here the clean state comes from the batch itself, and an outcome is the mean over its rows.

Shape letters: L layers, T tokens, N noise samples, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED = 1
SAMPLES = 10
WINDOW = 10


@dataclass(frozen=True)
class Published:
    """The model's own top token, its probability in the runs, and with each state restored, ``[L, T]``."""

    prediction: int
    clean: float
    corrupted: float
    restored: Tensor


def noise_scale(model: Any, subjects: Sequence[Sequence[int]], times: float = 3.0) -> float:
    """``times`` the standard deviation of all numbers in the embeddings of the subjects, each tokenized by itself."""
    with torch.no_grad():
        embeddings = [model.transformer.wte(torch.tensor(list(subject))) for subject in subjects]
    return times * torch.cat(embeddings).std().item()


def noise(scale: float, length: int, width: int, samples: int = SAMPLES, seed: int = SEED) -> Tensor:
    """The draws that all cells share, ``[N, length, D]``, float64."""
    return torch.from_numpy(scale * np.random.RandomState(seed).randn(samples, length, width))


@torch.no_grad()
def probabilities(
    model: Any, input_ids: Sequence[int], subject: tuple[int, int], draws: Tensor, states: Sequence[tuple[str, int]]
) -> Tensor:
    """Next-token probabilities, ``[V]``: means over the corrupted rows, with (module, token) restored."""
    rows = torch.tensor([list(input_ids)]).repeat(1 + len(draws), 1)
    start, stop = subject

    def corrupt(module: Any, args: Any, output: Tensor) -> Tensor:
        output[1:, start:stop] += draws.to(output.dtype)
        return output

    with ExitStack() as hooks:
        hooks.enter_context(model.transformer.wte.register_forward_hook(corrupt))
        for name, token in states:

            def restore(module: Any, args: Any, output: Any, token: int = token) -> None:
                activations = output[0] if isinstance(output, tuple) else output
                activations[1:, token] = activations[0, token]

            hooks.enter_context(model.get_submodule(name).register_forward_hook(restore))
        logits = model(rows, use_cache=False).logits[1:, -1]
    return logits.softmax(-1).mean(0)


def trace(
    model: Any,
    input_ids: Sequence[int],
    subject: tuple[int, int],
    draws: Tensor,
    kind: str | None,
    window: int = WINDOW,
) -> Published:
    """All cells of one prompt.

    Args:
        model: GPT-2 with its head.
        input_ids: The prompt.
        subject: Half-open range of its subject.
        draws: :func:`noise` for it.
        kind: What is restored: the block's output (None), or "mlp" or "attn" outputs in a window of layers around it.
        window: Layers in the window.
    """
    with torch.no_grad():
        clean = model(torch.tensor([list(input_ids)]), use_cache=False).logits[0, -1].softmax(-1)
    prediction = int(clean.argmax())
    layers = len(model.transformer.h)

    def score(states: Sequence[tuple[str, int]]) -> float:
        return probabilities(model, input_ids, subject, draws, states)[prediction].item()

    def states(layer: int, token: int) -> list[tuple[str, int]]:
        if kind is None:
            return [(f"transformer.h.{layer}", token)]
        around = range(max(0, layer - window // 2), min(layers, layer - (-window // 2)))
        return [(f"transformer.h.{near}.{kind}", token) for near in around]

    restored = [[score(states(layer, token)) for token in range(len(input_ids))] for layer in range(layers)]
    return Published(prediction, clean[prediction].item(), score([]), torch.tensor(restored, dtype=torch.float64))
