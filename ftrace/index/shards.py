"""Files of an index's rows: each written whole or not at all, and each with a checksum.

A shard is a safetensors file of ``rows [n, D]``, and for each row its example's ``ids`` int64, a ``weights`` and a
``scales`` number, and the optimizer ``steps`` it is of. In half precision a row is kept divided by its root mean
square, which goes into ``scales``: so no row is too large or too small for it, whatever the loss's reduction.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ftrace.files.digests import DamagedError
from ftrace.files.whole_files import whole_file

PATTERN = "shard-*.safetensors"
COLUMNS = ("rows", "ids", "weights", "scales", "steps")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rows:
    """Rows of an index.

    Args:
        rows: ``[n, D]``.
        ids: Of their examples, int64 ``[n]``.
        weights: Their weights in weighted scores, ``[n]``: a step's learning rate times its clip factor.
        steps: Their optimizer steps, int64 ``[n]``.
    """

    rows: Tensor
    ids: Tensor
    weights: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def write_shard(file: Path, given: Rows, dtype: torch.dtype) -> None:
    """Write a shard, whole or not at all.

    Raises:
        ValueError: If a row is not finite.
    """
    rows = given.rows.detach().cpu()
    if not rows.isfinite().all():
        bad = given.ids[~rows.isfinite().all(1).cpu()]
        raise ValueError(f"expected gradients that are finite, found NaN or infinity in those of examples {bad[:3]}")
    scales = torch.ones(len(rows), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype in _HALF:
        largest = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        rows = rows / largest  # squares of very small or large numbers would be 0 or infinite
        roots = rows.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
        rows, scales = rows / roots, (largest * roots).squeeze(1).float()
    kept = rows.to(dtype).contiguous()
    tensors = {
        "rows": kept,
        "scales": scales,
        "ids": given.ids.cpu().long().contiguous(),
        "weights": given.weights.cpu().to(scales.dtype).contiguous(),
        "steps": given.steps.cpu().long().contiguous(),
    }
    with whole_file(file) as temporary:
        save_file(tensors, temporary, {"format": "ftrace-index-shard", "checksum": str(checksum(tensors))})


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Compute the CRC-32 of the bytes of all columns of a shard."""
    crc = 0
    for name in COLUMNS:
        if tensors[name].numel():
            crc = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, crc)
    return crc


class Shard:
    """A shard on disk, mapped into memory when rows are asked for.

    Raises:
        ValueError: If it is missing or damaged, as far as its header tells.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._opened = safe_open(file, "pt")
            self._opened.__enter__()
            shape = self._opened.get_slice("rows").get_shape()
            self.checksum = int(self._opened.metadata()["checksum"])
            if len(shape) != 2:
                raise ValueError(f"rows of shape {shape}")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._damaged(error) from error
        self.num_rows, self.size = int(shape[0]), int(shape[1])

    def _damaged(self, why: object) -> DamagedError:
        return DamagedError(f"shard {str(self.file)!r} is missing or damaged ({why}). Delete it, and index again")

    def column(self, name: str) -> Tensor:
        """Read one number of each row: "ids", "weights", "scales" or "steps", ``[n]``."""
        try:
            return self._opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error

    @cached_property
    def _kept(self) -> Tensor:
        return self.column("rows")

    def rows(self, start: int = 0, stop: int | None = None, positions: Tensor | None = None) -> Tensor:
        """Read rows ``[n, D]`` in float32 at least: a range, or those at some positions."""
        if positions is not None:
            kept, scales = self._kept[positions], self.column("scales")[positions]
        else:
            kept, scales = self._kept[start:stop], self.column("scales")[start:stop]
        if kept.dtype in _HALF:
            return kept.float() * scales.unsqueeze(1)
        return kept

    def check(self) -> None:
        """Read all rows, and check them against their checksum.

        Raises:
            ValueError: If they differ.
        """
        if checksum({name: self._kept if name == "rows" else self.column(name) for name in COLUMNS}) != self.checksum:
            raise self._damaged("its content is not what was written: the checksum differs")
