"""The step that ``ftrace tail-patch`` takes on an example: as the run's optimizer, or as its options say."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ftrace.commands.free_cores import use_free_cores
from ftrace.evaluation.tail_patch import Adam, Sgd, StepRule
from ftrace.models import FactLM, load_optimizer_states
from ftrace.runs import Run


def step_rule(
    run: Run,
    model: FactLM,
    snapshot: Path,
    optimizer: Literal["sgd", "adam"] | None,
    learning_rate: float | None,
) -> tuple[StepRule, dict[str, str | float]]:
    """Make the rule of a step, and describe it for programs."""
    use_free_cores()
    trained = {"adamw": "adam"}.get(model.hparams["optimizer"], model.hparams["optimizer"])
    chosen = optimizer or trained
    if chosen not in ("sgd", "adam"):
        raise ValueError(
            f"optimizer: the run was trained with {trained}, which tail-patch doesn't take steps with. Give "
            "--optimizer sgd and a --learning_rate"
        )
    if learning_rate is None and chosen != trained:
        raise ValueError(
            f"learning_rate: expected one, since the run was trained with {trained}, and its rate says nothing of a "
            f"step with {chosen}"
        )
    rate = model.hparams["learning_rate"] / run.data.batch_size if learning_rate is None else learning_rate
    rule: StepRule = Sgd(rate) if chosen == "sgd" else Adam(rate, load_optimizer_states(snapshot))
    return rule, {"optimizer": chosen, "learning_rate": rate}
