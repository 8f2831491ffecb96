"""The keeping of the ledger: how each query's loss changed between refreshes, and the accounts that explain it.

Between two refreshes, vectors of the parameters' size are added up: the parts of the weights' change that momentum,
weight decay and the rounding of half-precision weights caused, computed from the optimizer's own state; and where query
gradients are interpolated, the change itself. At the next refresh they are multiplied with the query gradients. The
account of the examples is the sum of their scores. No account is computed as the remainder of a total, so a wrong
contribution shows in books that don't balance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftrace.gradients import ParameterStep, Projection
from ftrace.online.interval_vectors import IntervalVectors, QueryProducts
from ftrace.online.loop import TrainingLoop
from ftrace.online.number_memory import NumberMemory
from ftrace.online.optimizers.followed_optimizer import FollowedOptimizer
from ftrace.online.precision import is_half, wide
from ftrace.online.processes import process_rank, sum_over_processes, unsharded
from ftrace.online.queries.query_pass import Refresh
from ftrace.online.weights_at_start import WeightsAtStart
from ftrace.scores import AnswerRecord, Ledger
from ftrace.scores.ledger import ACCOUNTS, COLUMNS


class LedgerKeeper:
    """The ledger of a run that is under way.

    Args:
        covered: Names of the parameters that scores cover.
        trapezoid: Whether query gradients are interpolated between refreshes.
        accounts: Whether to keep accounts; otherwise only actual and predicted changes.
        exact_momentum: Whether scores follow momentum step by step.
        projection: The projection that scores use; None if they are exact.
        projects_all: Whether the query gradients that the ledger gets are projected, too.

    Attributes:
        rows: The intervals so far.
        weights: The weights at the current interval's start, unless query gradients are interpolated.
        parameters: All trained parameters by name.
        memory: The memory of their numbers.
        steps: The number of steps in the current interval.
        vectors: The sums over these steps: of the change of weights if query gradients are interpolated ("predicted"),
            of what momentum ("momentum"), weight decay ("decay") and the weights' rounding ("rounding") made of it, and
            of the step's gradients as scores see them ("given").
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
        self.memory = NumberMemory()
        self._start: Refresh | None = None
        self.weights = WeightsAtStart(projection if projects_all else None)
        self.parameters: dict[str, nn.Parameter] = {}
        self._weights_before: dict[str, Tensor] = {}
        self.steps = 0
        self.vectors = {name: IntervalVectors() for name in ("predicted", "momentum", "decay", "rounding", "given")}
        self._decay_buffers: dict[str, Tensor] = {}
        self._given_buffers: dict[str, Tensor] = {}

    def update_parameters(self, parameters: Mapping[str, nn.Parameter], covered: frozenset[str]) -> None:
        """Take the parameters that are now trained.

        Args:
            parameters: All trained parameters by name.
            covered: Names of those that scores cover.
        """
        lost = self.parameters.keys() - parameters.keys()  # an adapter that was deleted: its interval began with it
        self.parameters |= parameters
        self.covered = covered | (self.covered & lost)

    def before_step(self, optimizer: FollowedOptimizer) -> None:
        """Copy the weights before a step, if its own change is needed rather than the interval's."""
        self._weights_before = {
            name: unsharded(p.detach()).clone()
            for group, name, p in optimizer.parameters()
            if self.trapezoid
            or (self.accounts and (optimizer.optimizer.param_groups[group].get("weight_decay") or is_half(p.dtype)))
        }

    def after_step(
        self, optimizer: FollowedOptimizer, steps: Mapping[str, ParameterStep], given: Mapping[str, Tensor]
    ) -> None:
        """Add a step to the sums of the interval.

        Args:
            optimizer: The optimizer that took the step.
            steps: By covered parameter, what the step did with it; needed for accounts.
            given: By parameter, the gradient that the optimizer was given.
        """
        position = self.steps + 0.5 if self.trapezoid else None
        self.steps += 1
        for _, name, parameter in optimizer.parameters():
            if self.trapezoid:
                change = wide(self._weights_before[name]) - wide(unsharded(parameter.detach()))
                self.vectors["predicted"].add(name, change, position)
            if self.accounts and name in steps and name in given:
                self._add_accounts(name, steps[name], wide(given[name]), optimizer.buffer_of(parameter), position)
                if is_half(parameter.dtype):
                    rounds_once = bool(optimizer.group_of(name).get("fused"))
                    self._add_rounding(
                        name, steps[name], given[name], optimizer.buffer_of(parameter), rounds_once, position
                    )
        self._weights_before = {}

    def _add_rounding(
        self, name: str, step: ParameterStep, given: Tensor, buffer: Tensor | None, once: bool, position: float | None
    ) -> None:
        """Add the difference between a step and the same step with its weights rounded to their dtype.

        The step is computed anew, so that a step that wasn't understood isn't taken for rounding.
        """
        before = self._weights_before[name]
        gradient = step.direct * wide(given)
        if step.added_decay:
            gradient = gradient + step.direct * step.added_decay * wide(before)
        if buffer is not None:
            gradient = gradient + step.from_buffer * (-1.0 if step.rate < 0 else 1.0) * wide(buffer)
        move, decayed = step.scaled(gradient), wide(before) * (1 - step.decoupled_decay)
        kept = decayed if once else wide(decayed.to(before.dtype))  # AdamW decays weights in a step of its own
        rounded = wide((kept - move).to(before.dtype))
        self.vectors["rounding"].add(name, (decayed - move) - rounded, position)

    def _add_accounts(
        self, name: str, step: ParameterStep, given: Tensor, buffer: Tensor | None, position: float | None
    ) -> None:
        gradient_buffer = torch.zeros_like(given) if buffer is None else wide(buffer) * (-1.0 if step.rate < 0 else 1.0)
        if step.added_decay:
            pull = step.added_decay * wide(self._weights_before[name])
            previous = self._decay_buffers.get(name)
            current = step.gain * pull if previous is None else step.gain * pull + step.decay * previous
            self._decay_buffers[name] = current
            self.vectors["decay"].add(name, step.scaled(step.direct * pull + step.from_buffer * current), position)
            gradient_buffer = gradient_buffer - current
        if step.decoupled_decay:
            self.vectors["decay"].add(name, step.decoupled_decay * wide(self._weights_before[name]), position)
        if self.exact_momentum:
            previous = self._given_buffers.get(name)
            current = step.gain * given if previous is None else step.gain * given + step.decay * previous
            self._given_buffers[name] = current
            to_examples = step.direct * given + step.from_buffer * current
            not_to_examples = step.from_buffer * (gradient_buffer - current)
        else:
            to_examples = step.eventual * given
            not_to_examples = step.direct * given + step.from_buffer * gradient_buffer - to_examples
        if step.from_buffer:
            self.vectors["momentum"].add(name, step.scaled(not_to_examples), position)
        if self.projection is not None and not self.projects_all:
            self.vectors["given"].add(name, step.scaled(to_examples), position)

    def close(self, end: Refresh) -> Closing | None:
        """Begin to close the interval: compute all that needs its first query gradients, before their memory is reused.

        Args:
            end: The refresh that ends the interval.

        Returns:
            The interval that is being closed; None before the first one.
        """
        return None if self._start is None else Closing(self, self._start, end)

    def open(self, start: Refresh, parameters: Mapping[str, nn.Parameter]) -> None:
        """Open an interval.

        Args:
            start: The refresh that begins it.
            parameters: All trained parameters by name.
        """
        self._start = start
        self.parameters = dict(parameters)
        self.weights.take({} if self.trapezoid else parameters, start.uncovered)
        self.steps = 0
        self.vectors = {name: IntervalVectors() for name in self.vectors}

    def ledger(self, query_ids: np.ndarray, answers: AnswerRecord | None = None) -> Ledger:
        """Return the ledger so far; queries that were added during training have NaN before that.

        Args:
            query_ids: ``[Q]``.
            answers: When they were right.
        """
        columns = {name: np.full((len(self.rows), len(query_ids)), np.nan) for name in COLUMNS}
        for index, row in enumerate(self.rows):
            for name in COLUMNS:
                columns[name][index, : len(row[name])] = row[name]
        steps = np.array([row["step"] for row in self.rows], np.int64)
        next_steps = np.array([row["next_step"] for row in self.rows], np.int64)
        return Ledger(steps, next_steps, query_ids, columns, answers=answers)

    def state(self) -> dict[str, Any]:
        """Return all state, as numbers and tensors."""
        return {
            "rows": [{key: _as_tensor(value) for key, value in row.items()} for row in self.rows],
            "steps": self.steps,
            **self.weights.state(),
            "vectors": {name: [_copied(of_name.sums), _copied(of_name.late)] for name, of_name in self.vectors.items()},
            "decay_buffers": self._decay_buffers,
            "given_buffers": self._given_buffers,
        }

    def load(self, state: Mapping[str, Any], start: Refresh, parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore what :meth:`state` returned, in an interval that began with ``start``."""
        self.open(start, parameters)
        self.rows = [{key: _as_array(value) for key, value in row.items()} for row in state["rows"]]
        self.steps = state["steps"]
        self.weights.load(state)
        for name, (sums, late) in state["vectors"].items():
            self.vectors[name].sums, self.vectors[name].late = dict(sums), dict(late)
        self._decay_buffers = dict(state["decay_buffers"])
        self._given_buffers = dict(state["given_buffers"])


class Closing:
    """An interval that is being closed: its start's products have been computed, its end's may still be missing.

    Args:
        start: The refresh that began the interval.
        end: The refresh that ends it.
    """

    def __init__(self, keeper: LedgerKeeper, start: Refresh, end: Refresh) -> None:
        self._keeper, self._start, self._end = keeper, start, end
        self._projection = keeper.projection if keeper.projects_all else None
        changes = keeper.vectors["predicted"]
        uncovered = changes.only([name for name in changes.sums if name not in keeper.covered])
        self._vectors = {**keeper.vectors, "uncovered": uncovered}
        products = QueryProducts(start, self._projection)
        left = set(self._names())
        if not keeper.trapezoid:
            for name, change, is_projected in keeper.weights.changes(keeper.parameters):
                total = dict.fromkeys(("predicted", *(() if name in keeper.covered else ("uncovered",))), change)
                of_steps = self._at_start(name)
                products.add(name, of_steps if is_projected else of_steps | total, total if is_projected else {})
                left.discard(name)
        for name in sorted(left):
            left_end = {"predicted_left": changes.sums.get(name)} if keeper.trapezoid else {}
            products.add(name, self._at_start(name) | left_end)
        self._values = {key: products.total(key) for key in self._vectors}
        self._predicted_left = products.total("predicted_left" if keeper.trapezoid else "predicted")

    def _at_start(self, name: str) -> dict[str, Tensor | None]:
        """Return a parameter's vectors as they are multiplied with the query gradients at the interval's start."""
        return {key: vectors.at_start(name, self._keeper.steps) for key, vectors in self._vectors.items()}

    def _names(self) -> list[str]:
        """List the parameters that any of its vectors has."""
        return sorted({name for vectors in self._vectors.values() for name in vectors.sums})

    def finish(self, gained: Tensor, gained_by_given: Tensor | None) -> dict[str, Any]:
        """Add the interval to the ledger.

        Args:
            gained: ``[Q]``, the sum of the scores of this process's examples in the interval.
            gained_by_given: ``[Q]``, the same score of the gradients that the optimizer was given, projected like the
                examples'; None if nothing is projected.

        Returns:
            The interval's row.
        """
        keeper, start, end = self._keeper, self._start, self._end
        count = len(start.losses)
        if keeper.trapezoid:
            products = QueryProducts(end, self._projection)
            for name in self._names():
                products.add(name, {key: vectors.at_end(name, keeper.steps) for key, vectors in self._vectors.items()})
            self._values = {key: values + products.total(key)[:count] for key, values in self._values.items()}
        unknown = np.full(count, np.nan)
        row: dict[str, Any] = {
            "step": start.step,
            "next_step": end.step,
            "loss": start.losses.numpy(),
            "next_loss": end.losses[:count].numpy(),
            "predicted": self._values["predicted"].numpy(),
            "predicted_left": self._predicted_left.numpy(),
            **dict.fromkeys(ACCOUNTS, unknown),
        }
        if keeper.accounts:
            row["examples"] = sum_over_processes(gained)[:count].cpu().numpy()
            for name in ("momentum", "decay", "uncovered", "rounding"):
                row[name] = self._values[name].numpy()
            lost = 0 * self._predicted_left
            if gained_by_given is not None:
                lost = self._values["given"] - gained_by_given[:count].cpu()
            row["projection"] = lost.numpy()
        row |= {name: keeper.memory.keep(values) for name, values in row.items() if isinstance(values, np.ndarray)}
        keeper.rows.append(row)
        return row


def _copied(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: vector.clone() for name, vector in vectors.items()}


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _as_array(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def log_interval(loop: TrainingLoop, row: Mapping[str, Any], step: int, refreshes: int) -> None:
    """Log an interval's means over queries with the user's loggers, about as often as they log.

    Args:
        row: The interval's row.
        step: The step at which it ended.
        refreshes: The number of refreshes so far.
    """
    every = loop.log_every_n_steps
    per_refresh = max(1, int(row["next_step"]) - int(row["step"]))
    if process_rank() or not every or refreshes % max(1, every // per_refresh):
        return
    values = {"actual": row["loss"] - row["next_loss"]} | {name: row[name] for name in ("predicted", *ACCOUNTS)}
    means = {name: float(of_queries.mean()) for name, of_queries in values.items() if not np.isnan(of_queries).any()}
    metrics = {f"ledger/{name}": mean for name, mean in means.items()}
    loop.log(metrics, step)
