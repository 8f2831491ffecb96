"""How much a step matters to a query that is being learned."""

from __future__ import annotations

import torch
from torch import Tensor

_LONGEST = 4  # tokens of an answer whose probability as a whole counts


def learning_weights(losses: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Compute ``sqrt(p (1 - p))`` of each query, ``[Q]``, where p is the probability of its answer.

    Cosines don't say how much a step matters to a query. This weight does: it is close to 0 before the answer is known
    at all, largest while it is being learned, and 0 again once it is certain. It is the speed of ``2 arcsin(sqrt(p))``
    when the logit of p changes: between that of p, which is nearly 0 until the answer is half known, and that of log p,
    which begins with the first step. Of an answer of more than four tokens, p is the probability of four average ones,
    since that of the whole would be nearly 0 until its last token is known. (Chosen on development data: docs/log.md,
    2026-11-28.)

    Args:
        losses: -log of the answers' probabilities, ``[Q]``, in nats.
        lengths: The numbers of tokens of the answers, ``[Q]``; default: four at most.

    Example:
        >>> learning_weights(torch.tensor([0.0, 0.6931, 6.931]), torch.tensor([1, 3, 40]))
        tensor([0.0000, 0.5000, 0.5000])
    """
    losses = losses.clamp(min=0)
    if lengths is not None:
        losses = losses * (_LONGEST / lengths.to(losses)).clamp(max=1)
    p = torch.exp(-losses)
    return (p * (1 - p)).sqrt()
