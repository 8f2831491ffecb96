"""Blocked search against brute force over whole matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ftrace.index import (
    ApproximateSettings,
    GradientIndex,
    Whitening,
    WhiteningSettings,
    approximate_top_k,
    autocorrelation_of,
    make_whitening,
    open_approximate,
    prepare_queries,
    recall,
    row_norms,
    scored_chunks,
    top_k,
)
from ftrace.index.prepared_search import _learning_weights
from helpers.made_index import make_index, random_rows

PLAIN = Whitening(None, 0.0, "")
SEGMENTS = {
    "one, in order": [list(range(20, 50))],
    "one, shuffled": [np.random.default_rng(0).permutation(30).tolist()],
    "one, examples twice": [[5, 3, 5, 5, 1, 3, *range(10, 30)]],
    "several": [list(range(0, 30, 2)), np.random.default_rng(1).permutation(25).tolist(), [7, 7, 8, 40]],
}


def whitening_of(index: GradientIndex, number: int) -> Whitening:
    R = index.segments[number].autocorrelation()
    return make_whitening({name: R[name] for name in index.blocks}, None, WhiteningSettings("train"))


def brute_force(
    index: GradientIndex, rows: list[Tensor], queries: Tensor, *, whiten: bool, unit_norm: bool, weighted: bool
) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for number, segment in enumerate(index.segments):
        z, q = rows[number].double(), queries.double()
        if whiten:
            both = []
            for place, own in enumerate(z.unflatten(1, (2, -1)).unbind(1)):
                R = own.T @ own / len(own)
                R = R + 0.1 * R.diagonal().mean() * torch.eye(len(R), dtype=torch.float64)
                values, vectors = torch.linalg.eigh(R)
                root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
                both.append((own @ root, q.unflatten(1, (2, -1))[:, place] @ root))
            z, q = (torch.cat(side, 1) for side in zip(*both, strict=True))
        if unit_norm:
            z, q = z / z.norm(dim=1, keepdim=True), q / q.norm(dim=1, keepdim=True)
        scores = (z @ q.T).numpy()
        for example, row in zip(segment.ids.tolist(), scores, strict=True):
            weight = 0.1 * (1 + example) if weighted else 1.0
            found[example] = found.get(example, 0) + weight * row
    return found


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize(("unit_norm", "weighted"), [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("ids", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("chunk_bytes", [1, 500, 10**8])
def test_scores_are_those_of_brute_force(
    tmp_path: Path, ids: list[list[int]], whiten: bool, unit_norm: bool, weighted: bool, chunk_bytes: int
) -> None:
    index, rows = make_index(tmp_path / "index", ids)
    queries = random_rows(4, seed=9)
    prepared = [
        prepare_queries(
            segment, queries, whitening_of(index, number) if whiten else PLAIN, tmp_path / "norms",
            unit_norm=unit_norm, weighted=weighted,
        )
        for number, segment in enumerate(index.segments)
    ]  # fmt: skip
    expected = brute_force(index, rows, queries, whiten=whiten, unit_norm=unit_norm, weighted=weighted)
    chunks = list(scored_chunks(index, prepared, chunk_bytes))
    all_ids = np.concatenate([own for own, _ in chunks])
    assert all_ids.tolist() == sorted(expected)
    scores = torch.cat([own for _, own in chunks]).numpy()
    np.testing.assert_allclose(scores, np.array([expected[one] for one in all_ids]), rtol=1e-9, atol=1e-12)

    for k in (1, 3, 100):
        best, worst = top_k(index, prepared, k, chunk_bytes)
        for query in range(4):
            order = np.lexsort((all_ids, -scores[:, query]))[:k]
            assert best.ids[query].tolist() == all_ids[order].tolist()
            np.testing.assert_allclose(best.scores[query], scores[order, query], rtol=1e-12)
            order = np.lexsort((all_ids, scores[:, query]))[:k]
            assert worst.ids[query].tolist() == all_ids[order].tolist()


def test_ties_are_broken_by_id_whatever_the_chunk(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", [list(range(40))])
    flat = prepare_queries(index.segments[0], torch.zeros(1, 8, dtype=torch.float64), PLAIN, tmp_path, unit_norm=False)
    for chunk_bytes in (1, 300, 10**8):
        best, worst = top_k(index, [flat], 3, chunk_bytes)
        assert best.ids.tolist() == worst.ids.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 1.5e-2)])
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e9, 1e30])
def test_rows_are_kept_in_fewer_bits_whatever_their_size(
    tmp_path: Path, dtype: str, tolerance: float, size: float
) -> None:
    from ftrace.index import Rows, Shard, as_dtype, write_shard

    rows, ids = size * random_rows(5), torch.arange(5)
    write_shard(tmp_path / "shard-0.safetensors", Rows(rows, ids, torch.ones(5), ids.clone()), as_dtype(dtype))
    found = Shard(tmp_path / "shard-0.safetensors").rows()
    assert found.dtype == torch.float32
    assert float((found.double() - rows).norm() / rows.norm()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 1.5e-2)])
def test_small_rows_are_kept_beside_large_ones(tmp_path: Path, dtype: str, tolerance: float) -> None:
    from ftrace.index import Rows, Shard, as_dtype, write_shard

    sizes, ids = torch.tensor([1e-30, 1e-9, 1.0, 1e9, 1e30]).double(), torch.arange(5)
    rows = sizes[:, None] * random_rows(5)
    write_shard(tmp_path / "shard-0.safetensors", Rows(rows, ids, torch.ones(5), ids.clone()), as_dtype(dtype))
    found = Shard(tmp_path / "shard-0.safetensors").rows().double()
    assert float(((found - rows).norm(dim=1) / rows.norm(dim=1)).max()) < tolerance


def test_norms_are_kept_and_made_anew_for_another_index(tmp_path: Path) -> None:
    index, rows = make_index(tmp_path / "index", [list(range(30))])
    whitening = whitening_of(index, 0)
    first = row_norms(index.segments[0], whitening, tmp_path / "norms")
    np.testing.assert_allclose(first, whitening.white(rows[0]).norm(dim=1).numpy(), rtol=1e-12)
    (file,) = (tmp_path / "norms").glob("*.npy")
    assert isinstance(row_norms(index.segments[0], whitening, tmp_path / "norms"), np.memmap)
    file.write_bytes(b"damaged")
    np.testing.assert_array_equal(row_norms(index.segments[0], whitening, tmp_path / "norms"), first)
    np.save(file, np.ones(30))
    np.testing.assert_array_equal(row_norms(index.segments[0], whitening, tmp_path / "norms"), first)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_an_example_whose_gradient_is_zero_scores_zero(tmp_path: Path, dtype: str, whiten: bool) -> None:
    """Its norm is 0, too: it is neither a proponent nor an opponent, and others keep their scores."""
    index, _ = make_index(tmp_path / "index", [list(range(30))], dtype=dtype, vanishing=[3, 17])
    whitening = whitening_of(index, 0) if whiten else PLAIN
    prepared = prepare_queries(index.segments[0], random_rows(4, seed=9).float(), whitening, tmp_path / "norms")
    ((ids, scores),) = list(scored_chunks(index, [prepared]))
    assert ids[(scores == 0).all(1).numpy()].tolist() == [3, 17]
    assert (scores.abs() <= 1 + 1e-5).all()  # so none is NaN
    best, worst = top_k(index, [prepared], 5)
    assert not np.isin([3, 17], [best.ids, worst.ids]).any()


def test_norms_are_of_one_whitening_and_one_index(tmp_path: Path) -> None:
    """Another whitening has a file of its own; an index that is written later, or of another size, is read anew."""
    index, rows = make_index(tmp_path / "index", [list(range(30))])
    of_more = {name: 3 * R for name, R in index.segments[0].autocorrelation().items()}
    other = make_whitening(of_more, None, WhiteningSettings("train"))
    for whitening in (whitening_of(index, 0), other, PLAIN):
        found = row_norms(index.segments[0], whitening, tmp_path / "norms")
        np.testing.assert_allclose(found, whitening.white(rows[0]).norm(dim=1).numpy(), rtol=1e-12)
    assert len(list((tmp_path / "norms").glob("*.npy"))) == 3
    later, rows = make_index(tmp_path / "later", [list(range(30))], seed=5)
    found = row_norms(later.segments[0], PLAIN, tmp_path / "norms")
    np.testing.assert_allclose(found, rows[0].norm(dim=1).numpy(), rtol=1e-12)
    fewer, rows = make_index(tmp_path / "fewer", [list(range(20))])
    found = row_norms(fewer.segments[0], PLAIN, tmp_path / "norms")
    np.testing.assert_allclose(found, rows[0].norm(dim=1).numpy(), rtol=1e-12)


def test_a_query_whose_gradient_is_zero_scores_zero(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", [list(range(30))])
    prepared = prepare_queries(
        index.segments[0], torch.zeros(1, 8, dtype=torch.float64), whitening_of(index, 0), tmp_path / "norms"
    )
    ((_, scores),) = list(scored_chunks(index, [prepared]))
    assert (scores == 0).all()


def test_approximate_search_scores_exactly_and_tells_what_it_missed(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    index, _ = make_index(tmp_path / "index", [list(range(600))], dtype="float32", rows_of_shard=250)
    whitening = whitening_of(index, 0)
    queries = random_rows(10, seed=3).float()
    prepared = prepare_queries(index.segments[0], queries, whitening, tmp_path / "norms")
    exact = top_k(index, [prepared], 5)
    shares = []
    for probes in (1, 9):
        opened = open_approximate(index, whitening, ApproximateSettings(lists=9, probes=probes))
        found = approximate_top_k(index, opened, prepared, whitening.white(queries), 5)
        shares.append(recall(found[0], exact[0]))
        for query in range(10):
            known = dict(zip(exact[0].ids[query].tolist(), exact[0].scores[query].tolist(), strict=True))
            for example, score in zip(found[0].ids[query].tolist(), found[0].scores[query].tolist(), strict=True):
                if example in known:
                    assert score == pytest.approx(known[example], rel=1e-5)
    assert shares[0] < shares[1]
    assert shares[1] == 1.0
    assert recall(found[1], exact[1]) == 1.0


def test_approximate_search_says_where_it_found_fewer(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    index, _ = make_index(tmp_path / "index", [list(range(10, 310))], dtype="float32", rows_of_shard=150)
    prepared = prepare_queries(index.segments[0], random_rows(2, seed=3).float(), PLAIN, tmp_path / "norms")
    opened = open_approximate(index, PLAIN, ApproximateSettings(lists=4, probes=1))
    for side in approximate_top_k(index, opened, prepared, random_rows(2, seed=3).float(), 300):
        for ids, scores in zip(side.ids, side.scores, strict=True):
            missing = ids == -1
            assert 0 < missing.sum() < 300
            assert not missing[: 300 - missing.sum()].any()  # they come last
            assert len(np.unique(ids[~missing])) == (~missing).sum()
            assert (np.isnan(scores) == missing).all()


def test_the_approximate_index_of_an_index_that_was_written_again_is_made_again(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    queries = random_rows(10, seed=3).float()
    for seed in (0, 5):
        index, _ = make_index(tmp_path / "index", [list(range(300))], dtype="float32", rows_of_shard=150, seed=seed)
        prepared = prepare_queries(index.segments[0], queries, PLAIN, tmp_path / "norms")
        opened = open_approximate(index, PLAIN, ApproximateSettings(lists=4, probes=4))
        found = approximate_top_k(index, opened, prepared, queries, 5)
        assert recall(found[0], top_k(index, [prepared], 5)[0]) == 1.0


def test_approximate_search_has_no_more_lists_than_rows(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    index, _ = make_index(tmp_path / "index", [list(range(30))], dtype="float32")
    with pytest.raises(ValueError, match="lists: expected at most 30, as there are rows, found 31"):
        open_approximate(index, PLAIN, ApproximateSettings(lists=31))


def test_approximate_search_is_for_one_row_an_example(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    index, _ = make_index(tmp_path / "index", SEGMENTS["several"])
    with pytest.raises(ValueError, match="one row for each example"):
        open_approximate(index, whitening_of(index, 0), ApproximateSettings())


def test_a_query_searched_for_alone_finds_what_it_finds_among_others(tmp_path: Path) -> None:
    index, _ = make_index(tmp_path / "index", [list(range(30))])
    queries, whitening = random_rows(5, seed=9), whitening_of(index, 0)
    together, _ = top_k(index, [prepare_queries(index.segments[0], queries, whitening, tmp_path / "norms")], 4)
    for place in range(5):
        one = prepare_queries(index.segments[0], queries[place : place + 1], whitening, tmp_path / "norms")
        alone, _ = top_k(index, [one], 4)
        assert alone.ids[0].tolist() == together.ids[place].tolist()


def test_autocorrelation_is_of_a_random_sample(tmp_path: Path) -> None:
    whole, rows = make_index(tmp_path / "whole", [list(range(200))])
    some, _ = make_index(tmp_path / "some", [list(range(200))], sample=60)
    expected = autocorrelation_of(rows[0], list(whole.blocks))
    for block, R in whole.segments[0].autocorrelation().items():
        torch.testing.assert_close(R, expected[block], rtol=1e-12, atol=1e-12)
    drawn = np.sort(np.random.default_rng(0).choice(200, 60, replace=False))
    expected = autocorrelation_of(rows[0][drawn], list(whole.blocks))
    for block, R in some.segments[0].autocorrelation().items():
        torch.testing.assert_close(R, expected[block], rtol=1e-12, atol=1e-12)
    assert some.segments[0].manifest["autocorrelation"] == {"sample": 60, "seed": 0}


def test_segments_are_weighted_by_probabilities_only() -> None:
    """A loss below 0, such as a margin, is no -log of a probability."""
    model = torch.nn.Linear(1, 1)

    def weights(losses: Tensor) -> Tensor:
        return _learning_weights(model, [losses], lambda _, batch: batch, None, torch.device("cpu"))

    assert weights(torch.tensor([0.0, 0.5, -1e-6])).argmax() == 1
    with pytest.raises(ValueError, match=r"learning: expected losses .* at least 0, found -0\.5\. .*learning=True, or"):
        weights(torch.tensor([2.0, -0.5]))
