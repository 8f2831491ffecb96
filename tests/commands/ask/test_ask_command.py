"""`ftrace ask`: a question to a run, who taught the answer, who argued for another one, and bad input."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ftrace.attribution import TrackStar
from ftrace.cli import main
from ftrace.commands import answer_scores
from ftrace.commands.answer_scores import find_index, score_answers
from ftrace.commands.asking import Question
from ftrace.commands.index_corpus import Corpus
from ftrace.index import GradientIndex, SearchSettings, WhiteningSettings, prepare_search, top_k
from ftrace.index.prepared_search import snapshot_of
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from helpers import small_run
from helpers.command_line import code
from helpers.made_index import change_manifest
from helpers.small_run import SmallRun

INDEX = "index-step-00000004"


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder-only"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make(request.param, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def indexed(run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with an index, which nothing writes to."""
    folder = small_run.write_run_folder(run, tmp_path_factory.mktemp("indexed") / "run")
    assert main(["index", f"--run={folder}", "--projection_side=2", "--accelerator=cpu"]) == 0
    return folder


@pytest.fixture
def folder(run: SmallRun, tmp_path: Path) -> Path:
    return small_run.write_run_folder(run, tmp_path / "run")


def lists(printed: str) -> dict[str, list[int]]:
    """The ids of each list of examples, by its heading."""
    by_heading: dict[str, list[int]] = {}
    ids: list[int] = []
    for line in printed.splitlines():
        if line.startswith("Who "):
            ids = by_heading.setdefault(line.strip(), [])
        elif match := re.search(r"#(\d+)(  \+\d+ alike)?$", line):
            ids.append(int(match.group(1)))
    return by_heading


def wrong_answer(run: SmallRun, query: int = 0) -> str:
    """An answer that no other query calls by another name, and that isn't the query's."""
    right = set(run.data.query_rows[query]["answers"])
    return next(row["answers"][0] for row in run.data.query_rows if not right & set(row["answers"]))


def test_scores_are_those_of_a_search(run: SmallRun, indexed: Path) -> None:
    opened, of_run = GradientIndex(indexed / INDEX), Run(indexed)
    store = TrackStar(str(indexed / INDEX)).score(run.task(indexed.parent / f"trackstar-{run.data.architecture}"))
    corpus = replace(Corpus.of(opened, of_run))
    for place, row in enumerate(run.data.query_rows):
        question = Question(of_run.data, row["inputs_pretokenized"])
        ids, scores = score_answers(opened, corpus, question, [question.row(row["answers"][-1])])
        np.testing.assert_array_equal(ids, store.example_ids)
        np.testing.assert_allclose(scores[:, 0], store.scores(place), rtol=1e-4, atol=1e-5)


def test_what_is_shown_is_what_a_search_finds(run: SmallRun, indexed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an answer that the model doesn't give, too: first and last of its search are who taught and who argued."""
    row, wrong = run.data.query_rows[0], wrong_answer(run)
    question = Question(run.data, row["inputs_pretokenized"])
    capsys.readouterr()
    assert code("ask", indexed, row["inputs_pretokenized"], "--answer", wrong, "-k", 4, "--opponents=4") == 0
    printed = capsys.readouterr().out
    of_run = Run(indexed)
    opened = GradientIndex(indexed / INDEX)
    forms = question.forms(wrong)
    asked = {**row, "targets_pretokenized": f"<extra_id_0> {forms[0]}", "answers": list(forms)}
    prepared = prepare_search(
        opened, of_run.model_at, of_run.data.query_batches([asked]), lambda model, batch: model.example_losses(batch),
        SearchSettings(), of_run.data.query_batches(list(of_run.data.query_rows)),
    )  # fmt: skip
    proponents, opponents = top_k(opened, prepared.queries, 4)
    shown = lists(printed)
    names = [name for name in shown if name.endswith(f"“{forms[0]}”")]
    taught = next(shown[name] for name in names if name.startswith("Who taught"))
    against = next(shown[name] for name in names if name.startswith("Who argued against"))
    # near-duplicates are folded into the strongest of them
    assert taught == [example for example in proponents.ids[0].tolist() if example in taught]
    assert taught[0] == proponents.ids[0, 0]
    assert against == [example for example in opponents.ids[0].tolist() if example in against]
    assert against[0] == opponents.ids[0, 0]
    assert sum(name.startswith("Who argues for") for name in shown) == 2


@pytest.mark.parametrize("has_lengths", [True, False])
def test_segments_count_by_how_much_a_query_is_being_learned(indexed: Path, has_lengths: bool) -> None:
    of_run = Run(indexed)
    opened, batches = GradientIndex(indexed / INDEX), of_run.data.query_batches(list(of_run.data.query_rows))
    plain, learning = (
        prepare_search(
            opened, of_run.model_at, batches, lambda model, batch: model.example_losses(batch),
            SearchSettings(learning=learning), lengths=(lambda model, batch: torch.full((len(batch["query_id"]),), 40))
            if has_lengths else None,
        )
        for learning in (False, True)
    )  # fmt: skip
    for segment, one, other in zip(opened.segments, plain.queries, learning.queries, strict=True):
        model = of_run.model_at(snapshot_of(opened, segment))
        losses = torch.cat([model.example_losses(batch) for batch in batches]).detach() / (10 if has_lengths else 1)
        weights = (torch.exp(-losses) * (1 - torch.exp(-losses))).sqrt()
        expected = one.vectors * weights.to(one.vectors).unsqueeze(1)
        torch.testing.assert_close(other.vectors, expected, rtol=1e-5, atol=1e-8)


def test_a_question_that_nobody_has_asked(run: SmallRun, indexed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = run.data.train_rows[0]["inputs_pretokenized"].replace("<extra_id_0>", "___").split()
    capsys.readouterr()
    assert code("ask", indexed, *words, "Oslo", "--likeliest=2", "-k", 1) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == " ".join([*words, "Oslo"]).replace("___", "<extra_id_0>")
    assert "The model doesn't know 'Oslo': it reads unknown words" in printed
    assert "right" not in printed
    assert "states" not in printed  # nobody knows the fact
    assert list(map(len, lists(printed).values())) == [1, 3]


def test_a_missing_index_is_made_once(run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ask", folder, run.data.query_rows[0]["inputs_pretokenized"]]
    assert code(*asked) == 0
    first = capsys.readouterr()
    assert "Making a gradient index of" in first.err
    assert "Wrote" not in first.out
    assert (folder / INDEX / "index.json").exists()
    assert code(*asked) == 0
    second = capsys.readouterr()
    assert "Making" not in second.err
    assert second.out == first.out
    assert code(*asked, "--snapshot=2", "-k", 1) == 0
    assert "gradients at step 2" in capsys.readouterr().out
    assert code(*asked, f"--index={INDEX}", "--snapshot=2", "-k", 1) == 0
    printed = capsys.readouterr().out
    assert "gradients at step 4" in printed
    assert "at step-00000002" in printed


def test_an_index_that_takes_too_long_is_not_made(
    run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_scores, "MOST_BYTES", 10)
    row = run.data.query_rows[0]
    asked = ["ask", folder, row["inputs_pretokenized"], f"--answer={row['answers'][0]}", "-k", 2]
    assert code(*asked) == 2
    assert f"Make it with: ftrace index --run {folder}" in capsys.readouterr().err
    ids, queries = np.arange(len(run.data.train_rows)), np.array(run.data.query_rows["query_id"])
    values = np.random.default_rng(0).normal(size=(len(ids), len(queries)))
    store = ScoreStore.write(folder / "online", ids, queries, {"learning": values, "dot": -values})
    assert code(*asked) == 0
    printed = capsys.readouterr().out
    assert "Until then, what was scored while the run trained" in printed
    shown = next(ids for name, ids in lists(printed).items() if name.startswith("Who taught"))
    assert shown == store.top(0, 2, "learning")[0].tolist()
    assert code(*asked, "--scores=online:dot") == 0
    shown = next(ids for name, ids in lists(capsys.readouterr().out).items() if name.startswith("Who taught"))
    assert shown == store.top(0, 2, "dot")[0].tolist()


def test_scores_of_training_stand_beside_those_of_the_right_answer(
    run: SmallRun, indexed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(indexed, folder, symlinks=True)
    ids, queries = np.arange(len(run.data.train_rows)), np.array(run.data.query_rows["query_id"])
    values = np.zeros((len(ids), len(queries)))
    values[:, 0] = 7.0
    ScoreStore.write(folder / "online", ids, queries, {"learning": values})
    row = run.data.query_rows[0]
    capsys.readouterr()
    assert code("ask", folder, row["inputs_pretokenized"], f"--answer={row['answers'][1]}") == 0
    printed = capsys.readouterr().out
    assert "online learning" in printed
    assert "+7.00" in printed


def test_which_index_is_taken(indexed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(indexed, folder, symlinks=True)
    asked = Run(folder)
    early, last = asked.snapshot(2), asked.last_snapshot
    assert find_index(asked, early) == (None, [])
    assert main(["index", f"--run={folder}", "--projection_side=2", "--accelerator=cpu", "--snapshot=2"]) == 0
    latest, notes = find_index(asked, last)
    assert latest is not None
    assert latest.folder.name == INDEX
    assert notes == [f"Searched in {INDEX}; --index takes another: index-step-00000002"]
    earlier, _ = find_index(asked, early)
    assert earlier is not None
    assert earlier.folder.name == "index-step-00000002"
    (folder / INDEX / "segment-00000004" / "segment.json").unlink()
    left, notes = find_index(asked, last)
    assert left is None  # the other is of other weights
    assert "Passed over" in notes[0]
    assert "is not finished" in notes[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "question: expected words, found none. For example: ftrace ask"),
        ([" "], "question: expected words, found none"),
        (["___"], "question: expected words, found '___'"),
        (["the ___ of ___"], "expected one blank, found 2"),
        (["the painter of " + 3000 * "X "], "question: expected at most 2,048 tokens, found 3,0"),
        (["caf\udce9"], r"question: expected UTF-8, found 'caf\udce9'"),
        (["{}", "--answer="], "answer: expected words, found ''"),
        (["{}", "--answer=xyzzy Xyzzy"], "answer: expected words that the model knows, found 'xyzzy', 'Xyzzy'"),
        (["{}", "--k=0"], "k: expected at least 1, found 0"),
        (["{}", "--opponents=-1"], "opponents: expected at least 0"),
        (["{}", "--likeliest=0"], "likeliest: expected at least 1"),
        (["{}", "--index=nowhere"], "'nowhere' is not a gradient index"),
        (["{}", "--index=a", "--scores=b"], "expected one of index and scores"),
        (["{}", "--scores=nowhere"], "nothing at 'nowhere'"),
        (["never heard of", "--scores=online"], "scores: expected one of the run's queries as the question"),
        (["{}", "--snapshot=3"], "snapshot: expected last, first, or one of the steps"),
    ],
)
def test_bad_input(
    run: SmallRun, indexed: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    row = run.data.query_rows[0]
    given = [argument.replace("{}", row["inputs_pretokenized"]) for argument in arguments]
    if "--scores=nowhere" in given:
        given.append(f"--answer={row['answers'][0]}")
    capsys.readouterr()
    assert code("ask", indexed, *given) == 2
    assert message in capsys.readouterr().err


def test_no_run_and_no_snapshots(run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("ask", folder.parent / "nothing", "who") == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    shutil.rmtree(folder / "snapshots")
    assert code("ask", folder, "who") == 2
    assert "Train with CheckpointSnapshots" in capsys.readouterr().err


def test_an_index_of_other_data(
    run: SmallRun, indexed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(indexed, folder, symlinks=True)
    change_manifest(folder / INDEX, data="0123456789abcdef")
    assert code("ask", folder, run.data.query_rows[0]["inputs_pretokenized"]) == 2
    assert "is of other data than" in capsys.readouterr().err


def test_other_settings_of_whitening_change_scores(run: SmallRun, indexed: Path) -> None:
    opened, of_run = GradientIndex(indexed / INDEX), Run(indexed)
    question = Question(of_run.data, run.data.query_rows[0]["inputs_pretokenized"])
    rows = [question.row(wrong_answer(run))]
    corpus = Corpus.of(opened, of_run)
    plain = SearchSettings(WhiteningSettings("none"))
    first, second = (score_answers(opened, corpus, question, rows, *given)[1] for given in ((), (plain,)))
    assert not np.allclose(first, second)


def test_a_wrong_answer_is_compared_with_the_right_one(
    run: SmallRun, indexed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has learned nothing, so there are such queries."""
    of_run = Run(indexed)
    query = next(query for query, given in of_run.answers().items() if not given.right)
    row = of_run.data.query_rows[query]
    capsys.readouterr()
    assert code("ask", indexed, row["inputs_pretokenized"], "-k", 1, "--opponents=0") == 0
    printed = capsys.readouterr().out
    right = Question(of_run.data, row["inputs_pretokenized"]).form.bare(row["targets_pretokenized"])
    assert f"Who taught “{right}”" in printed
    assert "right" in printed.split("Scores:")[0]
    assert sum(line.startswith("Who argues for") for line in printed.splitlines()) == 2
