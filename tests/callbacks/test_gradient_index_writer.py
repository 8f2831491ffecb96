"""GradientIndexWriter: rows against plain autograd, sums against OnlineTracIn, and training that it must not touch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn
from ftrace.gradients import GradientCapture, Projection
from ftrace.index import GradientIndex, SegmentQueries, Whitening, prepare_queries, scored_chunks
from ftrace.scores import ScoreStore
from helpers import replay, tiny
from helpers.language_runs import AdamModule, Module, fit, queries, rows, weights

PLAIN = Whitening(None, 0.0, "")


def load(module: nn.Module, folder: Path) -> nn.Module:
    state = load_file(folder / "weights.safetensors")
    module.load_state_dict(state, strict=False)
    return module.eval()


def query_rows(index: GradientIndex, segment: Any, module: pl.LightningModule, kind: str, corrected: bool) -> Tensor:
    features = index.features(segment, module)
    if not corrected:
        features.preconditioners = {}
    capture = GradientCapture(module, index.names, projection=features.projection)
    found = []
    with capture:
        for batch in queries(kind):
            with capture.recording(len(batch["labels"])) as recording:
                recording.backward(tiny.losses(module.model, batch))
            found.append(features.rows(recording.gradients()))
    return torch.cat(found)


def search(
    folder: Path, make: Any, kind: str, *, unit_norm: bool = False, weighted: bool = True, corrected: bool = True
) -> dict[int, Tensor]:
    """Scores by example id, summed over segments."""
    index = GradientIndex(folder)
    prepared: list[SegmentQueries] = []
    for segment in index.segments:
        module = load(make(), folder / segment.manifest["snapshot"])
        own = query_rows(index, segment, module, kind, corrected)
        prepared.append(prepare_queries(segment, own, PLAIN, folder / "norms", unit_norm=unit_norm, weighted=weighted))
    found: dict[int, Tensor] = {}
    for ids, scores in scored_chunks(index, prepared, chunk_bytes=20_000):
        found |= dict(zip(ids.tolist(), scores, strict=True))
    return found


def store_rows(folder: Path, kind: str) -> dict[int, np.ndarray]:
    store = ScoreStore.open(folder)
    return dict(zip(store.example_ids.tolist(), store.matrix(kind), strict=True))


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 0.3, "accumulate_grad_batches": 2}])
def test_sums_over_segments_are_online_tracins(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Of the same projection, with query gradients of the same steps."""
    patterns = ("*",)
    online = OnlineTracIn(
        queries(kind), tmp_path / "online", lambda m, b: tiny.losses(m.model, b), scores=("dot",),
        refresh_every_n_steps=2, projection_side=3, parameters=patterns,
    )  # fmt: skip
    writer = GradientIndexWriter(
        tmp_path / "index", segment_steps=2, projection_side=3, layout="parameter", parameters=patterns,
        dtype="float64", preconditioner="none",
    )  # fmt: skip
    loader = DataLoader(rows(kind, 10), batch_size=3)
    fit(Module(kind), loader, tmp_path, [online, writer], **settings)
    found = search(tmp_path / "index", lambda: Module(kind), kind)
    expected = store_rows(tmp_path / "online", "dot")
    assert found.keys() == expected.keys()
    for example, scores in expected.items():
        np.testing.assert_allclose(found[example].numpy(), scores, rtol=1e-9, atol=1e-12)


def test_of_pooled_blocks_rows_are_sums(tmp_path: Path) -> None:
    loader = DataLoader(rows("gpt2", 6), batch_size=3)
    for layout in ("parameter", "pooled"):
        writer = GradientIndexWriter(
            tmp_path / layout, projection_side=3, layout=layout, layer_groups=1, dtype="float64"
        )  # type: ignore[arg-type]
        fit(AdamModule("gpt2"), loader, tmp_path, [writer], max_epochs=2)
    whole, pooled = (GradientIndex(tmp_path / layout) for layout in ("parameter", "pooled"))
    for one, other in zip(whole.segments, pooled.segments, strict=True):
        rows_of = dict(zip(whole.blocks, one.rows(0, 6).unflatten(1, (-1, 9)).unbind(1), strict=True))
        expected = [sum(rows_of[name] for name in names) for names in pooled.blocks.values()]
        torch.testing.assert_close(other.rows(0, 6), torch.cat(expected, 1), rtol=1e-12, atol=1e-15)  # type: ignore[arg-type]


def test_rows_are_divided_by_the_second_moments_of_the_segments_first_step(tmp_path: Path) -> None:
    writer = GradientIndexWriter(
        tmp_path / "a", segment_steps=2, projection_side=3, layout="parameter", dtype="float64"
    )
    plain = GradientIndexWriter(
        tmp_path / "b", segment_steps=2, projection_side=3, layout="parameter", dtype="float64", preconditioner="none"
    )
    elementwise = GradientIndexWriter(
        tmp_path / "c",
        segment_steps=2,
        projection_side=3,
        layout="parameter",
        dtype="float64",
        preconditioner="elementwise",
    )
    fit(AdamModule("gpt2"), DataLoader(rows("gpt2", 6), batch_size=3), tmp_path, [writer, plain, elementwise])
    of_a, of_b, of_c = (GradientIndex(tmp_path / name) for name in "abc")
    assert [segment.manifest["preconditioned"] for segment in of_a.segments] == [False, True]
    assert of_a.manifest["weights"] == {"float64": sum(p.numel() for p in AdamModule("gpt2").parameters())}
    checked = of_a.segments[0].manifest["rehearsals"]["single_examples"]
    assert checked["checked"]
    assert checked["never_checked"] == []
    torch.testing.assert_close(of_a.segments[0].rows(0, 6), of_b.segments[0].rows(0, 6))
    assert not torch.allclose(of_a.segments[1].rows(0, 6), of_b.segments[1].rows(0, 6), rtol=1e-2)
    segment = of_c.segments[1]
    folder = tmp_path / "c" / segment.manifest["snapshot"]
    moments = load_file(folder / "second_moments.safetensors")
    step = 2
    for name in of_c.names:
        root = (moments[f"{name}::exp_avg_sq"] / (1 - 0.999**step)).sqrt() + 1e-8
        torch.testing.assert_close(segment.preconditioners()[name].dense(), 1 / root, rtol=1e-9, atol=0)


def test_rows_of_segments_that_hold_an_example_twice_are_added_up(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", segment_steps=100, projection_side=3, dtype="float64")
    fit(Module("gpt2"), DataLoader(rows("gpt2", 6), batch_size=3), tmp_path, [writer], max_epochs=3)
    index = GradientIndex(tmp_path / "index")
    (segment,) = index.segments
    assert len(segment) == 18
    vectors = torch.randn(2, index.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(6, 2, dtype=torch.float64)
    expected.index_add_(0, torch.from_numpy((np.array(segment.ids) - 3) // 10), segment.rows(0, 18) @ vectors.T)
    for chunk_bytes in (1, 3000, 10**9):
        chunks = list(scored_chunks(index, [SegmentQueries(vectors)], chunk_bytes))
        assert np.concatenate([ids for ids, _ in chunks]).tolist() == [3, 13, 23, 33, 43, 53]
        torch.testing.assert_close(torch.cat([scores for _, scores in chunks]), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": [1]}, {2: (2, 3)}),
        ({"epochs": [0, 2], "segment_steps": 1}, {0: (0, 0), 1: (1, 1), 4: (4, 4), 5: (5, 5)}),
        ({"steps": [[1, 2], [5, 5]]}, {1: (1, 2), 5: (5, 5)}),
        ({"steps": [[0, 4]], "segment_steps": 2}, {0: (0, 1), 2: (2, 3), 4: (4, 4)}),
        ({}, {0: (0, 1), 2: (2, 3), 4: (4, 5)}),
        ({"segment_steps": 4}, {0: (0, 3), 4: (4, 5)}),
    ],
)
def test_segments_are_of_the_steps_that_are_asked_for(
    tmp_path: Path, options: dict[str, Any], expected: dict[int, tuple[int, int]]
) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=2, **options)
    fit(Module("gpt2"), DataLoader(rows("gpt2", 6), batch_size=3), tmp_path, [writer], max_epochs=3)
    found = {}
    for segment in GradientIndex(tmp_path / "index").segments:
        steps = torch.cat([shard.column("steps") for shard in segment.shards])
        found[segment.step] = (int(steps.min()), int(steps.max()))
    assert found == expected


class Dropout(AdamModule):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__("gpt2", dtype, resid_pdrop=0.2)


def test_training_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    loader = DataLoader(rows("gpt2", 10), batch_size=3, shuffle=True)
    ends = []
    for callbacks in ([], [GradientIndexWriter(tmp_path / "index", segment_steps=2, projection_side=2)]):
        module = Dropout()
        before = [dict(layer._forward_hooks) for layer in module.modules()]
        fit(module, loader, tmp_path, callbacks, accumulate_grad_batches=2, gradient_clip_val=0.5)
        ends.append((weights(module), torch.get_rng_state()))
        assert [dict(layer._forward_hooks) for layer in module.modules()] == before
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_a_window_of_several_batches_fills_shards_without_loss(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=2, shard_bytes=200)
    loader = DataLoader(rows("gpt2", 24), batch_size=3)
    fit(Module("gpt2"), loader, tmp_path, [writer], max_epochs=1, accumulate_grad_batches=4)
    (segment,) = GradientIndex(tmp_path / "index").segments
    assert sorted(segment.ids.tolist()) == [10 * i + 3 for i in range(24)]
    assert segment.num_shards == 2


def test_a_step_whose_gradients_are_no_numbers_is_left_out(tmp_path: Path) -> None:
    class Nan(replay.Net):
        def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
            losses = super().example_losses(batch)
            return losses * float("nan") if self.global_step == 1 else losses

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Nan(lambda groups: torch.optim.SGD(groups, lr=0.0))
    loader = DataLoader(replay.rows(6, "example_id"), batch_size=2)
    writer = GradientIndexWriter(tmp_path / "i", projection_side=2)
    with pytest.warns(UserWarning, match="not finite"):
        fit(module, loader, tmp_path, [writer], max_epochs=1)
    (segment,) = GradientIndex(tmp_path / "i").segments
    assert segment.ids.tolist() == [1, 8]  # from step 2 on the weights are no numbers either
    assert segment.manifest["steps_left_out"] == 2


def test_projection_is_that_of_the_engine(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=3, layout="parameter", dtype="float64", seed=4)
    loader = DataLoader(rows("gpt2", 3), batch_size=3)
    module = Module("gpt2")
    batch = next(iter(loader))
    loss = module.training_step(batch, 0)
    fit(module, loader, tmp_path, [writer], max_epochs=1)
    named = dict(Module("gpt2").named_parameters())
    fresh = Module("gpt2")
    grads = torch.autograd.grad(fresh.training_step(batch, 0), list(dict(fresh.named_parameters()).values()))
    of_names = dict(zip(named, grads, strict=True))
    index = GradientIndex(tmp_path / "index")
    total = index.segments[0].rows(0, 3).sum(0).unflatten(0, (-1, 9))
    assert torch.isfinite(loss)
    for place, name in enumerate(index.blocks):
        expected = Projection(3, 4).project(name, of_names[name][None]).flatten()
        torch.testing.assert_close(total[place], expected, rtol=1e-9, atol=1e-12)


class Shifted(pl.LightningModule):
    """A softmax does not see its first bias: that one's gradient is nothing but rounding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.values = nn.Linear(4, 1), nn.Linear(4, 3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        weights = self.scores(batch["x"]).softmax(1)
        return (weights * self.values(batch["x"])).sum(1).square().sum(1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_rounding_that_second_moments_blow_up_is_no_failure(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(5, 4, generator=generator), "example_id": number} for number in range(12)]
    writer = GradientIndexWriter(tmp_path / "index", projection_side=4, parameters=("*",))
    fit(Shifted(), DataLoader(data, batch_size=4), tmp_path, [writer], max_epochs=3)  # type: ignore[arg-type]
    assert len(GradientIndex(tmp_path / "index").segments) == 3
