"""The limit of tokens in a forward pass, which is halved when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
_WORDS = ("can't allocate memory", "not enough memory", "alloc_failed")


class MemoryLimit:
    """A limit of tokens in a pass.

    Args:
        tokens: The limit to begin with.

    Raises:
        ValueError: If it is below 1.
    """

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1 token in a pass, found {tokens}")
        self.tokens = tokens

    def attempt(self, work: Callable[[], Result], tokens: int) -> Result | None:
        """Do some work. If memory runs out, return None and set the limit to half of what was tried."""
        try:
            return work()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler, whose traceback would keep tensors alive.
        self.tokens = max(1, min(self.tokens, tokens) // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
