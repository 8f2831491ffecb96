"""The weights at the start of an interval, from which the ledger tells how they have changed at its end.

Where query gradients are projected, weights are projected, too, in float64: a change of weights is some 1e5 times
smaller than the weights, so that float32 would leave few digits of the difference. Otherwise weights are copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.gradients import Projection
from ftrace.online.precision import wide
from ftrace.online.processes import unsharded

_CHUNK_NUMBERS = 2**21  # of a weight that is converted to float64


class WeightsAtStart:
    """The weights at an interval's start.

    Args:
        projection: The projection of query gradients; None if these are not projected.
    """

    def __init__(self, projection: Projection | None) -> None:
        self._projection = projection
        self._copies: dict[str, Tensor] = {}
        self._projected: dict[str, Tensor] = {}
        self._projected_at_end: dict[str, Tensor] = {}

    def take(self, parameters: Mapping[str, nn.Parameter], unprojected: Collection[str]) -> None:
        """Take the weights as they are now.

        Args:
            parameters: The parameters by name.
            unprojected: Names of those whose query gradients aren't projected.
        """
        last, self._copies, self._projected = self._copies, {}, {}
        at_end, self._projected_at_end = self._projected_at_end, {}
        for name, parameter in parameters.items():
            weights = unsharded(parameter.detach())
            if self._projection is None or name in unprojected or weights.is_complex():
                self._copies[name] = _copied_to(last.pop(name, None), weights)
            else:
                self._projected[name] = at_end[name] if name in at_end else self._project(name, weights)

    def changes(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield how far each parameter has fallen since, one at a time, and whether that is projected.

        If the next call is :meth:`take`, there must be no step in between.
        """
        for name, before in self._copies.items():
            yield name, wide(before) - wide(unsharded(parameters[name].detach())), False
        for name, before in self._projected.items():
            self._projected_at_end[name] = now = self._project(name, unsharded(parameters[name].detach()))
            yield name, before - now, True

    def _project(self, name: str, weights: Tensor) -> Tensor:
        assert self._projection is not None
        if weights.ndim < 2:
            return self._projection.project(name, weights.double()[None])[0]
        flat, like = weights.flatten(1), torch.empty(0, dtype=torch.float64, device=weights.device)
        rows = self._projection.axis(name, 0, flat.shape[0], like)
        columns = self._projection.axis(name, 1, flat.shape[1], like)
        projected = rows.new_zeros(rows.shape[1], columns.shape[1])
        size = max(1, _CHUNK_NUMBERS // max(1, flat.shape[1]))
        for start in range(0, len(flat), size):
            projected += rows[start : start + size].T @ (flat[start : start + size].double() @ columns)
        return projected

    def state(self) -> dict[str, Any]:
        """Return all state, as tensors; copies are copied, since the next interval takes their memory."""
        return {
            "weights": {name: weights.clone() for name, weights in self._copies.items()},
            "projected_weights": self._projected,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; the weights of earlier versions are all copies."""
        self._copies, self._projected = dict(state["weights"]), dict(state.get("projected_weights", {}))
        self._projected_at_end = {}


def _copied_to(memory: Tensor | None, tensor: Tensor) -> Tensor:
    """Copy a tensor, to memory that is no longer needed if it is alike."""
    if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype or memory.device != tensor.device:
        return tensor.clone()
    return memory.copy_(tensor)
