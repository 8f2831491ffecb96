"""The check of a rehearsed training step's gradients against plain autograd."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ftrace.gradients import PerExampleGradients, Projection, Rehearsal, UnreadableError
from ftrace.online.checks.comparison import compare_gradients, projected, projected_all, reduction
from ftrace.online.checks.failures import Failures
from ftrace.online.loop import TrainingLoop


class StepCheck:
    """The check of training steps against plain autograd: all examples together, and two of them alone.

    Args:
        loop: The training loop, through which the user is told.
        who: Whose messages these are.
        failures: Where to report; None to check sums only.
        generator: Draws the examples.
        eps: Of the coarsest dtype that passes go through.

    Attributes:
        checked: By parameter that was checked while it had a gradient, the step of the check.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        who: str,
        failures: Failures | None,
        generator: torch.Generator,
        *,
        eps: float,
    ) -> None:
        self.loop = loop
        self.who = who
        self.failures = failures
        self.eps = eps
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
        *,
        unprojected: bool,
    ) -> bool:
        """Compare gradients that were read off layers with those that autograd computes.

        Args:
            rehearsal: A rehearsal of the step.
            gradients: The gradients that it has read.
            totals: The gradients that autograd computes for all examples together, by parameter; reduced, if there is
                a :func:`reduction`.
            covered: The covered parameters by name.
            projection: The projection in which gradients are compared; None if there is none.
            step: The optimizer step.
            unprojected: Whether ``gradients`` were not projected.

        Returns:
            Whether this batch could be checked; if not, another one has to be.

        Raises:
            UnreadableError: If parameters are used outside of the layers that they are read off.
        """
        names = list(gradients.parts)
        if not all(bool(total.isfinite().all()) for total in totals.values()):
            return False
        magnitudes = {name: float((gradients.square_norms([name]).sum() * len(gradients)).sqrt()) for name in names}
        to_project = projection if unprojected else None
        reduce = reduction(projection)
        expected, noise = (totals, {}) if reduce is not None else projected_all(totals, projection)

        def total(name: str) -> Tensor:
            return projected(name, gradients.total(name), to_project)

        wrong = compare_gradients(names, total, expected, magnitudes, noise, eps=self.eps)
        if wrong:
            raise _used_elsewhere(wrong, covered)
        if rehearsal.examples.total < 2 or not rehearsal.is_complete:
            return False
        if self.failures is not None:
            self._compare_alone(rehearsal, gradients, projection, self.failures, unprojected=unprojected)
        seen = [name for name, total in totals.items() if bool(total.any())]
        self.checked |= dict.fromkeys((name for name in seen if name not in self.checked), step)
        return True

    def _compare_alone(
        self,
        rehearsal: Rehearsal,
        gradients: PerExampleGradients,
        projection: Projection | None,
        failures: Failures,
        *,
        unprojected: bool,
    ) -> None:
        to_project = projection if unprojected else None
        reduce = reduction(projection)
        for example in torch.randperm(rehearsal.examples.total, generator=self._generator)[:2].tolist():
            alone = rehearsal.alone(example, reduce)
            expected, noise = (alone, {}) if reduce is not None else projected_all(alone, projection)

            def of_example(name: str, example: int = example) -> Tensor:
                return projected(name, gradients.dense(name, example, example + 1)[0], to_project)

            wrong = compare_gradients(list(gradients.parts), of_example, expected, noise=noise, eps=self.eps)
            if wrong:
                failures.report(
                    f"the gradient of the batch's example {example} for {wrong[0]!r}, read off its layers, is not what "
                    "autograd gives. A layer may mix examples, or the loss may have a term of no example",
                    names=wrong,
                )

    def forget(self, names: Collection[str]) -> None:
        """Count parameters as not checked, since they are read in another way from here on."""
        self.checked = {name: step for name, step in self.checked.items() if name not in names}

    def never_checked(self, covered: Collection[str]) -> list[str]:
        """List the covered parameters that had no gradient in any rehearsed batch of several examples."""
        return [name for name in covered if name not in self.checked]

    def report_never_checked(self, covered: Collection[str]) -> None:
        """Tell the user, when training ends, which parameters could not be checked."""
        names = self.never_checked(covered)
        if names and self.failures is not None:
            shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            self.loop.tell(
                f"{self.who} self_check: {len(names)} of {len(covered)} parameters were never checked against "
                f"autograd, since they had no gradient in any batch of several examples that was rehearsed: {shown}. "
                "The manifest lists all of them"
            )


def _used_elsewhere(names: Sequence[str], covered: Mapping[str, nn.Parameter]) -> UnreadableError:
    """Make the error that parameters are used outside of the modules that they are read off."""
    hooked = [name for name in names if covered[name]._backward_hooks]
    if hooked:
        problem = f"{hooked[0]!r} has a hook of yours that changes its gradient"
    else:
        problem = (
            "the training step uses parameters outside of the modules that they are read off, such as in a penalty on "
            'weights (use weight_decay), or under a torch.autocast of its own (name it, too: precision="bf16-mixed")'
        )
    return UnreadableError(problem, names)
