"""An optimizer step from a snapshot on a single gradient, for many gradients at a time.

The step has no momentum, which would not be the gradient's doing, no weight decay, which would change probabilities
whatever the example, and no clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ftrace.models import OptimizerState


@dataclass(frozen=True)
class Sgd:
    """A step of plain SGD: ``theta - learning_rate g``.

    Raises:
        ValueError: If the learning rate is not above 0.
    """

    learning_rate: float

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)

    def change(self, name: str, gradients: Tensor) -> Tensor:
        """Compute what a step on each gradient subtracts from a parameter.

        Args:
            name: Name of the parameter.
            gradients: ``[E, *its shape]``.
        """
        return gradients * self.learning_rate

    def __str__(self) -> str:
        return f"SGD, learning rate {self.learning_rate:g}"


@dataclass(frozen=True)
class Adam:
    """A step of Adam without momentum.

    ``theta - learning_rate g / (sqrt(v' / (1 - beta2^(t + 1))) + eps)`` with ``v' = beta2 v + (1 - beta2) g^2``.

    The second moments ``v`` and the number of steps ``t`` are the snapshot's, and the gradient is mixed into ``v`` as
    the optimizer does: this is torch's Adam with the snapshot's state and ``betas=(0, beta2)``. So no element moves by
    more than ``learning_rate / sqrt(1 - beta2)``; with ``v`` alone, an element that has hardly had a gradient would
    move without bound.

    Args:
        states: The snapshot's second moments, by name of the parameter.

    Raises:
        ValueError: If the learning rate is not above 0, or second moments are missing or not Adam's.
    """

    learning_rate: float
    states: Mapping[str, OptimizerState]

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        if not self.states:
            raise ValueError(
                "optimizer: expected a snapshot with Adam's second moments, found none in it: SGD keeps none, and "
                "before the first step there are none. Take --optimizer sgd"
            )
        for name, state in self.states.items():
            if state.optimizer not in _ADAMS or "exp_avg_sq" not in state.moments or state.settings.get("amsgrad"):
                kind = f"{state.optimizer} with amsgrad" if state.settings.get("amsgrad") else state.optimizer
                raise ValueError(
                    f"optimizer: expected second moments of Adam or AdamW, found {sorted(state.moments)} of {kind} "
                    f"for {name!r}. Take --optimizer sgd"
                )

    def change(self, name: str, gradients: Tensor) -> Tensor:
        """Compute what a step on each gradient subtracts from a parameter.

        Args:
            name: Name of the parameter.
            gradients: ``[E, *its shape]``.

        Raises:
            ValueError: If the snapshot has no second moments of the parameter.
        """
        if name not in self.states:
            raise ValueError(f"optimizer: the snapshot has no second moments of {name!r}. Take --optimizer sgd")
        state = self.states[name]
        beta = float(state.settings["betas"][1])
        moments = state.moments["exp_avg_sq"].to(gradients)
        mixed = torch.lerp(gradients.square(), moments.expand_as(gradients), beta)
        root = mixed.sqrt_() / math.sqrt(1 - beta ** (state.step + 1))
        return self.learning_rate * gradients / root.add_(float(state.settings["eps"]))

    def __str__(self) -> str:
        return f"Adam, learning rate {self.learning_rate:g}, the snapshot's second moments"


StepRule = Sgd | Adam

_ADAMS = ("torch.optim.adam.Adam", "torch.optim.adamw.AdamW")


def _check_rate(rate: float) -> None:
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"learning_rate: expected a number above 0, found {rate}")
