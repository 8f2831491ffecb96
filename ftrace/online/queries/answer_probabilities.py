"""Probabilities of answers, which losses of queries about behaviour are made of: margins, refusals, expected rewards.

Shapes: B queries, K answers to each, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.online.queries.query_losses import columns_taken, shifted_logits, the_language_model

_ROUNDING = 1e-6  # by which a log-probability may be above 0


def answer_log_probabilities(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Compute the log-probability of each answer given what comes before it, in nats.

    Each label counts, that of an end-of-sequence token included, unlike in the ready-made loss of queries: a completion
    that was sampled ends where it ends. Put -100 there if it isn't to count. The last steps are in float64, so that
    probabilities that are nearly 1 keep their difference from 1.

    Args:
        module: A Hugging Face language model, decoder-only or encoder-decoder, or a module with one among its
            attributes.
        batch: ``labels``, ``[B, T]`` or, of K answers to each query, ``[B, K, T]``: token ids, -100 where there is
            nothing to tell; and what else the model takes, such as ``input_ids`` and ``attention_mask``, likewise.

    Returns:
        ``[B]`` or ``[B, K]`` float64.

    Raises:
        ValueError: If a column has another shape than the labels, or an answer has no labels.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        ...                                      num_attention_heads=1, pad_token_id=0))
        >>> ids = torch.tensor([[[3, 4, 5], [3, 6, 0]]])  # 3 is a prompt, "4 5" and "6" are answers
        >>> labels = torch.tensor([[[-100, 4, 5], [-100, 6, -100]]])
        >>> answer_log_probabilities(model, {"input_ids": ids, "labels": labels}).shape
        torch.Size([1, 2])
    """
    model = the_language_model(module)
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim not in (2, 3):
        shape = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"keys {list(batch)}"
        raise ValueError(
            f'answer_log_probabilities: expected token ids "labels", [B, T], or [B, K, T] of K answers to each query, '
            f"found {shape}"
        )
    of_rows = {name: batch[name] for name in columns_taken(model) | {"labels"} if name in batch}
    for name, column in of_rows.items():
        if not isinstance(column, Tensor) or column.shape[:-1] != labels.shape[:-1]:
            found = tuple(column.shape) if isinstance(column, Tensor) else type(column).__name__
            raise ValueError(
                f"answer_log_probabilities: expected {name!r} as the labels, {tuple(labels.shape)}, except for the "
                f"number of tokens, found {found}. Give each answer a row of its own, with its prompt"
            )
    logits, wanted = shifted_logits(model, {name: column.flatten(0, -2) for name, column in of_rows.items()})
    is_label = wanted != -100
    if not is_label.any(1).all():
        empty = (~is_label.any(1)).nonzero().flatten().tolist()
        raise ValueError(
            "answer_log_probabilities: expected labels for each answer, found none in the rows "
            f"{empty[:5]}, whose probability would be 1. If queries have different numbers of answers, repeat one, and "
            "take any_answer_log_probability, or put them in batches of their own"
        )
    of_labels = logits[is_label].double().log_softmax(-1).gather(-1, wanted[is_label].unsqueeze(-1)).squeeze(-1)
    of_tokens = torch.zeros_like(wanted, dtype=torch.float64).masked_scatter(is_label, of_labels)
    return of_tokens.sum(1).view(labels.shape[:-1])


def any_answer_log_probability(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Compute the log of the probability that the text goes on with one of several answers, in nats, ``[B]`` float64.

    Answers are beginnings of what may follow: their probabilities are added up, and one that begins with another one of
    the same query, or is the same, is contained in it and counts once.

    Args:
        module: As in :func:`answer_log_probabilities`.
        batch: Likewise, with K answers to each query; ``labels`` is ``[B, K, T]``.

    Raises:
        ValueError: As :func:`answer_log_probabilities`, or if there is one answer to each query only.
    """
    log_probabilities = answer_log_probabilities(module, batch)
    labels: Tensor = batch["labels"]
    if labels.ndim != 3:
        raise ValueError(
            "any_answer_log_probability: expected the labels of K answers to each query, [B, K, T], found "
            f"{tuple(labels.shape)}. Of one answer, take answer_log_probabilities"
        )
    is_counted = [_uncontained([[t for t in row if t != -100] for row in rows]) for rows in labels.tolist()]
    counts = torch.tensor(is_counted, device=log_probabilities.device)
    return log_probabilities.masked_fill(~counts, -torch.inf).logsumexp(1)


def _uncontained(answers: Sequence[list[int]]) -> list[bool]:
    """Tell which answers neither begin with another one nor repeat an earlier one."""
    return [
        not any(
            answer[: len(other)] == other and (len(other) < len(answer) or j < i)
            for j, other in enumerate(answers)
            if j != i
        )
        for i, answer in enumerate(answers)
    ]


def log_odds(log_probabilities: Tensor) -> Tensor:
    """Compute log(p / (1 - p)) from log p.

    Its gradient doesn't vanish where p is nearly 0 or 1, as that of p does at both, and that of log p at 1.

    Args:
        log_probabilities: log p, of any shape; in float64 if p may be nearly 1.

    Returns:
        The log-odds, in nats; infinite where p is 1 in this dtype.

    Raises:
        ValueError: If a probability is above 1.

    Example:
        >>> log_odds(torch.tensor([0.5, 0.9]).log())
        tensor([0.0000, 2.1972])
    """
    if (log_probabilities > _ROUNDING).any():
        raise ValueError(
            f"log_odds: expected log-probabilities, at most 0, found {float(log_probabilities.max()):.3g}. "
            "Probabilities that are added up must be of events of which only one can happen"
        )
    log_probabilities = log_probabilities.clamp(max=0)
    return log_probabilities - torch.log(-torch.expm1(log_probabilities))
