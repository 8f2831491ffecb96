"""Many retrainings: nothing is lost, nothing is done twice, and nothing is mixed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ftrace.files.manifests import write_json
from ftrace.retraining import QueryOutcome, Retraining, claim_folder, do_retrainings, without, work
from ftrace.runs import Run
from helpers.made_run import make_run

ASKED = [Retraining(f"subset-{index}", tuple(range(index, 504, 2)), index) for index in range(4)] + [without([3, 1])]


def retrainable(folder: Path) -> Path:
    """A run made by hand, as it would have been trained: two epochs of 504 rows."""
    made = make_run(folder / "run", folder / "data")
    config = yaml.safe_load((made / "config.yaml").read_text())
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 2}
    (made / "config.yaml").write_text(yaml.safe_dump({**config, "seed_everything": 3, "trainer": trainer}))
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(retrainable(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def losses(run: Run, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Of one that was not interrupted."""
    outcomes = do_retrainings(run, ASKED, tmp_path_factory.mktemp("whole"))
    return np.stack([one.losses for one in outcomes])


def test_killed_and_asked_again_it_goes_on(
    run: Run, losses: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def retrain(retrainer: Any, one: Retraining, folder: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        plain(retrainer, one, folder)
        done.append(one.name)

    plain = work.retrain
    monkeypatch.setattr(work, "retrain", retrain)
    with pytest.raises(KeyboardInterrupt):
        do_retrainings(run, ASKED, tmp_path)
    assert [file.stem for file in sorted(tmp_path.iterdir())] == done[:2]
    (tmp_path / f"{done[1]}.json").write_text('{"key": "hal')  # what can't be read is made anew
    done = []
    monkeypatch.setattr(work, "retrain", lambda *given: (done.append(given[1].name), plain(*given)))
    found = do_retrainings(run, ASKED, tmp_path)
    assert done == [one.name for one in ASKED[1:]]
    np.testing.assert_array_equal(np.stack([one.losses for one in found]), losses)
    assert len(set(losses[:, 0].tolist())) == len(ASKED)


def test_several_processes_share_the_work(run: Run, losses: np.ndarray, tmp_path: Path) -> None:
    found = do_retrainings(run, ASKED[:3], tmp_path, jobs=2)
    np.testing.assert_allclose(np.stack([one.losses for one in found]), losses[:3], rtol=1e-3)


def test_a_process_that_fails_is_an_error_that_says_where_to_look(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work.sys, "executable", "false")
    with pytest.raises(ValueError, match=r"retraining subset-[01] failed: see .*worker-[01]\.log"):
        do_retrainings(run, ASKED[:2], tmp_path, jobs=2)
    assert {file.suffix for file in tmp_path.iterdir()} == {".log"}


def test_sets_that_are_the_same_share_a_retraining(run: Run, tmp_path: Path) -> None:
    assert without([5, 2]) == without(np.array([2, 5])) != without([2])
    found = do_retrainings(run, [without([5, 2]), without([2, 5])], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(found[0].losses, found[1].losses)


def test_the_outcome_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    do_retrainings(run, ASKED[:1], tmp_path)
    file = tmp_path / "subset-0.json"
    for change in ({"key": "other"}, {"query_ids": [1]}):
        before = file.read_text()
        write_json(file, {**json.loads(before), **change})
        with pytest.raises(ValueError, match=r"subset-0\.json: expected the outcome of another retraining"):
            do_retrainings(run, ASKED[:1], tmp_path)
        file.write_text(before)
    with pytest.raises(ValueError, match="jobs: expected at least 1, found 0"):
        do_retrainings(run, ASKED[:1], tmp_path, jobs=0)


def test_losses_of_a_training_that_diverged_are_kept_as_json_has_them(run: Run, tmp_path: Path) -> None:
    query_ids = list(run.data.query_rows["query_id"])

    class Diverging:
        def __init__(self) -> None:
            self.run = run

        def query_outcome(self, is_kept: np.ndarray, order_seed: int | None) -> QueryOutcome:
            losses = np.full(len(query_ids), 0.5, np.float32)
            losses[1:3] = np.nan, np.inf
            return QueryOutcome(losses, np.zeros(len(losses), bool))

    work.retrain(Diverging(), ASKED[0], tmp_path)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "subset-0.json").read_text())["losses"][:3] == [0.5, None, None]
    found = work.read_outcome(ASKED[0], tmp_path, query_ids)
    assert found is not None
    np.testing.assert_array_equal(found.losses[:3], [0.5, np.nan, np.nan])


def test_a_folder_is_of_one_set_of_settings(tmp_path: Path) -> None:
    claim_folder(tmp_path / "a", {"unit": "fact", "keep": 0.5})
    claim_folder(tmp_path / "a", {"unit": "fact", "keep": 0.5})
    with pytest.raises(ValueError, match=r"a holds retrainings with \{'keep': 0.5\}, expected \{'keep': 0.4\}\. Name"):
        claim_folder(tmp_path / "a", {"unit": "fact", "keep": 0.4})
    (tmp_path / "a" / "manifest.json").write_text("[")
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged: .* Name another folder: --output_dir"):
        claim_folder(tmp_path / "a", {"unit": "fact", "keep": 0.5})
