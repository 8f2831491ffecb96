"""Causal tracing of a Llama from its definition, with plain hooks: a forward pass for each cell, one state restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ftrace.causal import Corruption, PromptTrace
from ftrace.data import TokenizedPrompt

EVERY = 3  # of the layers, one in so many is compared
_PARTS = {"hidden": "", "mlp": ".mlp", "attention": ".self_attn"}


@torch.no_grad()
def largest_error(
    model: Any, prompt: TokenizedPrompt, trace: PromptTrace, corruption: Corruption, window: int
) -> float:
    """Return by how much a trace's probabilities differ at most from those of plain hooks.

    Args:
        model: A Llama.
        prompt: The prompt in tokens.
        trace: Of it.
        corruption: The noise that it was traced with.
        window: How many layers are restored together for "mlp" and "attention".
    """
    layers = len(model.model.layers)
    noise = corruption.draw(prompt.prompt.name, prompt.input_ids[slice(*prompt.subject)])
    clean = _clean_states(model, prompt)
    errors = [abs(_probability(model, prompt, None, {}, clean) - float(trace.clean[0]))]
    errors.append(abs(_probability(model, prompt, noise, {}, clean) - float(trace.corrupted[0])))
    restored = trace.stacks["decoder"].restored
    for mediator, part in _PARTS.items():
        for layer in range(0, layers, EVERY):
            first, last = layer - window // 2, layer + (window + 1) // 2
            around = [layer] if mediator == "hidden" else range(max(0, first), min(layers, last))
            names = [f"model.layers.{number}{part}" for number in around]
            for token in range(len(prompt.input_ids)):
                found = _probability(model, prompt, noise, dict.fromkeys(names, token), clean)
                errors.append(abs(found - float(restored[mediator][0][layer, token])))
    return max(errors)


def _clean_states(model: Any, prompt: TokenizedPrompt) -> dict[str, Tensor]:
    """Return what each layer and its parts give in the clean run, by name, ``[T, D]``."""
    states: dict[str, Tensor] = {}
    names = [f"model.layers.{n}{part}" for n in range(len(model.model.layers)) for part in _PARTS.values()]
    with ExitStack() as hooks:
        for name in names:

            def keep(module: Any, args: Any, output: Any, name: str = name) -> None:
                states[name] = _first(output)[0].clone()

            hooks.enter_context(_hook(model.get_submodule(name), keep))
        model(input_ids=torch.tensor([[*prompt.input_ids, *prompt.answers[0][:-1]]]), use_cache=False)
    return states


def _probability(
    model: Any, prompt: TokenizedPrompt, noise: Tensor | None, cells: dict[str, int], clean: dict[str, Tensor]
) -> float:
    """Return the answer's probability, averaged over samples of noise, with some modules' states restored."""
    answer: Sequence[int] = prompt.answers[0]
    ids = torch.tensor([[*prompt.input_ids, *answer[:-1]]]).repeat(1 if noise is None else len(noise), 1)
    with ExitStack() as hooks:
        if noise is not None:

            def corrupt(module: Any, args: Any, output: Tensor) -> Tensor:
                output[:, slice(*prompt.subject)] = noise
                return output

            hooks.enter_context(_hook(model.get_input_embeddings(), corrupt))
        for name, token in cells.items():

            def restore(module: Any, args: Any, output: Any, name: str = name, token: int = token) -> None:
                _first(output)[:, token] = clean[name][token]

            hooks.enter_context(_hook(model.get_submodule(name), restore))
        logits = model(input_ids=ids, use_cache=False).logits
    of_answer = logits[:, len(prompt.input_ids) - 1 :].log_softmax(-1)
    chosen = of_answer.gather(-1, torch.tensor(answer).expand(len(ids), -1).unsqueeze(-1)).squeeze(-1)
    return float(chosen.double().sum(1).exp().mean())


def _first(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


@contextmanager
def _hook(module: Any, function: Any) -> Iterator[None]:
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()
