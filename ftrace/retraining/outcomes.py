"""What a retraining is asked for, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Budget = Literal["epochs", "steps"]


@dataclass(frozen=True)
class QueryOutcome:
    """A model's losses and answers on the queries.

    Args:
        losses: Each query's loss in nats, float32 ``[Q]``; NaN or infinite if the training diverged, which a file
            stores as NaN.
        learned: Whether greedy decoding answers each query correctly, bool ``[Q]``.
    """

    losses: np.ndarray
    learned: np.ndarray
