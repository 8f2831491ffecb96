"""Retraining of a run's model on some of its training rows."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_warn

from ftrace.arguments import checked
from ftrace.data import CollatedRows, KeptRows
from ftrace.models import FactLM
from ftrace.retraining.outcomes import Budget, QueryOutcome
from ftrace.runs import NOT_OF_WEIGHTS, Run


@checked
class Retrainer:
    """A trainer of a run's model on subsets of its training rows, with the run's config minus callbacks and logging.

    If no row is left out and the order is the run's own, the weights are bit by bit those of the run, on the same
    machine and with as many threads. Initial weights are always the run's. Only the rows and their order differ.

    Args:
        run: A finished run.
        budget: How long to train. "epochs": as many as the run, so that each kept row is seen as often, in fewer steps.
            "steps": as many as the run. The learning rate's schedule spans the retraining's own steps; its warm-up is
            as long as the run's.

    Raises:
        ValueError: If the run's config has no seed or trainer, or the run can't be repeated on this budget.
    """

    def __init__(self, run: Run, budget: Budget = "epochs") -> None:
        self.run = run
        settings = run.config.get("trainer")
        if not isinstance(settings, dict):
            raise ValueError(f"{run.folder / 'config.yaml'}: expected a section trainer, as train.py saves it")
        seed = run.config.get("seed_everything")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(
                f"{run.folder / 'config.yaml'}: expected seed_everything to be the seed that the run began with, found "
                f"{seed!r}. Train with a seed"
            )
        self._seed = seed
        unrepeatable = [name for name in ("max_time", "overfit_batches") if settings.get(name)]
        if unrepeatable:
            raise ValueError(
                f"{run.folder}: expected a run that can be repeated, found trainer.{unrepeatable[0]} in it"
            )
        self._epochs, self._steps = settings.get("max_epochs"), settings.get("max_steps", -1)
        if budget == "epochs" and self._steps != -1:
            raise ValueError(
                f"budget: expected steps, as the run was to train for {self._steps} steps (trainer.max_steps), found "
                "epochs"
            )
        if budget == "steps" and (settings.get("limit_train_batches") or (self._epochs or -1, self._steps) == (-1, -1)):
            raise ValueError(
                "budget: expected epochs, as the run's steps can't be counted: it has trainer.limit_train_batches, or "
                "neither max_epochs nor max_steps, found steps"
            )
        self._budget = budget
        others = [name for name in map(_class_of, settings.get("callbacks") or ()) if not name.startswith("ftrace.")]
        if others:
            rank_zero_warn(f"retraining goes without the run's callbacks {others}: if they change weights, it differs")

    @property
    def key(self) -> str:
        """A hash of what outcomes depend on, wherever data and run are stored: 16 hexadecimal digits."""
        data, config = self.run.data, self.run.config
        trainer = {name: value for name, value in config["trainer"].items() if name not in NOT_OF_WEIGHTS}
        options = data.settings
        rows = [data.fingerprint, data.batch_size, options.tokenizer, options.split_hyphens, options.architecture]
        asked = [self._seed, trainer, config["model"], rows, list(data.query_rows["query_id"])]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def query_outcome(self, is_kept: np.ndarray, order_seed: int | None = None) -> QueryOutcome:
        """Train, and evaluate the queries.

        Args:
            is_kept: ``[N]`` bool, whether each training row is kept.
            order_seed: The seed of the rows' order; None: the run's own order, without the rows that are left out.
        """
        model = self.train(is_kept, order_seed)
        with torch.no_grad():
            losses = [model.example_losses(batch) for batch in self._query_batches]
            learned = [model.learned(batch) for batch in self._query_batches]
        return QueryOutcome(torch.cat(losses).float().numpy(), torch.cat(learned).numpy())

    def train(self, is_kept: np.ndarray, order_seed: int | None = None) -> FactLM:
        """Train on the rows that are kept, and return the model in eval mode, on the CPU.

        Args:
            is_kept: As in :meth:`query_outcome`.
            order_seed: As in :meth:`query_outcome`.
        """
        rows = KeptRows(self.run.data, self._rows, is_kept, order_seed)
        with _quietly():
            seed_everything(self._seed, verbose=False)
            model = self.run.untrained_model()
            trainer = self.run.bare_trainer(**self._length())
            if trainer.world_size > 1:
                raise ValueError(f"{self.run.folder}: expected a run of one device, found {trainer.world_size}")
            trainer.fit(model, datamodule=rows)
        return model.cpu().eval()

    def _length(self) -> dict[str, Any]:
        """Return the trainer's settings of how long to train that differ from the run's."""
        if self._budget == "epochs":
            return {}
        counts = [] if self._steps == -1 else [self._steps]
        if self._epochs not in (None, -1):
            batches = -(-len(self._rows) // self.run.data.batch_size)
            at_once = self.run.config["trainer"].get("accumulate_grad_batches") or 1
            counts.append(self._epochs * -(-batches // at_once))
        return {"max_steps": min(counts), "max_epochs": -1}

    @cached_property
    def _rows(self) -> CollatedRows:
        return CollatedRows(self.run.data)

    @cached_property
    def _query_batches(self) -> list[dict[str, torch.Tensor]]:
        return list(self.run.data.query_dataloader())


def _class_of(callback: Any) -> str:
    """Return the class path of a callback in a config."""
    return str(callback.get("class_path")) if isinstance(callback, dict) else str(callback)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what Lightning logs at the start of each training, as long as the context is open."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
