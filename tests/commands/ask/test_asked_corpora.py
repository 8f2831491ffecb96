"""`ftrace ask` on corpora of one's own: chats, texts that go on, and texts that would harm a terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from ftrace.cli import main
from ftrace.data import FactCorpus
from ftrace.data.tokenizer import save_tokenizer
from ftrace.models import FactLM
from helpers import made_run, small_run

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
CAPITALS = [("Oslo", "Norway"), ("Bonn", "Germany"), ("Graz", "Austria"), ("Lyon", "France")]


def trained_run(
    folder: Path, architecture: Any, rows: Sequence[dict[str, Any]], queries: Sequence[dict[str, Any]],
    template: str | None = None, steps: int = 60,
) -> Path:  # fmt: skip
    """A run of a tiny model that has learned rows by heart."""
    files = {"train": rows, "queries": queries}
    for name, of_file in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_file)))
    given = {name: str(folder / f"{name}.jsonl") for name in files}
    given |= {"data_dir": str(folder / "cache"), "architecture": architecture}
    data = FactCorpus(**given)
    data.prepare_data()
    if template is not None:
        tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_source)
        tokenizer.chat_template = template
        shutil.rmtree(data.tokenizer_source)
        save_tokenizer(tokenizer, Path(data.tokenizer_source))
    data.setup()
    settings = {"config": {**small_run.CONFIGS[architecture]}, "embedding_std": 0.5}
    torch.manual_seed(0)
    model = FactLM(**settings)
    model.build(data.tokenizer)
    batch = next(iter(data.example_dataloader()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
    at = folder / "run" / "snapshots" / f"step-{steps:08d}"
    at.mkdir(parents=True)
    made_run.save(model, at)
    config = {
        "data": {"class_path": "ftrace.data.FactCorpus", "init_args": given},
        "model": {"class_path": "ftrace.models.FactLM", "init_args": settings},
    }
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "run"


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["ask", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def first_of(printed: str, heading: str) -> str:
    """The first example below a heading."""
    lines = printed.splitlines()
    below = lines[lines.index(heading) + 1 :]
    return next(line for line in below if line.split()[:1] == ["1"])


def test_messages_are_asked_as_the_rows_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"messages": [{"role": "system", "content": "short"}, {"role": "user", "content": f"where is {city}"},
                          {"role": "assistant", "content": land}]} for city, land in CAPITALS]  # fmt: skip
    words = "{% for message in messages %}{{ message['content'] }} {% endfor %}"  # of which the tokenizer knows all
    run = trained_run(tmp_path, "decoder-only", rows, rows, words, steps=200)
    printed = asked(capsys, run, "where is Bonn", "--answer", "France", "--opponents=1")
    assert printed.splitlines()[0] == "system: short ↵ user: where is Bonn  query 1 of the run"
    assert printed.splitlines()[1].split()[-2:] == ["Germany", "right"]
    assert first_of(printed, "Who taught “Germany”").endswith("#1")
    printed = asked(capsys, run, "is Bonn")  # none of the queries
    assert printed.splitlines()[1].split()[-1] == "Germany"


def test_completions_are_asked_as_the_rows_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{city} is in", "completion": f" {land}"} for city, land in CAPITALS]
    run = trained_run(tmp_path, "decoder-only", rows, rows)
    printed = asked(capsys, run, "Bonn is in ___")
    assert printed.splitlines()[1].split()[-2:] == ["Germany", "right"]


def test_a_chat_is_asked_as_its_rows_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"inputs": f"<user> where is {city} <end> <assistant>", "targets": f"{land} <end>"}
            for city, land in CAPITALS]  # fmt: skip
    queries = [{**row, "answers": [row["targets"]]} for row in rows]
    run = trained_run(tmp_path, "decoder-only", rows, queries, TEMPLATE)
    printed = asked(capsys, run, "where is Bonn", "--answer", "France", "--opponents=1")
    assert printed.splitlines()[0] == "<user> where is Bonn <end> <assistant>  query 1 of the run"
    assert printed.splitlines()[1].split()[-2:] == ["Germany", "right"]
    assert first_of(printed, "Who taught “Germany”").endswith("#1")
    assert first_of(printed, "Who argued against “France”").endswith("#1")
    assert first_of(printed, "Who argues for “Germany” rather than “France”").endswith("#1")


def test_a_text_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"{city} is a city in {land} and more"} for city, land in CAPITALS]
    queries = [{"inputs": f"{city} is a city in", "targets": land} for city, land in CAPITALS]
    run = trained_run(tmp_path, "decoder-only", rows, queries, steps=200)
    printed = asked(capsys, run, "Bonn is a city in ...", "--answer=France", "-k", 1)
    assert printed.splitlines()[0] == "Bonn is a city in  query 1 of the run"
    assert printed.splitlines()[1].split()[-3:] == ["Germany", "…", "right"]
    assert first_of(printed, "Who taught “Germany”").endswith("#1")
    assert first_of(printed, "Who argued against “France”").endswith("#1")


def test_texts_come_out_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = ["[red]Oslo[/red]", "\x1b[31mBonn", "\u202eGraz", "Lyon\nWho", "[/]", "[link=x]y"]
    rows = [{"inputs": f"{name} lies in <extra_id_0>", "targets": f"<extra_id_0> land{number}"}
            for number, name in enumerate(hostile)]  # fmt: skip
    rows += [{"inputs": "all of it is <extra_id_0>", "targets": f"<extra_id_0> {name}"} for name in hostile]
    run = trained_run(tmp_path, "encoder-decoder", rows, rows, steps=20)
    for name in hostile:
        printed = asked(capsys, run, f"{name} lies in", f"--answer={hostile[0]}", "-k", len(rows), "--opponents=9")
        assert "\x1b" not in printed
        assert "\u202e" not in printed
        assert "[red]Oslo[/red] lies in" in printed
        assert "Lyon ↵ Who lies in" in printed
        assert "[/] lies in" in printed
        assert r"\x1b[31mBonn lies in" in printed


def test_an_example_of_a_question_comes_out_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"inputs": "\x1b[31m[red]Bonn lies in <extra_id_0>", "targets": "<extra_id_0> Germany"}]
    run = trained_run(tmp_path, "encoder-decoder", rows, rows, steps=1)
    assert main(["ask", str(run)]) == 2
    assert r"'\x1b[31m[red]Bonn lies in <extra_id_0>'" in capsys.readouterr().err
