"""What tells models, and snapshots of their training, from others."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from torch import nn

_SAMPLES, _SAMPLE_BYTES = 32, 65_536


def model_fingerprint(module: nn.Module) -> str:
    """What tells models of different parameters apart: 16 hexadecimal digits of their names and shapes."""
    shapes = [[name, *parameter.shape] for name, parameter in module.named_parameters()]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def snapshot_fingerprint(folder: Path) -> str:
    """What tells a snapshot from others of the same step: 16 hexadecimal digits.

    Of what it says of itself, and of samples of its weights: reading all of a large model's would take too long.

    Raises:
        ValueError: If the snapshot is missing or damaged.
    """
    try:
        found = hashlib.sha256((folder / "snapshot.json").read_bytes())
        with (folder / "weights.safetensors").open("rb") as weights:
            size = weights.seek(0, os.SEEK_END)
            for sample in range(_SAMPLES):
                weights.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                found.update(weights.read(_SAMPLE_BYTES))
    except OSError as error:
        raise ValueError(f"snapshot {str(folder)!r} is missing or damaged ({error})") from error
    return found.hexdigest()[:16]
