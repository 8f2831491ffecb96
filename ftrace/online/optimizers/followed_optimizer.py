"""One optimizer of the run: the contributions to its current gradients, and the steps that it takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftrace.gradients import (
    BeforeStep,
    Dense,
    ParameterStep,
    PerExampleGradients,
    Preconditioner,
    Projection,
    after_step,
    before_step,
    buffer_of,
    full_name,
    layer_of,
    learning_rate,
    of_touched,
    preconditioner_from_state,
    project,
    rank_one_from_state,
    scales_elements,
    touched_elements,
    unsupported_step,
)
from ftrace.online.messages import warn
from ftrace.online.precision import is_half
from ftrace.online.processes import unsharded, unsharded_state
from ftrace.online.scoring.contributions import Contribution, Share, Shares


class FollowedOptimizer:
    """One optimizer, the contributions to its current gradients, and its steps.

    Args:
        index: Its index among the loop's optimizers.
        names: Names of all the module's parameters by their :func:`id`.
        covered: Names of those whose contributions are read.
        by_layer: Whether scores are broken down by layer.

    Attributes:
        contributions: All contributions to its current gradients, which sum to these.
        is_stepping: Whether a step was begun but not taken yet.
        is_open: Whether its gradients hold contributions that no step has used yet.
        adds_to_used: Whether the last gradients that a step had used were still there in the next backward pass.
        steps_taken: The number of steps it has taken.
        norm_before_step: The norm of its gradients right before the step; None if it wasn't needed.
        norm_of_backward: The norm of its gradients after the last backward pass, without loss scale; None if it wasn't
            measured.
        rates: The learning rate of each parameter group at the last step.
        problem: Why its steps can't be described, as the kind ``update`` needs; None if they can.
    """

    def __init__(
        self, index: int, optimizer: Optimizer, names: Mapping[int, str], covered: Collection[str], *, by_layer: bool
    ) -> None:
        self.index = index
        self.optimizer = optimizer
        self.covered = frozenset(covered)
        self.by_layer = by_layer
        self._names = names
        self.contributions: list[Contribution] = []
        self.norm_of_backward: float | None = None
        self.norm_before_step: float | None = None
        self.is_stepping = False
        self.is_open = False
        self.adds_to_used = False
        self.steps_taken = 0
        self._noted: dict[str, BeforeStep] = {}
        self._copies: dict[str, Tensor] = {}
        self.rates: list[float] = []
        self.problem = unsupported_step(optimizer)

    @property
    def is_elementwise(self) -> bool:
        """Whether its steps scale the elements of a parameter's gradient differently."""
        return self.problem is None and scales_elements(self.optimizer)

    @property
    def begins_gradient(self) -> bool:
        """Whether the next backward pass begins a new gradient, if the user's code goes on as before."""
        return not self.contributions or not (self.is_open or self.adds_to_used)

    def parameters(self, *, covered: bool = False) -> list[tuple[int, str, nn.Parameter]]:
        """List its parameters: index of their group, name, parameter."""
        return [
            (index, self._names[id(p)], p)
            for index, group in enumerate(self.optimizer.param_groups)
            for p in group["params"]
            if id(p) in self._names and (not covered or self._names[id(p)] in self.covered)
        ]

    def group_of(self, name: str) -> Mapping[str, Any]:
        """Return the settings of a parameter's group."""
        return next(self.optimizer.param_groups[group] for group, other, _ in self.parameters() if other == name)

    def shares(self) -> Shares:
        """Group its covered parameters by how the next step treats them."""
        shares: dict[Share, list[str]] = {}
        for group, name, parameter in self.parameters(covered=True):
            if parameter.requires_grad:
                state = self.optimizer.state.get(parameter, {})
                progress = float(state.get("step", state.get("momentum_buffer") is not None))
                shares.setdefault(Share(group, progress, layer_of(name) if self.by_layer else ""), []).append(name)
        return shares

    def gradient_norm(self) -> float:
        """Compute the norm of its gradients, over all its parameters, in float32 or finer."""
        grads = self._gradients()
        coarse = [grad for grad in grads if is_half(grad.dtype)]
        fine = [grad for grad in grads if not is_half(grad.dtype)]
        total = float(unsharded(torch.nn.utils.get_total_norm(fine)))
        norms = [float(unsharded(torch.linalg.vector_norm(grad, dtype=torch.float32))) for grad in coarse]
        return math.hypot(total, *norms) if coarse else total

    def clip_factor(self, largest: float, scale: float) -> float:
        """Compute kappa, the factor by which ``torch.nn.utils.clip_grad_norm_`` multiplies its gradients.

        It is computed as there, since in half precision the norm and the factor itself are rounded to a few digits.

        Args:
            largest: The norm to clip to.
            scale: The loss scale that is still in the gradients.
        """
        norm = unsharded(torch.nn.utils.get_total_norm(self._gradients())) / scale
        return float(torch.clamp(largest / (norm + 1e-6), max=1.0))

    def has_gradients(self) -> bool:
        """Whether any gradient of its covered parameters is not zero."""
        return any(bool(unsharded(grad).any()) for grad in _grads_of(p for _, _, p in self.parameters(covered=True)))

    def _gradients(self) -> list[Tensor]:
        """List the gradients of all its parameters, as :func:`_grads_of` does."""
        return _grads_of(p for group in self.optimizer.param_groups for p in group["params"])

    def note_before_step(self, *, steps: bool) -> None:
        """Remember, right before the step, what it is about to change.

        Args:
            steps: Whether :meth:`steps` will be called.
        """
        self.is_stepping = True
        self.rates = [learning_rate(group) for group in self.optimizer.param_groups]
        self._noted, self._copies = {}, {}
        if not steps:
            return
        keeps = keeps_gradients(self.optimizer)
        for group, name, p in self.parameters():
            if p.grad is not None:
                self._noted[name] = before_step(self.optimizer, self.optimizer.param_groups[group], p)
                if not keeps:
                    self._copies[name] = unsharded(p.grad).clone()

    def gradients_given(self, clip: float) -> dict[str, Tensor]:
        """Return, after the step, the gradients that it was made of, clipped, by name.

        Args:
            clip: The factor by which they were clipped after :meth:`note_before_step`.
        """
        if self._copies:
            return {name: clip * grad for name, grad in self._copies.items()}
        return {
            n: unsharded(p.grad).detach() for _, n, p in self.parameters() if p.grad is not None and n in self._noted
        }

    def steps(self, given: Mapping[str, Tensor]) -> dict[str, ParameterStep]:
        """Describe, after the step, what it did with each covered parameter."""
        return {
            name: after_step(
                self.optimizer,
                self.optimizer.param_groups[group],
                name,
                p,
                given.get(name),
                self._noted[name],
                unsharded_state(self.optimizer.state.get(p, {})),
            )
            for group, name, p in self.parameters(covered=True)
            if name in self._noted
        }

    def as_contribution(self, given: Mapping[str, Tensor], projection: Projection, clip: float) -> Contribution:
        """Return the gradients that a step was made of as if they were one example's, projected and unprojected.

        Args:
            given: The gradients, as :meth:`gradients_given` returns them.
            projection: The examples' projection.
            clip: kappa, which ``given`` is multiplied by already.
        """
        shares = {share: [n for n in names if n in given] for share, names in self.shares().items()}
        names = [name for names_of_share in shares.values() for name in names_of_share]
        shapes = {name: given[name].shape for name in names}
        unprojected = PerExampleGradients({name: [Dense(given[name][None])] for name in names}, shapes, 1)
        gradients = project(unprojected, projection)
        return Contribution(
            torch.zeros(1, dtype=torch.int64), 1 / clip, shares, gradients=gradients, unprojected=unprojected
        )

    def buffer_of(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the momentum buffer that the optimizer keeps for a parameter, unsharded; None without one."""
        buffer = buffer_of(self.optimizer.state.get(parameter, {}))
        return None if buffer is None else unsharded(buffer)

    def preconditioners(self, *, elementwise: bool) -> dict[str, Preconditioner]:
        """Compute one over the root of its second moments, for the covered parameters that have any.

        Args:
            elementwise: Whether to keep the second moments of matrices as they are, not as the closest outer product.
        """
        if not self.is_elementwise:
            return {}
        preconditioners: dict[str, Preconditioner] = {}
        kind = full_name(self.optimizer)
        for group, name, p in self.parameters(covered=True):
            state, settings = unsharded_state(self.optimizer.state.get(p, {})), self.optimizer.param_groups[group]
            if "step" not in state:
                continue
            if p.ndim > 1 and not elementwise:
                preconditioners[name] = rank_one_from_state(name, kind, settings, state, p.shape, p.dtype)
            else:
                factor = preconditioner_from_state(name, kind, settings, state, p.shape, p.dtype)
                preconditioners[name] = of_touched(factor, touched_elements(kind, settings, state))
        return preconditioners

    def facts(self) -> dict[str, Any]:
        """Describe the optimizer for the manifest."""
        settings = ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay", "amsgrad", "maximize")
        return {
            "class": full_name(self.optimizer),
            "steps": self.steps_taken,
            "parameters": sum(p.numel() for _, _, p in self.parameters()),
            "groups": [
                {key: group[key] for key in settings if key in group and not isinstance(group[key], Tensor)}
                for group in self.optimizer.param_groups
            ],
        }


def _grads_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """List the gradients that there are; of sparse ones, the values that are stored."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]


def keeps_gradients(optimizer: Optimizer) -> bool:
    """Whether the optimizer certainly doesn't write to the gradients that it is given.

    SGD with ``foreach`` adds Nesterov momentum in place, and third-party optimizers may do anything.
    """
    writes = any(group.get("nesterov") and group.get("foreach") is not False for group in optimizer.param_groups)
    return type(optimizer).__module__.startswith("torch.optim") and not writes


def warn_of_missing_rates(optimizers: Sequence[Optimizer], who: str, what: str) -> None:
    """Warn if an optimizer doesn't say its learning rate, which is then counted as 1.

    Args:
        optimizers: The run's optimizers.
        who: Whose message this is.
        what: What depends on the rate.
    """
    for optimizer in optimizers:
        if any(group.get("lr") is None for group in optimizer.param_groups):
            warn(
                f'{who}: {type(optimizer).__name__} has no learning rate "lr" in its parameter groups: {what} counts '
                "each step with 1. Give the groups their rate as lr=..., where it changes"
            )
