"""Rows of a gradient index, of batches of examples or queries, at a model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ftrace.attribution.passes import Batch
from ftrace.gradients import GradientCapture
from ftrace.index import GradientFeatures
from ftrace.models import FactLM, Output


class GradientRows:
    """Makes rows of batches.

    Args:
        model: At the weights that gradients are taken at, in eval mode.
        features: What rows are.
        output: What is differentiated.

    Raises:
        ValueError: If a parameter can't be covered.
    """

    def __init__(self, model: FactLM, features: GradientFeatures, output: Output = "loss") -> None:
        names = [name for of_block in features.blocks.values() for name in of_block]
        self.model = model
        self.features = features
        self.output: Output = output
        projection = None if features.needs_whole else features.projection
        self.capture = GradientCapture(model, names, projection=projection, strict=True)
        self.capture.attach()
        self._is_checked = False

    @torch.enable_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The rows ``[B, D]`` of a batch, and what is differentiated, ``[B]``.

        Raises:
            ValueError: If rows don't sum to what autograd finds for the first batch.
        """
        with self.capture.recording(len(batch["labels"])) as recording:
            outputs = self.model.example_outputs(batch, self.output)
            recording.backward(outputs)
        rows = self.features.rows(recording.gradients())
        if not self._is_checked:
            self._hold_against_autograd(batch, rows)
            self._is_checked = True
        return rows, outputs.detach()

    def _hold_against_autograd(self, batch: Batch, rows: Tensor) -> None:
        """What is read off layers must sum to the gradient: a weight may be used outside of its layer too."""
        parameters = dict(self.model.named_parameters())
        names = [name for of_block in self.features.blocks.values() for name in of_block]
        with self.capture.exclusively():
            total = self.model.example_outputs(batch, self.output).sum()
            found = torch.autograd.grad(total, [parameters[name] for name in names], allow_unused=True)
        gradients = {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}
        expected = self.features.row_of(gradients, rows)
        tolerance = 1e-3 if rows.dtype in (torch.float32, torch.float64) else 0.1
        if not (rows.sum(0) - expected).norm() <= tolerance * (expected.norm() + 1e-3 * rows.norm()):
            raise ValueError(
                "the examples' gradients don't sum to the batch's: something may use a weight outside of its layer's "
                "forward. Name the parameters that the index is to see: parameters=(...)"
            )


@torch.no_grad()
def rows_of_queries(
    rows: GradientRows, batches: Sequence[Batch], device: torch.device, answers: Literal["one", "any"] | None = None
) -> Tensor:
    """The rows ``[Q, D]`` of queries, on the CPU.

    Args:
        rows: What makes them.
        batches: The queries.
        device: The model's.
        answers: What a query's loss is; default: as the run's.
    """
    if answers is not None:
        rows.model.hparams["answers"] = answers
    return torch.cat([rows({name: one.to(device) for name, one in batch.items()})[0].cpu() for batch in batches])
