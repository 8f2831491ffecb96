"""One hostile corpus goes through every command: nothing in it acts on a terminal, a spreadsheet or Markdown."""

from __future__ import annotations

import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
import yaml

from ftrace.cli import COMMANDS, main
from ftrace.shown_text import plain
from helpers.hostile_corpus import SHOWN, TEXTS, check_csv, check_markdown, check_terminal, config_of, write_corpus

BY_COMMAND: dict[str, list[str]] = {
    "ask": ["{run}", "array[i] lies in", "--answer=\x1b[2J\x1b[Hland"],
    "attribute": ["--method=tracin", "--run={run}", "--output_dir={run}/-[b]$x$"],
    "causal-trace": ["--run={run}", "--only_correct=false", "--sample=3", "--output_dir={run}/causal [red]"],
    "check": ["{run}/online", "{run}/snapshots", "{run}/=bm25"],
    "counterfactual": ["online", "=bm25", "--run={run}", "--subsets=3", "--unit=row", "--queries=all", "--sample=6"],
    "evaluate": ["online", "=bm25", "[x]\x1b[31m", "--run={run}", "--queries=all", "--by=proponents",
                 "--against=[x]\x1b[31m bm25"],
    "index": ["--run={run}", "--projection_side=2", "--output_dir={run}/index"],
    "learned-when": ["online", "=bm25", "--run={run}", "--output={run}/learned [red].json"],
    "ledger": ["{run}/online", "--output={run}/ledger [red].png"],
    "report": ["{run}", "--tokens=0", "--queries=1", "--figures={run}/figures [red]", "--out={run}/[red].html"],
    "search": ["--index={run}/index", "--output_file={run}/results [red].jsonl", "-k=3", "--against=online:dot"],
    "show": ["online", "=bm25", "[x]\x1b[31m", "--run={run}", "--query=array[i]"],
    "tail-patch": ["online", "=bm25", "--run={run}", "-k=1", "--queries=all", "--sample=6"],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what training printed."""
    folder = tmp_path_factory.mktemp("a[b]c =x|y")
    write_corpus(folder)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(folder)))
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        assert main(["fit", "--config", str(config)]) == 0, printed.getvalue()
    run = folder / "runs" / "version_0"
    for name in ("=bm25", "[x]\x1b[31m"):
        shutil.copytree(run / "bm25", run / name)
    return run, printed.getvalue()


def test_training_ends_with_the_texts_as_they_are(trained: tuple[Path, str]) -> None:
    run, printed = trained
    check_terminal(printed)
    assert "Where everything is:" in printed
    check_all_tables(run)


def test_every_command_is_here() -> None:
    assert BY_COMMAND.keys() == COMMANDS.keys() - {"synth", "study"}, "synth reads no texts; study is tested below"


@pytest.mark.parametrize("command", BY_COMMAND)
def test_command_shows_the_texts_as_they_are(
    trained: tuple[Path, str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = trained
    arguments = [argument.replace("{run}", str(run)) for argument in BY_COMMAND[command]]
    code = main([command, *arguments])
    said = capsys.readouterr()
    assert code == 0, said.err
    check_terminal(said.out + said.err)
    check_all_tables(run)


def test_all_texts_are_shown_whole(trained: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = trained
    assert main(["show", f"--run={run}"]) == 0
    shown = capsys.readouterr().out
    assert [text for text in SHOWN if f"{TEXTS[text]} lies in" not in shown] == []
    assert main(["show", f"--run={run}", "--query=array[i]", "-k=60"]) == 0
    shown = capsys.readouterr().out
    assert [name for name, text in TEXTS.items() if f"{plain(text)} lies in" not in shown] == []


@pytest.mark.parametrize("name", ["x[/b]", "\x1b[2J", "\u202e", "\udc80"])
def test_a_mistake_is_said_as_text(name: str, trained: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = trained
    for arguments in (["show", name], ["show", f"--run={run}", "--query", name], ["evaluate", "online", "--run", name]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        check_terminal(said)
        assert said.count("\n") == 1


def check_all_tables(run: Path) -> None:
    """Hold that no table beside the run's scores is more than a table."""
    tables = [file for file in run.rglob("*.csv") if file.name != "metrics.csv"]
    assert tables
    for file in tables:
        check_csv(file)
    for file in run.rglob("*.md"):
        check_markdown(file)
    for file in run.glob("*.txt"):
        check_terminal(file.read_text().removeprefix(str(run)))


def test_a_terminal_that_knows_few_characters(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = trained
    written = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(written, encoding="ascii"))
    assert main(["show", f"--run={run}", "--query=array[i]"]) == 0
    assert b"array[i] lies in" in written.getvalue()
