"""The manifest of a run: how its scores came about."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ftrace.gradients import coarsest_eps, full_name, of_passes
from ftrace.online.precision import eps_of_passes, is_half, weights_by_dtype
from ftrace.online.processes import num_processes
from ftrace.online.traced_run import TracedRun

_WEIGHT_OVER_STEP = 1e5


def manifest_of(run: TracedRun, run_id: str, *, complete: bool) -> dict[str, Any]:
    """Describe a run and its scores in values that JSON can hold.

    Args:
        complete: Whether the scores cover the run from its first to its last step.
    """
    losses, settings, refresher = run.queries.losses, run.settings, run.refresher
    packages = ("ftrace", "torch", *run.loop.packages)
    of_loop = _jsonable(run.loop.facts())
    hyperparameters = of_loop.pop("hyperparameters")
    facts: dict[str, Any] = {
        "method": "online TracIn",
        "run_id": run_id,
        "complete": complete,
        "first_step": run.steps.first,
        "steps": sum(optimizer.steps_taken for optimizer in run.parameters.followed) - len(run.steps.left_out),
        "steps_left_out": run.steps.left_out,
        "steps_skipped": run.steps.skipped,
        "refresh_every_n_steps": settings.refresh_every_n_steps,
        "refreshes": refresher.steps,
        "refreshes_failed": refresher.failed,
        **settings.facts(),
        "update_directions": run.scoring.directions.prepared.facts() if run.scoring.balanced else None,
        "query_first_steps": {str(query): step for query, step in refresher.first_steps.items()},
        "staleness": _jsonable_numbers(refresher.staleness.measured),
        "optimizers": [optimizer.facts() for optimizer in run.parameters.followed],
        **of_loop,
        "processes": num_processes(),
        "module": full_name(run.loop.module),
        "hyperparameters": hyperparameters,
        "weights": weights_by_dtype(run.loop.module),
        "query_losses": f"{losses.__module__}.{getattr(losses, '__qualname__', type(losses).__qualname__)}",
        "self_check": None if run.failures is None else {"failures": run.failures.problems},
        "rows": run.rows.facts(),
        "seed": settings.seed,
        "parameters": list(settings.parameters),
        "unfrozen": {str(step): names for step, names in run.unfrozen.items()},
        "coverage": run.hooks.training.coverage.as_json(),
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }
    answers = run.answers.record(run.queries.ids.numpy())
    if answers is not None:
        facts["answers"] = answers.counts()
    if run.ledger is not None:
        ledger = run.ledger.ledger(run.queries.ids.numpy())
        summary = ledger.summary()
        worst = float(ledger.imbalance().max(initial=0.0)) if ledger.has_accounts else None
        facts["ledger"] = {
            "summary": str(summary),
            "fall": summary.fall if math.isfinite(summary.fall) else None,
            "shares": dict(summary.shares),
            "worst_imbalance": worst,
            "balanced": None if worst is None else worst <= _tolerance(run),
        }
    return facts


def _tolerance(run: TracedRun) -> float:
    """Return the allowed imbalance of the accounts.

    Gradients round as :func:`of_passes` says. A change of weights, taken as the difference of the weights, has an error
    of their eps, and weights are some 1e5 times as large as a step; for weights in half precision, that is an account.
    """
    dtypes = {p.dtype for p in run.parameters.all().values() if not is_half(p.dtype)}
    of_weights = max((coarsest_eps([dtype]) for dtype in dtypes), default=0.0)
    return max(of_passes(eps_of_passes(run.loop)), _WEIGHT_OVER_STEP * of_weights)


def _jsonable_numbers(numbers: Mapping[int, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON doesn't have, by null."""
    return {str(key): None if math.isnan(number) else number for key, number in numbers.items()}


def _jsonable(value: Any) -> Any:
    """Convert a value to what JSON can hold; other objects to their ``repr``."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
