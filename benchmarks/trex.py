"""Time and peak memory of indexing FTRACE-TREX at its full size, on generated rows of that size and shape.

    python benchmarks/trex.py
    python benchmarks/trex.py --rows 100000 --queries 2000 --facts 35000

Targets at full size, which is the default: minutes, and 8 GB. How often a fact is stated follows a log-normal law with
the mean and the median of the published data, which has a tail into the tens of thousands. The index is then held
against a plain loop for a few queries.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from ftrace.data import FtraceTrex
from ftrace.data.mapped_tables import MappedTables

WORDS = [f"word{i}" for i in range(20_000)]
NUM_PREDICATES = 41
MEAN, MEDIAN = 83, 7  # proponents a query, as published
ROWS_PER_SENTENCE = 2.4


def facts_of_sentences(args: argparse.Namespace, rng: np.random.Generator) -> list[np.ndarray]:
    """Which facts each sentence states, one to four of them; the first ``args.queries`` facts are asked for.

    How often these are stated is log-normal, with the published mean and median; all others are stated once or twice.
    """
    counts = rng.integers(1, 5, int(args.rows / ROWS_PER_SENTENCE * 1.02))
    spread = math.sqrt(2 * math.log(MEAN / MEDIAN))
    asked = np.exp(rng.normal(math.log(MEDIAN / ROWS_PER_SENTENCE), spread, args.queries))
    asked = np.clip(np.rint(asked), 1, len(counts) // 4).astype(int)
    once = np.arange(args.queries, args.facts)
    room = max(0, counts.sum() - asked.sum() - len(once))
    drawn = np.concatenate([np.repeat(np.arange(args.queries), asked), once, rng.choice(once, room)])
    return np.split(rng.permutation(drawn)[: counts.sum()], np.cumsum(counts)[:-1])


def key(fact: int) -> tuple[str, str, str]:
    """Predicate, object and subject of a fact."""
    return f"P{fact % NUM_PREDICATES + 1}", f"Q{fact // 7}", f"Q{fact}"


def abstracts(args: argparse.Namespace, facts: list[np.ndarray], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Masked variants of sentences, about 25 words long, as published."""
    row = 0
    for sentence, of_sentence in enumerate(facts):
        keys = [key(int(fact)) for fact in dict.fromkeys(of_sentence)]
        entities = list(dict.fromkeys(entity for _, *both in keys for entity in both))
        words = [WORDS[i] for i in rng.integers(len(WORDS), size=25)]
        for entity in entities[: 2 + sentence % 2]:
            if row == args.rows:
                return
            text = " ".join([*words[:12], *("<extra_id_0>" if one == entity else one for one in entities), *words[12:]])
            yield {
                "inputs_pretokenized": text,
                "targets_pretokenized": f"<extra_id_0> {entity}",
                "page_uri": f"Q{sentence // 3}",
                "masked_uri": entity,
                "masked_type": "object",
                "facts": ";".join(map(",".join, keys)),
                "id": str(row),
                "example_uris": f"Q{sentence // 3}-{sentence}-{entity}-0",
            }
            row += 1


def queries(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A query for each of the first facts."""
    for fact in range(args.queries):
        predicate, of, subject = key(fact)
        yield {
            "inputs_pretokenized": f"{subject} is related to <extra_id_0> .",
            "targets_pretokenized": f"<extra_id_0> {of}",
            "uuid": f"query-{fact}",
            "obj_uri": of,
            "sub_uri": subject,
            "predicate_id": predicate,
            "obj_surface": of,
            "sub_surface": subject,
        }


def generate(args: argparse.Namespace, folder: Path) -> None:
    """Write both parts to a folder, in the chosen form."""
    rng = np.random.default_rng(args.seed)
    facts = facts_of_sentences(args, rng)
    for name, rows in (("abstracts", abstracts(args, facts, rng)), ("queries", queries(args))):
        if args.form == "jsonl":
            with (folder / f"{name}.jsonl").open("w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{name}.parquet")


def check(data: FtraceTrex, folder: Path) -> None:
    """Hold the proponents of a few queries against a plain loop over the source."""
    asked = {row["fact"]: row["query_id"] for row in data.query_rows.select(range(min(20, len(data.query_rows))))}
    stating: dict[str, list[int]] = {fact: [] for fact in asked}
    for number, text in enumerate(_facts_column(folder)):
        for fact in asked.keys() & text.split(";"):
            stating[fact].append(number)
    for fact, query in asked.items():
        assert data.proponents[query].tolist() == stating[fact], fact


def _facts_column(folder: Path) -> Iterator[str]:
    if (folder / "abstracts.parquet").exists():
        yield from pq.read_table(folder / "abstracts.parquet", columns=["facts"])["facts"].to_pylist()
    else:
        with (folder / "abstracts.jsonl").open() as lines:
            yield from (json.loads(line)["facts"] for line in lines)


def main() -> None:
    """Generate, index, and print a table."""
    parser = argparse.ArgumentParser(description="Time and peak memory of indexing FTRACE-TREX.")
    parser.add_argument("--rows", type=int, default=1_560_453)
    parser.add_argument("--queries", type=int, default=31_479)
    parser.add_argument("--facts", type=int, default=552_381)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--form", choices=("jsonl", "parquet"), default="jsonl")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "source").mkdir()
        # In a process of its own, so that its memory is not counted.
        process = multiprocessing.get_context("spawn").Process(target=generate, args=(args, folder / "source"))
        process.start()
        process.join()
        assert process.exitcode == 0
        size = sum(path.stat().st_size for path in (folder / "source").iterdir()) / 2**20
        (folder / "tokenizer").mkdir()

        start = time.perf_counter()
        # A pretrained tokenizer is the rule at this size, so none is learned.
        data = FtraceTrex(str(folder / "source"), str(folder / "cache"), tokenizer=str(folder / "tokenizer"))
        data.make()
        made = time.perf_counter()
        tables = MappedTables(data.data_path, ("train", "queries"))
        tables.make()
        data.train_rows, data.query_rows = tables.open("train"), tables.open("queries")
        read = time.perf_counter()
        counts = np.array([len(ids) for ids in data.proponents.values()])
        sentences = data.sentence_ids
        assert sentences is not None
        looked_up = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux
        manifest = json.loads((data.data_path / "manifest.json").read_text())
        check(data, folder / "source")

    table = Table("rows", "MB", "facts", "queries", "index, s", "open, s", "look up, s", "peak GB", "target")
    seconds = (f"{made - start:.1f}", f"{read - made:.1f}", f"{looked_up - read:.2f}")
    rows = f"{len(sentences):,}", f"{size:.0f}", f"{manifest['num_facts']:,}", f"{len(counts):,}"
    table.add_row(*rows, *seconds, f"{peak:.2f}", "minutes, 8 GB")
    Console().print(table)
    Console().print(
        f"proponents a query: mean {counts.mean():.0f}, median {np.median(counts):.0f}, most {counts.max():,} "
        "(published: mean 83, median 7, tens of thousands)"
    )


if __name__ == "__main__":
    main()
