"""What a model answers to a query."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelAnswer:
    """A model's most likely answer to a query.

    Args:
        text: The answer without sentinels; in the spelling of an accepted answer if it is right. None if the answer
            has not ended.
        probability: Its probability, its end included.
        right: Whether it is an accepted answer.
    """

    text: str | None
    probability: float
    right: bool
