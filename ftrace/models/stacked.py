"""A FactLM with many sets of weights at a time: what single training rows would each make of it.

Shape letters: E sets of weights, M rows for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    def check(self, example: Mapping[str, Tensor], query: Mapping[str, Tensor]) -> None:
        """Make sure that one row's gradient and one row's loss are what plain passes of the model say.

        Args:
            example: A batch of one training row.
            query: A batch of one query.

        Raises:
            ValueError: If they are not.
        """
        parameters = dict(self.model.named_parameters())
        loss = self.model.training_loss(example)
        plain = torch.autograd.grad(loss, [parameters[name] for name in self.weights], allow_unused=True)
        found = self.gradients(example)
        wrong = sum(
            float((found[name][0] - (0 if one is None else one)).square().sum())
            for name, one in zip(self.weights, plain, strict=True)
        )
        size = sum(float(one.square().sum()) for one in plain if one is not None)
        with torch.no_grad():
            expected = self.model.example_losses(query)
        unchanged = {name: weight[None] for name, weight in self.weights.items()}
        difference = (self.losses(unchanged, {k: v[None] for k, v in query.items()})[0] - expected).abs().max()
        if wrong > _CLOSE**2 * size or difference > _CLOSE * (1 + expected.abs().max()):
            raise ValueError(
                f"{self._name} gives other gradients or losses for many sets of weights at a time than for one: "
                "expected a T5, GPT-2 or Llama model, or another whose code doesn't look at values in its batches"
            )

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
