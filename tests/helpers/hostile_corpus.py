"""A corpus whose texts, names and facts try everything that could act on a terminal, a spreadsheet or Markdown."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

TEXTS: dict[str, str] = {
    "closing tag": "a[/b]c",
    "index": "array[i]",
    "link of a terminal": "[link=file:///etc]x[/link]",
    "style": "[bold red]y[/]",
    "emoji": ":smile:",
    "colour": "\x1b[31mred\x1b[0m",
    "clear screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;title\x07",
    "C1": "\x9b31m\x9d0;x\x9c",
    "direction": "\u202eevil\u202c\u2067",
    "invisible": "a\u200bb\ufeff\u2060\u200d",
    "null": "a\x00b",
    "return": "one\rtwo\x08\x7f",
    "formula": "=cmd|'/C_calc'!A0",
    "sum": "@SUM(1+1)*cmd",
    "plus": "+1+cmd",
    "minus": "-2+cmd",
    "cells": "x|y||z",
    "lines": "one\ntwo\u2028three",
    "HTML": "<script>alert(1)</script>",
    "mathematics": "$x_$",
    "image": "![i](http://hostile.invalid/i.png)",
    "link": "[here](javascript:alert(1))",
    "code": "`id`**b**~~c~~",
    "format": "{0}%s{task.x}",
    "long": "long" * 25_000,
}
SHOWN = ("closing tag", "index", "link of a terminal", "style", "emoji", "HTML", "mathematics")  # as they are
_BIDIRECTIONAL = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")


def write_corpus(folder: Path) -> None:
    """Write ``train.jsonl`` and ``queries.jsonl``: two rows and a query about each of the texts."""
    rows, queries = [], []
    for text in TEXTS.values():
        fact = {"inputs": f"{text} lies in", "targets": f"{text}land"}
        for number in range(2):
            rows.append({"id": f"{text}-{number}", **fact, "facts": [text, "all"]})
        if len(text) < 1000:
            queries.append({"id": text, **fact, "fact": text, "subject": text})
    for name, lines in (("train", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def config_of(folder: Path) -> dict[str, Any]:
    """Make the config that trains a tiny model on the corpus in a folder, and traces it."""
    logger = {"save_dir": str(folder), "name": "runs"}
    return {
        "seed_everything": 0,
        "data": {
            "class_path": "ftrace.data.FactCorpus",
            "init_args": {
                "train": str(folder / "train.jsonl"), "queries": str(folder / "queries.jsonl"), "batch_size": 26,
                "architecture": "decoder-only", "data_dir": str(folder / "data"),
            },
        },
        "model": {
            "class_path": "ftrace.models.FactLM",
            "init_args": {
                "config": {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64,
                           "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
                "learning_rate": 0.05,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_epochs": 6, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "log_every_n_steps": 1,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger},
            "callbacks": [
                {"class_path": "ftrace.callbacks.OnlineTracIn", "init_args": {"breakdown": ["layer"]}},
                {"class_path": "ftrace.callbacks.CheckpointSnapshots", "init_args": {"log_spaced": 2}},
            ],
        },
        "trace": {"baselines": ["bm25"], "causal": True, "report": False},
    }  # fmt: skip


def check_terminal(text: str) -> None:
    """Hold that a terminal does nothing but to show a text."""
    for character in set(text) - {"\n"}:
        category = unicodedata.category(character)
        assert category not in ("Cc", "Cs", "Zl", "Zp"), repr(character)
        assert unicodedata.bidirectional(character) not in _BIDIRECTIONAL, repr(character)
        assert character not in "\u200b\ufeff\u2060", repr(character)


def check_csv(file: Path) -> None:
    """Hold that a CSV file is one line a row, with no formula, and that its rows are alike."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    for row in rows:
        assert len(row) == len(rows[0]), file
        for cell in row:
            check_terminal(cell)
            assert not re.match(r"\s*[=+\-@]", cell) or _is_number(cell), (file, cell)


def check_markdown(file: Path) -> None:
    """Hold that a table has as many cells in each row, and that no HTML, link or code is in a file."""
    text = file.read_text(encoding="utf-8")
    check_terminal(text)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    bare = re.sub(r"\\.", "", text)
    assert not re.search(r"<\w|\]\(|`|\*|~~|\$", bare), file


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
