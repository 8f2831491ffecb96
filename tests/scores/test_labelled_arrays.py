"""Scores and ledgers for xarray: what is selected equals the store's own, and nothing else is read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from ftrace.scores import ScoreStore, Sum
from helpers.made_stores import SCORES, ids_of, made_ledger, named_store

RAGGED_IDS, OFFSETS = np.array([3, 9, 3, 1, 7]), np.array([0, 2, 4, 5])


def whole(folder: Path) -> ScoreStore:
    random = np.random.default_rng(0).normal(size=(2, 5, 3))
    return ScoreStore.write(
        folder,
        np.array([1, 3, 7, 9, 12]),
        np.array([11, 10, 30]),
        {"dot": random[0].astype(np.float32), "cosine": random[1]},
    )


def ragged(folder: Path) -> ScoreStore:
    scores = {"dot": np.arange(5.0), "cosine": -np.arange(5.0)}
    return ScoreStore.write(folder, RAGGED_IDS, np.array([11, 10, 30]), scores, candidate_offsets=OFFSETS)


def expected(store: ScoreStore) -> xr.DataArray:
    """The same, read query by query and kept in memory."""
    values = [[store.scores(query, kind) for query in store.query_ids.tolist()] for kind in store.kinds]
    return xr.DataArray(
        np.array(values).swapaxes(1, 2),
        dims=("kind", "example", "query"),
        coords={"kind": list(store.kinds), "example": np.array(store.example_ids), "query": np.array(store.query_ids)},
    )


@pytest.mark.parametrize("make", [whole, ragged])
@pytest.mark.parametrize(
    "select",
    [
        lambda array: array,
        lambda array: array.sel(kind="cosine"),
        lambda array: array.sel(kind="dot", query=10),
        lambda array: array.sel(kind="dot", query=10, example=3),
        lambda array: array.sel(query=[30, 11]),
        lambda array: array.sel(example=[9, 1], query=[30, 11]),
        lambda array: array.isel(example=slice(None, None, -2), query=0),
        lambda array: array.isel(example=[0, 2], kind=[1]).sel(query=30),
        lambda array: array.isel(example=2),
        lambda array: array.isel(query=slice(0, 0)),
        lambda array: array.isel(kind=slice(0, 0), query=[]),
        lambda array: array.isel(example=xr.DataArray([0, 1], dims="pair"), query=xr.DataArray([2, 0], dims="pair")),
        lambda array: array.where(array > 0),
        lambda array: array.max("example"),
        lambda array: array.transpose("query", "kind", "example")[1],
    ],
)  # fmt: skip
def test_what_is_selected_is_what_the_store_says(
    tmp_path: Path, make: Callable[[Path], ScoreStore], select: Callable[[xr.DataArray], xr.DataArray]
) -> None:
    store = make(tmp_path / "store")
    array = store.to_xarray()
    assert (array.dims, array.dtype, array.name) == (("kind", "example", "query"), np.float64, "score")
    xr.testing.assert_equal(select(array).drop_attrs(), select(expected(store)))


def test_only_the_files_that_are_asked_for_are_read(tmp_path: Path) -> None:
    store = whole(tmp_path / "store")
    (tmp_path / "store" / "cosine.npy").unlink()
    array = store.to_xarray()
    assert "values with dtype=float64" in repr(array)  # and not the numbers
    assert array._repr_html_()
    one = array.sel(kind="dot", query=10)
    np.testing.assert_array_equal(one, store.scores(10, "dot"))
    with pytest.raises(ValueError, match=r"cosine.npy' is missing"):
        _ = array.sel(kind="cosine").values


@pytest.mark.parametrize("names", [True, False])
def test_names_are_labels_and_ids_stand_beside_them(tmp_path: Path, names: bool) -> None:
    array = named_store(tmp_path / "store", names=names).to_xarray()
    scores = array.sel(query="who", kind="learning", example=["wiki/3", "wiki/1"])
    assert scores.values.tolist() == [1.0, -1.0]
    assert scores["example_id"].values.tolist() == ids_of(["wiki/3", "wiki/1"]).tolist()
    assert int(scores["query_id"]) == ids_of(["who"])[0]
    assert "example_id" not in whole(tmp_path / "plain").to_xarray().coords


def test_parts_are_a_dimension_and_add_up(tmp_path: Path) -> None:
    parts = {Sum("dot", "layer", "first"): SCORES / 4, Sum("dot", "layer", "last"): 3 * SCORES / 4}
    store = ScoreStore.write(
        tmp_path / "store", np.arange(4), np.array([5, 6]), {Sum("dot"): SCORES, Sum("cosine"): SCORES, **parts}
    )
    array = store.to_xarray("layer")
    assert array.dims == ("kind", "example", "query", "layer")
    assert array["kind"].values.tolist() == ["dot"]  # cosine is not broken down
    np.testing.assert_allclose(array.sum("layer", skipna=False).sel(kind="dot"), SCORES)
    for layer, scores in store.parts(6, "layer", "dot").items():
        np.testing.assert_array_equal(array.sel(layer=layer, query=6)[0], scores)
    with pytest.raises(ValueError, match=r"expected one of the breakdowns \['layer'\], found 'epoch'"):
        store.to_xarray("epoch")


def test_doubts_come_along(tmp_path: Path) -> None:
    doubt = {"doubts": {"dot": ["`dot` is in doubt"]}, "method": "test"}
    store = ScoreStore.write(tmp_path / "store", np.arange(4), np.arange(2), {"dot": SCORES}, doubt)
    assert store.to_xarray().attrs == {"store": str(store.path), "method": "test", "in doubt": "`dot` is in doubt"}


def test_a_store_of_nothing_can_be_labelled(tmp_path: Path) -> None:
    store = ScoreStore.write(tmp_path / "store", np.array([], int), np.arange(2), {"dot": np.zeros((0, 2))})
    assert store.to_xarray().sel(kind="dot").values.shape == (0, 2)


def test_without_xarray_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "xarray", missing)
    for ask in (whole(tmp_path / "store").to_xarray, made_ledger([1]).to_xarray):
        with pytest.raises(ImportError, match=r'expected xarray, .* pip install "ftrace\[xarray\]"'):
            ask()


def test_a_ledger_is_steps_by_queries(tmp_path: Path) -> None:
    ledger = made_ledger([7, 3])
    data = ledger.to_xarray()
    assert dict(data.sizes) == {"step": 2, "query": 2}
    assert data["next_step"].sel(step=5) == 8
    for name in ("actual", "loss", "examples", "right", "next_right"):
        np.testing.assert_array_equal(data[name], ledger[name])
    assert float(data["actual"].sel(step=0, query=7)) == 1.0
    named = named_store(tmp_path / "store")
    ids = named.example_ids, named.query_ids
    ledger = made_ledger(ids[1].tolist())
    store = ScoreStore.write(tmp_path / "with", *ids, {"dot": SCORES}, ledger=ledger, queries=named.queries)
    assert store.ledger is not None
    assert store.ledger.to_xarray()["query"].values.tolist() == ["who", "where"]
