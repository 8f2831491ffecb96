"""Losses of queries, one per query: the module's own, or ready-made ones for Hugging Face models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QueryLosses = Callable[[Any, Any], Tensor]


def find_query_losses(module: nn.Module) -> QueryLosses:
    """Return the module's own ``example_losses``, or a ready-made loss if it has one Hugging Face language model.

    Raises:
        ValueError: If there is neither.
    """
    if callable(getattr(module, "example_losses", None)):
        return module_example_losses
    language_models = list(_language_models(module))
    if len(language_models) == 1:
        return huggingface_losses
    found = f"{len(language_models)} Hugging Face language models ({language_models})" if language_models else "none"
    raise ValueError(
        f"don't know the loss of a query: {type(module).__name__} has no example_losses(batch) -> Tensor[B], and a "
        f"ready-made loss wants exactly one Hugging Face language model among its attributes, found {found}. Pass "
        "query_losses=(module, batch) -> Tensor[B]."
    )


def find_query_learned(module: nn.Module) -> QueryLosses | None:
    """Return the module's own ``learned(batch) -> Tensor[B]`` bool; None if it has none."""
    return module_learned if callable(getattr(module, "learned", None)) else None


def find_answer_lengths(module: nn.Module, losses: QueryLosses) -> QueryLosses | None:
    """Return how the lengths of queries' answers, in tokens, are found: ``(module, batch) -> Tensor[B]``.

    They tell how much of a long answer's loss its average tokens have, see :func:`ftrace.gradients.learning_weights`.

    Args:
        losses: How the queries' losses are computed.

    Returns:
        The module's own ``answer_lengths`` if the losses are its own, too; the numbers of labels if losses are the
        ready-made ones; otherwise None.
    """
    losses = inspect.unwrap(losses)
    if losses is huggingface_losses:
        return huggingface_lengths
    if losses is module_example_losses and callable(getattr(module, "answer_lengths", None)):
        return module_answer_lengths
    return None


def module_answer_lengths(module: Any, batch: Any) -> Tensor:
    """Call the module's own ``answer_lengths(batch)``, ``[B]``."""
    lengths: Tensor = module.answer_lengths(batch)
    return lengths


def huggingface_lengths(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Count the labels of each row whose losses :func:`huggingface_losses` sums up, ``[B]``; at least 1."""
    model: Any = next(iter(_language_models(module).values()))
    labels = batch["labels"] if model.config.is_encoder_decoder else batch["labels"][:, 1:]
    return (_without_ends(labels, model) != -100).sum(1).clamp(min=1)


def module_learned(module: Any, batch: Any) -> Tensor:
    """Call the module's own ``learned(batch)``, ``[B]`` bool."""
    is_learned: Tensor = module.learned(batch)
    return is_learned


def module_example_losses(module: Any, batch: Any) -> Tensor:
    """Call the module's own ``example_losses(batch)``, ``[B]``."""
    losses: Tensor = module.example_losses(batch)
    return losses


def huggingface_losses(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Compute the summed negative log-likelihood of each row's ``labels`` (without those of -100), in nats, ``[B]``.

    The model's end-of-sequence token at the end of a row's labels is left out, unless there is nothing else: before it
    is fine-tuned, a pretrained decoder hardly ever ends a text where an answer ends, so that this one token would be
    most of the loss. The module is a Hugging Face language model, decoder-only or encoder-decoder, or has one among its
    attributes.
    """
    model: Any = next(iter(_language_models(module).values()))
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        found = f"a {type(batch).__name__}"
        if isinstance(batch, Mapping):
            found = f"keys {list(batch)}" if labels is None else f"{_described(labels)} under it"
        raise ValueError(
            f'queries: the ready-made loss expects token ids "labels", [B, T], -100 where there is nothing to tell, '
            f"found {found}. Add them, or pass query_losses=(module, batch) -> Tensor[B]"
        )
    logits, labels = shifted_logits(model, batch)
    silent = (labels == -100).all(1).nonzero().flatten().tolist()
    if silent:
        raise ValueError(
            f'queries: expected "labels" of each query\'s answer, found none but -100 that the model predicts in row '
            f"{silent[0]} of a batch. Give the answer's tokens as labels"
        )
    labels = _without_ends(labels, model)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return losses.sum(1)


READY_MADE = frozenset([module_example_losses, module_learned, huggingface_losses])


def shifted_logits(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Run a Hugging Face language model: its logits, ``[B, S, V]``, and the labels that they predict, ``[B, S]``."""
    labels: Tensor = batch["labels"]
    takes = columns_taken(model)
    if not model.config.is_encoder_decoder:
        takes -= {"labels"}  # some models compute a loss instead of logits then
    logits: Tensor = model(**{name: value for name, value in batch.items() if name in takes}).logits
    logits = logits[:, logits.shape[1] - labels.shape[1] :]  # prompt tuning puts virtual tokens in front
    return (logits, labels) if model.config.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])


def the_language_model(module: nn.Module) -> Any:
    """Return the one Hugging Face language model that a module is, or has among its attributes.

    Raises:
        ValueError: If there is none, or several.
    """
    models = _language_models(module)
    if len(models) != 1:
        raise ValueError(
            "expected a Hugging Face language model, or a module with exactly one among its attributes, found "
            f"{list(models) or 'none'} in {type(module).__name__}. Pass the one that is meant"
        )
    return next(iter(models.values()))


def huggingface_training_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss that a Hugging Face model itself computes for a batch with ``labels``.

    Raises:
        ValueError: If it isn't a Hugging Face model, or the batch has no labels.
    """
    inner = getattr(model, "module", model)  # of DistributedDataParallel
    if not hasattr(inner, "config") or not isinstance(batch, Mapping) or "labels" not in batch:
        shown = f"keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f"training_loss: the ready-made one expects a Hugging Face model and a batch with labels, found "
            f"{type(inner).__name__} and {shown}. Pass training_loss=(model, batch) -> Tensor"
        )
    takes = columns_taken(inner)
    loss: Tensor = model(**{name: value for name, value in batch.items() if name in takes}).loss
    return loss


def _language_models(module: nn.Module) -> dict[str, nn.Module]:
    """Return the module itself if it is a language model, or else the language models among its attributes, by name."""
    if _is_language_model(module):
        return {"": module}
    return {name: child for name, child in module.named_children() if _is_language_model(child)}


def _without_ends(labels: Tensor, model: Any) -> Tensor:
    """Return labels, ``[B, T]``, with -100 for an end-of-sequence token that comes after all others of its row."""
    ends: list[int] = []
    for config in (model.config, getattr(model, "generation_config", None)):
        end = getattr(config, "eos_token_id", None)
        ends += [] if end is None else [end] if isinstance(end, int) else list(end)
    counted = labels != -100
    is_last = counted & (counted.flip(1).cumsum(1).flip(1) == 1)
    is_end = is_last & torch.isin(labels, torch.tensor(ends, dtype=labels.dtype, device=labels.device))
    is_alone = counted.sum(1, keepdim=True) == 1
    return labels.masked_fill(is_end & ~is_alone, -100)


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def columns_taken(model: nn.Module) -> set[str]:
    """List the columns of a batch that a model takes, also inside of wrappers such as PEFT's or ``torch.compile``'s.

    Wrappers with ``**kwargs`` pass on all that they don't name themselves, so the arguments of the model inside count.
    """
    named: set[str] = set()
    for module in model.modules():
        if module is not model and not _is_language_model(module):
            continue
        parameters = inspect.signature(module.forward).parameters.values()
        named |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return named


def _is_language_model(module: nn.Module) -> bool:
    """Whether a module generates text left to right; for others, such as masked ones, labels are not shifted."""
    can_generate = getattr(module, "can_generate", None)
    return hasattr(module, "config") and callable(can_generate) and bool(can_generate())
