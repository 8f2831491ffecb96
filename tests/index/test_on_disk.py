"""What is wrong with an index is told by name, and nothing is half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftrace.index import (
    FeatureSettings,
    GradientIndex,
    IndexPlan,
    IndexSettings,
    Rows,
    Whitening,
    as_dtype,
    begin_index,
    row_norms,
    write_shard,
)
from helpers.made_index import Two, make_index, random_rows

IDS = [list(range(30))]


def shard_of(folder: Path) -> Path:
    return sorted((folder / "segment-00000000").glob("shard-*"))[2]


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path) -> None:
    make_index(tmp_path / "index", IDS)
    file = shard_of(tmp_path / "index")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=file.name):
        GradientIndex(tmp_path / "index")


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    make_index(tmp_path / "index", IDS)
    file = shard_of(tmp_path / "index")
    file.unlink()
    with pytest.raises(ValueError, match=file.name):
        GradientIndex(tmp_path / "index")


def test_a_flipped_bit_is_found_by_the_pass_that_takes_norms(tmp_path: Path) -> None:
    make_index(tmp_path / "index", IDS)
    file = shard_of(tmp_path / "index")
    header = int.from_bytes(file.read_bytes()[:8], "little")
    table = json.loads(file.read_bytes()[8 : 8 + header])
    content = bytearray(file.read_bytes())
    content[8 + header + table["rows"]["data_offsets"][0] + 5] ^= 1
    file.write_bytes(bytes(content))
    index = GradientIndex(tmp_path / "index")
    with pytest.raises(ValueError, match=f"{file.name}.*digest"):
        index.segments[0].check()
    with pytest.raises(ValueError, match=file.name):
        row_norms(index.segments[0], Whitening(None, 0.0, ""), tmp_path / "norms")


def test_another_shard_in_the_place_of_one_is_found(tmp_path: Path) -> None:
    make_index(tmp_path / "index", IDS)
    rows, ids = random_rows(7, seed=5), torch.arange(7)
    write_shard(shard_of(tmp_path / "index"), Rows(rows, ids, torch.ones(7), ids.clone()), torch.float64)
    with pytest.raises(ValueError, match=f"{shard_of(tmp_path / 'index').name}.*digest"):
        GradientIndex(tmp_path / "index").segments[0].rows(0, 30)


@pytest.mark.parametrize("name", ["ids.npy", "weights.npy", "autocorrelation.safetensors", "shard"])
def test_a_flipped_bit_anywhere_is_named(tmp_path: Path, name: str) -> None:
    make_index(tmp_path / "index", IDS)
    file = shard_of(tmp_path / "index") if name == "shard" else tmp_path / "index" / "segment-00000000" / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=file.name):
        GradientIndex(tmp_path / "index").segments[0].check()


def test_more_shards_than_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftrace.index.segment._OPEN", 2)
    index, (rows,) = make_index(tmp_path / "index", IDS, rows_of_shard=3)
    assert index.segments[0].num_shards == 10
    for _ in range(2):
        torch.testing.assert_close(index.segments[0].rows(0, 30), rows)


def test_an_unfinished_index_is_told(tmp_path: Path) -> None:
    make_index(tmp_path / "index", [*IDS, list(range(5))])
    (tmp_path / "index" / "segment-00000010" / "segment.json").unlink()
    with pytest.raises(ValueError, match="not finished: segment-00000010"):
        GradientIndex(tmp_path / "index")


def test_what_is_no_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a gradient index"):
        GradientIndex(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": "ftrace-index", "version": 99}))
    with pytest.raises(ValueError, match="version 99, and this ftrace reads 2"):
        GradientIndex(tmp_path)


@pytest.mark.parametrize(
    ("features", "others", "facts", "message"),
    [
        ({"seed": 1}, {}, {}, "seed: 0 there, 1 asked"),
        ({"projection_side": 3}, {}, {}, "projection_side: 2 there, 3 asked"),
        ({"layout": "pooled"}, {}, {}, "blocks: .*; layout: "),
        ({}, {"dtype": "float32"}, {}, 'dtype: "float64" there, "float32" asked'),
        ({}, {}, {"data": "other"}, 'data: null there, "other" asked'),
    ],
)
def test_an_index_of_other_settings_is_not_gone_on_with(
    tmp_path: Path, features: dict[str, Any], others: dict[str, Any], facts: dict[str, Any], message: str
) -> None:
    make_index(tmp_path / "index", IDS)
    asked = {"projection_side": 2, "layout": "parameter", **features}
    settings = IndexSettings(FeatureSettings(**asked), **{"dtype": "float64", **others})
    names = [name for name, _ in Two().named_parameters()]
    with pytest.raises(ValueError, match=rf"other settings \({message}"):
        begin_index(tmp_path / "index", settings, Two(), names, facts)


def test_a_model_of_other_shapes_is_refused(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", IDS)
    other = Two()
    other.layers[1] = nn.Linear(5, 6, bias=False)
    with pytest.raises(ValueError, match="model with other parameters"):
        index.features(index.segments[0], other)
    assert index.features(index.segments[0], Two()).size == 8


def test_gradients_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    rows, ids = random_rows(3), torch.arange(3)
    rows[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"examples tensor\(\[1\]\)"):
        write_shard(tmp_path / "shard-0.safetensors", Rows(rows, ids, torch.ones(3), ids.clone()), torch.float32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "message"), [({"dtype": "int8"}, "int8"), ({"sample": 0}, "sample")])
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IndexSettings(**options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_shards_are_as_large_as_they_are_said_to_be(tmp_path: Path, dtype: str) -> None:
    settings = IndexSettings(dtype=dtype, shard_bytes=10_000)
    sizes = []
    for count in (settings.rows_of_shard(8), 2 * settings.rows_of_shard(8)):
        rows, ids = random_rows(count), torch.arange(count)
        file = tmp_path / f"shard-{count}.safetensors"
        write_shard(file, Rows(rows, ids, torch.ones(count), ids.clone()), as_dtype(dtype))
        header = int.from_bytes(file.read_bytes()[:8], "little")
        sizes.append(file.stat().st_size - 8 - header)
    extra = 8 if dtype == "float64" else 0  # its weights and scales are in float64 too
    assert sizes[0] == settings.rows_of_shard(8) * (settings.row_bytes(8) + extra)
    assert sizes[1] == 2 * sizes[0]
    assert (
        settings.row_bytes(8) * settings.rows_of_shard(8)
        <= 10_000
        < settings.row_bytes(8) * (settings.rows_of_shard(8) + 1)
    )


def test_a_segment_that_is_closed_again_forgets_its_order(tmp_path: Path) -> None:
    for ids in ([5, 3, 9, 1], [1, 3, 5, 9]):
        index, (rows,) = make_index(tmp_path / "index", [ids])
        segment = index.segments[0]
        assert (segment.order is None) == (ids == sorted(ids))
        torch.testing.assert_close(segment.rows(0, 4), rows)


def test_a_column_of_another_length_is_named(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", IDS)
    np.save(index.segments[0].folder / "weights.npy", np.ones(29))
    with pytest.raises(ValueError, match=r"weights.npy' is damaged: expected 368 bytes, found 360"):
        _ = index.segments[0].weights


def test_an_index_begins_beside_hidden_files_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    module = Two()
    module.extra, module.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    names = [name for name, _ in module.named_parameters() if name.startswith("layers")]
    begin_index(tmp_path, IndexSettings(FeatureSettings(2, layout="parameter")), module, names, {})
    manifest = json.loads((tmp_path / "index.json").read_text())
    assert manifest["left_out"] == ["extra.weight", "extra.bias"]


def test_a_plan_adds_up() -> None:
    plan = IndexPlan(10**6, 2048, 8, IndexSettings(dtype="float16"), 100.0, 1e9, 2e9, 10)
    assert plan.bytes == 10**6 * (2 * 2048 + 24) + 4 * 8 * 256**2
    assert plan.machine_hours == pytest.approx(10**6 / 100 / 3600)
    assert plan.machines == 1
    assert IndexPlan(10**9, 2048, 8, IndexSettings(), 100.0, 1e9, 2e9, 10).machines == 278
    slow = IndexPlan(10**6, 2048, 8, IndexSettings(dtype="float16"), 1e9, 1e3, 2e9)
    assert slow.machine_hours == pytest.approx(plan.bytes / 1e3 / 3600)
    assert as_dtype("float16") == torch.float16
    with pytest.raises(ValueError, match="rows_per_second"):
        IndexPlan(10, 2048, 8, IndexSettings(), 0.0, 1e9, 1e9)
