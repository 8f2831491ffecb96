"""The passes over queries, which compute their losses and gradients at the current weights, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import GradientCapture, PerExampleGradients, give_back_freed_memory
from ftrace.online.adapters import why_without_gradient
from ftrace.online.batches import batch_ids, load_queries
from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.queries.query_losses import QueryLosses
from ftrace.online.rehearsal.exchange import copied
from ftrace.online.undisturbed.modes import evaluation_mode, without_autocast, without_reentrant_checkpointing
from ftrace.online.undisturbed.random_state import RandomState, isolated_random_state

Learned = Callable[[Any, Any], Tensor]
Lengths = Callable[[Any, Any], Tensor]
Compare = Callable[[Tensor, PerExampleGradients, Tensor], None]
ReduceBatch = Callable[[PerExampleGradients], PerExampleGradients]


@dataclass(frozen=True)
class Refresh:
    """The losses and gradients of all queries at one point of training.

    Args:
        step: The next optimizer step.
        gradients: The gradients of all queries.
        losses: ``[Q]`` float64, in nats.
        learned: ``[Q]`` bool, whether each query is answered right; None if there is no way to know.
        uncovered: Gradients for trained parameters that scores don't cover, if the ledger needs them.
        lengths: ``[Q]``, the number of tokens of each query's answer; None if there is no way to know.
    """

    step: int
    gradients: PerExampleGradients
    losses: Tensor
    learned: Tensor | None
    uncovered: dict[str, Tensor]
    lengths: Tensor | None = None


class NotFiniteError(ValueError):
    """The error that a query's loss is NaN or infinite."""


class QueryPass:
    """The queries of a run, and the passes that differentiate them.

    Args:
        source: A DataLoader or Dataset of queries; None: the loop's own queries.
        losses: ``(module, batch) -> Tensor[B]``, one loss per query in nats.
        learned: ``(module, batch) -> Tensor[B]`` bool, whether each query is answered right; None if there is no way to
            know.
        lengths: ``(module, batch) -> Tensor[B]``, the numbers of tokens of the answers; likewise.
        id_key: The key of the queries' ids in a batch.

    Attributes:
        ids: The queries' ids, ``[Q]``.
        names: By id that was made from a name, this name.

    Raises:
        ValueError: If there is no query, or several have the same id.
    """

    def __init__(
        self,
        source: Any,
        losses: QueryLosses,
        learned: Learned | None,
        lengths: Lengths | None,
        id_key: str | int,
        loop: TrainingLoop,
    ) -> None:
        self.loop = loop
        self.losses = losses
        self.learned = learned
        self.lengths = lengths
        self.id_key = id_key
        self.names: dict[int, str] = {}
        self.ids = torch.zeros(0, dtype=torch.int64)
        self.batches: list[Any] = []
        self.add(source)

    def add(self, source: Any) -> Tensor:
        """Add queries, unless all of them are known, as in a resumed run that got them from the start.

        Returns:
            The ids of the queries that were added.

        Raises:
            ValueError: As the class.
        """
        batches = load_queries(source, self.loop)
        new = torch.cat([batch_ids(batch, self.id_key, "query_id_key", self.names).cpu() for batch in batches])
        if set(new.tolist()) <= set(self.ids.tolist()):
            return new[:0]
        ids = torch.cat([self.ids, new])
        values, counts = ids.unique(return_counts=True)
        if len(values) < len(ids):
            raise ValueError(
                f'queries: expected each "{self.id_key}" once, found some several times: '
                f"{values[counts > 1][:5].tolist()}. Give each query an id of its own"
            )
        self.batches += batches
        self.ids = ids
        return new

    def ids_of(self, batch: Any) -> Tensor:
        """Return the ids of one batch."""
        return batch_ids(batch, self.id_key, "query_id_key", self.names)

    @contextmanager
    def undisturbed(self, capture: GradientCapture) -> Iterator[None]:
        """Run passes in eval mode, record with this capture only, and restore random state."""
        with (
            isolated_random_state(),
            evaluation_mode(self.loop.module),
            without_reentrant_checkpointing(),
            without_autocast(self.loop.device),  # our own products; losses are computed in training's precision
            torch.enable_grad(),
            capture.exclusively(),
        ):
            yield

    def run(
        self,
        capture: GradientCapture,
        step: int,
        uncovered: dict[str, torch.nn.Parameter],
        compare: Compare | None = None,
        *,
        unprojected: bool = False,
        reduce: ReduceBatch | None = None,
    ) -> Refresh:
        """Compute losses and gradients of all queries.

        Args:
            capture: Records the gradients.
            step: The next optimizer step.
            uncovered: Further parameters whose gradients are computed by plain autograd.
            compare: Called for the first batch, with losses of a pass that was not recorded, gradients and ids.
            unprojected: Whether gradients are left unprojected although the capture has a projection.
            reduce: Makes of a batch's gradients what is kept of them, before the next batch is differentiated; default:
                all of them.

        Raises:
            ValueError: If the losses are not one finite number per query.
        """
        parts: list[PerExampleGradients] = []
        losses: list[Tensor] = []
        learned: list[Tensor] = []
        lengths: list[Tensor] = []
        dense: dict[str, list[Tensor]] = {name: [] for name in uncovered}
        module = self.loop.module
        give_back_freed_memory()
        with self.undisturbed(capture):
            for batch in self.batches:  # kept for the next refresh, so losses get copies that they may change
                query_ids = self.ids_of(batch)
                runs_again = bool(uncovered) or self.learned is not None or (compare is not None and not parts)
                begins = RandomState(module, self.loop.left_alone) if runs_again else None
                with capture.recording(len(query_ids), unprojected=unprojected) as recording:
                    of_batch = self._losses_of(batch)
                    self._require_losses(of_batch, query_ids)
                    recording.backward(of_batch)
                losses.append(of_batch.detach().double().cpu())
                if self.lengths is not None:
                    lengths.append(self.lengths(module, batch).double().cpu())
                gradients = recording.gradients()
                del recording, of_batch  # they hold what its gradients were made of
                if compare is not None and not parts:
                    _put_back(begins)
                    compare(self._losses_of(batch), gradients, query_ids)
                parts.append(gradients if reduce is None else reduce(gradients))
                del gradients
                if uncovered:
                    _put_back(begins)
                    _add_rows(dense, self._losses_of(batch), uncovered)
                if self.learned is not None:
                    _put_back(begins)
                    learned.append(self._learned_of(self.learned, batch))
        give_back_freed_memory()
        return Refresh(
            step,
            PerExampleGradients.stack(parts),
            torch.cat(losses),
            torch.cat(learned) if learned else None,
            {name: torch.cat(rows) for name, rows in dense.items()},
            torch.cat(lengths) if lengths else None,
        )

    def ask(self, capture: GradientCapture) -> Tensor | None:
        """Ask all queries without differentiating them, in a pass that nothing is recorded of.

        Returns:
            ``[Q]`` bool, whether each is answered right; None if there is no way to know.
        """
        if self.learned is None:
            return None
        with self.undisturbed(capture):
            return torch.cat([self._learned_of(self.learned, batch) for batch in self.batches])

    def _learned_of(self, learned: Learned, batch: Any) -> Tensor:
        with torch.no_grad(), self.loop.forward_context():
            return learned(self.loop.module, copied(batch)).bool().cpu()

    def _losses_of(self, batch: Any) -> Tensor:
        with self.loop.forward_context():
            return self.losses(self.loop.module, copied(batch))

    def _require_losses(self, losses: Tensor, query_ids: Tensor) -> None:
        expected = (len(query_ids),)
        if not isinstance(losses, Tensor) or losses.shape != expected:
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            mean = " It looks like a mean over the batch: take reduction='none'." if found == () else ""
            raise ValueError(
                f"query_losses: expected one loss per query, a tensor of shape {expected}, found {found}.{mean}"
            )
        if not losses.requires_grad:
            remedy = why_without_gradient(self.loop.module) or (
                " Don't detach them, and don't compute them under torch.no_grad"
            )
            raise ValueError(
                f"query_losses: expected losses that can be differentiated, found some without a gradient.{remedy}"
            )
        bad = query_ids[~losses.detach().isfinite().to(query_ids.device)]
        if len(bad):
            raise NotFiniteError(
                f"query_losses: expected finite numbers, found NaN or infinity for the queries {bad[:5].tolist()}. "
                "Either all their labels are masked, or a probability is 1 or 0 in this precision, or the weights "
                "themselves are NaN or infinite"
            )


def _put_back(begins: RandomState | None) -> None:
    """Restore the random state, so that losses that draw random numbers, such as for dropout, draw the same again."""
    assert begins is not None
    begins.put_back()


def _add_rows(dense: dict[str, list[Tensor]], losses: Tensor, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Append gradients by plain autograd, one query after another: slow, for few parameters that can't be recorded."""
    for loss in losses:
        grads = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
            grad = torch.zeros_like(parameter) if grad is None else grad.to_dense()
            dense[name].append(grad.detach().unsqueeze(0))


def require_shared_parameters(trained: Collection[str], queried: Collection[str], who: str, *, strict: bool) -> None:
    """Require that the queries' losses depend on at least one parameter that is trained.

    Args:
        trained: The parameters that had a gradient in the first batch.
        queried: The parameters that the queries' losses depend on.
        who: Whose message this is.
        strict: Whether it is an error if these have none in common; otherwise a warning.

    Raises:
        ValueError: When strict, if they have none in common.
    """
    if not set(trained).isdisjoint(queried):
        return
    message = (
        f"{who}: the queries' losses share no parameter with the training loss, so all scores would be 0. "
        f"Training changes {sorted(trained)[:3]}, ...; the queries depend on "
        f"{sorted(queried)[:3] or 'no covered parameter'}"
    )
    if strict:
        raise ValueError(f"{message}. Look at query_losses and parameters=(...)")
    warn(message)
