"""Several processes, and all settings in pairs, against the replay of the same trajectory."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ftrace.index import GradientIndex
from ftrace.scores import ScoreStore
from helpers import replay, script, warm_python
from helpers.pairwise import pairwise
from helpers.replay import OPTIMIZERS
from helpers.whitened_formula import SIDE, dense_formula

Case = dict[str, Any]


def run(cases: list[Case], folder: Path, *, fails: bool = False) -> None:
    (folder / "cases.json").write_text(json.dumps(cases))
    done = warm_python.run(script("several_processes"), folder / "cases.json", timeout=240, has_trained=True)
    assert (done.returncode != 0) == fails, done.stderr[-2500:]


def windows(case: Case) -> list[list[list[replay.Row]]]:
    """The batches of each step, of all processes, as the run has noted them."""
    rows = {row["example_id"]: row for row in replay.rows(40, "example_id")}
    seen = [json.loads((Path(case["folder"]) / f"seen-{rank}.json").read_text()) for rank in range(case["processes"])]
    batches = [[[rows[i] for i in own] for own in of_all] for of_all in zip(*seen, strict=True)]
    accumulate, epochs = case.get("accumulate", 1), case.get("epochs", 2)
    in_epoch = len(batches) // epochs
    found = []
    for epoch in range(epochs):
        own = batches[epoch * in_epoch : (epoch + 1) * in_epoch]
        found += [list(itertools.chain(*own[i : i + accumulate])) for i in range(0, in_epoch, accumulate)]
    return found


def replayed(case: Case) -> tuple[replay.Net, list[replay.Step]]:
    module = replay.Net(OPTIMIZERS[case["optimizer"]])
    if case.get("precision", "64-true") != "64-true":
        module.float().double()
    asked = replay.rows(3, "query_id", seed=1)
    steps = replay.train(
        module, windows(case), asked, clip=case.get("clip"), accumulate=case.get("accumulate", 1),
        processes=case["processes"],
    )  # fmt: skip
    return module, steps


def hold(case: Case, tolerance: float) -> None:
    module, steps = replayed(case)
    ended = torch.load(Path(case["folder"]) / "end-0.pt", weights_only=True)["weights"]
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(ended[name].double(), parameter.detach(), rtol=tolerance, atol=tolerance, msg=name)
    store = ScoreStore.open(Path(case["folder"]) / "online")
    settings = case["online"]
    every = settings.get("refresh_every_n_steps", 1)
    for kind in settings["scores"]:
        expected = replay.scores(
            kind, module, steps, replay.rows(3, "query_id", seed=1),
            refresh=store.manifest["refreshes"] if every == "auto" else every,
            trapezoid=settings.get("integration") == "trapezoid", exact_momentum=settings.get("momentum") == "exact",
        )  # fmt: skip
        matrix = np.stack([expected[int(example)].numpy() for example in store.example_ids])
        error = np.abs(store.matrix(kind) - matrix).max() / np.abs(matrix).max()
        # A second moment that is all rounding in half precision multiplies with a number of its own: there, the ledger,
        # which looks at the true change of the weights, is the oracle.
        rounding = case.get("precision") == "bf16-mixed" and kind == "update" and case["optimizer"].startswith("ada")
        assert error < tolerance or rounding, (case, kind, error)
    assert store.manifest["ledger"]["balanced"] in (True, None)
    assert store.manifest["self_check"] == {"failures": []}
    assert store.manifest["precision"] == case.get("precision", "64-true")
    assert store.manifest["processes"] == case["processes"]


SETTINGS: dict[str, list[Any]] = {
    "optimizer": list(OPTIMIZERS),
    "accumulate": [1, 2],
    "clip": [None, 0.4],
    "precision": ["64-true", "32-true", "bf16-mixed"],
    "processes": [1, 2, 4],
}
KINDS = ["dot", "cosine", "update", "update exact", "dot trapezoid", "update trapezoid", "update exact trapezoid"]


def online(kind: str) -> dict[str, Any]:
    what, *options = kind.split()
    settings: dict[str, Any] = {"scores": [what], "refresh_every_n_steps": 2}
    if "exact" in options:
        settings["momentum"] = "exact"
    if "trapezoid" in options:
        settings["integration"] = "trapezoid"
    return settings


def test_all_settings_in_pairs_equal_the_replay(tmp_path: Path) -> None:
    cases = [
        {**dict(zip(SETTINGS, values, strict=True)), "online": online(kind), "folder": str(tmp_path / f"{index}")}
        for index, (*values, kind) in enumerate(pairwise(*SETTINGS.values(), KINDS))
    ]  # fmt: skip
    assert len(cases) > 35
    run(cases, tmp_path)
    for case in cases:
        hold(case, {"64-true": 1e-8, "32-true": 2e-3, "bf16-mixed": 0.2}[case["precision"]])


@pytest.mark.parametrize("ledger", [True, False])
def test_all_processes_go_by_the_answers_of_the_first(ledger: bool, tmp_path: Path) -> None:
    """The record has them, and each process breaks down its own examples' scores by them."""
    online = {"scores": ["dot"], "breakdown": ["learned"], "ledger": ledger}
    case = {"optimizer": "sgd", "module": "answers", "processes": 2, "online": online, "folder": str(tmp_path / "run")}
    run([case], tmp_path)
    store = ScoreStore.open(tmp_path / "run" / "online")
    assert store.answers is not None
    assert store.answers.right.tolist() == [[1, step >= 2, 0] for step in store.answers.steps]
    assert store.answers.steps.tolist() == list(range(7))
    before, after = (np.stack([store.parts(query, "learned")[part] for query in (1, 8, 15)], 1)
                     for part in ("before", "after"))  # fmt: skip
    assert not before[:, 0].any()
    assert not after[:, 2].any()
    np.testing.assert_array_equal(after[:, 0], store.scores(1))
    assert before[:, 1].any()
    assert after[:, 1].any()


def test_a_sampler_that_pads_counts_an_example_twice(tmp_path: Path) -> None:
    """Eleven rows for two processes: one of them comes twice an epoch, and entered the update twice."""
    case = {
        "optimizer": "adamw", "processes": 2, "data": "sampled", "clip": 0.4, "folder": str(tmp_path / "run"),
        "online": {"scores": ["dot", "update", "cosine"]},
    }  # fmt: skip
    run([case], tmp_path)
    seen = [row["example_id"] for window in windows(case) for batch in window for row in batch]
    assert len(seen) == 2 * 12
    assert len(set(seen)) == 11
    hold(case, 1e-8)


def test_two_processes_are_left_alone(tmp_path: Path) -> None:
    """Dropout, accumulation and clipping: weights and random state bit by bit."""
    base = {"optimizer": "adamw", "module": "dropout", "processes": 2, "accumulate": 2, "clip": 0.4,
            "precision": "32-true"}  # fmt: skip
    online = {"scores": ["dot", "update", "cosine"], "integration": "trapezoid"}
    cases = [
        {**base, "folder": str(tmp_path / "without")},
        {**base, "folder": str(tmp_path / "with"), "online": online, "describe": True},
    ]
    run(cases, tmp_path)
    for rank in range(2):
        ends = [torch.load(Path(case["folder"]) / f"end-{rank}.pt", weights_only=True) for case in cases]
        assert torch.equal(ends[0]["random"], ends[1]["random"])
        for name, weight in ends[0]["weights"].items():
            assert torch.equal(weight, ends[1]["weights"][name]), name


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_sharded_weights_score_as_whole_ones(optimizer: str, tmp_path: Path) -> None:
    online = {"scores": ["dot", "update", "cosine"], "refresh_every_n_steps": 2}
    case = {"optimizer": optimizer, "module": "sharded", "processes": 2, "clip": 0.4, "online": online}
    case |= {"folder": str(tmp_path / "sharded"), "precision": "32-true"}
    run([case], tmp_path)
    hold(case, 2e-3)


def test_manual_optimization_by_two_processes(tmp_path: Path) -> None:
    online = {"scores": ["dot", "update", "cosine"]}
    case = {"optimizer": "adam", "module": "manual", "processes": 2, "clip": 0.1, "online": online}
    case["folder"] = str(tmp_path / "manual")
    run([case], tmp_path)
    hold(case, 1e-8)


@pytest.mark.parametrize("integration", ["left", "trapezoid"])
def test_uneven_processes_refresh_as_fast_as_losses_move(integration: str, tmp_path: Path) -> None:
    """Each has rows of its own number, and still all refresh before the same steps."""
    settings = {
        "scores": ["dot", "update"], "refresh_every_n_steps": "auto", "refresh_share": 2.0, "integration": integration,
    }  # fmt: skip
    case = {"optimizer": "adamw", "processes": 2, "folder": str(tmp_path / "run"), "online": settings, "epochs": 8}
    run([case], tmp_path)
    hold(case, 1e-8)
    refreshes = ScoreStore.open(tmp_path / "run" / "online").manifest["refreshes"]
    assert refreshes[:3] == [0, 1, 2]
    assert len(set(np.diff(refreshes))) > 1


@pytest.mark.parametrize("processes", [1, 2])
def test_whitened_scores_of_several_processes(processes: int, tmp_path: Path) -> None:
    whitening = {"window": 3, "damping": 0.3}
    online = {
        "scores": ["whitened"], "projection_side": SIDE, "refresh_every_n_steps": 2, "whitening": whitening, "seed": 4
    }  # fmt: skip
    case = {"optimizer": "adamw", "processes": processes, "folder": str(tmp_path / "run"), "online": online}
    run([case], tmp_path)
    module = replay.Net(OPTIMIZERS["adamw"])
    names = [name for name, _ in module.named_parameters()]
    expected = dense_formula(
        module, windows(case), replay.rows(3, "query_id", seed=1), refresh=2, divided="rank-one", names=names,
        by_learning=False, share=1 / processes, **whitening,
    )  # fmt: skip
    store = ScoreStore.open(tmp_path / "run" / "online")
    matrix = np.stack([expected[int(example)].numpy() for example in store.example_ids])
    np.testing.assert_allclose(store.matrix("whitened"), matrix, rtol=1e-7, atol=1e-9)


KILLED = {
    "plain": {"scores": ["dot", "cosine"], "refresh_every_n_steps": 2},
    "everything": {
        "scores": ["dot", "update", "cosine"], "refresh_every_n_steps": 2, "integration": "trapezoid",
        "momentum": "exact", "breakdown": ["layer", "epoch"],
    },
    "adaptive": {
        "scores": ["dot", "update", "learning"], "refresh_every_n_steps": "auto", "projection_side": 2,
        "integration": "trapezoid",
    },
    "whitened": {
        "scores": ["update", "whitened", "learning"], "refresh_every_n_steps": 2, "projection_side": 2,
        "whitening": {"window": 3}, "breakdown": ["layer"],
    },
    "projected": {
        "scores": ["dot", "update"], "refresh_every_n_steps": 2, "projection_side": 2, "integration": "trapezoid",
        "momentum": "exact", "breakdown": ["layer", "epoch"],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "settings", "step"),
    [
        (1, "everything", 8),
        (2, "everything", 10),
        (2, "plain", 5),
        (2, "whitened", 8),
        (2, "adaptive", 8),
        (1, "projected", 5),
        (2, "projected", 8),
    ],
)
def test_killed_and_resumed_scores_equal_uninterrupted_ones(
    processes: int, settings: str, step: int, tmp_path: Path
) -> None:
    """SIGKILL in an epoch; the last checkpoint is of its beginning, in the middle of a refresh's interval."""
    base = {"optimizer": "adamw", "processes": processes, "clip": 0.4, "epochs": 4, "online": KILLED[settings],
            "save_every": 1, "describe": True}  # fmt: skip
    whole, killed = ({**base, "folder": str(tmp_path / name)} for name in ("whole", "killed"))
    run([whole], tmp_path)
    run([{**killed, "stop": step}], tmp_path, fails=True)
    assert not (tmp_path / "killed" / "online").exists()
    last = max((tmp_path / "killed" / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    assert torch.load(last, weights_only=True)["global_step"] == 3 * (step // 3)
    run([{**killed, "resume": str(last)}], tmp_path)
    first, second = (ScoreStore.open(tmp_path / name / "online") for name in ("whole", "killed"))
    assert second.manifest["complete"] is True
    for name in ("steps", "refreshes", "first_step", "processes"):
        assert first.manifest[name] == second.manifest[name], name
    for file in sorted(path.name for path in (tmp_path / "whole" / "online").glob("*.npy")):
        one, other = (np.load(tmp_path / name / "online" / file) for name in ("whole", "killed"))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12, err_msg=file)
    for name in ("examples.parquet", "queries.parquet"):
        one, other = (pq.read_table(store.path / name) for store in (first, second))
        assert one.equals(other), name
    assert first.examples is not None
    assert first.examples.ids.tolist() == first.example_ids.tolist()
    assert first.ledger is not None
    assert second.ledger is not None
    for column in first.ledger.columns:
        np.testing.assert_allclose(first.ledger[column], second.ledger[column], rtol=1e-8, atol=1e-10, err_msg=column)


@pytest.mark.parametrize("settings", ["everything", "projected"])
def test_resumed_by_another_number_of_processes(settings: str, tmp_path: Path) -> None:
    """What one process has summed up is dealt out to the others, and the other way round; nothing counts twice."""
    for before, after in ((1, 2), (2, 1)):
        folder = tmp_path / f"{before}-{after}"
        base = {"optimizer": "adamw", "clip": 0.4, "online": KILLED[settings], "save_every": 1,
                "folder": str(folder), "describe": True}  # fmt: skip
        run([{**base, "processes": before, "epochs": 1}], tmp_path)
        half = ScoreStore.open(folder / "online").example_ids.tolist()
        [checkpoint] = (folder / "checkpoints").glob("*.ckpt")
        run([{**base, "processes": after, "epochs": 2, "resume": str(checkpoint)}], tmp_path)
        store = ScoreStore.open(folder / "online")
        assert store.manifest["steps"] == 6
        assert store.examples is not None
        assert store.examples.column("answer").to_pylist() == list(map(str, store.example_ids))
        assert store.manifest["ledger"]["balanced"] is True
        for query in store.query_ids:
            parts = store.parts(query, "epoch", "dot")
            assert set(half) <= set(store.example_ids.tolist())
            rows = np.isin(store.example_ids, half)
            assert np.abs(parts["0"][rows]).min() > 0
            assert (parts["0"][~rows] == 0).all()
            np.testing.assert_allclose(sum(parts.values()), store.scores(query, "dot"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("parameters", [["*"], ["table.*"]])
def test_a_layer_that_runs_on_one_process_only(parameters: list[str], tmp_path: Path) -> None:
    """No false alarm, and nobody waits for the process that has nothing to say; the books balance."""
    online = {"scores": ["dot", "update"], "parameters": parameters, "integration": "trapezoid"}
    case = {
        "optimizer": "adamw",
        "module": "branches",
        "processes": 2,
        "folder": str(tmp_path / "run"),
        "online": online,
    }
    run([case], tmp_path)
    store = ScoreStore.open(tmp_path / "run" / "online")
    assert store.manifest["self_check"] == {"failures": []}
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9


def test_a_loss_that_is_no_number_on_one_process_leaves_the_step_out_on_all(tmp_path: Path) -> None:
    case = {
        "optimizer": "momentum", "module": "nans", "processes": 2, "folder": str(tmp_path / "run"), "epochs": 2,
        "online": {"scores": ["dot", "update"], "breakdown": ["epoch"], "strict": False},
    }  # fmt: skip
    run([case], tmp_path)
    store = ScoreStore.open(tmp_path / "run" / "online")
    assert store.manifest["steps_left_out"] == [2]
    third = {row["example_id"] for batch in windows(case)[2] for row in batch}
    for query in store.query_ids:
        first_epoch = dict(zip(store.example_ids.tolist(), store.parts(query, "epoch", "dot")["0"], strict=True))
        assert all(first_epoch.get(example, 0) == 0 for example in third)
        assert np.isfinite(list(first_epoch.values())).all()


INDEX = {"parameters": ["table.weight", "net.0.*"], "side": 6, "layout": "parameter", "correction": "none"}


def test_an_index_holds_what_all_processes_contributed(tmp_path: Path) -> None:
    """A side of all axes' length loses nothing, so inner products of rows are those of the contributions."""
    cases: list[Case] = [
        {"optimizer": "adamw", "clip": 0.4, "folder": str(tmp_path / f"{number}"), "index": dict(INDEX), **changes}
        for number, changes in enumerate(
            (
                {"processes": 2},
                {"processes": 2, "accumulate": 2, "index": {**INDEX, "dtype": "float64", "segment_steps": 2}},
                {"processes": 1, "precision": "bf16-mixed"},
                {"processes": 4, "precision": "32-true"},
            )
        )
    ]
    run(cases, tmp_path)
    for case in cases:
        _, steps = replayed(case)
        index = GradientIndex(Path(case["folder"]) / "index")
        rows = torch.cat([segment.rows(0, len(segment)).double() for segment in index.segments])
        columns = {
            name: torch.cat([shard.column(name) for segment in index.segments for shard in segment.shards])
            for name in ("ids", "steps", "weights")
        }
        assert len(index.segments) == 2
        assert index.examples is not None
        assert index.examples.column("answer").to_pylist() == [str(i) for i in np.unique(columns["ids"])]
        found = {}
        for step, example, weight, row in zip(columns["steps"], columns["ids"], columns["weights"], rows, strict=True):
            found[int(step), int(example)] = float(weight), row
        expected = {
            (number, example): (
                step.rate["table.weight"] * step.clip,
                torch.cat([own[n].flatten() for n in index.names]),
            )
            for number, step in enumerate(steps)
            for example, own in step.contributions
        }
        assert found.keys() == expected.keys()
        tolerance = {"64-true": 1e-5, "32-true": 2e-3, "bf16-mixed": 0.05}[case.get("precision", "64-true")]
        tolerance = 1e-9 if case["index"].get("dtype") == "float64" else tolerance
        ours, theirs = (torch.stack([of[key][1] for key in expected]) for of in (found, expected))
        gram, true = ours @ ours.T, theirs @ theirs.T
        assert float((gram - true).abs().max() / true.abs().max()) < tolerance, case
        weights = [[of[key][0] for key in expected] for of in (found, expected)]
        np.testing.assert_allclose(*weights, rtol=max(1e-6, tolerance))
