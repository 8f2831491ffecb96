"""The steps before which queries are differentiated anew: at a fixed interval, or as fast as their losses move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ftrace.online.processes import collective_device, num_processes, sum_over_processes

Every = int | Literal["auto"]

_TYPICAL = 10  # steps, for estimates
_NATS = 0.25  # the losses' movement in an interval, their root mean square
_LONGEST = 32  # steps; with integration="trapezoid", an interval's contributions are held
_PASS = 2 / 3  # of the work of a training step on as many rows, since weights get no gradient
_EAGERNESS = 2  # refreshes may begin at this multiple of the frequency that the whole training can afford
_FEWEST = 8  # refreshes of a training, whatever they cost: scores of older gradients would be of little use
_UNPLANNED = 100  # steps that training is taken to have, if nobody says how many, until it has more


class RefreshSchedule:
    """The schedule of the refreshes of one run.

    With ``"auto"``, the next interval is as long as it takes the losses to move by some .25 nats (root mean square over
    queries), if they go on as in the last interval; it is twice the last one at most. The first two intervals are of
    one step, so that second moments and whitening are there from the third step on. What refreshes may cost in all is a
    share of training's own work, by the numbers of rows; at its beginning, up to twice that share may be spent on steps
    in which losses move fast. Eight refreshes come in any case. All processes decide alike.

    Args:
        every: The number of optimizer steps from one refresh to the next, or ``"auto"``.
        share: With ``"auto"``, what refreshes may cost, as a share of training's own work.
        planned: The number of optimizer steps of the whole training at most; infinity if nobody knows.
        batches_per_step: The number of batches of a step; a fraction if several optimizers step on one batch.

    Attributes:
        interval: The number of steps from the last refresh to the next one.
    """

    def __init__(
        self, every: Every, share: float = 0.25, planned: float = math.inf, batches_per_step: float = 1
    ) -> None:
        self.every = every
        self.share = share
        self.planned = planned
        self.interval = 1 if every == "auto" else every
        self._batches_per_step = batches_per_step
        self._refreshes = 0  # failed ones included
        self._rows = 0.0  # of a process's batches at refreshes, added up
        self._last = torch.empty(0, dtype=torch.float64)
        self._last_at = 0

    def refreshed(self, step: int, losses: Tensor, rows: int, steps_begun: int) -> None:
        """Plan the next refresh. All processes must call it.

        Args:
            step: The step before which queries were just differentiated.
            losses: Their losses, ``[Q]`` in nats; those of queries that were added are last.
            rows: The number of rows of this process's current batch.
            steps_begun: The number of steps since tracing began.
        """
        if self.every != "auto":
            return
        last, self._last = self._last, losses.detach().double().cpu()
        passed, self._last_at = max(1, step - self._last_at), step
        moved = (self._last[: len(last)] - last).square().mean().sqrt().item() if len(last) else 0.0
        moved, rows_of_batch = _mean_over_processes(moved, rows)
        self._count(rows_of_batch)
        self.interval = 1
        if self._refreshes > 2:
            wanted = round(min(2.0 * passed, _LONGEST, passed * _NATS / moved if moved > 0 else math.inf))
            self.interval = max(1, wanted, self._affordable_in(steps_begun))

    def failed(self, step: int, rows: int, steps_begun: int) -> None:
        """Plan the next refresh after one whose losses were not finite. All processes must call it."""
        if self.every != "auto":
            return
        passed, self._last_at = max(1, step - self._last_at), step
        (rows_of_batch,) = _mean_over_processes(rows)
        self._count(rows_of_batch)
        self.interval = max(min(2 * passed, _LONGEST), self._affordable_in(steps_begun))

    def _count(self, rows: float) -> None:
        self._refreshes += 1
        self._rows += rows

    def _affordable_in(self, steps_begun: int) -> int:
        """Return in how many steps the next refresh can be afforded, if refreshes are to get rarer until the end.

        Of P refreshes that T steps can afford, ``P (1 - (1 - t/T)^2)`` may come in the first t steps.
        """
        rows_a_step = self._rows / self._refreshes * self._batches_per_step
        steps_of_a_pass = _PASS * len(self._last) / max(rows_a_step, 1e-9)
        planned = self.planned if self.planned < math.inf else max(_UNPLANNED, steps_begun)
        affordable = max(_FEWEST, self.share * planned / max(steps_of_a_pass, 1e-9))
        if self._refreshes < affordable:
            at = planned * (1 - (1 - self._refreshes / affordable) ** (1 / _EAGERNESS))
        else:
            at = max(planned, min(self._refreshes * steps_of_a_pass / max(self.share, 1e-9), 2.0 * planned))
        return math.ceil(min(at - steps_begun, 1e9))

    def state(self) -> dict[str, Any]:
        """Return the state, which is the same in all processes but for rounding."""
        return {
            "interval": self.interval,
            "refreshes": self._refreshes,
            "rows": self._rows,
            "losses": self._last,
            "last_at": self._last_at,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.interval, self._refreshes, self._rows = state["interval"], state["refreshes"], state["rows"]
        self._last, self._last_at = state["losses"], state["last_at"]


def _mean_over_processes(*values: float) -> list[float]:
    """Average numbers over processes, so that all decide alike."""
    here = torch.tensor(values, dtype=torch.float64)
    if num_processes() > 1:
        here = here.to(collective_device())
    mean: list[float] = (sum_over_processes(here) / num_processes()).tolist()
    return mean


def typical_interval(every: Every) -> int:
    """Return the number of steps between refreshes that estimates of memory and of products are made for."""
    return _TYPICAL if every == "auto" else every
