"""TracIn while the model trains, without a replay afterwards.

At optimizer step t let ``c_{z,t}`` be example z's contribution to the gradient that the optimizer gets. The score of z
for query q is the sum over steps of ``eta_t kappa_t <grad L_q(theta_t), c_{z,t}>`` (Pruthi et al. 2020, arXiv
2002.08484, eq. 1, with the sum over all steps instead of over checkpoints), or of what the optimizer made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ftrace.arguments import Count, Name, NonNegativeNumber, Positive, PositiveNumber, Seed, checked
from ftrace.callbacks.lightning_loop import LightningLoop, refuse_unsupported_loop
from ftrace.callbacks.output_dirs import drop_earlier_trial, output_dir_of
from ftrace.gradients import ProjectionSide
from ftrace.launched_processes import end_failed_training, watch_processes
from ftrace.online import TraceSession, TraceSettings, Whitening


@checked
class OnlineTracIn(Callback):
    """A callback that accumulates, for each example and query, by how much the example has lowered the query's loss.

    It works in any LightningModule: contributions of examples are read off the module's own backward pass, whatever its
    loss; queries are differentiated in eval mode, and random state is restored. Weights after training are
    bit-identical with and without this callback.

    Args:
        queries: A DataLoader or Dataset of queries; default: the datamodule's ``query_dataloader()``.
        output_dir: The folder to which the score store is written when training ends; default: ``online`` in the run's
            log folder. If training is interrupted, fails, or was resumed without the earlier scores, the scores so far
            go to the same name with ``-incomplete`` appended. State for resuming goes to the same name with ``-state``.
        query_losses: ``(pl_module, batch) -> Tensor[B]``, in nats; default: the module's ``example_losses``, or else a
            ready-made one if the module wraps one Hugging Face language model.
        scores: The kinds of scores, all computed in one pass. ``dot``: the sum over steps of learning rate x clip
            factor x inner product, in nats if the optimizer were SGD. ``update``: the first-order effect of the
            optimizer's actual steps in nats, for SGD, Adam, AdamW and Adafactor. ``cosine``: the sum over steps of the
            cosine, over the covered parameters. ``whitened``: the same for gradients that are divided by the root of
            the optimizer's second moments, projected, and whitened by their running autocorrelation. ``learning``:
            ``whitened``, with each step weighted by the root of p (1 - p), where p is the probability of the query's
            answer at the last refresh, so that the steps count in which it is being learned; recommended for ranking.
        parameters: Globs over parameter names, in order; one that begins with "!" excludes.
        refresh_every_n_steps: The number of optimizer steps after which the queries' gradients are recomputed. "auto":
            as fast as the queries' losses move, within ``refresh_share``. Default: "auto" if ``whitened`` or
            ``learning`` is among the scores, and otherwise 1, so that the other kinds are exact.
        projection_side: None for exact products. An integer K projects each weight's gradient at random on both sides
            to K x K (a vector's to K * K), so that products are right in expectation and cost next to nothing.
        integration: "left" uses the query gradients of the last refresh. "trapezoid" interpolates between refreshes,
            for ``dot`` and ``update``, and holds one interval's contributions in memory.
        momentum: How ``update`` attributes momentum to examples. "eventual": a gradient's entire later effect is booked
            at its own step, along that step's query gradients. "exact": contributions are held until their effect is
            over.
        whitening: Settings for the kinds ``whitened`` and ``learning``.
        candidates: The examples whose scores are kept: None for all; a list of example ids; or such a list for each
            query id, so that there is never a matrix of examples x queries.
        breakdown: Some of "layer", "epoch" and "learned" (before and after the query was first right), by which scores
            are also kept in parts. Memory grows with the number of parts.
        ledger: Whether to keep the ledger: how each query's loss changed between refreshes, beside what scores explain.
        query_learned: ``(pl_module, batch) -> Tensor[B]`` bool, whether each query is answered right; default: the
            module's ``learned``, if it has one. The store records it at each refresh.
        staleness_every: The number of refreshes from one measurement of how much products change at a refresh to the
            next; 0: never.
        id_key: The key of the examples' ids in a batch: int64 ``[B]`` or a list of names.
        query_id_key: The key of the queries' ids in a batch of queries, likewise.
        strict: Whether a parameter that can't be covered, or a failed self-check, is an error; otherwise a warning and
            a line in the manifest.
        self_check: Whether to check single examples of rehearsed training steps, and one query, against plain autograd,
            until each parameter was checked with a gradient and at a few later steps; and at each step the sum of
            contributions against the gradient. Whose rows are whose is found out with and without it: before the first
            step, the training step is rehearsed some ten times, in which your own forward hooks fire, too.
        seed: Of the projection, and of the choice of examples that the self-check looks at.
        shared_ids: Whether several rows of the data may have the same id, such as the pieces of a document; their
            scores are added up.
        keep_states: Whether to keep the files for resuming also of checkpoints that ``ModelCheckpoint`` has deleted,
            as you need if you have copied these.
        describe: Says the texts of examples and queries, which the store keeps beside scores. A function of a batch, of
            examples or of queries: ``(batch) -> {"text": [...], "answer": [...]}``, with an entry for each row; it must
            not change the batch. Or a data set of rows with ``example_id`` or ``query_id``, and ``text``; or a pair of
            data sets, of examples and of queries. Default: the datamodule's ``describe()``, if it has one.
        store: Where scores are held while training: "memory"; "disk", in a mapped file beside the output folder; or
            "auto", in memory up to half of what is free, and what is beyond that in a mapped file. Scores are the same.
        refresh_share: What refreshes may cost with "auto", as a share of training's own work, by numbers of rows.
        moments_tolerance: By how much of its norm an optimizer's step, momentum aside, may differ from the one that
            its second moments of an earlier step would give, before projected ``update`` products take the current
            ones: the queries' gradients are then scaled and projected anew. 0: at each step.

    Raises:
        ValueError: On an unknown or unsupported option; when training starts, on a loop, layer, optimizer or query
            source that is not supported.
        SelfCheckError: When the self-check fails.
    """

    def __init__(
        self,
        queries: DataLoader | Dataset | Sequence[Any] | None = None,
        output_dir: Name | Path | None = None,
        query_losses: Callable[..., Any] | None = None,
        scores: Sequence[Name] = ("dot",),
        parameters: Sequence[Name] = ("*",),
        refresh_every_n_steps: Positive | Literal["auto"] | None = None,
        projection_side: ProjectionSide | None = None,
        integration: Literal["left", "trapezoid"] = "left",
        momentum: Literal["eventual", "exact"] = "eventual",
        whitening: Whitening = Whitening(),  # noqa: B008 - frozen
        candidates: list[int | str] | dict[int | str, list[int | str]] | None = None,
        breakdown: Sequence[Name] = (),
        ledger: bool = True,
        query_learned: Callable[..., Any] | None = None,
        staleness_every: Count = 0,
        id_key: Name | Count = "example_id",
        query_id_key: Name | Count = "query_id",
        strict: bool = True,
        self_check: bool = True,
        seed: Seed = 0,
        shared_ids: bool = False,
        keep_states: bool = False,
        describe: Any = None,
        store: Literal["memory", "disk", "auto"] = "auto",
        refresh_share: PositiveNumber = 0.25,
        moments_tolerance: NonNegativeNumber = 0.2,
    ) -> None:
        self.settings = TraceSettings(
            scores=scores,
            parameters=parameters,
            refresh_every_n_steps=refresh_every_n_steps,
            projection_side=projection_side,
            integration=integration,
            momentum=momentum,
            whitening=whitening,
            candidates=candidates,
            breakdown=breakdown,
            ledger=ledger,
            staleness_every=staleness_every,
            id_key=id_key,
            query_id_key=query_id_key,
            strict=strict,
            self_check=self_check,
            seed=seed,
            shared_ids=shared_ids,
            store=store,
            keep_states=keep_states,
            refresh_share=refresh_share,
            moments_tolerance=moments_tolerance,
        )
        self.output_dir = output_dir
        self._session = TraceSession(self.settings, queries, query_losses, query_learned, "OnlineTracIn", describe)

    @property
    @override
    def state_key(self) -> str:
        """The key of this callback's state in checkpoints, which depends on its folder: a run may have several."""
        return self._generate_state_key(output_dir=None if self.output_dir is None else str(self.output_dir))

    @property
    def incomplete_store(self) -> Path | None:
        """The folder of the scores of a training that didn't come to its end; None if there are none."""
        return self._session.incomplete_store

    def add_queries(self, queries: DataLoader | Dataset) -> None:
        """Add queries while training is under way, which are traced from the next batch on.

        The store's manifest has the first step of each. All processes must add the same queries at the same time.

        Args:
            queries: A DataLoader or Dataset of queries, with new ids.

        Raises:
            ValueError: If training has not begun.
        """
        self._session.add_queries(queries)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.before_training(pl_module)

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.ending.signals_begin(LightningLoop(trainer, pl_module))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch_processes(trainer)
        refuse_unsupported_loop(trainer, "OnlineTracIn")
        output_dir = self._find_output_dir(trainer)
        drop_earlier_trial(trainer, output_dir)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [other for other in callbacks if isinstance(other, OnlineTracIn) and other is not self]
        if any(other._find_output_dir(trainer) == output_dir for other in others):
            raise ValueError(
                f"OnlineTracIn: two of them write to {str(output_dir)!r}. Give each an output_dir of its own"
            )
        self._session.training_begins(LightningLoop(trainer, pl_module), output_dir)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._session.batch_begins(batch, batch_idx)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._session.backward_begins(loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.backward_has_ended()

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._session.gradients_are_zeroed()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Under automatic optimization, only at this point is the gradient complete and unclipped. Under manual
        # optimization, this comes after the user's own closure, and before a loss scaler decides whether to step.
        self._session.optimizer_steps(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._session.batch_has_ended()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session.training_has_ended()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session.waits_to_be_closed:  # there is nothing left to train
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)
        self._session.checkpoints_are_saved()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._session.training_has_failed(exception)
        finally:
            end_failed_training(trainer, exception, together=not self._session.ending.is_alone)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._session.detach()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._session.state()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._session.load(state_dict)

    def _find_output_dir(self, trainer: Trainer) -> Path:
        return output_dir_of(trainer, self.output_dir, "online").absolute()
