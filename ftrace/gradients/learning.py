"""How much a step matters to a query that is being learned."""

from __future__ import annotations

import torch
from torch import Tensor


def learning_weights(losses: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Compute ``p (1 - p)`` of each query, ``[Q]``, with ``p = exp(-loss / length)``, its probability per token.

    Cosines don't say how much a step matters to a query. This weight does: it is close to 0 before anything of the
    answer is known, largest while it is being learned, and 0 again once it is certain. Per token, it says so of an
    answer of any length; the probability of a whole answer is nearly 0 until its last token is known.

    Args:
        losses: -log of the answers' probabilities, ``[Q]``, in nats.
        lengths: The numbers of tokens of the answers, ``[Q]``; default: 1 each.

    Example:
        >>> learning_weights(torch.tensor([0.0, 1.3863]), torch.tensor([1, 2]))
        tensor([0.0000, 0.2500])
    """
    p = torch.exp(-losses.clamp(min=0) / (1 if lengths is None else lengths.to(losses)))
    return p * (1 - p)
