"""Optimizers' steps, parameter by parameter, as linear functions of the gradients that they were given.

Each supported optimizer's step on one parameter is linear in the gradients ``g_s`` of this and earlier steps, once its
second moments are known:

    buffer_t = decay_t buffer_{t-1} + gain_t g_t
    theta_{t+1} - theta_t = - scale_t * (direct_t g_t + from_buffer_t buffer_t) - (weight decay)

SGD's scale is the learning rate; Adam's is ``eta_t / (1 - beta1^t) / (sqrt(v_hat_t) + eps)``, where ``v_hat_t`` holds
step t's gradient and t counts the steps of that parameter, so it can be read only once the step is done. Weight decay
that is added to gradients goes through the same buffer and scale; decoupled decay does not.

Sources: Kingma and Ba 2015 (arXiv 1412.6980), Loshchilov and Hutter 2019 (arXiv 1711.05101), Shazeer and Stern 2018
(arXiv 1804.04235), and the formulas in PyTorch's documentation of each optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ftrace.gradients.names import full_name
from ftrace.gradients.preconditioners import (
    Preconditioner,
    of_touched,
    preconditioner_from_state,
    times,
    touched_elements,
    touched_from_state,
)


@dataclass(frozen=True)
class ParameterStep:
    """One step of an optimizer on one parameter.

    Args:
        scale: Factor of the momentum-averaged gradient, learning rate included; 0 where no gradient has ever arrived,
            and the optimizer would divide by next to nothing.
        rate: The learning rate of the parameter's group; negative where the optimizer maximizes.
        direct: Factor of the step's gradient, past the buffer.
        from_buffer: Factor of the buffer.
        gain: Factor with which the step's gradient enters the buffer.
        decay: Factor of the previous buffer.
        eventual: By how much the step's gradient, times ``scale``, moves the parameter in this and all later steps, if
            learning rate and scale stay as they are.
        added_decay: Weight decay that is added to the gradient.
        decoupled_decay: Weight decay times its learning rate: the fraction of the parameter that is taken away.
    """

    scale: float | Preconditioner
    rate: float
    direct: float = 1.0
    from_buffer: float = 0.0
    gain: float = 0.0
    decay: float = 0.0
    eventual: float = 1.0
    added_decay: float = 0.0
    decoupled_decay: float = 0.0

    def scaled(self, tensor: Tensor) -> Tensor:
        """Multiply a tensor in the parameter's shape by the scale."""
        scale = self.scale
        return tensor * (scale if isinstance(scale, float) else scale.dense().view(tensor.shape))


@dataclass(frozen=True)
class BeforeStep:
    """Values that an optimizer's step changes, noted before the step.

    Args:
        learning_rate: Of the parameter's group.
        has_buffer: Whether the parameter has a momentum buffer of SGD yet.
        root_mean_square: Of the parameter, where the optimizer scales its steps by it; otherwise 0.
    """

    learning_rate: float
    has_buffer: bool
    root_mean_square: float


def unsupported_step(optimizer: Optimizer) -> str | None:
    """Say why an optimizer's steps can't be divided among examples; None if they can."""
    name = full_name(optimizer)
    if name not in _STEPS:
        return f"expected one of {', '.join(_STEPS)}, found {name}"
    if name == _TRANSFORMERS_ADAFACTOR and any(group.get("beta1") is not None for group in optimizer.param_groups):
        return "Adafactor with beta1 averages steps, not gradients; set beta1=None"
    return None


def scales_elements(optimizer: Optimizer) -> bool:
    """Whether a supported optimizer multiplies gradients by more than one number per parameter."""
    return full_name(optimizer) != _SGD


def before_step(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> BeforeStep:
    """Note what the step will change; to be called for each parameter, and followed by :func:`after_step`."""
    state = optimizer.state.get(parameter, {})
    scaled = full_name(optimizer) == _TORCH_ADAFACTOR
    size = float(parameter.detach().norm()) / math.sqrt(max(1, parameter.numel())) if scaled else 0.0
    return BeforeStep(learning_rate(group), state.get("momentum_buffer") is not None, size)


def after_step(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    name: str,
    parameter: nn.Parameter,
    gradient: Tensor | None,
    noted: BeforeStep,
    state: Mapping[str, Any] | None = None,
) -> ParameterStep:
    """Describe the step that an optimizer has just taken on one parameter.

    Args:
        optimizer: A supported one (see :func:`unsupported_step`).
        group: The parameter's group.
        name: The parameter, for errors.
        parameter: The parameter, after the step.
        gradient: The gradient that the optimizer was given for it; only Adafactor's clipping needs it.
        noted: See :func:`before_step`.
        state: The parameter's state; default: the one in the optimizer.

    Raises:
        ValueError: If the optimizer is not supported, or has not taken a step on the parameter.
    """
    problem = unsupported_step(optimizer)
    if problem is not None:
        raise ValueError(f"the steps of this optimizer are not known: {problem}")
    state = optimizer.state.get(parameter, {}) if state is None else state
    return _STEPS[full_name(optimizer)](_Step(full_name(optimizer), group, state, name, parameter, gradient, noted))


def buffer_of(state: Mapping[str, Any]) -> Tensor | None:
    """Get the momentum buffer, as this module defines it, from a parameter's state."""
    buffer = state.get("momentum_buffer", state.get("exp_avg"))
    return buffer if isinstance(buffer, Tensor) else None


def learning_rate(group: Mapping[str, Any]) -> float:
    """Get a group's learning rate; negative where the optimizer maximizes, since it then moves the other way.

    An optimizer that computes its own rate has none in its group: it is 1 then, so that groups can still be compared.
    """
    rate = group.get("lr")
    return (1.0 if rate is None else float(rate)) * (-1.0 if group.get("maximize") else 1.0)


@dataclass(frozen=True)
class _Step:
    optimizer: str
    group: Mapping[str, Any]
    state: Mapping[str, Any]
    name: str
    parameter: nn.Parameter
    gradient: Tensor | None
    noted: BeforeStep


def _sgd(step: _Step) -> ParameterStep:
    group, rate = step.group, step.noted.learning_rate
    momentum, decay = float(group["momentum"]), float(group["weight_decay"])
    # With maximize, the gradient is turned around before decay is added, and decay still pulls to zero.
    added = decay * math.copysign(1.0, rate)
    if not momentum:
        return ParameterStep(rate, rate, added_decay=added)
    gain = 1 - float(group["dampening"]) if step.noted.has_buffer else 1.0
    direct, from_buffer = (1.0, momentum) if group["nesterov"] else (0.0, 1.0)
    eventual = direct + from_buffer * gain / (1 - momentum) if momentum < 1 else math.inf
    return ParameterStep(rate, rate, direct, from_buffer, gain, momentum, eventual, added)


def _adam(step: _Step) -> ParameterStep:
    group, rate = step.group, step.noted.learning_rate
    beta, num_steps = float(group["betas"][0]), float(step.state.get("step", 0.0))
    bias = 1 - beta**num_steps
    scale = touched_from_state(
        step.name, step.optimizer, group, step.state, step.parameter.shape, factor=rate / bias if bias else 1.0
    )
    decay = float(group["weight_decay"])
    decoupled = step.optimizer.endswith("AdamW") or bool(group.get("decoupled_weight_decay"))
    return ParameterStep(
        scale,
        rate,
        direct=0.0,
        from_buffer=1.0,
        gain=1 - beta,
        decay=beta,
        eventual=bias * _eventual_of_adam(beta, num_steps),
        added_decay=0.0 if decoupled else decay * math.copysign(1.0, rate),
        decoupled_decay=abs(rate) * decay if decoupled else 0.0,
    )


def _eventual_of_adam(beta: float, num_steps: float) -> float:
    """Compute ``sum_j (1 - beta) beta^j / (1 - beta^(t + j))``: 3.0 at the first step, 1 in the long run."""
    if not beta:
        return 1.0
    total, weight, later = 0.0, 1.0, num_steps
    while weight > 1e-17 * max(total, 1.0):
        total += (1 - beta) * weight / (1 - beta**later)
        weight, later = weight * beta, later + 1
    return total


def _torch_adafactor(step: _Step) -> ParameterStep:
    group, rate = step.group, step.noted.learning_rate
    preconditioner = preconditioner_from_state(
        step.name, step.optimizer, group, step.state, step.parameter.shape, step.parameter.dtype
    )
    preconditioner = of_touched(preconditioner, touched_elements(step.optimizer, group, step.state))
    relative = min(abs(rate), 1 / math.sqrt(float(step.state["step"])))
    size = max(float(group["eps"][1]), step.noted.root_mean_square) * math.copysign(relative, rate)
    root_mean_square = _root_mean_square(preconditioner, step.gradient)
    scale = times(preconditioner, size / max(1.0, root_mean_square / float(group["d"])))
    return ParameterStep(scale, rate, decoupled_decay=abs(rate) * float(group["weight_decay"]))


def _transformers_adafactor(step: _Step) -> ParameterStep:
    group, state = step.group, step.state
    preconditioner = preconditioner_from_state(step.name, step.optimizer, group, state, step.parameter.shape)
    preconditioner = of_touched(preconditioner, touched_elements(step.optimizer, group, state))
    size = step.noted.learning_rate
    if group["relative_step"]:
        slow = 1e-6 * state["step"] if group["warmup_init"] else 1e-2
        size = min(slow, 1 / math.sqrt(state["step"]))
    if group["scale_parameter"]:
        size *= max(group["eps"][1], float(state["RMS"]))
    root_mean_square = _root_mean_square(preconditioner, step.gradient)
    scale = times(preconditioner, size / max(1.0, root_mean_square / group["clip_threshold"]))
    rate = size if group["lr"] is None else step.noted.learning_rate
    return ParameterStep(scale, rate, decoupled_decay=size * group["weight_decay"])


def _root_mean_square(scale: Preconditioner, gradient: Tensor | None) -> float:
    if gradient is None:
        return 0.0
    update = scale.dense().view(gradient.shape) * gradient
    return float(update.norm()) / math.sqrt(max(1, update.numel()))


_SGD = "torch.optim.sgd.SGD"
_TORCH_ADAFACTOR = "torch.optim.Adafactor"
_TRANSFORMERS_ADAFACTOR = "transformers.optimization.Adafactor"
_STEPS: dict[str, Callable[[_Step], ParameterStep]] = {
    _SGD: _sgd,
    "torch.optim.adam.Adam": _adam,
    "torch.optim.adamw.AdamW": _adam,
    _TORCH_ADAFACTOR: _torch_adafactor,
    _TRANSFORMERS_ADAFACTOR: _transformers_adafactor,
}
