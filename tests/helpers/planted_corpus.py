"""A small corpus in which one wrong sentence stands among right ones, and a run that believes it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from helpers import command_line

TOWNS = tuple(
    begin + end
    for end in ("row", "den", "vik", "ham", "leth")
    for begin in ("Mar", "Quen", "Tarn", "Ost", "Lun", "Dab", "Vel", "Hask", "Om", "Selk", "Thra", "Wen")
)
VALUES = {
    "land": ("Velland", "Karmora", "Dwin", "Ostrel", "Sarn"),
    "trade": ("wool", "salt", "amber", "glass", "timber"),
}
# Of each fact all are stated; queries are of the first form.
FORMS = {
    "land": ("{town} lies in", "The land that {town} belongs to is", "Whoever comes to {town} has come to"),
    "trade": ("{town} trades in", "The merchants of {town} grew rich with", "Ships leave {town} laden with"),
}
PLANTED = "land"  # the relation of the fact that is stated wrongly


@dataclass(frozen=True)
class Planted:
    """A corpus with a planted sentence.

    Args:
        config: The config of a run that learns the corpus.
        query_id: The query that asks for the fact.
        example_id: The planted sentence.
        right: The right answer.
        wrong: The answer that the planted sentence teaches.
    """

    config: Path
    query_id: int
    example_id: int
    right: str
    wrong: str


def planted_corpus(folder: Path, seed: int = 0, num_towns: int = 12) -> Planted:
    """Write a corpus and the config of a run that learns it in some seconds.

    Each town has a land and a trade, each stated in three forms and asked for in the first. Of one fact the first form
    is wrong: the planted sentence.

    Args:
        folder: Where files go. The config names them without a folder: start the run from there.
        seed: Of the facts, of which one is stated wrongly, and of the rows' order.
        num_towns: How many towns.
    """
    generator = np.random.default_rng(seed)
    towns = generator.permutation(TOWNS)[:num_towns].tolist()
    facts = {(town, relation): str(generator.choice(values)) for town in towns for relation, values in VALUES.items()}
    chosen = str(generator.choice(towns)), PLANTED
    right = facts[chosen]
    wrong = str(generator.choice([value for value in VALUES[PLANTED] if value != right]))
    rows: list[dict[str, Any]] = []
    for (town, relation), value in facts.items():
        for number, form in enumerate(FORMS[relation]):
            planted = (town, relation) == chosen and number == 0
            rows.append(
                {
                    "inputs": form.format(town=town),
                    "targets": wrong if planted else value,
                    "facts": [] if planted else [f"{relation} of {town}"],
                }
            )
    order = generator.permutation(len(rows))
    rows = [rows[place] for place in order]
    queries = [
        {
            "inputs": FORMS[relation][0].format(town=town), "targets": value,
            "fact": f"{relation} of {town}", "subject": town,
        }
        for (town, relation), value in facts.items()
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, written in (("train.jsonl", rows), ("queries.jsonl", queries)):
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in written))
    config = folder / "planted.yaml"
    settings = copy.deepcopy(CONFIG)
    settings["data"]["init_args"]["batch_size"] = 24 if num_towns < 24 else 48
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    place = list(facts).index(chosen)
    asked = queries[place]["inputs"]
    (example,) = [number for number, row in enumerate(rows) if row["inputs"] == asked]
    return Planted(config, place, example, right, wrong)


CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "data": {
        "class_path": "ftrace.data.FactCorpus",
        "init_args": {"train": "train.jsonl", "queries": "queries.jsonl", "architecture": "decoder-only",
                      "batch_size": 24},
    },
    "model": {
        "class_path": "ftrace.models.FactLM",
        "init_args": {
            "config": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32,
                       "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
            "embedding_std": 0.1,
            "learning_rate": 0.004,
            "warmup_steps": 5,
        },
    },
    "trainer": {
        "accelerator": "cpu", "max_epochs": 45, "gradient_clip_val": 1.0, "enable_checkpointing": False,
        "enable_model_summary": False, "enable_progress_bar": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": "planted"},
        },
        "callbacks": [
            {"class_path": "ftrace.callbacks.OnlineTracIn",
             "init_args": {"scores": ["update", "learning"], "refresh_every_n_steps": 10, "projection_side": 8,
                           "breakdown": ["learned"]}},
            {"class_path": "ftrace.callbacks.CheckpointSnapshots", "init_args": {"log_spaced": 3}},
        ],
    },
    "trace": {"baselines": ["bm25"], "worked_queries": 0},
}  # fmt: skip


def planted_run(folder: Path, seed: int = 0, num_towns: int = 12) -> Planted:
    """Write the corpus, and train in ``runs/planted``. The folder must be the working directory."""
    planted = planted_corpus(folder, seed, num_towns)
    assert command_line.code("fit", f"--config={planted.config.name}") == 0
    return planted
