"""The random state that training draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ftrace.online.undisturbed.kept_objects import random_generators


class RandomState:
    """The random state of Python, numpy and torch at one moment.

    Args:
        module: A module whose own generators are included.
        left_alone: Classes in whose instances no generators are searched.
    """

    def __init__(self, module: nn.Module | None = None, left_alone: tuple[type, ...] = ()) -> None:
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._generators = [] if module is None else random_generators(module, left_alone)

    def put_back(self) -> None:
        """Restore the state, so that the same numbers are drawn again."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        for put_back in self._generators:
            put_back()


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Restore the global random state afterwards."""
    state = RandomState()
    try:
        yield
    finally:
        state.put_back()
