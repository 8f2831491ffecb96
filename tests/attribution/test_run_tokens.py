"""Scores of tokens of a finished run: at each query's own snapshot, in the tokens' own texts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftrace.attribution import MadeTokens, TracIn, make_tokens, snapshot_for
from ftrace.models import FactLM
from ftrace.runs import Run
from ftrace.scores import AnswerRecord
from helpers import small_run
from helpers.small_run import SmallRun

EXAMPLES = {0: [3, 17, 4], 2: [17], 1: [30, 2, 5, 9, 11]}
SNAPSHOTS = ["step-00000001", "step-00000002", "step-00000004"]


@pytest.fixture(scope="module", params=list(small_run.CONFIGS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make(request.param, tmp_path_factory.mktemp("run"))


def answers_of(learned_steps: Mapping[int, int]) -> AnswerRecord:
    """A record of queries that are first answered right at these steps; -1: never."""
    steps = np.arange(7)
    right = np.stack([(steps >= step) & (step >= 0) for step in learned_steps.values()], 1)
    return AnswerRecord(steps, list(learned_steps), right)


def values_of(made: MadeTokens) -> list[float]:
    return [
        number
        for query in made.by_query.values()
        for example in query.examples
        for number in (example.total, *(value for s in example.sequences for value in s.values))
    ]


def test_sums_over_tokens_are_tracin_at_the_querys_snapshot(run: SmallRun, tmp_path: Path) -> None:
    made = make_tokens(run.task(tmp_path), answers_of({0: 3, 1: -1, 2: 1}), EXAMPLES)
    assert not made.reasons
    assert list(made.by_query) == list(EXAMPLES)
    for query, snapshot in {0: 2, 1: 4, 2: 1}.items():
        few = run.task(tmp_path / f"at-{snapshot}", example_ids=np.arange(32))
        scores = TracIn([snapshot]).score(few).scores(query, "dot")
        found = made.by_query[query]
        assert found.snapshot == f"step-{snapshot:08d}"
        assert [example.example_id for example in found.examples] == EXAMPLES[query]
        for example in found.examples:
            told = sum(value for sequence in example.sequences for value in sequence.values)
            np.testing.assert_allclose([example.total, told], scores[example.example_id], rtol=1e-9)


def test_texts_are_those_of_the_rows(run: SmallRun, tmp_path: Path) -> None:
    made = make_tokens(run.task(tmp_path), None, EXAMPLES)
    for example in made.by_query[1].examples:
        row = run.data.train_rows[example.example_id]
        texts = {sequence.name: "".join(sequence.tokens) for sequence in example.sequences}
        inputs, targets = row["inputs_pretokenized"], row["targets_pretokenized"]
        if run.data.architecture == "encoder-decoder":
            assert texts == {"input": f"{inputs} </s>", "target": f"{targets} </s>"}
        else:
            assert texts == {"text": f"{inputs} {targets} </s>"}
        for sequence in example.sequences:
            assert len(sequence.tokens) == len(sequence.values) == len(texts[sequence.name].split())


def test_values_depend_on_no_batch_and_are_the_same_again(run: SmallRun, tmp_path: Path) -> None:
    made = [make_tokens(run.task(tmp_path), None, EXAMPLES, batch_size=size) for size in (16, 16, 1, 3)]
    assert made[0] == made[1]
    for other in made[2:]:
        np.testing.assert_allclose(values_of(other), values_of(made[0]), rtol=1e-9, atol=1e-12)


def test_each_snapshot_is_loaded_once(run: SmallRun, tmp_path: Path) -> None:
    loaded = []

    def load(folder: Path) -> FactLM:
        loaded.append(folder.name)
        return run.load_model(folder)

    queries = range(6)
    steps = {query: 1 if query % 2 else 4 for query in queries}
    make_tokens(run.task(tmp_path, load_model=load), answers_of(steps), {query: [query] for query in queries})
    assert loaded == ["step-00000001", "step-00000004"]


NEAREST = [(None, 2), (-1, 2), (0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (900, 2)]  # 3 is as near to 2 as to 4


@pytest.mark.parametrize(("learned_step", "expected"), NEAREST)
def test_the_snapshot_is_the_nearest_to_where_the_query_was_learned(learned_step: int | None, expected: int) -> None:
    assert snapshot_for(learned_step, [Path(name) for name in SNAPSHOTS]).name == SNAPSHOTS[expected]


def test_the_note_says_where_and_what(run: SmallRun, tmp_path: Path) -> None:
    task = run.task(tmp_path)
    notes = [made.by_query[0].note for made in (
        make_tokens(task, answers_of({0: 3}), {0: [1]}),
        make_tokens(task, answers_of({0: -1}), {0: [1]}),
        make_tokens(task, answers_of({0: 0}), {0: [1]}),
        make_tokens(task, None, {0: [1]}),
    )]  # fmt: skip
    expected = (
        "The snapshot is the nearest to step 3, where the query was first answered right.",
        "The snapshot is the last, as the query was never answered right.",
        "The snapshot is the nearest to step 0: the query was answered right before training.",
        "The snapshot is the last.",
    )
    for note, when in zip(notes, expected, strict=True):
        assert note.endswith(when)
        assert ("target where they are predicted" in note) == (run.data.architecture == "encoder-decoder")


def test_what_keeps_no_tokens_is_named_with_its_share(run: SmallRun, tmp_path: Path) -> None:
    def load(folder: Path) -> FactLM:
        model = run.load_model(folder)
        head = model.model.get_output_embeddings()
        scale = model.scale = NoTokens()  # type: ignore[assignment]
        head.register_forward_hook(lambda module, args, output: scale(output))
        return model

    found = make_tokens(run.task(tmp_path, load_model=load), None, {0: [1, 2]}).by_query[0]
    sums = [sum(value for s in example.sequences for value in s.values) for example in found.examples]
    lacking = sum(abs(example.total - told) for example, told in zip(found.examples, sums, strict=True))
    share = lacking / (lacking + sum(map(abs, sums)))
    assert share > 1e-3
    assert found.note.endswith(f"with their share of the totals: scale.factor ({share:.1%}).")


class NoTokens(torch.nn.Module):
    """A layer that the engine has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        return output * self.factor


def test_a_report_that_can_have_no_tokens_says_why(run: SmallRun, tmp_path: Path) -> None:
    def why(run: Any, examples: Mapping[int, Sequence[int]] = EXAMPLES) -> str:
        made = make_tokens(run, None, examples)
        assert not made.by_query
        (reason,) = made.reasons
        return str(reason)

    assert why(None).endswith("that takes a run's model and snapshots. Give the run's folder")
    assert why(run.task(tmp_path, snapshots=[])).endswith("the run has no snapshots. Train with CheckpointSnapshots")
    folder = small_run.write_run_folder(run, tmp_path / "written")
    shutil.rmtree(folder / "snapshots")
    assert why(Run(folder)) == why(run.task(tmp_path, snapshots=[]))
    config = folder / "config.yaml"
    other = "class_path: lightning.pytorch.demos.boring_classes.BoringModel"
    of_fact_lm = r"class_path: ftrace.models.FactLM\n  init_args:(\n    .*)+"
    config.write_text(re.sub(of_fact_lm, other, config.read_text()))
    (folder / "snapshots").symlink_to(run.snapshots[0].parent)
    assert "model: lightning.pytorch.demos.boring_classes.BoringModel. If you trust all of it" in why(Run(folder))
    assert "BoringModel does not correspond to a subclass of FactLM" in why(Run(folder, trust=True))


def test_ids_of_other_data_are_left_out_and_said(run: SmallRun, tmp_path: Path) -> None:
    count = len(run.data.train_rows)
    made = make_tokens(run.task(tmp_path), None, {0: [1, count, -1], 10**6: [0], 1: [10**12]})
    assert list(made.by_query) == [0]
    assert [example.example_id for example in made.by_query[0].examples] == [1]
    assert [reason.partition(":")[0] for reason in made.reasons] == [
        "1 of 3 queries are not told token by token", "3 examples are not told token by token",
    ]  # fmt: skip
