"""The optimizer's preconditioner at a snapshot of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ftrace.gradients import Elementwise, RankOne, of_touched, preconditioner_from_state, touched_elements


def snapshot_preconditioners(folder: Path, module: nn.Module) -> dict[str, Elementwise | RankOne]:
    """What the optimizer multiplied each parameter's gradient with at a snapshot, by the parameter's name.

    Where a second moment is 0, no gradient has come by then, and one over epsilon would drown all else: 0 there.

    Args:
        folder: A snapshot that CheckpointSnapshots wrote.
        module: The LightningModule, for the shapes of its parameters.

    Raises:
        ValueError: If the snapshot is missing or damaged, or has no second moments.
    """
    if (folder / "snapshot.json").exists() and not (folder / "second_moments.safetensors").exists():
        raise ValueError(
            f"snapshot {str(folder)!r} has no second moments: before the first step there are none, and optimizers "
            "such as SGD keep none. Leave it out (snapshots=[...]), or take preconditioned=False"
        )
    try:
        manifest = json.loads((folder / "snapshot.json").read_text())
        moments = load_file(folder / "second_moments.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"snapshot {str(folder)!r} is missing or damaged ({error})") from error
    states: dict[str, dict[str, Tensor]] = {}
    for full, moment in moments.items():
        name, _, key = full.partition("::")
        states.setdefault(name, {})[key] = moment
    parameters = dict(module.named_parameters())
    found = {}
    try:
        for optimizer in manifest["optimizers"]:
            for group in optimizer["groups"]:
                for name, step in group["steps"].items():
                    state = {**states.get(name, {}), "step": step}
                    shape, dtype = parameters[name].shape, parameters[name].dtype
                    settings = group["settings"]
                    factor = preconditioner_from_state(name, optimizer["class"], settings, state, shape, dtype)
                    found[name] = of_touched(factor, touched_elements(optimizer["class"], settings, state))
    except KeyError as error:
        raise ValueError(f"snapshot {str(folder)!r} is of another model, or of an older ftrace: no {error}") from error
    return found
