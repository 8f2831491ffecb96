"""What ``ftrace causal-trace`` traces, loaded: a run's model or a pretrained one, and prompts."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ftrace.causal import TracedPrompts, TraceTask, trace_prompts
from ftrace.causal.mediators import Mediator, make_cell
from ftrace.commands.join_settings import JoinSettings
from ftrace.commands.options import ProcessSettings
from ftrace.commands.query_choice import QueryChoice
from ftrace.data import FactPrompt, prompts_of_queries
from ftrace.models.pretrained import load_pretrained
from ftrace.runs import Run
from ftrace.scores import ScoreStore


@dataclass(frozen=True)
class Subject:
    """The model that is traced.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        folder: Where results go by default.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path


def load_trained(run: Run, snapshot: Literal["last", "first"] | int) -> Subject:
    """Load the model that a run has trained.

    Args:
        run: The run.
        snapshot: "last", "first", or a step.

    Raises:
        ValueError: If the run has no such snapshot.
    """
    trained = run.model_at(run.snapshot(snapshot))
    tokenizer = run.data.tokenizer
    assert tokenizer is not None
    return Subject(trained.model, tokenizer, run.folder / "causal")


def load_model(model: str, tokenizer: str | None, dtype: str) -> Subject:
    """Load a pretrained model.

    Args:
        model: Its hub name or folder.
        tokenizer: Those of its tokenizer; default: the model's own.
        dtype: Of its weights; "auto": as they are stored.

    Raises:
        ValueError: If it can't be loaded.
    """
    try:
        loaded = load_pretrained(model, dtype=dtype)
        words = AutoTokenizer.from_pretrained(tokenizer or model, trust_remote_code=False)
    except OSError as error:
        raise ValueError(f"model: can't load {model!r}: {error}") from error
    return Subject(loaded.eval(), words, Path("runs", "causal", re.sub(r"[^\w.-]+", "-", model).strip("-")))


def prompts_of_run(run: Run, choice: QueryChoice) -> list[FactPrompt]:
    """Take a run's queries as prompts, all or the learned ones; a sample is drawn as they are traced."""
    prompts = prompts_of_queries(run.data)
    if choice.queries == "learned":
        learned = set(replace(choice, sample=None).ids(run).tolist())
        prompts = [prompt for prompt in prompts if prompt.query_id in learned]
    return prompts


def check_joinable(store: ScoreStore, prompts: Sequence[FactPrompt], join: JoinSettings, task: TraceTask) -> None:
    """Find out before tracing what would make joining fail after it.

    Raises:
        ValueError: If a query has no scores, or layers can't be told apart.
    """
    lacking = sorted(
        {prompt.query_id for prompt in prompts if prompt.query_id is not None} - set(store.query_ids.tolist())
    )
    if lacking:
        raise ValueError(
            f"scores: expected scores of each query that is traced, {store.path} has none of {lacking[:3]}"
        )
    for names in task.layer_names.values():
        layers = range(len(names))
        cells = {
            make_cell(cast(Mediator, join.mediator), layer, 0, len(names), task.settings.window) for layer in layers
        }
        if len(names) > 1 and len(cells) == 1:
            raise ValueError(
                f"window: expected a window smaller than the stack to tell its {len(names)} layers apart, found "
                f"{task.settings.window}. Take --window 1"
            )


def trace_quietly(task: TraceTask, processes: ProcessSettings) -> TracedPrompts:
    """Trace prompts, without what Lightning logs of itself when prediction begins."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return trace_prompts(task, **asdict(processes))
    finally:
        logger.setLevel(level)
