"""First-order estimates of restored runs: attribution patching of hidden states, and of windows of attention and MLPs.

An estimate of a cell is the slope of the answer's log-odds at one state, times what restoring changes there. Slopes are
taken in the corrupted runs, in the clean run, or in runs between them.

Shape letters: N noise samples, R rows, L layers, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.causal.growing_rows import states_of
from ftrace.causal.layouts import StackModules
from ftrace.causal.mediators import Mediator

KINDS: tuple[Mediator, ...] = ("hidden", "mlp", "attention")


@dataclass(frozen=True)
class Differentiated:
    """Runs with their states and the slopes of the answer's log-odds there.

    Args:
        log_odds: Of the answer's first token, ``[R]``.
        states: Layers' outputs, and those of their MLPs and attention, ``[R, L, T, D]`` each.
        slopes: Of each run's log-odds by its own states, likewise.
        called_with: What else each layer was called with: masks and positions.
    """

    log_odds: Tensor
    states: Mapping[str, Tensor]
    slopes: Mapping[str, Tensor]
    called_with: Sequence[Mapping[str, Any]]

    def by_tokens(self, kind: str, change_RLTD: Tensor) -> Tensor:
        """Multiply slopes with changes of the states, ``[L, T, R]``."""
        return (self.slopes[kind] * change_RLTD).sum(-1).permute(1, 2, 0)


def log_odds(logits_RV: Tensor, token: int) -> Tensor:
    """Return the log-odds of a token, ``[R]``; exact where its probability is near one, too."""
    others = logits_RV.clone()
    others[:, token] = -torch.inf
    return logits_RV[:, token] - others.logsumexp(-1)


def differentiate(
    model: Any, stack: StackModules, embeddings_RTD: Tensor, token: int, *, frozen_norms: bool = False
) -> Differentiated:
    """Run a decoder-only model forward and backward.

    Args:
        model: Its parameters need no gradients.
        stack: Its layers.
        embeddings_RTD: Embeddings of the prompt, clean or corrupted.
        token: The answer's first token.
        frozen_norms: Whether RMS norms divide by a constant in the backward pass.
    """
    recorded: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    called_with: list[Mapping[str, Any]] = []

    def keep(kind: str, module: nn.Module, args: Any, output: Any) -> None:
        recorded[kind].append(states_of(output))

    def note(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        called_with.append({name: value for name, value in kwargs.items() if name != "hidden_states"})

    with ExitStack() as hooks, torch.enable_grad():
        for number, layer in enumerate(stack.layers):
            hooks.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(partial(keep, "hidden")).remove)
            for kind in ("mlp", "attention"):
                hooks.callback(stack.modules[kind][number].register_forward_hook(partial(keep, kind)).remove)
        if frozen_norms:
            hooks.enter_context(_frozen_norms(model))
        given = embeddings_RTD.detach().requires_grad_()
        odds = log_odds(model(inputs_embeds=given, use_cache=False, logits_to_keep=1).logits[:, -1], token)
        states = [state for kind in KINDS for state in recorded[kind]]
        slopes = torch.autograd.grad(odds.sum(), states, allow_unused=True, materialize_grads=True)
    layers = len(stack.layers)

    def by_kind(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        parts = {kind: tensors[index * layers : (index + 1) * layers] for index, kind in enumerate(KINDS)}
        return {kind: torch.stack([tensor.detach() for tensor in part], 1) for kind, part in parts.items()}

    return Differentiated(odds.detach(), by_kind(states), by_kind(slopes), called_with)


@contextmanager
def _frozen_norms(model: nn.Module) -> Iterator[None]:
    """Let no gradient through what RMS norms divide by."""

    def freeze(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        scale = torch.rsqrt(args[0].square().mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * (args[0] * scale.detach())

    norms = [module for module in model.modules() if hasattr(module, "variance_epsilon")]
    handles = [module.register_forward_hook(freeze) for module in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def over_windows(values_LTN: Tensor, window: int) -> Tensor:
    """Sum over windows of layers as causal tracing restores them, cut off at either end."""
    layers = len(values_LTN)
    ranges = [(max(0, layer - window // 2), layer - (-window // 2)) for layer in range(layers)]
    return torch.stack([values_LTN[first:stop].sum(0) for first, stop in ranges])


def looked_ahead(stack: StackModules, corrupted: Differentiated, change_NLTD: Tensor, ahead: int) -> Tensor:
    """Estimate effects of hidden states, ``[L, T, N]``: some layers above the restored one run, the rest is a slope.

    Args:
        stack: The model's layers.
        corrupted: The corrupted runs.
        change_NLTD: What restoring changes, at every layer and token.
        ahead: How many layers run.
    """
    states, slopes = corrupted.states["hidden"], corrupted.slopes["hidden"]
    rows, layers, tokens, _ = states.shape
    estimates = corrupted.by_tokens("hidden", change_NLTD).clone()
    with torch.no_grad():
        for layer in range(layers - 1):
            restored = states[:, layer].repeat(tokens, 1, 1)
            for token in range(tokens):
                restored[token * rows : (token + 1) * rows, token] += change_NLTD[:, layer, token]
            top = min(layers - 1, layer + ahead)
            for above in range(layer + 1, top + 1):
                restored = states_of(stack.layers[above](restored, **corrupted.called_with[above]))
            change = restored - states[:, top].repeat(tokens, 1, 1)
            estimates[layer] = (slopes[:, top].repeat(tokens, 1, 1) * change).sum((-1, -2)).view(tokens, rows)
    return estimates
