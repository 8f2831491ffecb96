"""One loss per query, from whatever model is being trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

QueryLosses = Callable[[LightningModule, Any], Tensor]


def find_query_losses(pl_module: LightningModule) -> QueryLosses:
    """The module's own ``example_losses``, or a ready-made one where it wraps one Hugging Face language model.

    Raises:
        ValueError: If there is neither.
    """
    if callable(getattr(pl_module, "example_losses", None)):
        return module_example_losses
    language_models = [name for name, child in pl_module.named_children() if _is_language_model(child)]
    if len(language_models) == 1:
        return huggingface_losses
    found = f"{len(language_models)} Hugging Face language models ({language_models})" if language_models else "none"
    raise ValueError(
        f"don't know the loss of a query: {type(pl_module).__name__} has no example_losses(batch) -> Tensor[B], and a "
        f"ready-made loss wants exactly one Hugging Face language model among its attributes, found {found}. Pass "
        "query_losses=(pl_module, batch) -> Tensor[B]."
    )


def find_query_learned(pl_module: LightningModule) -> QueryLosses | None:
    """The module's own ``learned(batch) -> Tensor[B]`` bool, or None if it has none."""
    return module_learned if callable(getattr(pl_module, "learned", None)) else None


def module_learned(pl_module: LightningModule, batch: Any) -> Tensor:
    """The module's own ``learned(batch)``, ``[B]`` bool."""
    found: Tensor = pl_module.learned(batch)  # type: ignore[operator]
    return found


def module_example_losses(pl_module: LightningModule, batch: Any) -> Tensor:
    """The module's own ``example_losses(batch)``, ``[B]``."""
    losses: Tensor = pl_module.example_losses(batch)  # type: ignore[operator]
    return losses


def huggingface_losses(pl_module: LightningModule, batch: Mapping[str, Any]) -> Tensor:
    """Summed negative log-likelihood of each row's ``labels`` (-100 is left out), in nats, ``[B]``.

    For a module with one Hugging Face language model, decoder-only or encoder-decoder, among its attributes.
    """
    model: Any = next(child for child in pl_module.children() if _is_language_model(child))
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        found = f"a {type(batch).__name__}"
        if isinstance(batch, Mapping):
            found = f"keys {list(batch)}" if labels is None else f"{_described(labels)} under it"
        raise ValueError(
            f'queries: the ready-made loss expects token ids "labels", [B, T], -100 where there is nothing to tell, '
            f"found {found}. Add them, or pass query_losses=(pl_module, batch) -> Tensor[B]"
        )
    takes = _columns(model)
    if not model.config.is_encoder_decoder:
        takes -= {"labels"}  # some models compute a loss instead of logits then
    logits = model(**{name: value for name, value in batch.items() if name in takes}).logits
    logits = logits[:, logits.shape[1] - labels.shape[1] :]  # prompt tuning puts virtual tokens in front
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return losses.sum(1)


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _columns(model: nn.Module) -> set[str]:
    """Columns of a batch that a model takes, whatever stands around it: PEFT, ``torch.compile``, a wrapper of its own.

    Wrappers with ``**kwargs`` hand on what they don't name themselves, so what the model inside of them names counts.
    """
    named: set[str] = set()
    for one in model.modules():
        if one is not model and not _is_language_model(one):
            continue
        parameters = inspect.signature(one.forward).parameters.values()
        named |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return named


def _is_language_model(module: nn.Module) -> bool:
    """Whether it generates text left to right: a masked language model's labels are not shifted, for one."""
    can_generate = getattr(module, "can_generate", None)
    return hasattr(module, "config") and callable(can_generate) and bool(can_generate())
