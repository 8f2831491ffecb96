"""What a run's folder is asked for once: which queries were learned, and candidate pools."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ftrace.evaluation.retrieval import PoolSettings
from ftrace.files.manifests import write_json
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from helpers.made_run import SNAPSHOTS, data_of, make_run, note_snapshot, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(make_run(folder / "run", folder / "data"), data_of(folder / "data"))
    return folder / "run"


def test_learned_queries_by_both_rules_are_kept(trained: Path) -> None:
    run = Run(trained)
    with torch.no_grad():
        right = run.model.learned(next(iter(run.data.query_dataloader())))
    greedy = torch.nonzero(right).flatten().tolist()
    assert len(greedy) >= 6
    by_last, by_paper = run.learned("last"), run.learned()
    assert by_last.query_ids == greedy
    assert (by_last.snapshots, by_paper.snapshots) == ([SNAPSHOTS[1]], list(SNAPSHOTS))
    assert by_paper.rule == "paper"
    assert set(by_paper.query_ids) <= set(range(8))
    assert len(by_paper.query_ids) == by_paper.right_at_last - by_paper.known_at_first >= 4
    file = trained / "learned_queries.json"
    assert json.loads(file.read_text()).keys() == {"last", "paper", "digest"}
    again = Run(trained)
    again.model_at = None  # type: ignore[assignment, method-assign]  # nothing is asked again
    assert (again.learned("last"), again.learned()) == (by_last, by_paper)
    assert again.learned_queries() == by_paper.query_ids
    folder = trained / "snapshots" / SNAPSHOTS[1]
    weights = (folder / "weights.safetensors").read_bytes()
    os.utime(folder / "weights.safetensors")  # as copying does
    assert Run(trained).learned() == by_paper
    middle = len(weights) // 2
    manifest = (folder / "snapshot.json").read_bytes()
    (folder / "weights.safetensors").write_bytes(
        weights[:middle] + bytes([weights[middle] ^ 1]) + weights[middle + 1 :]
    )
    with pytest.raises(ValueError, match=r"weights\.safetensors' is damaged"):
        Run(trained).learned()
    note_snapshot(folder, json.loads(manifest)["tied"])
    assert Run(trained).learned().key != by_paper.key  # of one step, but of another training
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "snapshot.json").write_bytes(manifest)
    for damage in ("garbage", "[]", '{"paper": 3}', json.dumps({"snapshot": SNAPSHOTS[1], "query_ids": [0]})):
        file.write_text(damage)
        assert Run(trained).learned() == by_paper


def test_the_first_snapshot_is_another_model(trained: Path) -> None:
    run = Run(trained)
    first, last = run.model_at(run.snapshots[0]), run.model
    assert not torch.equal(first.model.get_input_embeddings().weight, last.model.get_input_embeddings().weight)
    assert not first.training
    assert run.model_at(run.last_snapshot) is not last


def test_a_single_snapshot_leaves_the_simpler_rule(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "snapshots" / SNAPSHOTS[0])
    run = Run(tmp_path / "run")
    assert run.learned().rule == "last"
    with pytest.raises(ValueError, match="expected two snapshots, before and after learning, found one"):
        run.learned("paper")


def test_pools_are_of_the_learned_queries_and_kept(trained: Path) -> None:
    run = Run(trained)
    pools = run.candidate_pools()
    assert pools.query_ids.tolist() == sorted(run.learned_queries())
    assert pools.settings == PoolSettings()
    for query in pools.query_ids.tolist():
        assert np.isin(run.data.proponents[query], pools.of(query)).all()
    file = next((trained / "candidate_pools").iterdir())
    written = file.read_bytes()
    np.testing.assert_array_equal(Run(trained).candidate_pools().candidate_ids, pools.candidate_ids)
    assert [path.name for path in (trained / "candidate_pools").iterdir()] == [file.name]
    file.write_bytes(b"garbage")
    assert len(run.candidate_pools().example_ids) == len(pools.example_ids)
    assert file.read_bytes() == written
    some = run.candidate_pools(PoolSettings(5, 5, 5), [3, 1])
    assert some.query_ids.tolist() == [1, 3]
    assert len(list((trained / "candidate_pools").iterdir())) == 2


def test_pools_know_their_data(trained: Path, tmp_path: Path) -> None:
    settings = PoolSettings(5, 5, 5)
    shutil.copytree(trained.parent, tmp_path / "moved", ignore=shutil.ignore_patterns("candidate_pools"))
    config = tmp_path / "moved" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained.parent), str(tmp_path / "moved")))
    run = Run(tmp_path / "moved" / "run")
    run.candidate_pools(settings, [1])
    Run(trained).candidate_pools(settings, [1])
    (moved,) = (run.folder / "candidate_pools").iterdir()
    assert (trained / "candidate_pools" / moved.name).exists()  # the place of the data doesn't matter
    manifest = run.data.data_path / "manifest.json"
    changed = json.loads(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    write_json(manifest, changed)
    Run(run.folder).candidate_pools(settings, [1])
    assert len(list((run.folder / "candidate_pools").iterdir())) == 2


def test_a_snapshot_by_its_step(trained: Path) -> None:
    run = Run(trained)
    first, last = (trained / "snapshots" / name for name in SNAPSHOTS)
    assert [run.snapshot(which) for which in ("first", "last", 0, 100)] == [first, last, first, last]
    for which in (7, -1, 4):
        with pytest.raises(ValueError, match=rf"snapshot: .* one of the steps \[0, 100\], found {which}"):
            run.snapshot(which)


def test_the_newest_version_is_the_one_of_the_highest_number(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert newest_run(tmp_path) == tmp_path
    for name in ("version_0", "version_9", "version_10", "version_best", "version_", "other_99"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "version_11").mkdir()  # a run that has died before it began
    assert newest_run(tmp_path) == tmp_path / "version_10"
    assert newest_run(str(tmp_path)) == tmp_path / "version_10"
    assert newest_run(tmp_path / "version_9") == tmp_path / "version_9"
    (tmp_path / "config.yaml").touch()
    assert newest_run(tmp_path) == tmp_path
