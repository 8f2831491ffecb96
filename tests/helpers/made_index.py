"""An index made by hand of random rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.files.digests import facts_of_file
from ftrace.files.manifests import write_json
from ftrace.index import (
    FeatureSettings,
    GradientIndex,
    IndexSettings,
    Rows,
    as_dtype,
    begin_index,
    close_segment,
    write_preconditioners,
    write_shard,
)

SIDE = 2


class Two(nn.Module):
    """Two weights, so two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)])


def random_rows(count: int, seed: int = 0, columns: int = 2 * SIDE**2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 3, columns, dtype=torch.float64)
    return torch.randn(count, columns, generator=generator, dtype=torch.float64) * spread


def make_index(
    folder: Path,
    segments: Sequence[Sequence[int]],
    *,
    dtype: str = "float64",
    rows_of_shard: int = 7,
    sample: int = 10_000,
    vanishing: Sequence[int] = (),
    seed: int = 0,
) -> tuple[GradientIndex, list[Tensor]]:
    """Segments of rows with these examples' ids, and the rows; some examples' gradients may vanish."""
    settings = IndexSettings(FeatureSettings(SIDE, layout="parameter"), dtype, sample=sample)
    module = Two()
    names = [name for name, _ in module.named_parameters()]
    features = begin_index(folder, settings, module, names, {})
    made = []
    for number, ids in enumerate(segments):
        of_segment = folder / f"segment-{10 * number:08d}"
        write_preconditioners(of_segment, {})
        rows = random_rows(len(ids), seed + number)
        rows[[example in vanishing for example in ids]] = 0
        for start in range(0, len(ids), rows_of_shard):
            some = slice(start, start + rows_of_shard)
            own = torch.tensor(ids[some])
            weights = 0.1 * (1 + own.double())
            given = Rows(rows[some], own, weights, torch.zeros_like(own))
            write_shard(of_segment / f"shard-{start:08d}.safetensors", given, as_dtype(dtype))
        close_segment(of_segment, list(features.blocks), {"step": 10 * number}, sample, 0)
        made.append(rows)
    return GradientIndex(folder), made


def change_manifest(folder: Path, **changes: Any) -> None:
    """Change entries of an index's manifest, as if its segments had been written with them."""
    write_json(folder / "index.json", {**json.loads((folder / "index.json").read_text()), **changes})
    for file in folder.glob("segment-*/segment.json"):
        digest = facts_of_file(folder / "index.json")["xxh3_128"]
        write_json(file, {**json.loads(file.read_text()), "index": digest})
