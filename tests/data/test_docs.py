"""The example in docs/data.md runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ftrace.cli import main
from ftrace.data import train_word_tokenizer
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from helpers import chat_tokenizers, tiny, warm_python

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()


FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.S))


def write_files(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_text(FILES[name])


def test_all_files_of_the_page_are_of_an_example() -> None:
    assert list(FILES) == [
        "train.jsonl",
        "queries.jsonl",
        "corpus.yaml",
        "chats.jsonl",
        "questions.jsonl",
        "chats.yaml",
    ]


def test_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the page is one on the hub; a tiny one stands for it."""
    write_files(tmp_path, ["chats.jsonl", "questions.jsonl", "chats.yaml"])
    model = chat_tokenizers.save_model(tmp_path / "model", positions=256)
    config = (tmp_path / "chats.yaml").read_text()
    assert config.count("HuggingFaceTB/SmolLM2-135M-Instruct") == 1  # the path is given once
    (tmp_path / "chats.yaml").write_text(config.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model))
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "chats.yaml", "--trainer.accelerator=cpu"]) == 0
    run = Run(tmp_path / "runs" / "chats" / "version_0")
    assert run.config["data"]["init_args"]["tokenizer"] == model
    store = ScoreStore.open(run.folder / "online")
    assert len(store.example_ids) == 4
    assert len(store.query_ids) == 1
    labels = run.data.query_batches(list(run.data.query_rows))[0]["answer_labels"][0]
    decode = AutoTokenizer.from_pretrained(model).decode
    assert [decode(answer[answer != -100]) for answer in labels] == ["In Velland.<|im_end|>", "Velland<|im_end|>"]


def test_a_pretrained_encoder_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny folder stands for the hub's name."""
    write_files(tmp_path, ["train.jsonl", "queries.jsonl", "corpus.yaml"])
    (block,) = re.findall(r"```sh\n(ftrace fit .*?)```", PAGE, re.S)
    texts = [line for name in ("train.jsonl", "queries.jsonl") for line in FILES[name].splitlines()]
    words = [text for row in map(json.loads, texts) for text in (row["inputs"], row["targets"])]
    tokenizer = train_word_tokenizer(words)
    model = tmp_path / "t5"
    tiny.t5(vocab_size=len(tokenizer)).float().save_pretrained(model)
    tokenizer.save_pretrained(str(model))
    prompt = {"prompt": "Marrow lies in <extra_id_0> .", "subject": "Marrow", "answer": "Velland"}
    assert json.dumps(prompt) in " ".join(PAGE.split())
    (tmp_path / "prompts.jsonl").write_text(json.dumps({**prompt, "id": "a"}) + "\n" + json.dumps(prompt))
    monkeypatch.chdir(tmp_path)
    given = {"fit": ["--trainer.max_epochs=2", "--trace=null"], "causal-trace": ["--pictures=0", "--noise.samples=2"]}
    for command in block.splitlines():
        _, name, *options = shlex.split(command)
        options = [str(model) if option == "google/t5-v1_1-base" else option for option in options]
        assert main([name, *options, *given[name]]) == 0
    run = Run(tmp_path / "runs" / "corpus" / "version_0")
    assert run.data.tokenizer_source == str(model)
    assert list((tmp_path / "runs" / "causal").glob("*/average.png"))


def test_a_corpus_of_ones_own(tmp_path: Path) -> None:
    write_files(tmp_path, ["train.jsonl", "queries.jsonl", "corpus.yaml"])
    (commands,) = re.findall(r"```\n(python train.py .*?)```", PAGE, re.S)
    said = {}
    for command in commands.splitlines():
        words = shlex.split(command)
        program = {"python": [ROOT / "train.py"], "ftrace": ["-m", "ftrace.cli"]}[words[0]]
        rest = words[2:] if words[0] == "python" else words[1:]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
        done = warm_python.run(*program, *rest, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        said[" ".join(words[:2])] = done.stdout
    assert re.search(r": Marrow lies in <extra_id_0> \.\s+answer\s+Velland", said["python train.py"])
    table = json.loads((tmp_path / "runs" / "corpus" / "version_0" / "evaluation" / "table.json").read_text())
    assert table["num_queries"] == 2
    assert {"online update", "online cosine", "tracin dot"} <= table["rows"].keys()
    assert table["rows"]["online cosine"]["MRR"] > 0.5
    run = Run(tmp_path / "runs" / "corpus" / "version_0")  # from another folder than the files' paths start from
    assert run.data.train_rows["name"][:2] == ["atlas-1", "atlas-2"]


def test_the_sample_is_as_large_as_the_page_says() -> None:
    sample = ROOT / "ftrace" / "data" / "samples" / "trex"
    rows, queries = (len((sample / f"{name}.jsonl").read_text().splitlines()) for name in ("abstracts", "queries"))
    assert f"{rows} rows and {queries} queries" in PAGE
