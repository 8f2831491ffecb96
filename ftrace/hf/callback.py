"""TracIn while a Hugging Face Trainer trains: the callback."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from ftrace.arguments import Name, checked
from ftrace.hf.batch_texts import BatchTexts
from ftrace.hf.fused_head import told_head
from ftrace.hf.row_ids import has_ids, ids_in_batches, names_of_completions, without
from ftrace.hf.trainer_loop import TrainerLoop, refuse_unsupported
from ftrace.online import TraceSession, TraceSettings
from ftrace.online.foreign_optimizers import refuse_foreign_steps
from ftrace.online.messages import tell
from ftrace.online.plain_loop import factor_between
from ftrace.online.processes import process_rank
from ftrace.online.undisturbed.replaced import replaced

_WHO = "OnlineTracInCallback"


@checked
class OnlineTracInCallback(TrainerCallback, ExportableState):
    """A callback that accumulates, for each example and query, by how much the example has lowered the query's loss.

    It does in ``transformers.Trainer`` and in TRL's ``SFTTrainer``, ``DPOTrainer`` and ``GRPOTrainer`` what
    :class:`ftrace.callbacks.OnlineTracIn` does in Lightning's: contributions of examples are read off the trainer's
    own backward pass, and trained weights are bit-identical with and without it.

    Rows of ``trainer.train_dataset`` carry an id under ``"example_id"``, an integer or a name; rows without one are
    numbered by their places. A pair of DPO is one example. A completion of GRPO is an example by itself, named
    ``"prompt@step.process.place"``, of which advantages and old log-probabilities are constants.

    Args:
        trainer: The trainer.
        queries: A DataLoader, Dataset or list of queries, with ids under ``"query_id"``.
        output_dir: The folder to which the score store is written when training ends; default: ``online`` in
            ``args.output_dir``. If training fails or is interrupted, the scores so far go to the same name with
            ``-incomplete`` appended.
        query_losses: ``(model, batch) -> Tensor[B]``, in nats; default: the summed negative log-likelihood of each
            row's ``labels`` without the end of the sequence.
        query_learned: ``(model, batch) -> Tensor[B]`` bool, whether each query is answered right.
        describe: Says the texts of examples and queries, see :class:`ftrace.callbacks.OnlineTracIn`; default: their
            tokens, decoded by the trainer's tokenizer.
        settings: The fields of :class:`ftrace.online.TraceSettings`, such as ``scores=("learning",)``.

    Raises:
        ValueError: On an unknown setting, or a second such callback of a trainer; when training starts, on a trainer,
            layer or optimizer that isn't supported.
        SelfCheckError: When the self-check fails.
    """

    def __init__(
        self,
        trainer: Trainer,
        queries: Any,
        output_dir: Name | Path | None = None,
        query_losses: Callable[..., Any] | None = None,
        query_learned: Callable[..., Any] | None = None,
        describe: Any = None,
        **settings: Any,
    ) -> None:
        _refuse_others(trainer)
        self.settings = TraceSettings.of(_WHO, settings)
        self.output_dir = Path(output_dir or Path(str(trainer.args.output_dir)) / "online").absolute()
        self._id_key = str(self.settings.id_key)
        if describe is None and trainer.processing_class is not None:
            describe = BatchTexts(trainer.processing_class, self._id_key)
        self._session = TraceSession(self.settings, queries, query_losses, query_learned, _WHO, describe)
        self._trainer: Any = trainer
        self._loop: TrainerLoop | None = None
        self._is_training = self._in_step = False
        self._loss: Tensor | None = None
        self._entry: dict[str, Any] = {}
        self._epochs = itertools.count()
        self._handles: list[RemovableHandle] = []
        self._compute_loss: Callable[..., Any] = trainer.compute_loss
        self._train = trainer.train
        vars(trainer)["train"] = self._traced_train

    @property
    def incomplete_store(self) -> Path | None:
        """The folder of the scores of a training that didn't come to its end; None if there are none."""
        return self._session.incomplete_store

    def add_queries(self, queries: Any) -> None:
        """Add queries while training is under way, which are traced from the next batch on.

        Args:
            queries: A DataLoader, Dataset or list of queries, with new ids.

        Raises:
            ValueError: If training has not begun.
        """
        self._session.add_queries(queries)

    # Training from its beginning to its end

    def _traced_train(self, *args: Any, **kwargs: Any) -> Any:
        trainer, self._entry = self._trainer, {}
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            trainer.add_callback(self)
        while callbacks.count(self) > 1:  # added twice: each event would be followed twice
            callbacks.remove(self)
        refuse_unsupported(trainer, _WHO)
        if kwargs.get("trial") is not None or len(args) > 1:
            raise ValueError(f"{_WHO}: expected one training, found a search for hyperparameters. Trace the best one")
        with ExitStack() as stack:
            stack.enter_context(told_head(trainer.model))
            for owner, methods in self._replacements():
                stack.enter_context(replaced(owner, methods))
            try:
                self._is_training = True
                return self._train(*args, **kwargs)
            except BaseException as error:
                self._session.training_has_failed(error)
                raise
            finally:
                self._close()

    def _replacements(self) -> list[tuple[Any, dict[str, Callable[..., Any]]]]:
        """Return the methods that are observed while the trainer trains, by owner and name."""
        trainer = self._trainer
        self._compute_loss = trainer.compute_loss
        methods: dict[str, Callable[..., Any]] = {
            "get_train_dataloader": self._loader_of(trainer.get_train_dataloader),
            "training_step": self._step_of(trainer.training_step),
            "compute_loss": self._loss_of,
            "_save_checkpoint": self._checkpoint_of(trainer._save_checkpoint),
            "_load_best_model": self._best_model_of(trainer._load_best_model),
        }
        generate = getattr(trainer, "_generate_and_score_completions", None)
        if generate is not None:
            methods["_generate_and_score_completions"] = self._completions_of(generate)
        return [
            (trainer, methods),
            (trainer.accelerator, {"backward": self._backward_of(trainer.accelerator.backward)}),
        ]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the model and its optimizer, and continue the scores of a checkpoint if there is one."""
        trainer = self._trainer
        if not self._is_training:
            raise ValueError(f"{_WHO}: expected the trainer that it was made for, found another. Make one for each")
        self._loop = TrainerLoop(trainer, self._compute_loss, kwargs.get("train_dataloader"), self._id_key)
        name = type(self).__name__
        entry = _entry_of(state, name, self.output_dir)
        state.stateful_callbacks.setdefault(name, self.state())  # of checkpoints without it, the trainer can't save one
        self._epochs = itertools.count(int((state.epoch or 0) + 1e-6))
        if entry:
            self._session.load(entry)
        optimizer = self._loop.optimizers[0]
        self._session.before_training(self._loop.module)
        self._handles += [optimizer.register_step_post_hook(self._count)]
        self._handles += refuse_foreign_steps(self._loop.module, self._loop.optimizers, _WHO)
        self._session.training_begins(self._loop, self.output_dir)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the epochs."""
        if self._loop is not None:
            self._loop.epoch, self._loop.batch_idx = next(self._epochs), 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the store."""
        self._finish()
        self._session.checkpoints_are_saved()

    def _finish(self) -> None:
        """Write the store, if that hasn't happened yet."""
        if self._loop is not None:
            self._loop = None
            self._session.training_has_ended()

    def _close(self) -> None:
        self._loop, self._loss, self._in_step, self._is_training = None, None, False, False
        self._session.detach()
        while self._handles:
            self._handles.pop().remove()

    def _count(self, *args: Any) -> None:
        if self._loop is not None:
            self._loop.step += 1

    # What is observed

    def _loader_of(self, make: Callable[[], Any]) -> Callable[[], Any]:
        def get_train_dataloader() -> Any:
            rows = self._trainer.train_dataset
            if rows is None:
                return make()  # which says so
            lacks_ids = not has_ids(rows, self._id_key)
            if lacks_ids:
                tell(f"{_WHO}: {_numbering(rows, self._id_key)}")
            with ids_in_batches(self._trainer, self._id_key, numbers=lacks_ids):
                return make()

        return get_train_dataloader

    def _step_of(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._in_step = True
            try:
                return step(*args, **kwargs)
            finally:
                self._in_step, self._loss = False, None

        return training_step

    def _loss_of(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        loop = self._loop
        if not self._in_step or loop is None:
            return self._compute_loss(model, without(inputs, self._id_key), *args, **kwargs)
        if args or kwargs.get("return_outputs"):
            raise ValueError(f"{_WHO}: expected a training_step that computes a loss alone, found one with outputs")
        loop.options = kwargs
        self._session.batch_begins(inputs, loop.batch_idx)
        loop.batch_idx += 1
        self._loss = loss = self._compute_loss(model, without(inputs, self._id_key), **kwargs)
        return loss

    def _backward_of(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def traced_backward(loss: Tensor, **options: Any) -> Any:
            last, loop = self._loss, self._loop
            if last is None or loop is None:
                return backward(loss, **options)
            loop.scale = _factor(loss, last) * loop.loss_scale
            self._loss = None
            self._session.backward_begins(loss)
            result = backward(loss, **options)
            with torch.no_grad():
                self._session.backward_has_ended()
            self._session.batch_has_ended()
            return result

        return traced_backward

    def _completions_of(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def generate_and_score(rows: Any) -> Any:
            made = generate(rows)
            if self._loop is not None and self._in_step:
                made[self._id_key] = names_of_completions(rows, self._id_key, self._loop.step, process_rank())
            return made

        return generate_and_score

    def _best_model_of(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def load_best_model(*args: Any, **kwargs: Any) -> Any:
            self._finish()  # at the weights that training ended with
            return load(*args, **kwargs)

        return load_best_model

    # State

    def _checkpoint_of(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
            self._entry = self._session.state()  # by all processes; the first one alone writes it to the checkpoint
            return save(*args, **kwargs)

        return save_checkpoint

    def state(self) -> dict[str, Any]:
        """Return the entry of ``trainer_state.json``: names and hashes of the files of scores."""
        return {"args": {}, "attributes": {"output_dir": str(self.output_dir), "entry": self._entry}}


def _numbering(rows: Any, key: str) -> str:
    """Say how rows without ids are numbered."""
    if "seq_lengths" in (getattr(rows, "column_names", None) or ()):
        return "packing has dropped the rows' columns, so documents are numbered by their places in the packed data"
    return f'rows have no "{key}", so they are numbered by their places in train_dataset'


def _refuse_others(trainer: Any) -> None:
    if not isinstance(trainer, Trainer):
        raise ValueError(f"{_WHO}: expected a transformers.Trainer, or one of TRL's, found a {type(trainer).__name__}")
    if isinstance(getattr(vars(trainer).get("train"), "__self__", None), OnlineTracInCallback):
        raise ValueError(
            f"{_WHO}: expected one such callback for a trainer, found a second. Give all queries to the first, and ask "
            "it for all kinds of scores, or make another trainer"
        )


def _entry_of(state: Any, name: str, output_dir: Path) -> dict[str, Any]:
    """Find the newest entry of a folder among those of a class of callbacks in a trainer's state."""
    entries = state.stateful_callbacks.get(name, [])
    for each in reversed(entries if isinstance(entries, list) else [entries]):
        if each["attributes"].get("output_dir") == str(output_dir):
            entry: dict[str, Any] = each["attributes"].get("entry") or {}
            return entry
    return {}


def _factor(loss: Tensor, last: Tensor) -> float:
    """Return the factor by which a training step has multiplied the loss before its backward pass."""
    factor = factor_between(loss, last)
    if factor is None:
        raise ValueError(
            f"{_WHO}: expected a training_step that differentiates what self.compute_loss(model, inputs, ...) has "
            "returned, or a multiple of it, found another loss. Compute it in compute_loss"
        )
    return factor
