"""A training loop written by hand, traced: :func:`trace`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ftrace.arguments import Name, checked
from ftrace.online.adapters import why_without_gradient
from ftrace.online.fabric_loop import FabricLoop, is_of_fabric
from ftrace.online.foreign_optimizers import refuse_foreign_steps
from ftrace.online.plain_loop import PlainLoop, TrainingLoss, factor_between
from ftrace.online.queries.query_losses import huggingface_training_loss
from ftrace.online.session import TraceSession
from ftrace.online.settings import TraceSettings

_WHO = "ftrace.online.trace"
_TRACED: WeakSet[nn.Module] = WeakSet()


class PlainTrace:
    """A traced run of a loop written by hand; made by :func:`trace`.

    Args:
        session: Its observer.
        output_dir: Where the score store is written.
    """

    def __init__(self, loop: PlainLoop, session: TraceSession, output_dir: Path) -> None:
        self._loop = loop
        self._session = session
        self._output_dir = output_dir
        self._handles: list[RemovableHandle] = []
        self._loss: Tensor | None = None
        self._was_entered = self._is_open = False

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._loop.step += 1

    def __enter__(self) -> PlainTrace:
        if self._was_entered:
            raise RuntimeError(f"{_WHO}: expected a run to be entered once. Make another with trace(...)")
        loop = self._loop
        if loop.module in _TRACED:
            raise ValueError(
                f"{_WHO}: expected one run at a time of a model, found another. Leave its `with` block first"
            )
        self._was_entered = True
        _TRACED.add(loop.module)
        self._session.before_training(loop.module)
        self._handles += [optimizer.register_step_post_hook(self._count) for optimizer in loop.optimizers]
        self._handles += refuse_foreign_steps(loop.module, loop.optimizers, _WHO)
        try:
            self._session.training_begins(loop, self._output_dir)
        except BaseException:
            self._detach()
            raise
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._session.training_has_ended()
            else:
                self._session.training_has_failed(error)
        finally:
            self._detach()

    def _require_open(self, call: str) -> None:
        if not self._is_open:
            when = "after" if self._was_entered else "before"
            raise RuntimeError(f"{call}: expected the training loop within `with run:`, found a call {when} it")

    def _detach(self) -> None:
        self._is_open = False
        _TRACED.discard(self._loop.module)
        self._session.detach()
        for handle in self._handles:
            handle.remove()

    @property
    def epoch(self) -> int:
        """The current epoch, which scores may be broken down by. Set it when an epoch begins."""
        return self._loop.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._loop.epoch, self._loop.batch_idx = epoch, 0

    def loss(self, batch: Any) -> Tensor:
        """Compute the training loss of a batch, and record how it comes about.

        Args:
            batch: The batch, on the model's device, with ids of its examples.

        Returns:
            What ``training_loss`` returned.

        Raises:
            ValueError: If the batch, the model or the loss isn't supported.
            SelfCheckError: If the self-check fails.
        """
        self._require_open("run.loss")
        loop = self._loop
        loop.require_known_autocast()
        loop.scale = loop.loss_scale
        self._session.batch_begins(batch, loop.batch_idx)
        loop.batch_idx += 1
        loss = loop.compute_loss(batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            if isinstance(loss, Tensor) and not loss.requires_grad:
                why = why_without_gradient(loop.module)
                shown += f" without a gradient.{why}" if why else " without a gradient"
            raise ValueError(f"training_loss: expected one number that can be differentiated, found {shown}")
        self._loss = loss
        return loss

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Run the backward pass of the last batch; call this instead of ``loss.backward()``.

        Args:
            loss: The loss that :meth:`loss` returned, or a multiple of it: divided by the number of accumulated
                batches, or scaled by a GradScaler.
            options: Of ``Tensor.backward``, or of ``fabric.backward``.

        Raises:
            ValueError: If it isn't that loss.
            SelfCheckError: If the self-check fails.
        """
        self._require_open("run.backward")
        last = self._loss
        if last is None:
            raise ValueError("run.backward: expected a call of run.loss(batch) before each backward pass")
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            shown = "a tensor without a gradient" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                "run.backward: expected the loss that run.loss(batch) has returned, or a multiple of it, found "
                f"{shown}. Leave out .item() and .detach()"
            )
        factor = factor_between(loss, last)
        if factor is None:
            raise ValueError(
                "run.backward: expected the loss that run.loss(batch) has returned, or a multiple of it, found one "
                "that doesn't depend on it. Compute it with run.loss(batch)"
            )
        self._loop.scale = factor * self._loop.backward_scale
        self._loss = None
        self._session.backward_begins(loss)
        self._loop.backward(loss, **options)
        with torch.no_grad():
            self._session.backward_has_ended()
        self._session.batch_has_ended()

    def add_queries(self, queries: Any) -> None:
        """Add queries, which are traced from the next batch on.

        Args:
            queries: A DataLoader or Dataset; its ids must be new.
        """
        self._require_open("run.add_queries")
        self._session.add_queries(queries)

    def state_dict(self) -> dict[str, Any]:
        """Save the state of the scores to files beside the output folder.

        Returns:
            Names and hashes of the files: small, for a checkpoint of your own. Give it to ``trace(..., state=...)``.
        """
        return self._session.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, as ``trace(..., state=...)`` does. Call it before ``with run:``.

        Raises:
            RuntimeError: If the run was entered before.
            ValueError: If it is the state of something else.
        """
        if self._was_entered:
            raise RuntimeError("run.load_state_dict: expected a call before `with run:`, found one after it has begun")
        if not isinstance(state_dict, Mapping) or "global_step" not in state_dict:
            shown = f"keys {list(state_dict)[:8]}" if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(
                f"state: expected what run.state_dict() has returned, found {shown}. Of a whole checkpoint, pass the "
                "entry alone under which you saved it"
            )
        self._loop.step = state_dict["global_step"]
        self._session.load(state_dict)


@checked
def trace(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    training_loss: TrainingLoss | None = None,
    *,
    queries: Any,
    query_losses: Callable[[Any, Any], Tensor] | None = None,
    query_learned: Callable[[Any, Any], Tensor] | None = None,
    output_dir: Name | Path = "online",
    precision: Name | None = None,
    schedules: Sequence[Any] = (),
    scaler: Any = None,
    fabric: Any = None,
    state: dict[str, Any] | None = None,
    describe: Any = None,
    **settings: Any,
) -> PlainTrace:
    """Trace a training loop of your own, as ``OnlineTracIn`` traces Lightning's.

    Weights after training are bit-identical with and without it.

    Args:
        model: The model, or the DistributedDataParallel around it; with Fabric, what ``fabric.setup`` has returned.
        optimizer: Its optimizer, or several; with Fabric, likewise.
        training_loss: ``(model, batch) -> Tensor``: the loss of one batch, a number. It is also called with some
            examples' inputs exchanged, to find out whose rows are whose, so it must depend on its arguments and on
            random numbers alone. Default: the loss that a Hugging Face model itself returns for a batch with labels.
        queries: A DataLoader or Dataset of queries.
        query_losses: ``(model, batch) -> Tensor[B]``, one loss per query, in nats. Default: the model's
            ``example_losses``, or a ready-made one for Hugging Face language models.
        query_learned: ``(model, batch) -> Tensor[B]`` bool, whether each query is answered right; the store records
            it at each refresh. Default: the model's ``learned``, if it has one.
        output_dir: Where the score store is written at the end of the ``with`` block. After an exception, what there
            is goes to the same name with ``-incomplete`` behind it.
        precision: ``"32-true"``, ``"64-true"``, ``"bf16-true"`` or ``"16-true"``, as the model's parameters are, or
            ``"bf16-mixed"`` or ``"16-mixed"``: then losses are computed under ``torch.autocast``. Default: "32-true";
            with Fabric, its own.
        schedules: Learning-rate schedules that ``training_loss`` might touch.
        scaler: The ``torch.amp.GradScaler`` that scales the loss.
        fabric: The ``lightning.fabric.Fabric`` that has set up the model and the optimizer, if there is one. Then
            ``run.backward(loss)`` calls ``fabric.backward(loss)``, and queries' losses get a model in Fabric's
            precision.
        state: What ``run.state_dict()`` returned when a checkpoint was saved, to go on from there.
        describe: Says the texts of examples and queries, which the store keeps beside scores. A function of a batch, of
            examples or of queries: ``(batch) -> {"text": [...], "answer": [...]}``, with an entry for each row; it must
            not change the batch. Or a data set of rows with ``example_id`` or ``query_id``, and ``text``; or a pair of
            data sets, of examples and of queries.
        settings: The fields of :class:`ftrace.online.TraceSettings`, such as ``scores=("dot", "update")``.

    Returns:
        A context manager, whose ``loss(batch)`` and ``backward(loss)`` take the place of your own two lines.

    Raises:
        ValueError: On an unknown setting, or an unsupported strategy or precision of Fabric; on entering, if the model
            or an optimizer isn't supported.

    Example:
        >>> import tempfile, torch
        >>> from torch.utils.data import DataLoader
        >>> from ftrace.scores import ScoreStore
        >>> rows = [{"x": torch.tensor([float(i)]), "y": torch.tensor([2.0 * i]), "example_id": i} for i in range(6)]
        >>> queries = [{"x": torch.tensor([1.5]), "y": torch.tensor([3.0]), "query_id": 0}]
        >>> def losses(model, batch):
        ...     return (model(batch["x"]) - batch["y"]).square().sum(1)
        >>> model = torch.nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> folder = tempfile.mkdtemp() + "/scores"
        >>> run = trace(model, optimizer, lambda model, batch: losses(model, batch).mean(), queries=queries,
        ...             query_losses=losses, output_dir=folder, ledger=False)
        >>> with run:
        ...     for batch in DataLoader(rows, batch_size=3):
        ...         optimizer.zero_grad()
        ...         run.backward(run.loss(batch))
        ...         optimizer.step()
        >>> ScoreStore.open(folder).scores(0).shape
        (6,)
    """
    optimizers = _listed(optimizer)
    of_run = TraceSettings.of("trace", settings)
    loop: PlainLoop
    training_loss = training_loss or huggingface_training_loss
    if fabric is None:
        _refuse_set_up_by_fabric(model, *optimizers)
        loop = PlainLoop(model, optimizers, training_loss, precision or "32-true", schedules, scaler)
    else:
        _refuse_beside_fabric(precision=precision, scaler=scaler)
        loop = FabricLoop(fabric, model, optimizers, training_loss, schedules)
        query_losses, query_learned = loop.query_functions(query_losses, query_learned)
    session = TraceSession(of_run, queries, query_losses, query_learned, _WHO, describe)
    run = PlainTrace(loop, session, Path(output_dir))
    if state:
        run.load_state_dict(state)
    return run


def _refuse_set_up_by_fabric(*objects: Any) -> None:
    for value in objects:
        if is_of_fabric(value):
            raise ValueError(
                f"trace: expected fabric=fabric for what fabric.setup has returned, found a {type(value).__name__} "
                "without it. Pass the Fabric, too: trace(model, optimizer, ..., fabric=fabric)"
            )


def _refuse_beside_fabric(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{name}: expected none beside fabric=..., which knows its own, found {value!r:.80}. Leave it out, and "
                "set Fabric(precision=...)"
            )


def _listed(optimizer: Any) -> list[Optimizer]:
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    is_list = isinstance(optimizers, Sequence) and bool(optimizers)
    if not is_list or not all(isinstance(each, Optimizer) for each in optimizers):
        raise ValueError(f"optimizer: expected a torch.optim.Optimizer or a list of them, found {optimizer!r:.80}")
    return list(optimizers)
