"""Rules of convolutions: unfolded into patches, a convolution is a matrix product at every output position."""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ftrace.gradients.parts import Dense, accumulation_dtype
from ftrace.gradients.rules import Parts, Rule, linear_parts


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """Unfold each output position's patch: ``[rows, positions, I * kernel]``, in the order of the weight's axes."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if isinstance(module, nn.Conv1d):  # as an image of one line
        x = x.unsqueeze(2)
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    return F.unfold(x, kernel, dilation=dilation, stride=stride).transpose(1, 2)


def _grouped_parts(module: nn.Module, features: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    """Form the gradients of a grouped convolution, a small convolution for each group of channels."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    parts = linear_parts(module, features, grad, [name for name in ("bias",) if name in wanted])
    if "weight" in wanted:
        rows, columns = (
            tensor.to(accumulation_dtype(tensor)).unflatten(-1, (module.groups, tensor.shape[-1] // module.groups))
            for tensor in (grad, features)
        )
        weight = torch.einsum("btgo,btgi->bgoi", rows, columns)
        parts["weight"] = Dense(weight.reshape(len(grad), *module.weight.shape))
    return parts


_NAMES = ("weight", "bias")
_FORWARDS: dict[Callable[..., Tensor], tuple[str, int]] = {
    nn.Conv1d.forward: ("Conv1d", 3),
    nn.Conv2d.forward: ("Conv2d", 4),
}
_UNGROUPED = {
    forward: Rule(name, _NAMES, linear_parts, _patches, channel_axis=1, batched_axes=axes, feature_axis=1)
    for forward, (name, axes) in _FORWARDS.items()
}
_GROUPED = {
    forward: Rule(f"grouped {name}", _NAMES, _grouped_parts, _patches, channel_axis=1, batched_axes=axes)
    for forward, (name, axes) in _FORWARDS.items()
}


def find_convolution_rule(module: nn.Module) -> Rule | None:
    """Find the rule for a convolution over one or two axes; None for any other layer."""
    forward = type(module).forward
    if forward not in _FORWARDS:
        return None
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    return (_UNGROUPED if module.groups == 1 else _GROUPED)[forward]
