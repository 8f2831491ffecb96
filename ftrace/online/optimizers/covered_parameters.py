"""The covered parameters, and the check before training and at each step that none is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from ftrace.gradients import Coverage, leave_out
from ftrace.online.messages import warn
from ftrace.online.processes import sum_over_processes


class CoveredParameters:
    """The covered parameters of one run.

    Args:
        coverage: The report on all parameters.
        named_parameters: All parameters of the module by name.
        who: Whose messages these are.
        strict: Whether a trained parameter that can't be covered is an error; otherwise a warning.
        trained: Ids (:func:`id`) of the parameters that an optimizer has.
        why_none: Why there may be none, and what to do about it: a sentence that begins with a space.

    Attributes:
        by_name: The covered parameters by name.

    Raises:
        ValueError: If nothing is covered, or, when strict, if a trained parameter can't be covered.
    """

    def __init__(
        self,
        coverage: Coverage,
        named_parameters: Mapping[str, nn.Parameter],
        who: str,
        *,
        strict: bool,
        trained: Collection[int],
        why_none: str = "",
    ) -> None:
        self.by_name = {n: p for n in coverage.covered if id(p := named_parameters[n]) in trained}
        if not self.by_name:
            why_none = f".{why_none}" if why_none else ""
            raise ValueError(f"no parameter is both trained and covered. {coverage.summary()}{why_none}")
        self._who = who
        self._strict = strict
        self._coverage = coverage
        self._unrecorded = set(self.by_name)  # not recorded by any process, so the same set on all of them
        self._recorded_here: set[str] = set()
        if coverage.gaps:
            self._report(
                f"{who} can't cover {len(coverage.gaps)} trained parameters. {coverage.summary()}\n"
                + leave_out((gap.parameter for gap in coverage.gaps), coverage.patterns)
            )

    def update_coverage(self, coverage: Coverage, named_parameters: Mapping[str, nn.Parameter]) -> None:
        """Drop the parameters that are no longer covered.

        Raises:
            ValueError: If none is left.
        """
        self.by_name = {n: named_parameters[n] for n in coverage.covered if n in self.by_name}
        if not self.by_name:
            raise ValueError(f"no parameter is both trained and covered. {coverage.summary()}")
        self._unrecorded &= set(self.by_name)

    def note_recorded(self, names: Collection[str]) -> None:
        """Record that the layers of these parameters have run."""
        if self._unrecorded:
            self._recorded_here.update(names)

    def refuse_unrecorded(self) -> None:
        """Refuse, before an optimizer's step, a gradient of a layer that never ran, since its source is unknown.

        All processes must call it, since a layer may run on one of them only.

        Raises:
            ValueError: When strict, if there is such a gradient.
        """
        if not self._unrecorded:
            return
        order = sorted(self._unrecorded)
        device = self.by_name[order[0]].device
        is_recorded = torch.tensor([name in self._recorded_here for name in order], dtype=torch.int64, device=device)
        recorded_anywhere = sum_over_processes(is_recorded).tolist()
        self._unrecorded = {name for name, count in zip(order, recorded_anywhere, strict=True) if not count}
        silent = [n for n in self._unrecorded if (grad := self.by_name[n].grad) is not None and bool(grad.any())]
        if silent:
            self._unrecorded.difference_update(silent)
            self._report(
                f"{self._who}: {min(silent)!r} gets a gradient, though its layer never ran: something uses it outside "
                "of its layer's forward, or reentrant activation checkpointing hides how (set use_reentrant=False). "
                f"{leave_out(sorted(silent), self._coverage.patterns)}"
            )

    def _report(self, problem: str) -> None:
        message = f"{problem}, or go on without with strict=False."
        if self._strict:
            raise ValueError(message)
        warn(message)
