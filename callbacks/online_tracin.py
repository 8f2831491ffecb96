"""TracIn while the model trains: nothing is replayed afterwards.

At optimizer step t let ``c_{z,t}`` be example z's contribution to the gradient that the optimizer gets. The score of z
for query q is the sum over steps of ``eta_t kappa_t <grad L_q(theta_t), c_{z,t}>`` (Pruthi et al. 2020, arXiv
2002.08484, eq. 1, with the sum over all steps instead of over checkpoints), or of what the optimizer made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ftrace.gradients import Projection, unsupported_step
from ftrace.online.batches import batch_ids, batch_sizes
from ftrace.online.checks.self_check import SelfCheckError
from ftrace.online.hooks import Listening, without_autocast
from ftrace.online.manifest import manifest_of, write_store
from ftrace.online.queries.query_losses import find_query_learned, find_query_losses
from ftrace.online.queries.query_pass import QueryPass
from ftrace.online.repeated_ids import RepeatedIds
from ftrace.online.resume import RunState
from ftrace.online.scoring.rules import KINDS, ScoringRules
from ftrace.online.scoring.whitened import Whitening
from ftrace.online.traced_run import TracedRun
from ftrace.online.training_loop import refuse_unsupported_loop, warn_of_missing_rates
from ftrace.scores import Candidates, ScoreStore, check_replaceable, stable_id

BREAKDOWNS = ("layer", "epoch", "learned")


class OnlineTracIn(Callback):
    """Accumulate, for each (example, query), how much the example's gradient has lowered the query's loss.

    Works in any LightningModule: contributions of examples are read off the module's own backward pass, whatever its
    loss; queries are differentiated in eval mode, with random state put back. Weights after training are bit-identical
    with and without this callback.

    Args:
        queries: A DataLoader or Dataset of queries; None takes the datamodule's ``query_dataloader()``.
        output_dir: Where the score store is written when training ends; default ``online`` in the run's log folder.
            If training is interrupted, fails, or was resumed without the scores of before, what there is goes to the
            same name with ``-incomplete`` behind it. State for resuming goes to the same name with ``-state``.
        query_losses: ``(pl_module, batch) -> Tensor[B]``, in nats; default the module's ``example_losses``, else a
            ready-made one where the module wraps one Hugging Face language model.
        scores: Kinds to accumulate, all in one pass. ``dot``: sum over steps of learning rate x clip factor x inner
            product, in nats if the optimizer were SGD. ``update``: the first-order effect of the optimizer's actual
            step in nats, for SGD, Adam, AdamW and Adafactor. ``cosine``: sum over steps of the cosine, over the covered
            parameters. ``whitened``: the same of gradients that are divided by the root of the optimizer's second
            moments, projected, and whitened by their running autocorrelation. ``learning``: ``whitened`` with each step
            weighted by p (1 - p), where p = exp(-loss) is the probability of the query's answer at the last refresh, so
            that those steps count in which it is being learned: the one to rank by.
        parameters: Globs over parameter names, in order; one that begins with "!" takes away.
        refresh_every_n_steps: Recompute the queries' gradients every so many optimizer steps.
        projection_side: None is exact; a whole number K projects each weight's gradient on both sides to K x K (a
            vector's to K * K), at random, so that products are right in expectation and cost next to nothing.
        integration: "left" uses the query gradients of the last refresh; "trapezoid" interpolates between refreshes,
            for ``dot`` and ``update``, and holds one interval's contributions.
        momentum: How ``update`` gives momentum to examples. "eventual": a step's whole later effect is booked at once,
            along the query gradients of the step. "exact": contributions are held until their effect is over.
        whitening: How the kinds ``whitened`` and ``learning`` are made.
        candidates: Whose scores are kept: None, all examples'; a list of example ids; or such a list for each query id,
            so that a matrix of examples x queries never exists.
        breakdown: Of "layer", "epoch" and "learned" (before and after the query was first right): also keep scores by
            part. Memory is that many times as large.
        ledger: Keep the ledger: what each query's loss did between refreshes, beside what the scores say.
        query_learned: ``(pl_module, batch) -> Tensor[B]`` bool, whether each query is answered right; default the
            module's ``learned``, if it has one.
        staleness_every: At every so many refreshes, measure how much scores have suffered from old query gradients.
        id_key: The batch's key of the examples' ids, int64 ``[B]`` or a list of names.
        query_id_key: The query batches' key of the queries' ids, likewise.
        strict: A parameter that can't be covered, or a failed self-check, is an error; otherwise a warning and a line
            in the manifest.
        self_check: Hold single examples, found in rehearsals of the training step, and one query against plain
            autograd, until each parameter was seen with a gradient and at a few later steps; and at each step the sum
            of contributions against the gradient. Whose rows are whose is found out with and without it: before the
            first step, the training step is rehearsed some ten times, so forward hooks of your own fire there too.
        seed: Of the projection, and of the examples that the self-check looks at.
        shared_ids: Whether several rows of the data may have one id, such as the pieces of a document; their scores are
            added up.

    Raises:
        ValueError: On an unknown or unsupported option; when training starts, on a loop, layer, optimizer or query
            source that is not supported.
        SelfCheckError: When the self-check fails.
    """

    def __init__(
        self,
        queries: DataLoader | Dataset | None = None,
        output_dir: str | Path | None = None,
        query_losses: Callable[..., Any] | None = None,
        scores: Sequence[str] = ("dot",),
        parameters: Sequence[str] = ("*",),
        refresh_every_n_steps: int = 1,
        projection_side: int | None = None,
        integration: Literal["left", "trapezoid"] = "left",
        momentum: Literal["eventual", "exact"] = "eventual",
        whitening: Whitening = Whitening(),  # noqa: B008 - frozen
        candidates: list[int | str] | dict[int | str, list[int | str]] | None = None,
        breakdown: Sequence[str] = (),
        ledger: bool = True,
        query_learned: Callable[..., Any] | None = None,
        staleness_every: int = 0,
        id_key: str = "example_id",
        query_id_key: str = "query_id",
        strict: bool = True,
        self_check: bool = True,
        seed: int = 0,
        shared_ids: bool = False,
    ) -> None:
        for name, values, known in (("scores", scores, KINDS), ("breakdown", breakdown, BREAKDOWNS)):
            unknown = [value for value in values if value not in known]
            if unknown or isinstance(values, str) or (name == "scores" and not values):
                raise ValueError(f"{name}: expected some of {list(known)}, found {values!r}")
        for name, value, both in (
            ("integration", integration, ["left", "trapezoid"]),
            ("momentum", momentum, ["eventual", "exact"]),
        ):
            if value not in both:
                raise ValueError(f"{name}: expected one of {both}, found {value!r}")
        for name, number, least in (
            ("refresh_every_n_steps", refresh_every_n_steps, 1),
            ("staleness_every", staleness_every, 0),
        ):
            if number < least:
                raise ValueError(f"{name}: expected at least {least}, found {number}")
        if projection_side is not None and projection_side < 1:
            raise ValueError(f"projection_side: expected None or at least 1, found {projection_side}")
        if momentum == "exact" and "update" not in scores:
            raise ValueError('momentum="exact" is of the kind "update": expected it in scores')
        whitened = [kind for kind in ("whitened", "learning") if kind in scores]
        if whitened and projection_side is None:
            raise ValueError(
                f"scores of the kind {whitened[0]!r} whiten projected gradients: expected projection_side=K (R has K^4 "
                "numbers for each parameter; 8 to 16 is usual), found None"
            )
        self.queries = queries
        self.output_dir = output_dir
        self.query_losses = query_losses
        self.scores = tuple(scores)
        self.parameters = tuple(parameters)
        self.refresh_every_n_steps = refresh_every_n_steps
        self.projection = None if projection_side is None else Projection(projection_side, seed)
        self.integration = integration
        self.momentum = momentum
        self.whitening = whitening
        self.candidates = _numbered(candidates)
        self.breakdown = tuple(breakdown)
        self.ledger = ledger
        self.query_learned = query_learned
        self.staleness_every = staleness_every
        self.id_key = id_key
        self.query_id_key = query_id_key
        self.shared_ids = shared_ids
        self.strict = strict
        self.self_check = self_check
        self.seed = seed

        self._listening = Listening(self.parameters, self.projection, strict=strict, hears_all_of_queries=ledger)
        self._run: TracedRun | None = None
        self._added: list[Any] = []
        self._names: dict[int, str] = {}
        self._state = RunState()

    @property
    @override
    def state_key(self) -> str:
        """Two instances in one run have states of their own, told apart by their folders."""
        return self._generate_state_key(output_dir=None if self.output_dir is None else str(self.output_dir))

    def add_queries(self, queries: DataLoader | Dataset) -> None:
        """More queries, while training is under way: from its next batch on, they are traced, too.

        The store's manifest says from which step on. All processes must add the same ones at the same time.

        Args:
            queries: As the argument ``queries``; its ids must be new.

        Raises:
            ValueError: If training has not begun.
        """
        if self._run is None:
            raise ValueError("add_queries: expected training to be under way. Give the queries to OnlineTracIn instead")
        self._added.append(queries)

    # Hooks

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run = None
        self._listening.attach_before_first_call(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_unsupported_loop(trainer)
        if "dot" in self.scores:
            warn_of_missing_rates(trainer, "OnlineTracIn", 'the kind "dot"')
        self._repeated_ids = RepeatedIds(trainer, self.id_key, strict=self.strict, shared=self.shared_ids)
        for optimizer in trainer.optimizers if "update" in self.scores else ():
            problem = unsupported_step(optimizer)
            if problem is not None:
                raise ValueError(
                    f'OnlineTracIn: scores of the kind "update" need to know what the optimizer does: {problem}. '
                    'Ask for "dot" and "cosine" alone'
                )
        self._output_dir = self._find_output_dir(trainer)
        others = [one for one in trainer.callbacks if isinstance(one, OnlineTracIn) and one is not self]  # type: ignore[attr-defined]
        if any(one._find_output_dir(trainer) == self._output_dir for one in others):
            raise ValueError(
                f"OnlineTracIn: two of them write to {str(self._output_dir)!r}. Give each an output_dir of its own"
            )
        losses = self.query_losses or find_query_losses(pl_module)
        learned = self.query_learned or find_query_learned(pl_module)
        learned = learned if self.ledger or "learned" in self.breakdown else None
        if "learned" in self.breakdown and learned is None:
            raise ValueError(
                'breakdown="learned": nobody can tell whether a query is right. Give the module a method '
                "learned(batch) -> Tensor[B] bool, or pass query_learned=(pl_module, batch) -> Tensor[B]"
            )
        queries = QueryPass(self.queries, losses, learned, self.query_id_key, trainer)
        if not self._listening.is_attached:
            self._listening.attach(pl_module, trainer.optimizers)
        rules = ScoringRules(
            self.scores,
            self.integration == "trapezoid",
            self.momentum == "exact",
            self.breakdown,
            self.projection,
            self.whitening,
        )
        self._names = {}
        self._run = TracedRun(
            trainer,
            pl_module,
            queries,
            rules,
            self._listening,
            refresh_every_n_steps=self.refresh_every_n_steps,
            candidates=self.candidates,
            id_key=self.id_key,
            strict=self.strict,
            self_check=self.self_check,
            ledger=self.ledger,
            staleness_every=self.staleness_every,
            seed=self.seed,
        )
        self._state.begin(self._run, self._names, self._output_dir, strict=self.strict)
        check_replaceable(self._output_dir)
        check_replaceable(self._incomplete_dir)
        self._refuse_another_run()
        if self._run.first_step:
            rank_zero_warn(
                f"OnlineTracIn: scores begin at step {self._run.first_step}, earlier steps are not in them; they go to "
                f"{self._incomplete_dir}"
            )
        for optimizer in trainer.optimizers:
            self._listening.follow(pl_module, optimizer, self._step_begins, self._step_has_ended)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._running
        example_ids = batch_ids(batch, self.id_key, "id_key", self._names)
        self._repeated_ids.see(trainer, example_ids, self._names)
        run.cover_unfrozen()
        while self._added and not any(one.is_open for one in run.parameters.followed):
            new = run.queries.add(self._added.pop(0), trainer)
            run.sums.add_queries(new.tolist())
            run.query_first_steps |= dict.fromkeys(new.tolist(), run.step)
            run.has_queries_to_add = run.has_queries_to_add or len(new) > 0
        run.begin_batch(batch, batch_idx, example_ids, batch_sizes(batch, self.id_key))

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._run is not None:
            with without_autocast(pl_module):
                self._run.before_backward(loss)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None:
            with without_autocast(pl_module):
                self._run.after_backward()

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # A window begins. What is still here belongs to gradients that no optimizer step has used.
        self._running.begin_window()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Under automatic optimization the window's gradient is whole and unclipped here, and only here.
        # By hand, this comes after a closure of the user's own, and before a loss scaler decides whether to step.
        with without_autocast(pl_module):
            self._step_begins(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._running.end_batch()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._running
        self._state.remember(run, self._names)
        run.finish()
        run.rows.say_what_was_never_checked()
        self._write(complete=run.first_step == 0)
        self._listening.detach()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Killed after its last checkpoint and before its store was written: there is nothing left to train.
        if self._run is None and self._state.restored:
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        run = self._run
        if run is not None and self._listening.is_attached and run.taken and not isinstance(exception, SelfCheckError):
            self._state.remember(run, self._names)  # a checkpoint may be saved yet
            run.scoring.finish()
            self._write(complete=False, alone=True)
        self._listening.detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listening.detach()

    # State

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._state.save(self._run, self._names)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state.restored = state_dict

    # Helpers

    def _step_begins(self, optimizer: Optimizer) -> None:
        self._running.begin_step(self._running.parameters.find(optimizer))

    def _step_has_ended(self, optimizer: Optimizer) -> None:
        self._running.end_step(self._running.parameters.find(optimizer))

    @property
    def _running(self) -> TracedRun:
        if self._run is None:
            raise RuntimeError("OnlineTracIn: training has not been started by trainer.fit")
        return self._run

    def _find_output_dir(self, trainer: Trainer) -> Path:
        default = Path(trainer.log_dir or trainer.default_root_dir) / "online"
        found = Path(self.output_dir) if self.output_dir is not None else default
        return Path(trainer.strategy.broadcast(str(found.absolute())))

    @property
    def _incomplete_dir(self) -> Path:
        folder = self._output_dir.with_name(f"{self._output_dir.name}-incomplete")
        try:
            other = ScoreStore.open(folder).manifest.get("run_id")
        except (FileNotFoundError, ValueError):
            return folder
        run_id = self._running.run_id
        return folder if other == run_id else folder.with_name(f"{folder.name}-{run_id[:8]}")

    def _refuse_another_run(self) -> None:
        """A store of another run must not be lost; an earlier one of the same run is replaced."""
        try:
            manifest: Mapping[str, Any] = ScoreStore.open(self._output_dir).manifest
        except FileNotFoundError:
            return
        except ValueError:  # an empty folder
            return
        if manifest.get("run_id") != self._running.run_id:
            raise ValueError(
                f"OnlineTracIn: {str(self._output_dir)!r} holds the scores of another run "
                f"({manifest.get('steps', 'unknown')} steps). Name another output_dir, or move or delete the folder"
            )

    def _write(self, *, complete: bool, alone: bool = False) -> None:
        run = self._running
        # A folder of the name that was asked for holds the scores of a whole run, always.
        output_dir = self._output_dir if complete else self._incomplete_dir
        facts = manifest_of(self, run, complete=complete)
        store = write_store(output_dir, run, facts, self._names, alone=alone)
        if store is not None and store.ledger is not None and len(store.ledger.steps):
            rank_zero_info(f"OnlineTracIn: {store.ledger.summary()}. Scores: {output_dir}")


def _numbered(candidates: Any) -> Candidates:
    """Candidates with names as their numbers."""
    if candidates is None:
        return None
    if isinstance(candidates, Mapping):
        return {_number(query): [_number(one) for one in own] for query, own in candidates.items()}
    return [_number(one) for one in candidates]


def _number(one: int | str) -> int:
    return stable_id(one) if isinstance(one, str) else int(one)
