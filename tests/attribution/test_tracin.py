"""TracIn against plain autograd, one example at a time, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ftrace.attribution import TracIn, snapshot_preconditioners
from ftrace.files.manifests import write_json
from ftrace.gradients import layer_of
from ftrace.scores import ScoreStore
from helpers import small_run
from helpers.small_run import SmallRun

COUNT = 40
EXAMPLES = np.arange(COUNT)


@pytest.fixture(scope="module", params=list(small_run.CONFIGS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make(request.param, tmp_path_factory.mktemp("run"))


def by_hand(
    run: SmallRun, folders: list[Path], *, preconditioned: bool = False, keep: Any = lambda name: True,
    answers: str = "any", end_of_sequence: bool | None = None, weights: list[float] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """All kinds of scores, by the formulas."""
    found: dict[str, Tensor] = {}

    def add(kind: str, scores: Tensor, weight: float) -> None:
        found[kind] = found.get(kind, 0) + weight * scores

    for index, folder in enumerate(folders):
        model = run.load_model(folder)
        model.hparams["answers"] = answers
        scales = snapshot_preconditioners(folder, model) if preconditioned else {}
        sides = []
        for batches in (run.examples(COUNT), run.queries()):
            rows = small_run.gradient_rows(model, batches, end_of_sequence=end_of_sequence)
            own = {name: matrix for name, matrix in small_run.matrices(rows) if keep(name)}
            sides.append({name: m * scales[name].dense().flatten() if scales else m for name, m in own.items()})
        dots = {name: sides[0][name] @ sides[1][name].T for name in sides[0]}
        norms = {name: sides[0][name].norm(dim=1)[:, None] * sides[1][name].norm(dim=1) for name in dots}
        rate = 1.0 if weights is None else weights[index]
        share = rate / (len(folders) if weights is None else sum(weights))
        dot_weight = share if weights is None else rate
        cosine = {name: torch.where(norms[name] > 0, dots[name] / norms[name], 0) for name in dots}
        add("dot", sum(dots.values()), dot_weight)
        add("tensor_cosine", sum(cosine.values()) / len(cosine), share)
        whole = [torch.cat(list(side.values()), 1) for side in sides]
        add("cosine", whole[0] @ whole[1].T / (whole[0].norm(dim=1)[:, None] * whole[1].norm(dim=1)), share)
        for layer in dict.fromkeys(map(layer_of, dots)):
            names = [name for name in dots if layer_of(name) == layer]
            add(f"dot of {layer}", sum(dots[name] for name in names), dot_weight)
            of_layer = [torch.cat([side[name] for name in names], 1) for side in sides]
            both = of_layer[0].norm(dim=1)[:, None] * of_layer[1].norm(dim=1)
            products = of_layer[0] @ of_layer[1].T
            add(f"cosine.{layer}", torch.where(both > 0, products / both, 0), share)
    return found


def hold(store: ScoreStore, expected: dict[str, Tensor], kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        assert store.matrix(kind).dtype == np.float64
        scale = expected[kind].abs().max()
        np.testing.assert_allclose(store.matrix(kind), expected[kind].numpy(), rtol=1e-9, atol=1e-9 * float(scale))


ALL = ("dot", "cosine", "tensor_cosine")


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({}, {}),
        ({"answers": "one"}, {"answers": "one"}),
        ({"snapshots": "all"}, {}),
        ({"snapshots": [4, 1], "preconditioned": True}, {"preconditioned": True}),
        ({"end_of_sequence": False}, {"end_of_sequence": False}),
        ({"end_of_sequence": False, "answers": "one"}, {"end_of_sequence": False, "answers": "one"}),
        (
            {"parameters": ["*.0.*", "*.1.*", "!*.0.*"]},
            {"keep": lambda name: ".1." in name and ".0." not in name},
        ),
    ],
    ids=lambda value: ", ".join(map(str, value)),
)
def test_it_is_the_formula(options: dict, given: dict, run: SmallRun, tmp_path: Path) -> None:
    which = options.get("snapshots", "last")
    steps = {"last": [4], "all": small_run.STEPS}[which] if isinstance(which, str) else sorted(which)
    folders = [folder for folder in run.snapshots if int(folder.name[-8:]) in steps]
    store = TracIn(kinds=ALL, **options).score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    hold(store, by_hand(run, folders, **given), ALL)
    assert store.example_ids.tolist() == EXAMPLES.tolist()
    assert store.query_ids.tolist() == run.data.query_rows["query_id"]
    assert store.manifest["snapshots"] == [folder.name for folder in folders]
    assert store.manifest["options"]["kinds"] == list(ALL)
    assert store.manifest["seconds"] > 0
    assert store.manifest["peak_memory_bytes"] > 2**20


def test_weighted_by_learning_rate(run: SmallRun, tmp_path: Path) -> None:
    manifests = [json.loads((folder / "snapshot.json").read_text()) for folder in run.snapshots]
    rates = [manifest["optimizers"][0]["groups"][0]["learning_rate"] for manifest in manifests]
    assert len(set(rates)) == 3
    method = TracIn("all", "learning_rate", ALL)
    store = method.score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    hold(store, by_hand(run, run.snapshots, weights=rates), ALL)
    assert store.manifest["snapshot_weights"] == rates


@pytest.mark.parametrize("kinds", [("dot", "cosine"), ALL])
def test_by_layer_in_one_pass(kinds: tuple[str, ...], run: SmallRun, tmp_path: Path) -> None:
    store = TracIn(kinds=kinds, breakdown="layer").score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    expected = by_hand(run, run.snapshots[-1:])
    layers = store.breakdown["layer"]
    assert len(layers) >= 4
    hold(store, expected, (*kinds, *(f"cosine.{layer}" for layer in layers)))
    for column, query in enumerate(store.query_ids.tolist()):
        parts = store.parts(query, "layer", "dot")
        for layer in layers:
            np.testing.assert_allclose(parts[layer], expected[f"dot of {layer}"][:, column], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(sum(parts.values()), store.scores(query, "dot"), rtol=1e-9, atol=1e-12)


def test_projected_to_more_than_there_is_it_is_exact(run: SmallRun, tmp_path: Path) -> None:
    exact = TracIn(kinds=ALL).score(run.task(tmp_path / "a", example_ids=EXAMPLES))
    side = 1 + max(max(p.shape) for p in run.load_model(run.snapshots[0]).parameters())
    whole = TracIn(kinds=ALL, projection_side=side).score(run.task(tmp_path / "b", example_ids=EXAMPLES))
    coarse = TracIn(kinds=ALL, projection_side=4).score(run.task(tmp_path / "c", example_ids=EXAMPLES))
    for kind in ALL:
        np.testing.assert_allclose(whole.matrix(kind), exact.matrix(kind), rtol=1e-7, atol=1e-9)
    agreement = np.corrcoef(coarse.matrix("cosine").ravel(), exact.matrix("cosine").ravel())[0, 1]
    assert 0.5 < agreement < 1 - 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": [3]}, r"expected steps of \[1, 2, 4\], found \[3\]"),
        ({"snapshots": []}, "found none"),
        ({"parameters": ["model.shard"]}, "matches no parameter. Did you mean 'model.shared'"),
        ({"parameters": ["*", "!*"]}, "expected at least one"),
        ({"kinds": []}, "kinds: expected at least one"),
        ({"projection_side": 0}, "projection_side: expected 1 to 4,096"),
    ],
    ids=str,
)
def test_bad_options(options: dict, message: str, run: SmallRun, tmp_path: Path) -> None:
    if "shard" in str(options) and run.data.architecture != "encoder-decoder":
        options, message = {"parameters": ["*transfromer.h.*"]}, "Did you mean 'model.transformer.h'"
    with pytest.raises(ValueError, match=message):
        TracIn(**options).score(run.task(tmp_path / "s"))
    assert list(tmp_path.iterdir()) == []


def test_preconditioned_by_adafactor(tmp_path: Path) -> None:
    run = small_run.make("encoder-decoder", tmp_path / "run", optimizer="adafactor")
    method = TracIn(kinds=ALL, preconditioned=True)
    store = method.score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    hold(store, by_hand(run, run.snapshots[-1:], preconditioned=True), ALL)


def test_no_second_moments_and_no_learning_rate_left(tmp_path: Path) -> None:
    run = small_run.make("decoder-only", tmp_path / "run", optimizer="sgd")
    with pytest.raises(ValueError, match="has no second moments: before the first step"):
        TracIn(preconditioned=True).score(run.task(tmp_path / "s"))
    manifest = json.loads((run.snapshots[-1] / "snapshot.json").read_text())
    manifest["optimizers"][0]["groups"][0]["learning_rate"] = 0.0
    write_json(run.snapshots[-1] / "snapshot.json", manifest)
    with pytest.raises(ValueError, match=r"learning rates of .* are 0"):
        TracIn(weight="learning_rate").score(run.task(tmp_path / "s"))


def test_a_weight_used_outside_of_its_layer_is_refused(run: SmallRun, tmp_path: Path) -> None:
    def load(folder: Path) -> Any:
        model = run.load_model(folder)
        table = model.model.get_input_embeddings().weight
        losses = model.example_losses
        model.example_losses = lambda batch, **options: losses(batch, **options) * table[3].sum()
        return model

    with pytest.raises(ValueError, match="TracIn can't cover"):
        TracIn().score(run.task(tmp_path / "s", load_model=load))
