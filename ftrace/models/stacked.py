"""A FactLM with many sets of weights at a time, such as those after a step on each of several training rows.

Shape letters: E sets of weights, M rows for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from ftrace.models.fact_lm import FactLM
from ftrace.models.rounding import tolerance_of

_MASKS = ("attention_mask", "answer_attention_mask")
_IDS = ("example_id", "query_id")


class StackedFactLM:
    """FactLM whose losses and gradients are computed for many sets of weights in one pass (``torch.func.vmap``).

    Args:
        model: In eval mode, since dropout would differ between passes. A Hugging Face T5, GPT-2 or Llama, or another
            model whose code doesn't look at values in its batches.
    """

    def __init__(self, model: FactLM) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {
            name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._training_loss = _Call(model, "training_loss")
        self._example_losses = _Call(model, "example_losses")

    def gradients(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute each row's gradient of :meth:`FactLM.training_loss`, by parameter; tied weights once.

        Args:
            batch: Training rows ``[E, ...]``.

        Returns:
            ``[E, *shape]`` for each trainable parameter.

        Raises:
            ValueError: If the model's code can't be vectorized.
        """
        stacked, shared = self._batches({name: tensor.unsqueeze(1) for name, tensor in batch.items()})

        def loss(weights: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
            value: Tensor = functional_call(self._training_loss, _of_model(weights), ({**row, **shared},))
            return value

        with self._many_at_once():
            gradients: dict[str, Tensor] = vmap(grad(loss), (None, 0))(self.weights, stacked)
        return gradients

    @torch.no_grad()
    def losses(self, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Compute :meth:`FactLM.example_losses` of each set of weights on its rows, ``[E, M]``.

        Args:
            weights: ``[E, *shape]`` for each trainable parameter.
            batch: Rows ``[E, M, ...]``.

        Raises:
            ValueError: If the model's code can't be vectorized.
        """
        stacked, shared = self._batches(batch)

        def losses(weights: dict[str, Tensor], rows: dict[str, Tensor]) -> Tensor:
            values: Tensor = functional_call(self._example_losses, _of_model(weights), ({**rows, **shared},))
            return values

        with self._many_at_once():
            of_sets: Tensor = vmap(losses)(dict(weights), stacked)
        return of_sets

    def check(self, examples: Mapping[str, Tensor], queries: Mapping[str, Tensor]) -> None:
        """Compare gradients and losses with those of plain passes of the model, one row at a time.

        Args:
            examples: A few training rows, ideally of different lengths.
            queries: A few queries, likewise.

        Raises:
            ValueError: If they differ.
        """
        gradients = self.gradients(examples)
        unchanged = {name: weight[None] for name, weight in self.weights.items()}
        losses = self.losses(unchanged, {name: tensor[None] for name, tensor in queries.items()})[0]
        tolerance = tolerance_of(self.model)
        right = all(
            _close([gradients[name][index] for name in self.weights], self._plain_gradient(row), tolerance)
            for index, row in enumerate(_each_row(examples))
        )
        with torch.no_grad():
            plain = torch.cat([self.model.example_losses(row) for row in _each_row(queries)])
        if not right or not torch.allclose(losses, plain, rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"{self._name} gives other gradients or losses with many sets of weights at a time than with one: "
                "expected a T5, GPT-2 or Llama model, or another whose code doesn't look at values in its batches"
            )

    def _plain_gradient(self, row: Mapping[str, Tensor]) -> list[Tensor]:
        named = dict(self.model.named_parameters())
        parameters = [named[name] for name in self.weights]
        gradients = torch.autograd.grad(self.model.training_loss(row), parameters, allow_unused=True)
        return [
            torch.zeros_like(weight) if gradient is None else gradient
            for weight, gradient in zip(parameters, gradients, strict=True)
        ]

    def _batches(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split a batch ``[E, M, ...]`` into tensors per set of weights, and attention masks ``[M, ...]`` for all.

        Hugging Face models check whether masks hide anything, which fails if that differs between sets. An encoder's
        masks are therefore given as addends of attention, ``[E, M, 1, 1, T]``, which models use as they are. A
        decoder-only model needs no masks: it doesn't look ahead, and rows are padded on the right.
        """
        stacked = {name: tensor for name, tensor in batch.items() if name not in (*_MASKS, *_IDS)}
        masks = {name: batch[name] for name in _MASKS if name in batch}
        if self.model.architecture == "decoder-only":
            assert not any((mask.diff(dim=-1) > 0).any() for mask in masks.values()), "rows padded on the left"
            return stacked, {name: torch.ones_like(mask[0]) for name, mask in masks.items()}
        dtype = next(iter(self.weights.values())).dtype
        for name, mask in masks.items():
            stacked[name] = ((1 - mask.to(dtype)) * torch.finfo(dtype).min)[..., None, None, :]
        return stacked, {}

    @property
    def _name(self) -> str:
        return f"the model type {self.model.model.config.model_type!r}"

    @contextmanager
    def _many_at_once(self) -> Iterator[None]:
        try:
            with sdpa_kernel(SDPBackend.MATH):  # vmap would loop over fused attention kernels
                yield
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                f"{self._name} can't be run with many sets of weights at a time: expected a T5, GPT-2 or Llama model, "
                f"or another whose code doesn't look at values in its batches ({error})"
            ) from error


class _Call(nn.Module):
    """Module whose forward pass is a method of another module, as ``functional_call`` needs it."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner = owner
        self.method = method

    @override
    def forward(self, *arguments: Any) -> Any:
        return getattr(self.owner, self.method)(*arguments)


def _of_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"owner.{name}": weight for name, weight in weights.items()}


def _each_row(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for row in range(len(batch["labels"])):
        yield {name: tensor[row : row + 1] for name, tensor in batch.items()}


def _close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    """Return whether gradients are close as vectors."""
    error = sum(float((left - right).double().square().sum()) for left, right in zip(actual, expected, strict=True))
    return error <= tolerance**2 * sum(float(right.double().square().sum()) for right in expected)
