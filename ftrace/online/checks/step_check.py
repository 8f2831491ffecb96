"""What is read of a training step that is rehearsed, held against plain autograd."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ftrace.gradients import PerExampleGradients, Projection, Rehearsal
from ftrace.online.checks.comparison import compare_gradients
from ftrace.online.checks.failures import Failures
from ftrace.online.loop import TrainingLoop
from ftrace.online.rehearsal.unreadable import used_elsewhere


class StepCheck:
    """Gradients of training steps against plain autograd: all examples together, and two of them alone.

    Args:
        loop: The training loop, which tells the user.
        who: Whose messages these are.
        failures: Where to report; None to look at sums only.
        generator: Draws the examples.
        coarse: Whether passes are in half precision.

    Attributes:
        checked: Parameters that were held against autograd with a gradient, by name, and the step.
    """

    def __init__(
        self, loop: TrainingLoop, who: str, failures: Failures | None, generator: torch.Generator, *, coarse: bool
    ) -> None:
        self.loop = loop
        self.who = who
        self.failures = failures
        self.coarse = coarse
        self.checked: dict[str, int] = {}
        self._generator = generator

    def compare(
        self,
        rehearsal: Rehearsal,
        gradients: PerExampleGradients,
        totals: Mapping[str, Tensor],
        covered: Mapping[str, nn.Parameter],
        projection: Projection | None,
        step: int,
    ) -> bool:
        """Hold what is read off layers against autograd.

        Args:
            rehearsal: Of the step.
            gradients: What it has read.
            totals: What autograd finds for all examples together, by name.
            covered: The covered parameters by name.
            projection: What the gradients are projected with, if they are.
            step: The optimizer step.

        Returns:
            Whether this batch could tell; if not, another one has to.

        Raises:
            UnreadableError: If parameters are used outside of the layers that they are read off.
        """
        read = {name: gradients.total(name) for name in gradients.parts}
        if not all(bool(total.isfinite().all()) for total in totals.values()):
            return False
        magnitudes = {name: float((gradients.square_norms([name]).sum() * len(gradients)).sqrt()) for name in read}
        wrong = compare_gradients(read, totals, magnitudes, projection=projection, coarse=self.coarse)
        if wrong:
            raise used_elsewhere(wrong, covered)
        if rehearsal.examples.total < 2 or not rehearsal.is_complete:
            return False
        if self.failures is not None:
            self._compare_alone(rehearsal, gradients, projection, self.failures)
        seen = [name for name, total in totals.items() if bool(total.any())]
        self.checked |= dict.fromkeys((name for name in seen if name not in self.checked), step)
        return True

    def _compare_alone(
        self, rehearsal: Rehearsal, gradients: PerExampleGradients, projection: Projection | None, failures: Failures
    ) -> None:
        for example in torch.randperm(rehearsal.examples.total, generator=self._generator)[:2].tolist():
            expected = rehearsal.alone(example)
            read = {name: gradients.dense(name, example, example + 1)[0] for name in gradients.parts}
            wrong = compare_gradients(read, expected, projection=projection, coarse=self.coarse)
            if wrong:
                failures.report(
                    f"the gradient of the batch's example {example} for {wrong[0]!r}, read off its layers, is not what "
                    "autograd gives. A layer may mix examples, or the loss may have a term of no example",
                    names=wrong,
                )

    def forget(self, names: Collection[str]) -> None:
        """Parameters that are read in another way from here on have not been checked."""
        self.checked = {name: step for name, step in self.checked.items() if name not in names}

    def never_checked(self, covered: Collection[str]) -> list[str]:
        """Covered parameters that had no gradient in any batch of several examples that was rehearsed."""
        return [name for name in covered if name not in self.checked]

    def say_what_was_never_checked(self, covered: Collection[str]) -> None:
        """When training ends: name what nobody could look at."""
        names = self.never_checked(covered)
        if names and self.failures is not None:
            shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            self.loop.tell(
                f"{self.who} self_check: {len(names)} of {len(covered)} parameters were never held against autograd, "
                f"since they had no gradient in any batch of several examples that was looked at: {shown}. The "
                "manifest has all of them"
            )
