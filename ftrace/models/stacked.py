"""A FactLM with many sets of weights at a time: what single training rows would each make of it.

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

_MASKS = ("attention_mask", "answer_attention_mask")
_IDS = ("example_id", "query_id")
_CLOSE = 1e-3


class StackedFactLM:
    """Computes a FactLM's losses and gradients for many sets of weights in one pass (``torch.func.vmap``).

    Args:
        model: In eval mode: with dropout, no two passes are alike. Built of a Hugging Face T5, GPT-2 or Llama, or of
            another whose code doesn't look at values in its batches.
    """

    def __init__(self, model: FactLM) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {
            name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._training_loss = _Call(model, "training_loss")
        self._example_losses = _Call(model, "example_losses")

    def gradients(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each row's own gradient of :meth:`FactLM.training_loss`, by parameter; tied weights once.

        Args:
            batch: Training rows ``[E, ...]``.

        Returns:
            For each trainable parameter, ``[E, *its shape]``.

        Raises:
            ValueError: If the model's code can't be run so.
        """
        own, shared = self._batches({name: tensor.unsqueeze(1) for name, tensor in batch.items()})

        def loss(weights: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self._training_loss, _of_model(weights), ({**row, **shared},))
            return found

        with self._many_at_once():
            found: dict[str, Tensor] = vmap(grad(loss), (None, 0))(self.weights, own)
        return found

    @torch.no_grad()
    def losses(self, weights: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """:meth:`FactLM.example_losses` of each set of weights on rows of its own, ``[E, M]``.

        Args:
            weights: For each trainable parameter, ``[E, *its shape]``.
            batch: Rows ``[E, M, ...]``.

        Raises:
            ValueError: If the model's code can't be run so.
        """
        own, shared = self._batches(batch)

        def losses(weights: dict[str, Tensor], rows: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self._example_losses, _of_model(weights), ({**rows, **shared},))
            return found

        with self._many_at_once():
            found: Tensor = vmap(losses)(dict(weights), own)
        return found

    def check(self, examples: Mapping[str, Tensor], queries: Mapping[str, Tensor]) -> None:
        """Make sure that gradients and losses are what plain passes of the model say, one row at a time.

        Args:
            examples: A few training rows, best of different lengths.
            queries: A few queries, likewise.

        Raises:
            ValueError: If they are not.
        """
        found = self.gradients(examples)
        unchanged = {name: weight[None] for name, weight in self.weights.items()}
        losses = self.losses(unchanged, {name: tensor[None] for name, tensor in queries.items()})[0]
        right = all(
            _close([found[name][place] for name in self.weights], self._plain_gradient(row))
            for place, row in enumerate(_each_row(examples))
        )
        with torch.no_grad():
            plain = torch.cat([self.model.example_losses(row) for row in _each_row(queries)])
        if not right or not torch.allclose(losses, plain, rtol=_CLOSE, atol=_CLOSE):
            raise ValueError(
                f"{self._name} gives other gradients or losses with many sets of weights at a time than with one: "
                "expected a T5, GPT-2 or Llama model, or another whose code doesn't look at values in its batches"
            )

    def _plain_gradient(self, row: Mapping[str, Tensor]) -> list[Tensor]:
        named = dict(self.model.named_parameters())
        parameters = [named[name] for name in self.weights]
        found = torch.autograd.grad(self.model.training_loss(row), parameters, allow_unused=True)
        return [torch.zeros_like(weight) if one is None else one for weight, one in zip(parameters, found, strict=True)]

    def _batches(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What each set of weights gets of a batch ``[E, M, ...]``, and what all get: attention masks ``[M, ...]``.

        Hugging Face models look whether masks hide anything, which they can't where that differs from set to set.
        An encoder's masks are therefore given as what is added to attention, ``[E, M, 1, 1, T]``, which models take as
        it is. A decoder-only model needs none: it doesn't look ahead, and rows are filled up on the right.
        """
        own = {name: tensor for name, tensor in batch.items() if name not in (*_MASKS, *_IDS)}
        masks = {name: batch[name] for name in _MASKS if name in batch}
        if self.model.architecture == "decoder-only":
            assert not any((mask.diff(dim=-1) > 0).any() for mask in masks.values()), "rows filled up on the left"
            return own, {name: torch.ones_like(mask[0]) for name, mask in masks.items()}
        dtype = next(iter(self.weights.values())).dtype
        for name, mask in masks.items():
            own[name] = ((1 - mask.to(dtype)) * torch.finfo(dtype).min)[..., None, None, :]
        return own, {}

    @property
    def _name(self) -> str:
        return f"the model type {self.model.model.config.model_type!r}"

    @contextmanager
    def _many_at_once(self) -> Iterator[None]:
        try:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels would take one set of weights at a time
                yield
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                f"{self._name} can't be run with many sets of weights at a time: expected a T5, GPT-2 or Llama model, "
                f"or another whose code doesn't look at values in its batches ({error})"
            ) from error


class _Call(nn.Module):
    """One of a module's methods as a module, which ``functional_call`` takes."""

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
    for place in range(len(batch["labels"])):
        yield {name: tensor[place : place + 1] for name, tensor in batch.items()}


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether gradients are alike as vectors."""
    wrong = sum(float((one - other).square().sum()) for one, other in zip(found, expected, strict=True))
    return wrong <= _CLOSE**2 * sum(float(one.square().sum()) for one in expected)
