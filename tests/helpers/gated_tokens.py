"""Slow and exact: what each token adds to the product of two gradients, by giving each position its own weights.

Every layer is linear in its parameters. So its output with the weights W + e G is its output plus e times what it
makes of the same input with G more, less what it makes with W. If each token has an e of its own, by which the
outputs at its positions change, then the loss's derivative along e is that token's part of the product with G. Which
token a position is of is told by the layer's name and the part of the model that is running, and each row is taken by
itself, without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ftrace.models import FactLM


def by_token(model: FactLM, rows: dict[str, Tensor], direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """Products of one example's gradient with a direction, by sequence, for each token.

    Args:
        rows: A batch of one training row without padding.
        direction: For each parameter of the model; one that is left out counts as zero.
    """
    num_inputs, num_labels = rows["input_ids"].shape[1], rows["labels"].shape[1]
    has_decoder = model.model.config.is_encoder_decoder
    lengths = {"input": num_inputs, "target": num_labels} if has_decoder else {"text": num_inputs}
    gates = {name: torch.zeros(n, dtype=torch.float64, requires_grad=True) for name, n in lengths.items()}
    gated = _Gates(model, direction, gates)
    try:
        (loss,) = model.example_losses(rows)
        return dict(zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True))
    finally:
        gated.remove()


class _Gates:
    """Hooks that change each layer's output along the direction, token by token."""

    def __init__(self, model: FactLM, direction: dict[str, Tensor], gates: dict[str, Tensor]) -> None:
        self.gates = gates
        self.running = "text" if "text" in gates else "target"
        self.handles = []
        of_parameter = {id(p): direction[n] for n, p in model.named_parameters() if n in direction}
        if "input" in gates:
            encoder = model.model.get_encoder()
            self.handles.append(encoder.register_forward_pre_hook(lambda *_: self._now("input")))
            self.handles.append(encoder.register_forward_hook(lambda *_: self._now("target")))
        for path, module in model.named_modules():  # a shared module once
            own = {name: of_parameter[id(p)] for name, p in module._parameters.items() if id(p) in of_parameter}
            if own:
                self.handles.append(module.register_forward_hook(self._hook(path, own)))

    def _now(self, running: str) -> None:
        self.running = running

    def _hook(self, path: str, own: dict[str, Tensor]) -> Callable[..., Tensor]:
        reads_encoder = path.endswith(("EncDecAttention.k", "EncDecAttention.v"))

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            moved = {name: parameter + own.get(name, 0) for name, parameter in module._parameters.items()
                     if parameter is not None}  # fmt: skip
            hooks, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
            try:
                change = functional_call(module, moved, args) - output
            finally:
                module._forward_hooks = hooks
            gate = self.gates["input" if reads_encoder else self.running]
            # All outputs are [1, tokens, ...]; a table of relative positions gives [tokens that attend, tokens, heads].
            batch_axes = 0 if path.endswith("relative_attention_bias") else 1
            return output + gate.view(*[1] * batch_axes, -1, *[1] * (output.ndim - batch_axes - 1)) * change

        return hook

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
