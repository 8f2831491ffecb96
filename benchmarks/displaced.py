"""Where a ranking misses: which examples took the proponents' places, and did they help all the same?

    python benchmarks/displaced.py RUN --kind learning

Takes a run of FactLM on FtraceSynth. For each query with other examples among its best ten, all rows of the fact that
most of them state are left out, and the model is trained anew, with the same seed. If the query's loss, averaged over
training, is then higher than after leaving out other facts of as many rows, those examples did help: the ranking is
right about them, and the ground truth is silent.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from typing_extensions import override

from ftrace.data import make_collator
from ftrace.runs import Run
from ftrace.scores import ScoreStore

EVERY = 20


class QueryLosses(pl.Callback):
    """The queries' losses every few steps, averaged over training."""

    def __init__(self, queries: DataLoader) -> None:
        self.batches = list(queries)
        self.found: list[torch.Tensor] = []

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % EVERY == 0:
            pl_module.eval()
            with torch.no_grad():
                self.found.append(torch.cat([pl_module.example_losses(batch) for batch in self.batches]))  # type: ignore[operator]
            pl_module.train()


def train_without(run: Run, fact: str | None, seed: int) -> np.ndarray:
    """Each query's mean loss in a training without a fact's rows, ``[Q]``."""
    data, settings = run.data, run.config
    facts = data.train_rows["facts"]
    kept = data.train_rows.select([row for row, of_row in enumerate(facts) if fact not in of_row])
    pl.seed_everything(seed, verbose=False)
    model = copy.deepcopy(run.model)
    del model.model
    model.build(data.tokenizer)
    loader = DataLoader(
        kept,
        batch_size=data.batch_size,
        shuffle=True,
        collate_fn=make_collator(data.tokenizer, data.architecture),
    )
    losses = QueryLosses(data.query_dataloader())
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=settings["trainer"]["max_epochs"], callbacks=[losses],
        gradient_clip_val=settings["trainer"]["gradient_clip_val"],
    )  # fmt: skip
    trainer.fit(model, loader)
    return torch.stack(losses.found).mean(0).numpy()


def main() -> None:
    """Train without displacing facts, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="The run's log folder, with its online scores.")
    parser.add_argument("--kind", default="learning", help="Which scores.")
    parser.add_argument("--facts", type=int, default=4, help="How many displacing facts to leave out, one at a time.")
    parser.add_argument("--controls", type=int, default=4, help="How many other facts to leave out, one at a time.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    run = Run(arguments.run)
    store = ScoreStore.open(arguments.run / "online")
    stated = run.data.train_rows["facts"]
    asked = dict(zip(run.data.query_rows["query_id"], run.data.query_rows["fact"], strict=True))
    column = {query: place for place, query in enumerate(asked)}
    displacing: dict[str, list[tuple[int, int]]] = {}
    for query in run.learned_queries():
        others = Counter(
            fact
            for row in store.top(query, 10, arguments.kind)[0].tolist()
            if row not in set(run.data.proponents[query].tolist())
            for fact in stated[row]
        )
        if others:
            fact, count = others.most_common(1)[0]
            displacing.setdefault(fact, []).append((query, count))
    worst = sorted(displacing, key=lambda fact: -sum(count for _, count in displacing[fact]))[: arguments.facts]
    seed = int(run.config["seed_everything"])
    rng = np.random.default_rng(seed)
    involved = {*displacing, *asked.values()}
    unrelated = sorted({fact for of_row in stated for fact in of_row} - involved)
    controls = rng.choice(np.array(unrelated), arguments.controls, replace=False).tolist()
    without_others = np.stack([train_without(run, fact, seed) for fact in controls])

    table = Table(title=f"Mean loss over training, in nats ({arguments.controls} controls: other facts left out)")
    for name in ("query", "its fact", "left out", "of its best 10", "without it", "controls", "helped by"):
        table.add_column(name, justify="right")
    for fact in worst:
        without = train_without(run, fact, seed)
        for query, count in displacing[fact]:
            place = column[query]
            of_controls = without_others[:, place]
            gained = without[place] - of_controls.mean()
            table.add_row(
                str(query), asked[query], fact, str(count), f"{without[place]:.3f}",
                f"{of_controls.mean():.3f} ± {of_controls.std(ddof=1):.3f}", f"{gained:+.3f}",
            )  # fmt: skip
    missed = sum(count for of_fact in displacing.values() for _, count in of_fact)
    Console().print(f"{missed} places among the best ten of {len(run.learned_queries())} queries are other facts'.")
    Console().print(table)


if __name__ == "__main__":
    main()
