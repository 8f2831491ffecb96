"""The example in docs/data.md runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

from ftrace.runs import Run
from helpers import warm_python

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()


def test_a_corpus_of_ones_own(tmp_path: Path) -> None:
    files = re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.S)
    assert [name for name, _ in files] == ["train.jsonl", "queries.jsonl", "corpus.yaml"]
    for name, content in files:
        (tmp_path / name).write_text(content)
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
