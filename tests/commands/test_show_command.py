"""`ftrace show`: what can be named, what is found, what the model said, and that nothing heavy is imported for it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ftrace.cli import main
from ftrace.data import SENTINEL, FtraceSynth
from ftrace.evaluation import Passages, RetrievalResult, write_results
from ftrace.evaluation.beam_search import beam_answers
from ftrace.run_folder import fresh_answers, kept_answers, stores_in
from ftrace.runs import Run
from ftrace.scores import EXAMPLE_ID, QUERY_ID, ScoreStore, Texts, show_command
from helpers.made_run import SNAPSHOTS, data_of, make_run, note_snapshot, train, write_scores
from helpers.made_store import EXAMPLES, QUERIES, SCORES, make_ledger, make_store

Show = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Show:
    """A function that runs the command and returns its lines."""

    def show(*arguments: object) -> list[str]:
        assert main(["show", *map(str, arguments)]) == 0
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return show


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FtraceSynth]:
    folder = tmp_path_factory.mktemp("runs")
    data = data_of(folder / "data")
    run = make_run(folder / "my run", folder / "data")
    train(run, data)
    examples, queries = (
        Texts.of(table, key) for table, key in zip(data.describe(), (EXAMPLE_ID, QUERY_ID), strict=True)
    )
    write_scores(run / "online", data, {"learning": 0.1, "update": 0.1}).put_texts(examples, queries)
    write_scores(run / "bm25", data, {"bm25": 0.5}, seed=1)
    return run, data


# Naming


def test_a_list_of_queries_names_the_next_command(shown: Show, tmp_path: Path) -> None:
    store = make_store(tmp_path / "my store", ledger=make_ledger())
    lines = shown(store.path)
    assert lines[0] == "2 queries, by my store learning"
    assert "17     The capital of Sweden is  Stockholm" in lines[4]
    assert lines[-1] == f"One of them: ftrace show '{store.path}' --query 0 or --search WORDS"


def test_a_query_by_id_by_words_and_several_hits(shown: Show, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", ledger=make_ledger())
    by_id = shown(store.path, "--query=17", "-k2")
    assert by_id[0] == "query 17: The capital of Sweden is"
    assert by_id == shown(store.path, "-k", 2, "--search", "Stockholm")
    both = shown(store.path, "-k2", "--search", "capital")
    assert both[0] == "2 queries have 'capital'; the first:"
    assert "query 0: The capital of Norway is" in both


def test_what_is_shown_is_what_top_returns(shown: Show, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    lines = shown(store.path, "--query=17", "-k3", "--opponents=1")
    ids, scores = store.top(17, 3)
    listed = [line.split() for line in lines if "#" in line]
    assert [words[:2] for words in listed] == [["1", "+1.00"], ["2", "+0.50"], ["1", "-0.500"]]
    assert scores.tolist() == [1.0, 0.5, 0.25]  # the third is folded into the second
    assert [f"#{known}" in " ".join(lines) for known in ids.tolist()] == [True, True, False]
    assert listed[1][-2:] == ["+1", "alike"]


def test_a_run_stands_for_its_online_scores(shown: Show, trained: tuple[Path, FtraceSynth]) -> None:
    run, _ = trained
    assert [folder.name for folder in stores_in(run)] == ["online", "bm25"]
    assert shown(run)[0] == "8 queries, by online learning"
    assert shown("--run", run)[0] == "8 queries, by online learning"
    assert shown(run.parent / "my run" / "bm25")[0] == "8 queries, by bm25"
    assert shown("bm25", "online:update", "--run", run)[0] == "8 queries, by bm25, online update"
    assert shown(f"{run}/online:update", f"{run}/online")[0] == "8 queries, by online update, online learning"
    assert shown(f"{run}/online", "--kind=update")[0] == "8 queries, by online update"


def test_the_newest_version_of_a_run(shown: Show, tmp_path: Path) -> None:
    for version in (9, 10):
        folder = tmp_path / "demo" / f"version_{version}"
        make_store(folder / "online", queries=[{**row, "text": f"version {version}"} for row in QUERIES])
        (folder / "config.yaml").write_text("{}\n")
    assert "version 10" in shown(tmp_path / "demo")[3]


def test_results_of_a_search_beside_a_store(shown: Show, tmp_path: Path) -> None:
    texts = [EXAMPLES[3]["text"], "Something else\nin two lines", "Not that"]
    result = RetrievalResult(
        example_id=17, query_set="trex", prompt="The capital of Sweden is", target="<extra_id_0> Stockholm",
        proponents=Passages(texts[:2], [11, "c4-7"], [5.0, 1.0]), opponents=Passages(texts[2:], ["c4-9"], [-2.0]),
        correct=[True, False],
    )  # fmt: skip
    write_results(tmp_path / "results.jsonl", [result])
    lines = shown(tmp_path / "results.jsonl", "--query=17")
    assert lines[:2] == ["query 17: The capital of Sweden is", "  answer  Stockholm"]
    assert "   1  +5.00   100%  yes     The capital of Sweden is Stockholm.  #11" in lines
    assert "   2  +1.00    20%  no      Something else ↵ in two lines  c4-7" in lines
    assert "   1  -2.00   -40%  Not that  c4-9" in lines
    joined = shown(tmp_path / "results.jsonl", make_store(tmp_path / "online").path, "--query=17", "-k2")
    assert any(line.split()[:6] == ["1", "+5.00", "100%", "1", "+1.00", "100%"] for line in joined)


def test_missing_texts_are_said_once_and_joined_from_files(shown: Show, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", examples=None, queries=None)
    lines = shown(store.path, "--query=0")
    assert lines[0] == "query 0"
    assert "   1  +4.00   100%  #3" in lines
    assert sum("--texts FILE" in line for line in lines) == 1
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, EXAMPLES)))
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, QUERIES)))
    texts = [tmp_path / "examples.jsonl", tmp_path / "queries.jsonl"]
    told = shown(store.path, "--query=0", "--texts", *texts)
    assert told == shown(make_store(tmp_path / "t" / "s").path, "--query=0")
    assert not store.path.joinpath("examples.parquet").exists()
    assert main(["show", str(store.path), "--texts", str(texts[0]), str(texts[0])]) == 2


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "stores: expected a score store, a run or a file of results, found none"),
        (["{}/nothing"], "expected the folder of a score store, found nothing at"),
        (["{}/nothing.jsonl"], "expected a file of results, found nothing at"),
        (["{}/s", "{}/s"], "stores: expected each once"),
        (["{}/s:dot", "--query=0"], "expected one of the kinds learning, update, found 'dot'"),
        (["{}/s", "--query=1"], "query: no query '1' among 2; the nearest: 0, 17"),
        (["{}/s", "--query=\x1b[2J"], r"no query '\\x1b[2J' among 2"),
        (["{}/s", "--search", "zebra"], "search: none of 2 queries has that word: 'zebra' is in none"),
        (["{}/s", "--query=0", "--search", "x"], "expected one of query and search, found both"),
        (["{}/s", "-k0"], "k: expected at least 1, found 0"),
        (["{}/s", "--opponents=-1"], "opponents: expected at least 0, found -1"),
        (["{}/s", "--texts", "{}/none.csv"], "none.csv"),
        (["--run", "{}"], "is not the folder of a run"),
        (["{}/empty"], "expected score stores in the run's folder, found none"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "s", {"learning": SCORES, "update": SCORES})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("{}\n")
    assert main(["show", *(argument.replace("{}", str(tmp_path)) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert "\x1b" not in error


# What the model said


def test_the_model_is_asked_once(shown: Show, trained: tuple[Path, FtraceSynth], tmp_path: Path) -> None:
    run, data = tmp_path / "my run", trained[1]
    shutil.copytree(trained[0], run)
    assert fresh_answers(run) == {}
    lines = shown(run, "--query=3")
    assert fresh_answers(run).keys() == {3}
    with torch.no_grad():
        batch = data.query_dataloader().collate_fn([data.query_rows[3]])
        ((best, *_),) = beam_answers(Run(run).model, batch, data.tokenizer, 3, 8)  # type: ignore[arg-type]
    assert best.text is not None
    said = fresh_answers(run)[3]
    assert "".join(said["text"].split()) == "".join(SENTINEL.sub("", best.text).split())
    assert said["probability"] == pytest.approx(np.exp(best.log_probability))
    assert said["right"] == (3 in Run(run).learned("last").query_ids)
    (line,) = [line for line in lines if "the model said" in line]
    assert said["text"] in line
    assert SNAPSHOTS[1] in line
    before = (run / "answers.json").read_bytes()
    assert shown(run, "--query=3") == lines
    assert (run / "answers.json").read_bytes() == before
    everything = Run(run).answers()
    assert everything.keys() == set(range(8))
    assert vars(everything[3]) == said


def test_answers_of_other_weights_are_not_taken(trained: tuple[Path, FtraceSynth], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    answers = Run(run).answers()
    key = Run(run).learned_key([Run(run).last_snapshot])
    weights = run / "snapshots" / SNAPSHOTS[1] / "weights.safetensors"
    os.utime(weights)  # a copy is not read without a look at the weights
    assert fresh_answers(run) == {}
    assert kept_answers(run, key).keys() == answers.keys()
    asked = Run(run)
    asked.model_at = None  # type: ignore[assignment, method-assign]  # nothing is asked again
    assert asked.answers() == answers
    assert fresh_answers(run).keys() == answers.keys()
    shutil.copy(run / "snapshots" / SNAPSHOTS[0] / "weights.safetensors", weights)
    with pytest.raises(ValueError, match="is damaged"):
        Run(run).answers()
    note_snapshot(weights.parent, json.loads((weights.parent / "snapshot.json").read_text())["tied"])
    assert fresh_answers(run) == {}
    assert Run(run).answers() != answers
    for damage in ("garbage", "[]", '{"answers": {"x": {}}}', '{"key": 1, "stamp": 2, "answers": {"3": {}}}'):
        (run / "answers.json").write_text(damage)
        assert fresh_answers(run) == {}


def test_a_run_of_another_module_is_not_asked(shown: Show, tmp_path: Path) -> None:
    make_store(tmp_path / "run" / "online")
    (tmp_path / "run" / "config.yaml").write_text("model: {class_path: mine.Line}\ndata: {class_path: mine.Points}\n")
    (tmp_path / "run" / "snapshots" / "step-1").mkdir(parents=True)
    (tmp_path / "run" / "snapshots" / "step-1" / "snapshot.json").touch()
    assert not any("the model said" in line for line in shown(tmp_path / "run", "--query=0"))


# The next command


def test_the_named_command_works(trained: tuple[Path, FtraceSynth], capsys: pytest.CaptureFixture[str]) -> None:
    run = trained[0]
    output = run / "bm 25"
    assert main(["attribute", "--method=bm25", f"--run={run}", f"--output_dir={output}"]) == 0
    (command,) = re.findall(r"Look at them: ftrace (.*)", capsys.readouterr().out)
    assert main([*shlex.split(command), "--query=0"]) == 0
    by_bm25 = capsys.readouterr().out
    assert "by bm 25 bm25" in by_bm25
    assert main(["evaluate", str(output), str(run / "online"), "--queries=all", f"--output_dir={run / 'table'}"]) == 0
    (command,) = re.findall(r"Query by query: ftrace (.*)", capsys.readouterr().out)
    assert main([*shlex.split(command), "--query=0"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == by_bm25.splitlines()[0]


# Speed


def test_nothing_heavy_is_imported(trained: tuple[Path, FtraceSynth]) -> None:
    run = trained[0]
    Run(run).answers([0])
    check = (
        "import sys\nfrom ftrace.cli import main\n"
        f"for arguments in (['show', {str(run)!r}], ['show', {str(run)!r}, '--query=0', '--search']):\n"
        "    main(arguments[:3])\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'pandas', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the model said" in done.stdout


def test_the_next_command_is_quoted() -> None:
    assert show_command("runs/a b", "it's") == """ftrace show 'runs/a b' 'it'"'"'s'"""


def test_a_store_is_read_by_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Show) -> None:
    """Of a matrix, the columns of the queries that are shown are read, and no others."""
    store = make_store(tmp_path / "s", np.tile(SCORES, 1))
    asked: list[int] = []
    scores = ScoreStore.scores

    def counted(self: ScoreStore, query_id: int, kind: str | None = None) -> np.ndarray:
        asked.append(query_id)
        return scores(self, query_id, kind)

    monkeypatch.setattr(ScoreStore, "scores", counted)
    monkeypatch.setattr(ScoreStore, "matrix", None)
    shown(store.path, "--query=17")
    assert asked == [17]
