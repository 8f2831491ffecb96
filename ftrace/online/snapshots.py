"""Snapshots for attribution: weights, second moments and learning rates at one step.

A snapshot is a folder ``step-00000120/``:

    weights.safetensors           each parameter and buffer once, by its first name in the module
    second_moments.safetensors    the optimizer's averages of squared gradients, by "parameter::key"; absent if none
    snapshot.json                 step, epoch, learning rates by parameter group, optimizer, tied names, versions; and
                                  size and digest of the other files
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from ftrace.files.digests import facts_of_files
from ftrace.files.manifests import write_manifest
from ftrace.files.snapshot_files import FORM, MANIFEST, SECOND_MOMENTS, WEIGHTS
from ftrace.files.whole_files import whole_file, whole_folder
from ftrace.gradients import full_name
from ftrace.online.loop import TrainingLoop

# The state keys of Adam and its variants, of Adafactor (whose moments are factored), and of RMSprop.
_SECOND_MOMENTS = (
    "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "row_var", "col_var", "variance", "square_avg"
)  # fmt: skip
_SETTINGS = ("betas", "eps", "amsgrad")  # needed to interpret second moments


def save_snapshot(folder: Path, loop: TrainingLoop) -> None:
    """Save the current weights, second moments and learning rates in a folder that is written whole or not at all."""
    names: dict[int, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in loop.module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # extra state of a module, which is neither parameter nor buffer
            continue
        names.setdefault(id(tensor), []).append(name)
        if len(names[id(tensor)]) == 1:  # tied weights once
            tensors[name] = tensor.detach().cpu().contiguous()
    names_of = {id(p): name for name, p in loop.module.named_parameters()}
    moments = _second_moments(loop.optimizers, names_of)
    manifest = {
        "step": loop.step,
        "epoch": loop.epoch,
        "tied": {also: same[0] for same in names.values() for also in same[1:]},
        "optimizers": [
            {
                "class": full_name(optimizer),
                "groups": [
                    {
                        "learning_rate": float(group["lr"]),
                        "settings": {key: group[key] for key in _SETTINGS if key in group},
                        "steps": {
                            names_of[id(p)]: float(optimizer.state[p]["step"])
                            for p in group["params"]
                            if id(p) in names_of and "step" in optimizer.state.get(p, {})
                        },
                        "parameters": [names_of[id(p)] for p in group["params"] if id(p) in names_of],
                    }
                    for group in optimizer.param_groups
                ],
            }
            for optimizer in loop.optimizers
        ],
        "versions": {name: version(name) for name in ("ftrace", "torch", *loop.packages)},
    }
    with whole_folder(folder) as temporary:  # a resumed run replaces snapshots that it wrote before it was killed
        with whole_file(temporary / WEIGHTS) as file:
            save_file(tensors, file)
        if moments:
            with whole_file(temporary / SECOND_MOMENTS) as file:
                save_file(moments, file)
        write_manifest(temporary / MANIFEST, FORM, {**manifest, "files": facts_of_files(temporary)})


def _second_moments(optimizers: Sequence[Optimizer], names_of: dict[int, str]) -> dict[str, Tensor]:
    """Return second moments by ``{parameter name}::{state key}``."""
    moments = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key in _SECOND_MOMENTS:
                moment = state.get(key)
                if isinstance(moment, torch.Tensor) and id(parameter) in names_of:
                    moments[f"{names_of[id(parameter)]}::{key}"] = moment.detach().cpu().contiguous()
    return moments
