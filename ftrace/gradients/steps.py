"""The interface of a training step that can be rehearsed: run any time, with some examples' inputs exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ftrace.gradients.layouts import Examples

OnLoss = Callable[[Tensor, bool], None]


class ExchangeError(RuntimeError):
    """Failure of a step with some examples' inputs exchanged for others', although it runs with its own."""


class Step(Protocol):
    """A training step that can be run any time, and leaves no trace."""

    def __call__(
        self,
        on_loss: OnLoss | None,
        *,
        sources: Sequence[int] | None = None,
        fresh: bool = False,
        stirred: bool = False,
    ) -> None:
        """Run the step.

        Args:
            on_loss: Called with each loss that the step differentiates, and whether its graph is used again; None
                where nothing is differentiated.
            sources: For each example, the index of the example whose inputs it gets (-1: its own, changed); default:
                its own.
            fresh: Whether to draw other random numbers than the training step itself will.
            stirred: Whether to change also those inputs in which no examples can be found.

        Raises:
            ExchangeError: If the step fails with exchanged or changed inputs.
        """


def sources_of(members: Tensor, examples: Examples) -> list[int]:
    """Choose, for each example to be exchanged, another one of the same dataloader whose inputs it gets.

    Where there is no other, it gets its own, changed, which is written as -1.
    """
    sources = list(range(examples.total))
    for loader in range(len(examples.loaders)) if examples.loaders else [None]:
        first = examples.first(loader)
        in_loader = range(first, first + examples.count(loader))
        kept, exchanged = [i for i in in_loader if not members[i]], 0
        for i in in_loader:
            if members[i] and len(in_loader) == 1:
                sources[i] = -1
            elif members[i]:
                sources[i] = kept[exchanged % len(kept)] if kept else in_loader[(i - first + 1) % len(in_loader)]
                exchanged += 1  # so that no two get the same where that can be avoided
    return sources
