"""TracIn while the model trains: nothing is replayed afterwards.

At optimizer step t let ``c_{z,t}`` be example z's contribution to the gradient that the optimizer gets. The score of z
for query q is the sum over steps of ``eta_t kappa_t <grad L_q(theta_t), c_{z,t}>`` (Pruthi et al. 2020, arXiv
2002.08484, eq. 1, with the sum over all steps instead of over checkpoints).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ftrace.callbacks.batches import batch_ids, load_queries
from ftrace.callbacks.covered_parameters import CoveredParameters
from ftrace.callbacks.query_losses import find_query_losses
from ftrace.callbacks.self_check import SelfCheck, SelfCheckError
from ftrace.callbacks.training_loop import (
    clip_factor,
    evaluation_mode,
    gradient_norm,
    keeps_gradients,
    refuse_unfrozen,
    refuse_unsupported_loop,
    zeroes_gradients_itself,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ftrace.gradients import (
    GradientCapture,
    PerExampleGradients,
    Projection,
    QueryGradients,
    Recording,
    cosines,
    inner_products,
    inner_products_and_square_norms,
)
from ftrace.scores import ScoreAccumulator, ScoreStore, check_replaceable

KINDS = ("dot", "cosine")


@dataclass
class _Contributions:
    """What one batch of the current window gives: products ``[B, Q]`` for each parameter group, norms ``[B]``."""

    example_ids: Tensor
    by_group: list[Tensor]
    norms: Tensor | None

    @property
    def total(self) -> Tensor:
        """Products over all groups, ``[B, Q]``."""
        return torch.stack(self.by_group).sum(0)


class OnlineTracIn(Callback):
    """Accumulate, for each (example, query), how much the example's gradient has lowered the query's loss.

    Works in any LightningModule under automatic optimization: contributions of examples are read off the module's own
    backward pass, whatever its loss; queries are differentiated in eval mode, with random state put back. Weights
    after training are bit-identical with and without this callback.

    Args:
        queries: A DataLoader or Dataset of queries; None takes the datamodule's ``query_dataloader()``.
        output_dir: Where the score store is written when training ends; default ``online`` in the run's log folder.
            If training is interrupted, fails or was resumed, what there is goes to the same name with ``-incomplete``
            behind it.
        query_losses: ``(pl_module, batch) -> Tensor[B]``, in nats; default the module's ``example_losses``, else a
            ready-made one where the module wraps one Hugging Face language model.
        scores: Kinds to accumulate. ``dot``: sum over steps of learning rate x clip factor x inner product, in nats if
            the optimizer were SGD. ``cosine``: sum over steps of the cosine, over the covered parameters.
        parameters: Globs over parameter names, in order; one that begins with "!" takes away.
        refresh_every_n_steps: Recompute the queries' gradients every so many optimizer steps.
        projection_side: None is exact; a whole number K projects each weight's gradient on both sides to K x K (a
            vector's to K * K), at random, so that products are right in expectation and cost next to nothing.
        integration: Not supported yet beyond "left": the query gradient of the last refresh.
        candidates: Not supported yet: None (all examples).
        breakdown: Not supported yet: none.
        id_key: The batch's key of the examples' ids, int64 ``[B]``.
        query_id_key: The query batches' key of the queries' ids, int64 ``[B]``.
        strict: A parameter that can't be covered, or a failed self-check, is an error; otherwise a warning and a line
            in the manifest.
        self_check: Hold two examples and one query against plain autograd at the start, and at each step the sum of
            contributions against the gradient. The former runs a part of the first batch's backward pass twice more,
            so tensor hooks of your own fire there too.
        seed: Of the projection, and of the examples that the self-check looks at.

    Raises:
        ValueError: On an unknown or unsupported option; when training starts, on a loop, layer or query source that
            is not supported.
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
        integration: str = "left",
        candidates: Any = None,
        breakdown: Sequence[str] = (),
        id_key: str = "example_id",
        query_id_key: str = "query_id",
        strict: bool = True,
        self_check: bool = True,
        seed: int = 0,
    ) -> None:
        unknown = [kind for kind in scores if kind not in KINDS]
        if unknown or not scores or isinstance(scores, str):
            raise ValueError(f"scores: expected some of {list(KINDS)}, found {scores!r}")
        if refresh_every_n_steps < 1:
            raise ValueError(f"refresh_every_n_steps: expected at least 1, found {refresh_every_n_steps}")
        if projection_side is not None and projection_side < 1:
            raise ValueError(f"projection_side: expected None or at least 1, found {projection_side}")
        for name, value, only in (
            ("integration", integration, "left"),
            ("candidates", candidates, None),
            ("breakdown", tuple(breakdown), ()),
        ):
            if value != only:
                raise ValueError(f"{name}={value!r} is not supported yet: expected {only!r}")
        self.queries = queries
        self.output_dir = output_dir
        self.query_losses = query_losses
        self.scores = tuple(scores)
        self.parameters = tuple(parameters)
        self.refresh_every_n_steps = refresh_every_n_steps
        self.projection = None if projection_side is None else Projection(projection_side, seed)
        self.id_key = id_key
        self.query_id_key = query_id_key
        self.strict = strict
        self.self_check = self_check
        self.seed = seed

        self._capture: GradientCapture | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = 0
        refuse_unsupported_loop(trainer, pl_module)
        self._output_dir = self._find_output_dir(trainer)
        others = [one for one in trainer.callbacks if isinstance(one, OnlineTracIn) and one is not self]  # type: ignore[attr-defined]
        if any(one._find_output_dir(trainer) == self._output_dir for one in others):
            raise ValueError(
                f"OnlineTracIn: two of them write to {str(self._output_dir)!r}. Give each an output_dir of its own"
            )
        self._incomplete_dir = self._output_dir.with_name(f"{self._output_dir.name}-incomplete")
        check_replaceable(self._output_dir)
        check_replaceable(self._incomplete_dir)
        self._losses = self.query_losses or find_query_losses(pl_module)
        self._query_batches = load_queries(self.queries, trainer)
        self._query_ids = torch.cat([self._ids_of_queries(batch).cpu() for batch in self._query_batches])
        if len(self._query_ids.unique()) < len(self._query_ids):
            raise ValueError(f'queries: expected each "{self.query_id_key}" once, found some several times')

        groups = trainer.optimizers[0].param_groups
        optimized = [p for group in groups for p in group["params"]]
        self._capture = GradientCapture(
            pl_module, self.parameters, optimized, self.projection, refuse_unheard=self.strict
        )
        named = dict(pl_module.named_parameters())
        self._covered = CoveredParameters(self._capture.coverage, named, strict=self.strict)
        covered = self._covered.by_name
        group_of = {id(p): index for index, group in enumerate(groups) for p in group["params"]}
        self._names_by_group = [[n for n, p in covered.items() if group_of[id(p)] == g] for g in range(len(groups))]
        self._known = {p for group in groups for p in group["params"] if p.requires_grad}
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in covered.values()) else torch.float32
        self._sums = ScoreAccumulator(self.scores, len(self._query_ids), dtype)
        self._check = None
        if self.self_check:
            self._check = SelfCheck(covered, strict=self.strict, seed=self.seed, projection=self.projection)

        self._left_out: list[int] = []
        self._first_step = trainer.global_step
        if self._first_step:
            rank_zero_warn(
                f"OnlineTracIn: scores begin at step {self._first_step}, earlier steps are not in them; they go to "
                f"{self._incomplete_dir}"
            )
        self._queries: QueryGradients | None = None
        self._refreshed_at: int | None = None
        self._window: list[_Contributions] = []
        self._recording: Recording | None = None
        self._capture.attach()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_store(trainer, pl_module, complete=self._first_step == 0)
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._capture is not None and self._steps and not isinstance(exception, SelfCheckError):
            self._write_store(trainer, pl_module, complete=False)
        self._detach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._detach()

    def _find_output_dir(self, trainer: Trainer) -> Path:
        default = Path(trainer.log_dir or trainer.default_root_dir) / "online"
        return (Path(self.output_dir) if self.output_dir is not None else default).absolute()

    def _leave_step_out(self) -> None:
        """A step whose contributions are no numbers would spoil all its examples' scores."""
        message = (
            f"OnlineTracIn: the contributions of step {self._steps} are not finite: the loss or a gradient is NaN or "
            "infinite"
        )
        if self.strict:
            raise FloatingPointError(
                f"{message}. Scores up to the step before are kept; strict=False goes on without it"
            )
        rank_zero_warn(f"{message}. They are left out")
        self._left_out.append(self._steps)
        self._steps += 1

    def _detach(self) -> None:
        if self._capture is not None:
            self._capture.detach()
            self._capture = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._capture is not None
        example_ids = batch_ids(batch, self.id_key, option="id_key")
        due = self._refreshed_at is None or trainer.global_step - self._refreshed_at >= self.refresh_every_n_steps
        if due and not self._window:  # within a window weights don't change
            self._refresh(trainer, pl_module)
        self._example_ids = example_ids
        self._recording = self._capture.start(len(example_ids))

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._check is not None and self._recording is not None:
            self._check.differentiate_examples(loss, self._recording)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recording is None or self._capture is None:
            return
        self._capture.stop()
        gradients = self._recording.gradients()
        self._recording = None  # lets go of the activations
        self._covered.heard(gradients.parts)
        if self._check is not None:
            self._check.compare_examples(gradients, self._example_ids)
            self._check.add_to_window(gradients)
        self._window.append(self._multiply(gradients))

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # A window begins. What is still here belongs to gradients that no optimizer step has used.
        self._window = []
        if self._check is not None:
            self._check.discard_window()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Here, and only here, the window's gradient is whole and unclipped, and the rate is the one of this step.
        window, self._window = self._window, []
        refuse_unfrozen(optimizer, self._known)
        self._covered.require_hearing()
        wanted = trainer.gradient_clip_val or (self._check is not None and self._check.wants_norm)
        norm = gradient_norm(optimizer) if wanted else None
        clip = clip_factor(trainer, norm)
        rates = [clip * float(group["lr"]) for group in optimizer.param_groups]
        scores = [self._score(batch, rates) for batch in window]
        if not all(values.isfinite().all() for of_batch in scores for values in of_batch.values()):
            self._leave_step_out()
            return
        if self._check is not None and window:
            self._check.check_window([batch.total for batch in window], clip, norm, self._steps)
        for batch, of_batch in zip(window, scores, strict=True):
            self._sums.add(batch.example_ids, of_batch)
        self._steps += 1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._capture is not None
        self._capture.stop()
        self._recording = None
        optimizer = trainer.optimizers[0]
        if self._check is not None and self._check.expects_gradient and keeps_gradients(optimizer):
            self._check.check_gradient(gradient_norm(optimizer), zeroes_gradients_itself(pl_module), self._steps - 1)

    def _refresh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The queries' gradients at the current weights."""
        assert self._capture is not None
        parts: list[PerExampleGradients] = []
        with (
            isolate_rng(),
            evaluation_mode(pl_module),
            trainer.precision_plugin.forward_context(),
            torch.enable_grad(),
            self._capture.exclusively(),
        ):
            for batch in self._query_batches:
                query_ids = self._ids_of_queries(batch)
                with self._capture.recording(len(query_ids)) as recording:
                    recording.backward(self._losses(pl_module, batch))
                parts.append(recording.gradients())
                if self._check is not None and self._refreshed_at is None and len(parts) == 1:
                    self._check.compare_query(self._losses(pl_module, batch), parts[0], query_ids)
        stacked = PerExampleGradients.stack(parts)
        if self._queries is None:
            batches = self.refresh_every_n_steps * trainer.accumulate_grad_batches
            self._queries = QueryGradients(stacked, batches=batches)
        else:
            self._queries.replace(stacked)
        if "cosine" in self.scores:
            self._query_norms = self._queries.norms(self._covered.by_name)
        if self._check is not None:
            self._check.set_queries(self._queries)
        self._refreshed_at = trainer.global_step

    def _multiply(self, gradients: PerExampleGradients) -> _Contributions:
        assert self._queries is not None
        if "cosine" not in self.scores:
            by_group = [inner_products(gradients, self._queries, names) for names in self._names_by_group]
            return _Contributions(self._example_ids, by_group, None)
        both = [inner_products_and_square_norms(gradients, self._queries, names) for names in self._names_by_group]
        square_norms = torch.stack([norms for _, norms in both]).sum(0)
        return _Contributions(self._example_ids, [products for products, _ in both], square_norms.sqrt())

    def _score(self, batch: _Contributions, rates: Sequence[float]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "dot" in self.scores:
            weighted = [rate * products for rate, products in zip(rates, batch.by_group, strict=True)]
            found["dot"] = torch.stack(weighted).sum(0)
        if "cosine" in self.scores:
            assert batch.norms is not None
            found["cosine"] = cosines(batch.total, batch.norms, self._query_norms)
        return found

    def _ids_of_queries(self, batch: Any) -> Tensor:
        return batch_ids(batch, self.query_id_key, option="query_id_key")

    def _write_store(self, trainer: Trainer, pl_module: LightningModule, *, complete: bool) -> None:
        assert self._capture is not None
        optimizer = trainer.optimizers[0]
        losses = self._losses
        manifest = {
            "method": "online TracIn",
            "complete": complete,
            "first_step": self._first_step,
            "steps": self._steps,
            "steps_left_out": self._left_out,
            "refresh_every_n_steps": self.refresh_every_n_steps,
            "projection_side": None if self.projection is None else self.projection.side,
            "integration": "left",
            "candidates": "all",
            "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
            "gradient_clip_val": trainer.gradient_clip_val,
            "module": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "hyperparameters": _jsonable(dict(pl_module.hparams)),
            "query_losses": f"{losses.__module__}.{getattr(losses, '__qualname__', type(losses).__qualname__)}",
            "self_check": None if self._check is None else {"failures": self._check.failures},
            "seed": self.seed,
            "coverage": self._capture.coverage.as_json(),
            "versions": {name: version(name) for name in ("ftrace", "torch", "lightning")}
            | {"python": platform.python_version()},
        }
        example_ids, sums = self._sums.result()
        # A folder of the name that was asked for holds the scores of a whole run, always.
        output_dir = self._output_dir if complete else self._incomplete_dir
        ScoreStore.write(output_dir, example_ids, self._query_ids.numpy(), sums, manifest)


def _jsonable(value: Any) -> Any:
    """Hyperparameters as JSON holds them; anything else by its text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
