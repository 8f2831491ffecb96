"""TrackStar end to end against its formula, dense and one row at a time, in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ftrace.attribution import TrackStar, snapshot_preconditioners
from ftrace.attribution.index_pass import index_corpus
from ftrace.gradients import Elementwise, Projection, rank_one
from ftrace.index import FeatureSettings, IndexSettings, block_weights, make_blocks
from ftrace.models import FactLM
from helpers.small_run import SmallRun, gradient_rows, make

SIDE, COUNT = 3, 24


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder-only"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make(request.param, tmp_path_factory.mktemp("trackstar"))


def dense_rows(model: FactLM, batches: list[dict[str, Tensor]], folder: Path, settings: FeatureSettings) -> Tensor:
    """Rows as the formula says, nothing factored: divide, project with explicit matrices, add up, one row at a time."""
    factors = {} if settings.preconditioner == "none" else snapshot_preconditioners(folder, model)
    blocks = make_blocks(block_weights(model), settings.layout, settings.layer_groups)
    found = []
    for row in gradient_rows(model, batches):
        of_blocks = []
        for names in blocks.values():
            total = torch.zeros(settings.projection_side, settings.projection_side, dtype=torch.float64)
            for name in names:
                gradient = row[name].double()
                if name in factors:
                    factor = factors[name]
                    assert isinstance(factor, Elementwise)
                    scale = rank_one(factor)[0].dense() if settings.preconditioner == "rank-one" else factor.scale
                    gradient = gradient * scale.double()
                projection = Projection(settings.projection_side, settings.seed)
                left = projection.axis(name, 0, gradient.shape[0], gradient)
                right = projection.axis(name, 1, gradient.shape[1], gradient)
                total += left.T @ gradient @ right
            of_blocks.append(total.flatten())
        found.append(torch.cat(of_blocks))
    return torch.stack(found)


def dense_scores(examples: Tensor, queries: Tensor, mix: float, damping: float = 0.1) -> np.ndarray:
    """cos(R^(-1/2) phi_z, R^(-1/2) phi_q) with one whole block-diagonal R."""
    size, D = SIDE**2, examples.shape[1]
    R = torch.zeros(D, D, dtype=torch.float64)
    for start in range(0, D, size):
        own = slice(start, start + size)
        mixed = (1 - mix) * examples[:, own].T @ examples[:, own] / len(examples)
        mixed = mixed + mix * queries[:, own].T @ queries[:, own] / len(queries)
        R[own, own] = mixed + damping * mixed.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(R)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    z, q = examples @ root, queries @ root
    return ((z / z.norm(dim=1, keepdim=True)) @ (q / q.norm(dim=1, keepdim=True)).T).numpy()


@pytest.mark.parametrize("preconditioner", ["rank-one", "elementwise", "none"])
@pytest.mark.parametrize("layout", ["pooled", "parameter"])
def test_scores_are_those_of_the_dense_formula(run: SmallRun, tmp_path: Path, preconditioner: Any, layout: Any) -> None:
    folder = run.snapshots[-1]
    settings = FeatureSettings(SIDE, 5, layout, 2, None, preconditioner)
    task = run.task(tmp_path / "store", example_ids=np.arange(COUNT))
    index = index_corpus(replace(task, output_dir=tmp_path / "index"), folder, IndexSettings(settings, "float64"))
    store = TrackStar(str(tmp_path / "index"), mix=0.7).score(task)

    model = run.load_model(folder)
    examples = dense_rows(model, run.examples(COUNT), folder, settings)
    np.testing.assert_allclose(index.segments[0].rows(0, COUNT).numpy(), examples.numpy(), rtol=1e-9, atol=1e-12)
    queries = dense_rows(model, run.queries(), folder, settings)
    expected = dense_scores(examples, queries, 0.7)
    np.testing.assert_allclose(store.matrix(), expected, rtol=1e-9, atol=1e-9)


def test_a_row_is_its_own_strongest_proponent_with_a_score_of_one(run: SmallRun, tmp_path: Path) -> None:
    from ftrace.index import make_whitening, prepare_queries, scored_chunks
    from ftrace.index.whitening import WhiteningSettings

    task = run.task(tmp_path / "index", example_ids=np.arange(COUNT))
    index = index_corpus(task, run.snapshots[-1], IndexSettings(FeatureSettings(SIDE), "float64"))
    segment = index.segments[0]
    whitening = make_whitening(
        {name: segment.autocorrelation()[name] for name in index.blocks}, None, WhiteningSettings("train")
    )
    queries = prepare_queries(segment, segment.rows(0, COUNT), whitening, tmp_path / "norms")
    ((_, scores),) = list(scored_chunks(index, [queries]))
    np.testing.assert_allclose(scores.diagonal().numpy(), 1, rtol=1e-12)
    assert (scores <= 1 + 1e-12).all()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_rows_do_not_depend_on_the_batch(run: SmallRun, tmp_path: Path, batch_size: int) -> None:
    folder = run.snapshots[-1]
    settings = IndexSettings(FeatureSettings(SIDE), "float64", shard_bytes=3000)
    task = run.task(tmp_path / "index", example_ids=np.arange(COUNT), batch_size=batch_size)
    index = index_corpus(task, folder, settings)
    assert index.segments[0].num_shards > 1
    examples = dense_rows(run.load_model(folder), run.examples(COUNT), folder, settings.features)
    np.testing.assert_allclose(index.segments[0].rows(0, COUNT).numpy(), examples.numpy(), rtol=1e-9, atol=1e-12)


def test_margin_rows_and_their_weights_are_traks(run: SmallRun, tmp_path: Path) -> None:
    folder = run.snapshots[-1]
    settings = IndexSettings(FeatureSettings(SIDE, layout="parameter", preconditioner="none"), "float64")
    task = run.task(tmp_path / "index", example_ids=np.arange(5))
    segment = index_corpus(task, folder, settings, "margin").segments[0]
    model = run.load_model(folder)
    (name, *_) = block_weights(model)
    for place, batch in enumerate(run.examples(5)):
        logits, labels = model._shifted(model._logits(batch), batch["labels"])
        kept = labels[0] != -100
        p = logits[0][kept].softmax(-1)[torch.arange(int(kept.sum())), labels[0][kept]]
        assert segment.weights[place] == pytest.approx(1 - float(p.prod()), rel=1e-9)
        margin = -(p / (1 - p)).log().sum()
        gradient = torch.autograd.grad(margin, dict(model.named_parameters())[name])[0]
        projection = Projection(SIDE, 0)
        expected = projection.project(name, gradient[None]).flatten()
        np.testing.assert_allclose(segment.rows(place, place + 1)[0, : SIDE**2].numpy(), expected.numpy(), rtol=1e-7)
