"""Fingerprints of models and of snapshots of their training."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ftrace.files.snapshot_files import MANIFEST, WEIGHTS, SnapshotFiles

if TYPE_CHECKING:
    from torch import nn

_SAMPLES, _SAMPLE_BYTES = 32, 65_536


def model_fingerprint(module: nn.Module) -> str:
    """Hash the names and shapes of a model's parameters: 16 hexadecimal digits."""
    shapes = [[name, *parameter.shape] for name, parameter in module.named_parameters()]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def snapshot_fingerprint(folder: Path) -> str:
    """Hash a snapshot, to tell it from others of the same step: 16 hexadecimal digits.

    Hashed are its manifest and samples of its weights: reading all weights of a large model would take too long.

    Raises:
        ValueError: If the snapshot is missing, or its manifest is damaged.
    """
    SnapshotFiles(folder)  # verifies the manifest
    try:
        digest = hashlib.sha256((folder / MANIFEST).read_bytes())
        with (folder / WEIGHTS).open("rb") as weights:
            size = weights.seek(0, os.SEEK_END)
            for sample in range(_SAMPLES):
                weights.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(weights.read(_SAMPLE_BYTES))
    except OSError as error:
        raise ValueError(
            f"snapshot {str(folder)!r} is missing or damaged ({error}): copy it from where it came from"
        ) from error
    return digest.hexdigest()[:16]
