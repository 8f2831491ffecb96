"""Scores don't depend on batches, memory, processes, or on being killed on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftrace.attribution import AttributionMethod, Embed, Task, TracIn, passes
from ftrace.attribution.partial_scores import BlockRange, PartialScores
from ftrace.attribution.tracin_scores import GradientScores
from ftrace.scores import ScoreStore
from helpers import script, small_run, warm_python
from helpers.small_run import SmallRun

EXAMPLES = np.arange(0, 200, 3)  # 67


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make("encoder-decoder", tmp_path_factory.mktemp("run"))


METHODS: dict[str, AttributionMethod] = {
    "tracin": TracIn("all", kinds=("dot", "cosine", "tensor_cosine"), breakdown="layer", preconditioned=True),
    "embed": Embed(),
}


@pytest.fixture(scope="module")
def at_once(run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ScoreStore]:
    """Each method's scores with all defaults."""
    folder = tmp_path_factory.mktemp("at-once")
    return {name: one.score(run.task(folder / name, example_ids=EXAMPLES)) for name, one in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("changes", [{"batch_size": 7}, {"batch_size": 1000}, {"memory_budget": 30_000}], ids=str)
def test_batches_blocks_and_memory_make_no_difference(
    name: str, changes: dict, run: SmallRun, at_once: dict[str, ScoreStore], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = at_once[name]
    monkeypatch.setattr(passes, "BLOCK", 13)
    second = METHODS[name].score(run.task(tmp_path / "scores", example_ids=EXAMPLES, **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
    for kind in first.kinds:
        scale = float(np.abs(first.matrix(kind)).max())
        np.testing.assert_allclose(second.matrix(kind), first.matrix(kind), rtol=1e-9, atol=1e-9 * scale)
    for query in first.query_ids.tolist() if first.breakdown else ():
        others = second.parts(query, "layer", "dot")
        for layer, scores in first.parts(query, "layer", "dot").items():
            np.testing.assert_allclose(others[layer], scores, rtol=1e-9, atol=1e-9)


class CountsBatches(TracIn):
    """TracIn that breaks off, as if the machine had failed."""

    name = "counts-batches"
    begun: list[int] = []  # noqa: RUF012
    fails_at = -1

    def score(self, task: Task) -> ScoreStore:
        begin = GradientScores._begin

        def counting_begin(*arguments: Any) -> Any:
            score = begin(*arguments)

            def counted(batch: dict[str, torch.Tensor]) -> Any:
                if len(self.begun) == type(self).fails_at:
                    raise RuntimeError("the power is out")
                self.begun.extend([len(batch["labels"])])
                return score(batch)

            return counted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GradientScores, "_begin", counting_begin)
            return super().score(task)


@pytest.fixture
def counting() -> Iterator[CountsBatches]:
    CountsBatches.begun.clear()
    yield CountsBatches("all")
    CountsBatches.fails_at = -1


@pytest.mark.parametrize("fails_at", [0, 5, 9])
def test_what_was_finished_is_not_done_again(
    fails_at: int, counting: CountsBatches, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "BLOCK", 16)
    task = run.task(tmp_path / "s", example_ids=EXAMPLES)  # 5 blocks of 1 batch, 3 snapshots
    CountsBatches.fails_at = fails_at
    with pytest.raises(RuntimeError, match="the power is out"):
        counting.score(task)
    assert not (tmp_path / "s").exists()
    CountsBatches.fails_at = -1
    store = counting.score(task)
    assert len(counting.begun) == 15
    assert {path.name for path in tmp_path.iterdir()} == {"s"}
    whole = TracIn("all").score(run.task(tmp_path / "whole", example_ids=EXAMPLES))
    for kind in whole.kinds:
        np.testing.assert_allclose(store.matrix(kind), whole.matrix(kind), rtol=1e-12)


def test_other_settings_dont_go_on(
    counting: CountsBatches, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "BLOCK", 16)
    CountsBatches.fails_at = 7
    with pytest.raises(RuntimeError):
        counting.score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    CountsBatches.fails_at = -1
    for method, changes, different in (
        (CountsBatches("all", answers="one"), {}, "options"),
        (TracIn("all"), {}, "class, method"),
        (counting, {"example_ids": EXAMPLES[1:]}, "examples"),
        (counting, {"query_ids": np.array([1, 0])}, "queries, queries of a pass"),
        (counting, {"memory_budget": 1}, "queries of a pass, by memory_budget"),
    ):
        with pytest.raises(ValueError, match=rf"unfinished scores of other settings \({different}"):
            method.score(run.task(tmp_path / "s", **{"example_ids": EXAMPLES, **changes}))
    file = next(iter((tmp_path / "s-partial").glob("*.npz")))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"missing or damaged .* Delete it"):
        counting.score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    file.unlink()
    counting.score(run.task(tmp_path / "s", example_ids=EXAMPLES))


def test_what_failed_before_its_first_block_leaves_nothing_and_binds_nobody(
    counting: CountsBatches, run: SmallRun, tmp_path: Path
) -> None:
    CountsBatches.fails_at = 0
    with pytest.raises(RuntimeError):
        counting.score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    assert list(tmp_path.iterdir()) == []
    killed = PartialScores(tmp_path / "s", {"a": 1})  # a process that is killed can't remove it
    killed.begin()
    store = TracIn(answers="one").score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    assert store.manifest["answers"] == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s-partial").mkdir()
    (tmp_path / "s-partial" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no unfinished scores"):
        PartialScores(tmp_path / "s", {}).begin()
    assert (tmp_path / "s-partial" / "thesis.txt").read_text() == "mine"


def test_of_two_files_of_a_place_the_later_counts(tmp_path: Path) -> None:
    partial = PartialScores(tmp_path / "s", {"a": 1})
    partial.begin()
    for name in ("000000-000002.block-000003.001", "000000-000002.block-000003.002", "000002-000004.block-000000.001"):
        (partial.folder / f"queries-{name}.{'0' * 32}.npz").touch()
    assert partial.passes_done() == {BlockRange(0, 2, 3): 2, BlockRange(2, 4, 0): 1}


def test_killed_then_finished_by_two_processes(run: SmallRun, tmp_path: Path) -> None:
    folder = small_run.write_run_folder(run, tmp_path / "run")
    command = [
        script("in_small_blocks"), "attribute", "--method=tracin", f"--run={folder}",
        "--method.snapshots=all", "--method.breakdown=layer", "--accelerator=cpu", "--memory_budget=50kB",
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    environment = {
        **os.environ, "NOTES": str(tmp_path / "notes"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root),
    }  # fmt: skip
    (tmp_path / "notes").touch()
    total = len(run.data.train_rows)
    blocks = -(-total // 16)
    killed = warm_python.run(*command, env={**environment, "KILL_AFTER": str(blocks + 4)})
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert not (folder / "tracin").exists()
    done = warm_python.run(*command, "--devices=2", env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Wrote scores") == 1
    ranks = (tmp_path / "notes").read_text().split()
    assert ranks.count("1") > blocks // 2
    store = ScoreStore.open(folder / "tracin")
    chunks = len(ranks) // (3 * blocks)
    assert len(ranks) == 3 * blocks * chunks  # the sum that was in place when it was killed counts
    assert chunks > 1
    whole = TracIn("all", breakdown="layer").score(run.task(tmp_path / "whole"))
    assert store.kinds == whole.kinds
    for kind in whole.kinds:
        np.testing.assert_allclose(store.matrix(kind), whole.matrix(kind), rtol=1e-3, atol=2e-5)
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "snapshots", "tracin"}
