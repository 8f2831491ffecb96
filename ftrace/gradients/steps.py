"""What a rehearsal asks of a training step: to run at will, with some examples' inputs exchanged for others'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ftrace.gradients.layouts import Examples

OnLoss = Callable[[Tensor, bool], None]


class ExchangeError(RuntimeError):
    """A step that fails with some examples' inputs exchanged for others', though it doesn't fail as it is."""


class Step(Protocol):
    """A training step that can be run at will, and leaves no trace."""

    def __call__(
        self,
        on_loss: OnLoss | None,
        *,
        sources: Sequence[int] | None = None,
        fresh: bool = False,
        stirred: bool = False,
    ) -> None:
        """Run it.

        Args:
            on_loss: Is given each loss that the step differentiates, and whether its graph is used again; None where
                nothing is differentiated.
            sources: For each example, the one whose inputs it gets (-1: its own, changed); default: its own.
            fresh: Whether to draw other random numbers than the step itself is going to.
            stirred: Whether to change those inputs, too, in which no examples can be found.

        Raises:
            ExchangeError: If it fails with inputs that are not its own.
        """


def sources_of(members: Tensor, examples: Examples) -> list[int]:
    """For each example that is to be exchanged, another one of its dataloader's whose inputs it gets.

    Where it is the only one, it gets its own, changed, which is said by -1.
    """
    sources = list(range(examples.total))
    for group in range(len(examples.groups)) if examples.groups else [None]:
        first = examples.first(group)
        own = range(first, first + examples.count(group))
        kept, exchanged = [i for i in own if not members[i]], 0
        for i in own:
            if members[i] and len(own) == 1:
                sources[i] = -1
            elif members[i]:
                sources[i] = kept[exchanged % len(kept)] if kept else own[(i - first + 1) % len(own)]
                exchanged += 1  # so that no two get the same where that can be avoided
    return sources
