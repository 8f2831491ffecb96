"""How causal tracing is laid out elsewhere, on GPT-2: whole forwards, by cell or with all cells in large batches.

Every layout gives the probability of one token in every cell (mediator, layer, place), mean over the noise samples. The
noise is given, the same for all cells, so that the layouts agree. Which places go through the head is a choice: their
authors' code sends all of them there, although the last one alone is looked at.

Shape letters: M mediators, L layers, T tokens, N noise samples, s tokens of the subject, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MEDIATORS = ("hidden", "attention_severed", "mlp_severed")
SEVERED = {"attention_severed": "attn", "mlp_severed": "mlp"}

Change = Callable[[Tensor], None]
"""What a hook does to a module's states ``[rows, T, D]``, in place."""


@torch.no_grad()
def forward_per_cell(
    model: Any, input_ids: Tensor, subject: tuple[int, int], noise: Tensor, token: int, outputs: int = 1
) -> Tensor:
    """One forward of N corrupted rows for every cell, and one more before it where a module is severed.

    Args:
        model: GPT-2 with its head.
        input_ids: The prompt, ``[T]``.
        subject: Half-open range of its subject's places.
        noise: Added to the subject's embeddings, ``[N, s, D]``.
        token: The token whose probability is asked for.
        outputs: How many of the last places go through the head; 0: all.

    Returns:
        Probabilities, ``[M, L, T]``.
    """
    blocks, rows = model.transformer.h, input_ids.expand(len(noise), -1)
    clean: dict[str, Tensor] = {}
    _probabilities(model, input_ids[None], None, (), token, _keeping(_blocks(model), clean))
    found = noise.new_empty(len(MEDIATORS), len(blocks), len(input_ids))
    for m, layer, place in _cells(model, len(input_ids)):
        changes = {f"transformer.h.{layer}": _put(slice(None), place, clean[f"transformer.h.{layer}"][0, place])}
        if MEDIATORS[m] in SEVERED:
            above = [f"transformer.h.{k}.{SEVERED[MEDIATORS[m]]}" for k in range(layer + 1, len(blocks))]
            corrupted: dict[str, Tensor] = {}
            _probabilities(model, rows, noise, subject, token, _keeping(above, corrupted), outputs)
            changes |= {name: _put(slice(None), place, corrupted[name][:, place]) for name in above}
        found[m, layer, place] = _probabilities(model, rows, noise, subject, token, changes, outputs).mean()
    return found


@torch.no_grad()
def published_layout(
    model: Any, input_ids: Tensor, subject: tuple[int, int], noise: Tensor, token: int, outputs: int = 1
) -> Tensor:
    """One forward of a clean and N corrupted rows for every cell; severed outputs are kept from one pass before.

    Arguments and result as for :func:`forward_per_cell`. Source: Meng et al. 2022, which has no severed mediators.
    """
    blocks, rows = model.transformer.h, input_ids.expand(1 + len(noise), -1)
    noise = torch.cat([torch.zeros_like(noise[:1]), noise])
    corrupted: dict[str, Tensor] = {}
    _probabilities(model, rows, noise, subject, token, _keeping(_modules(model), corrupted))
    found = noise.new_empty(len(MEDIATORS), len(blocks), len(input_ids))
    for m, layer, place in _cells(model, len(input_ids)):
        changes = {f"transformer.h.{layer}": _from_first_row(place)}
        if MEDIATORS[m] in SEVERED:
            above = [f"transformer.h.{k}.{SEVERED[MEDIATORS[m]]}" for k in range(layer + 1, len(blocks))]
            changes |= {name: _put(slice(1, None), place, corrupted[name][1:, place]) for name in above}
        found[m, layer, place] = _probabilities(model, rows, noise, subject, token, changes, outputs)[1:].mean()
    return found


@torch.no_grad()
def rows_of_full_forwards(
    model: Any, input_ids: Tensor, subject: tuple[int, int], noise: Tensor, token: int, budget: int = 4096
) -> Tensor:
    """All cells and samples as rows of whole forwards, no more than ``budget`` tokens in one.

    Other arguments and the result as for :func:`forward_per_cell`.
    """
    layers, length, samples = len(model.transformer.h), len(input_ids), len(noise)
    clean: dict[str, Tensor] = {}
    corrupted: dict[str, Tensor] = {}
    _probabilities(model, input_ids[None], None, (), token, _keeping(_blocks(model), clean))
    rows = input_ids.expand(samples, -1)
    _probabilities(model, rows, noise, subject, token, _keeping(_modules(model), corrupted))
    cells = torch.tensor([(*cell, sample) for cell in _cells(model, length) for sample in range(samples)])
    parts = []
    for chunk in cells.split(max(1, budget // length)):
        mediators, born, places, drawn = chunk.unbind(1)
        changes: dict[str, Change] = {}
        for layer in range(layers):
            here = (born == layer).nonzero()[:, 0]
            name = f"transformer.h.{layer}"
            if len(here):
                changes[name] = _put(here, places[here], clean[name][0, places[here]])
            for mediator, module in SEVERED.items():
                severed = ((born < layer) & (mediators == MEDIATORS.index(mediator))).nonzero()[:, 0]
                values = corrupted[f"{name}.{module}"][drawn[severed], places[severed]]
                if len(severed):
                    changes[f"{name}.{module}"] = _put(severed, places[severed], values)
        rows = input_ids.expand(len(chunk), -1)
        parts.append(_probabilities(model, rows, noise[drawn], subject, token, changes))
    return torch.cat(parts).view(len(MEDIATORS), layers, length, samples).mean(-1)


def _cells(model: Any, length: int) -> Iterator[tuple[int, int, int]]:
    """Mediator, layer and place."""
    for m in range(len(MEDIATORS)):
        for layer in range(len(model.transformer.h)):
            for place in range(length):
                yield m, layer, place


def _blocks(model: Any) -> list[str]:
    return [f"transformer.h.{layer}" for layer in range(len(model.transformer.h))]


def _modules(model: Any) -> list[str]:
    return [f"{block}.{module}" for block in _blocks(model) for module in SEVERED.values()]


def _keeping(names: list[str], kept: dict[str, Tensor]) -> dict[str, Change]:
    """Hooks that keep what the modules give."""

    def keep(name: str) -> Change:
        return lambda states: kept.update({name: states.clone()})

    return {name: keep(name) for name in names}


def _put(rows: Tensor | slice, places: Tensor | int, values: Tensor) -> Change:
    def put(states: Tensor) -> None:
        states[rows, places] = values

    return put


def _from_first_row(place: int) -> Change:
    def restore(states: Tensor) -> None:
        states[1:, place] = states[0, place]

    return restore


def _probabilities(
    model: Any,
    rows: Tensor,
    noise: Tensor | None,
    subject: tuple[int, ...],
    token: int,
    changes: dict[str, Change],
    outputs: int = 1,
) -> Tensor:
    """A token's probability, ``[rows]``, in one forward with noise on the subject and changes by module."""

    def corrupt(embeddings: Tensor) -> None:
        if noise is not None:
            embeddings[:, slice(*subject)] += noise

    with _hooked(model, {"transformer.wte": corrupt, **changes}):
        logits = model(rows, use_cache=False, logits_to_keep=outputs).logits[:, -1]
    probabilities: Tensor = logits.float().softmax(-1) if logits.dtype != torch.float64 else logits.softmax(-1)
    return probabilities[:, token]


@contextmanager
def _hooked(model: nn.Module, changes: dict[str, Change]) -> Iterator[None]:
    """Modules give a tensor, or a tuple that begins with it."""

    def hook(change: Change) -> Any:
        return lambda module, args, output: change(output[0] if isinstance(output, tuple) else output)

    handles = [model.get_submodule(name).register_forward_hook(hook(change)) for name, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
