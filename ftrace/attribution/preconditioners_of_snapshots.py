"""The optimizer's preconditioner at a snapshot of a finished run."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ftrace.gradients import Elementwise, RankOne, of_touched, preconditioner_from_state, touched_elements
from ftrace.models import load_optimizer_states


def snapshot_preconditioners(
    folder: Path, module: nn.Module, without: str = "preconditioned false"
) -> dict[str, Elementwise | RankOne]:
    """Read the factor of each parameter's gradient in the optimizer's step at a snapshot, by the parameter's name.

    The factor is 0 where a second moment is 0: no gradient has come by then, and 1 / epsilon would dominate.

    Args:
        folder: A snapshot that CheckpointSnapshots wrote.
        module: The LightningModule, for the shapes of its parameters.
        without: The caller's option for gradients as they are, for the message.

    Raises:
        ValueError: If the snapshot is missing or damaged, or has no second moments.
    """
    states = load_optimizer_states(folder)
    if not states:
        raise ValueError(
            f"snapshot {str(folder)!r} has no second moments: before the first step there are none, and optimizers "
            f"such as SGD keep none. Take other snapshots, or {without}"
        )
    parameters = dict(module.named_parameters())
    factors = {}
    for name, kept in states.items():
        if name not in parameters:
            raise ValueError(f"snapshot {str(folder)!r} is of another model: no {name!r} in it")
        state = {**kept.moments, "step": kept.step}
        shape, dtype = parameters[name].shape, parameters[name].dtype
        factor = preconditioner_from_state(name, kept.optimizer, kept.settings, state, shape, dtype)
        factors[name] = of_touched(factor, touched_elements(kept.optimizer, kept.settings, state))
    return factors
