"""Reader of a finished run's snapshots, which the callback CheckpointSnapshots writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def find_snapshots(folder: Path) -> list[Path]:
    """Find the snapshots in a folder, in the order of their steps.

    Raises:
        ValueError: If there are none.
    """
    folders = sorted(path.parent for path in folder.glob("step-*/snapshot.json"))
    if not folders:
        raise ValueError(
            f"no snapshot in {str(folder)!r}: expected step-*/snapshot.json. Train with CheckpointSnapshots"
        )
    return folders


def load_snapshot(module: nn.Module, folder: Path) -> dict[str, Any]:
    """Load a snapshot's weights into a module.

    Returns:
        The snapshot's manifest.

    Raises:
        ValueError: If the snapshot is damaged, or of another model.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "snapshot.json").read_text())
        weights = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"snapshot {str(folder)!r} is missing or damaged ({error})") from error
    try:
        for name, first in manifest["tied"].items():
            weights[name] = weights[first]
        extra = {name: state for name, state in module.state_dict().items() if not isinstance(state, Tensor)}
        module.load_state_dict({**extra, **weights})
    except KeyError as error:
        raise ValueError(f"snapshot {str(folder)!r} is damaged: no {error}") from error
    except RuntimeError as error:
        raise ValueError(f"snapshot {str(folder)!r} is of another model: {error}") from error
    return manifest


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
        ValueError: If the snapshot is missing, damaged or of an older ftrace.
    """
    moments: dict[str, dict[str, Tensor]] = {}
    try:
        manifest = json.loads((folder / "snapshot.json").read_text())
        if not (folder / "second_moments.safetensors").exists():
            return {}
        for full, moment in load_file(folder / "second_moments.safetensors").items():
            name, _, key = full.partition("::")
            moments.setdefault(name, {})[key] = moment
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"snapshot {str(folder)!r} is missing or damaged ({error})") from error
    try:
        return {
            name: OptimizerState(optimizer["class"], group["settings"], moments.get(name, {}), step)
            for optimizer in manifest["optimizers"]
            for group in optimizer["groups"]
            for name, step in group["steps"].items()
        }
    except KeyError as error:
        raise ValueError(f"snapshot {str(folder)!r} is of an older ftrace: no {error}") from error
