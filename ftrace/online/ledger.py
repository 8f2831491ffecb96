"""Keeping the ledger: what each query's loss did between refreshes, and the accounts that explain it.

Between two refreshes, vectors of the parameters' size are added up: the true change of the weights, and of it what
momentum and decay have made, from the optimizer's own state. At the next refresh they are multiplied with the query
gradients, all at once. What examples have gained comes from their scores. Nothing here is computed as what is left of
something else's total, so a wrong contribution leaves the books unbalanced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftrace.gradients import ParameterStep, Projection, flat_rows
from ftrace.online.loop import TrainingLoop
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.processes import process_rank, sum_over_processes, whole
from ftrace.online.queries.query_pass import Refresh
from ftrace.scores import Ledger
from ftrace.scores.ledger import ACCOUNTS, COLUMNS


class _Vectors:
    """Sums of vectors over the steps of an interval: plain, and weighted by where in the interval they are."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.late: dict[str, Tensor] = {}

    def add(self, name: str, vector: Tensor, position: float | None) -> None:
        """Add one step's vector.

        Args:
            name: The parameter.
            vector: In its shape.
            position: Steps since the refresh, and a half; None where all of the interval counts alike.
        """
        self.sums[name] = self.sums[name].add_(vector) if name in self.sums else vector.clone()
        if position is not None:
            late = position * vector
            self.late[name] = self.late[name].add_(late) if name in self.late else late

    def only(self, names: Collection[str]) -> _Vectors:
        """Of some parameters."""
        found = _Vectors()
        found.sums = {name: vector for name, vector in self.sums.items() if name in names}
        found.late = {name: vector for name, vector in self.late.items() if name in names}
        return found

    def along_start(self, along: _Along, steps: int) -> Tensor:
        """Inner products with the query gradients of the interval's start, as far as they count, ``[Q]``."""
        return along({n: total - self.late[n] / steps if n in self.late else total for n, total in self.sums.items()})

    def along_end(self, along: _Along, steps: int) -> Tensor:
        """The same with those of its end."""
        return along({name: late / steps for name, late in self.late.items()})


class _Along:
    """Inner products of vectors in the parameters' shapes with the query gradients of one refresh."""

    def __init__(self, refresh: Refresh, projection: Projection | None) -> None:
        self._refresh = refresh
        self._projection = projection

    def __call__(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """``[Q]`` float64."""
        gradients = self._refresh.gradients
        total = torch.zeros(len(gradients), dtype=torch.float64)
        for name, vector in vectors.items():
            if name in gradients.parts:
                if self._projection is not None:
                    vector = self._projection.project(name, vector[None])[0]
                total += gradients.along(name, vector).double().cpu()
        for name, rows in self._refresh.uncovered.items():
            if name in vectors:
                own, vector = flat_rows(rows), vectors[name].flatten().to(rows)
                if own.is_complex():  # whose real and imaginary parts move apart
                    own, vector = torch.view_as_real(own).flatten(1), torch.view_as_real(vector).flatten()
                total += (own @ vector).double().cpu()
        return total


class LedgerKeeper:
    """The books of a run.

    Args:
        covered: Names of the parameters that scores see.
        trapezoid: Whether query gradients are interpolated.
        accounts: Whether to keep accounts; otherwise only actual and predicted changes.
        exact_momentum: Whether scores follow momentum step by step.
        projection: What scores' gradients are projected with.
        projects_all: Whether the query gradients that the ledger gets are projected, too.
    """

    def __init__(
        self,
        covered: frozenset[str],
        *,
        trapezoid: bool,
        accounts: bool,
        exact_momentum: bool,
        projection: Projection | None,
        projects_all: bool,
    ) -> None:
        self.covered = covered
        self.trapezoid = trapezoid
        self.accounts = accounts
        self.exact_momentum = exact_momentum
        self.projection = projection
        self.projects_all = projects_all
        self.rows: list[dict[str, Any]] = []
        self._start: Refresh | None = None
        self._weights: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._weights_before: dict[str, Tensor] = {}
        self.steps = 0
        self.vectors = {name: _Vectors() for name in ("predicted", "momentum", "decay", "given")}
        self._decay_buffers: dict[str, Tensor] = {}
        self._given_buffers: dict[str, Tensor] = {}

    def see(self, parameters: Mapping[str, nn.Parameter], covered: frozenset[str]) -> None:
        """Training changes more parameters from here on.

        Args:
            parameters: All that it changes.
            covered: Names of those that scores see.
        """
        self._parameters, self.covered = dict(parameters), covered

    def before_step(self, optimizer: FollowedOptimizer) -> None:
        """Note the weights, where the step alone is of interest."""
        decays = any(group.get("weight_decay") for group in optimizer.optimizer.param_groups)
        if self.trapezoid or (self.accounts and decays):
            self._weights_before = {n: whole(p.detach()).clone() for _, n, p in optimizer.parameters()}
        else:
            self._weights_before = {}

    def after_step(
        self, optimizer: FollowedOptimizer, steps: Mapping[str, ParameterStep], given: Mapping[str, Tensor]
    ) -> None:
        """Add up what the step did.

        Args:
            optimizer: Whose step.
            steps: What it did with each covered parameter, where accounts are kept.
            given: The gradients that it was made of.
        """
        position = self.steps + 0.5 if self.trapezoid else None
        self.steps += 1
        for _, name, parameter in optimizer.parameters():
            if self.trapezoid:
                change = self._weights_before[name] - whole(parameter.detach())
                self.vectors["predicted"].add(name, change, position)
            if self.accounts and name in steps and name in given:
                self._add_accounts(name, steps[name], given[name], optimizer.buffer_of(parameter), position)

    def _add_accounts(
        self, name: str, step: ParameterStep, given: Tensor, buffer: Tensor | None, position: float | None
    ) -> None:
        own = torch.zeros_like(given) if buffer is None else buffer * (-1.0 if step.rate < 0 else 1.0)
        if step.added_decay:
            pull = step.added_decay * self._weights_before[name]
            before = self._decay_buffers.get(name)
            now = step.gain * pull if before is None else step.gain * pull + step.decay * before
            self._decay_buffers[name] = now
            self.vectors["decay"].add(name, step.scaled(step.direct * pull + step.from_buffer * now), position)
            own = own - now
        if step.decoupled_decay:
            self.vectors["decay"].add(name, step.decoupled_decay * self._weights_before[name], position)
        if self.exact_momentum:
            before = self._given_buffers.get(name)
            now = step.gain * given if before is None else step.gain * given + step.decay * before
            self._given_buffers[name] = now
            to_examples = step.direct * given + step.from_buffer * now
            left = step.from_buffer * (own - now)
        else:
            to_examples = step.eventual * given
            left = step.direct * given + step.from_buffer * own - to_examples
        if step.from_buffer:
            self.vectors["momentum"].add(name, step.scaled(left), position)
        if self.projection is not None and not self.projects_all:
            self.vectors["given"].add(name, step.scaled(to_examples), position)

    def close(self, end: Refresh) -> Closing | None:
        """An interval ends: everything that needs the query gradients of its start, before their memory is used again.

        Args:
            end: The refresh that ends it.
        """
        if self._start is None:
            return None
        if not self.trapezoid:
            for name, before in self._weights.items():
                self.vectors["predicted"].add(name, before - whole(self._parameters[name].detach()), None)
        return Closing(self, self._start, end)

    def open(self, start: Refresh, parameters: Mapping[str, nn.Parameter]) -> None:
        """An interval begins.

        Args:
            start: The refresh that begins it.
            parameters: All that training changes.
        """
        self._start = start
        self._parameters = dict(parameters)
        self._weights = {} if self.trapezoid else {n: whole(p.detach()).clone() for n, p in parameters.items()}
        self.steps = 0
        self.vectors = {name: _Vectors() for name in self.vectors}

    def ledger(self, query_ids: np.ndarray) -> Ledger:
        """The books so far; queries that were added later have no numbers before."""
        columns = {name: np.full((len(self.rows), len(query_ids)), np.nan) for name in COLUMNS}
        for index, row in enumerate(self.rows):
            for name in COLUMNS:
                columns[name][index, : len(row[name])] = row[name]
        steps = np.array([row["step"] for row in self.rows], np.int64)
        return Ledger(steps, np.array([row["next_step"] for row in self.rows], np.int64), query_ids, columns)

    def state(self) -> dict[str, Any]:
        """All of it, as numbers and tensors."""
        return {
            "rows": [{key: _plain(value) for key, value in row.items()} for row in self.rows],
            "steps": self.steps,
            "weights": self._weights,
            "vectors": {name: [_copied(one.sums), _copied(one.late)] for name, one in self.vectors.items()},
            "decay_buffers": self._decay_buffers,
            "given_buffers": self._given_buffers,
        }

    def load(self, state: Mapping[str, Any], start: Refresh, parameters: Mapping[str, nn.Parameter]) -> None:
        """Go on from where :meth:`state` was called, in an interval that began with ``start``."""
        self.open(start, parameters)
        self.rows = [{key: _numbers(value) for key, value in row.items()} for row in state["rows"]]
        self.steps = state["steps"]
        self._weights = dict(state["weights"])
        for name, (sums, late) in state["vectors"].items():
            self.vectors[name].sums, self.vectors[name].late = dict(sums), dict(late)
        self._decay_buffers = dict(state["decay_buffers"])
        self._given_buffers = dict(state["given_buffers"])


class Closing:
    """An interval that is being closed: its start's products are taken now, its end's may still have to come.

    Args:
        keeper: The books.
        start: The refresh that began it.
        end: The refresh that ends it.
    """

    def __init__(self, keeper: LedgerKeeper, start: Refresh, end: Refresh) -> None:
        self._keeper, self._start, self._end = keeper, start, end
        self._projection = keeper.projection if keeper.projects_all else None
        along = _Along(start, self._projection)
        moves = keeper.vectors["predicted"]
        hidden = moves.only([name for name in moves.sums if name not in keeper.covered])
        self._vectors = {**keeper.vectors, "uncovered": hidden}
        self._left = along(moves.sums)
        self._values = {n: vectors.along_start(along, keeper.steps) for n, vectors in self._vectors.items()}

    def finish(self, gained: Tensor, gained_by_given: Tensor | None) -> dict[str, Any]:
        """Write the row.

        Args:
            gained: ``[Q]``: what this process's examples have gained in the interval.
            gained_by_given: ``[Q]``: what the optimizer's own gradient would have gained, projected in the same way;
                None where nothing is projected.

        Returns:
            The row.
        """
        keeper, start, end = self._keeper, self._start, self._end
        count = len(start.losses)
        if keeper.trapezoid:
            along = _Along(end, self._projection)
            for name, vectors in self._vectors.items():
                self._values[name] = self._values[name] + vectors.along_end(along, keeper.steps)[:count]
        unknown = np.full(count, np.nan)
        row: dict[str, Any] = {
            "step": start.step,
            "next_step": end.step,
            "loss": start.losses.numpy(),
            "next_loss": end.losses[:count].numpy(),
            "predicted": self._values["predicted"].numpy(),
            "predicted_left": self._left.numpy(),
            "learned": unknown if end.learned is None else end.learned[:count].double().numpy(),
            **dict.fromkeys(ACCOUNTS, unknown),
        }
        if keeper.accounts:
            row["examples"] = sum_over_processes(gained)[:count].cpu().numpy()
            for name in ("momentum", "decay", "uncovered"):
                row[name] = self._values[name].numpy()
            lost = 0 * self._left if gained_by_given is None else self._values["given"] - gained_by_given[:count].cpu()
            row["projection"] = lost.numpy()
        keeper.rows.append(row)
        return row


def _copied(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: vector.clone() for name, vector in vectors.items()}


def _plain(value: Any) -> Any:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _numbers(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def log_interval(loop: TrainingLoop, row: Mapping[str, Any], step: int, refreshes: int) -> None:
    """Log an interval's means over queries where the user's own numbers go, about as often as these.

    Args:
        loop: The training loop.
        row: The interval.
        step: The step that it ended with.
        refreshes: How many there have been.
    """
    every = loop.log_every_n_steps
    per_refresh = max(1, int(row["next_step"]) - int(row["step"]))
    if process_rank() or not every or refreshes % max(1, every // per_refresh):
        return
    values = {"actual": row["loss"] - row["next_loss"]} | {name: row[name] for name in ("predicted", *ACCOUNTS)}
    metrics = {f"ledger/{name}": float(own.mean()) for name, own in values.items() if not np.isnan(own).any()}
    loop.log(metrics, step)
