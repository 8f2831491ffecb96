"""Rows of a gradient index, of batches of examples or queries, at a module's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ftrace.gradients import GradientCapture, coarsest_eps, of_passes
from ftrace.index.features import GradientFeatures

Losses = Callable[[Any, Any], Tensor]


class GradientRows:
    """The map from batches to rows, at a module's weights.

    Args:
        module: The module, in eval mode.
        features: The map from gradients to rows.
        losses: ``(module, batch) -> Tensor[B]``: what is differentiated, one number for each row of the batch.

    Raises:
        ValueError: If a parameter can't be covered.
    """

    def __init__(self, module: nn.Module, features: GradientFeatures, losses: Losses) -> None:
        self.module = module
        self.features = features
        self.losses = losses
        projection = None if features.needs_unprojected else features.projection
        self.capture = GradientCapture(module, features.names, projection=projection, strict=True)
        self.capture.attach()
        self._is_checked = False

    @torch.enable_grad()
    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Make the rows ``[B, D]`` of a batch; return them and the outputs that are differentiated, ``[B]``.

        Raises:
            ValueError: If the first row is not what autograd finds for it alone.
        """
        with self.capture.recording(rows_of_batch(batch)) as recording:
            losses = self.losses(self.module, batch)
            recording.backward(losses)
        rows = self.features.rows(recording.gradients())
        if not self._is_checked:
            self._check_against_autograd(batch, rows)
            self._is_checked = True
        return rows, losses.detach()

    def detach(self) -> None:
        """Remove the hooks; the module is as it was."""
        self.capture.detach()

    def _check_against_autograd(self, batch: Any, rows: Tensor) -> None:
        """Check the first row against autograd: a weight may be used outside of its layer, or rows be mixed up."""
        size = len(rows)

        def first(leaf: Any) -> Any:
            return leaf[:1] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf

        parameters = dict(self.module.named_parameters())
        named = {name: parameters[name] for name in self.features.names}
        with self.capture.exclusively():
            total = self.losses(self.module, _pytree.tree_map(first, batch)).sum()
            by_autograd = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        gradients = {name: grad for name, grad in zip(named, by_autograd, strict=True) if grad is not None}
        expected = self.features.row_of(gradients, rows)
        tolerance = of_passes(coarsest_eps(parameter.dtype for parameter in parameters.values()))
        if not (rows[0] - expected).norm() <= tolerance * (expected.norm() + 1e-3 * rows.norm()):
            raise ValueError(
                "the gradient that is read off layers for the first row of a batch is not the one that autograd finds "
                "for it alone: something may use a weight outside of its layer's forward, or mix a batch's rows. Name "
                "the parameters that the index is to cover: parameters=(...)"
            )


def rows_of_batch(batch: Any) -> int:
    """Count the rows of a batch: as many as the first of its tensors has.

    Raises:
        ValueError: If there is no tensor in it.
    """
    for leaf in _pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError(f"expected a batch with tensors whose leading axis is its rows, found a {type(batch).__name__}")


def on_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device."""
    return _pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
