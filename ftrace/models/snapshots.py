"""Reader of a finished run's snapshots, which the callback CheckpointSnapshots writes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ftrace.files.digests import DamagedError
from ftrace.files.snapshot_files import SnapshotFiles


def load_snapshot(module: nn.Module, folder: Path) -> dict[str, Any]:
    """Load a snapshot's weights into a module, in the dtypes that they were trained in.

    Returns:
        The snapshot's manifest.

    Raises:
        ValueError: If the snapshot is damaged, or of another model.
    """
    snapshot = SnapshotFiles(folder)
    weights = _tensors(snapshot.weights)
    tied: Mapping[str, str] = snapshot.facts["tied"]
    unknown = sorted(set(tied.values()) - weights.keys())
    if unknown:
        raise DamagedError(f"snapshot {str(folder)!r} is damaged: no weights {unknown[0]!r}, which others are tied to")
    extra = {name: state for name, state in module.state_dict().items() if not isinstance(state, Tensor)}
    state = {**weights, **{name: weights[first] for name, first in tied.items()}}
    _adopt_dtypes(module, state)
    try:
        module.load_state_dict({**extra, **state})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        few = " ".join(lines[1:3]).rstrip(".") or lines[0]  # the first only names the class
        raise ValueError(
            f"snapshot {str(folder)!r} is of another model: {few:.400}. Name the run that it is of"
        ) from error
    return snapshot.facts


def _adopt_dtypes(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Convert a module's parameters and buffers to the dtypes of a state; those of other names stay as they are."""
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{str(file)!r} is missing or damaged ({error}): copy it again, or train again") from error


@dataclass(frozen=True)
class OptimizerState:
    """State that an optimizer keeps for one parameter, without momentum.

    Args:
        optimizer: Full name of the optimizer's class.
        settings: ``betas``, ``eps`` and ``amsgrad`` of the parameter's group, as far as the optimizer has them.
        moments: Second moments by the optimizer's own keys, such as ``exp_avg_sq``.
        step: Number of steps that the optimizer has taken on the parameter.
    """

    optimizer: str
    settings: Mapping[str, Any]
    moments: Mapping[str, Tensor]
    step: float


def load_optimizer_states(folder: Path) -> dict[str, OptimizerState]:
    """Load the second moments of a snapshot, by the parameter's name.

    There are none before the first step, and optimizers such as SGD keep none.

    Raises:
        ValueError: If the snapshot is missing or damaged.
    """
    snapshot = SnapshotFiles(folder)
    file = snapshot.second_moments
    if file is None:
        return {}
    moments: dict[str, dict[str, Tensor]] = {}
    for full, moment in _tensors(file).items():
        name, _, key = full.partition("::")
        moments.setdefault(name, {})[key] = moment
    return {
        name: OptimizerState(optimizer["class"], group["settings"], moments.get(name, {}), step)
        for optimizer in snapshot.facts["optimizers"]
        for group in optimizer["groups"]
        for name, step in group["steps"].items()
    }
