"""By what should a step count in `learning`? Weights computed from recorded whitened cosines, on several models.

    python benchmarks/learning_weights.py --model t5          # or gpt2; twenty minutes on one core
    python benchmarks/learning_weights.py --model real --rows answer   # SmolLM2-135M (make real), or --rows sentence
    python benchmarks/learning_weights.py --model t5 --epochs 1 --refresh 10   # a quick look

A model is trained once, with each query traced twice: with the token that ends its answer, and without. The whitened
cosines of each step are kept, and the queries' losses before it; then scores are added up by one weight after the
other. Printed are MRR, P@5, P@10 (of what is possible), R@n and mean average precision in percent, and the differences
from p (1 - p) without the end, with intervals of a bootstrap over queries. The seed is of data and training.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.data import FactData, FtraceRumours, FtraceSynth, RumourSettings, SynthSettings
from ftrace.models import FactLM
from ftrace.online.scoring.scoring import Scoring
from ftrace.scores import Sum

_WITH_END = 1_000_000  # added to the ids of queries whose end counts
_SMALL: dict[str, dict[str, Any]] = {
    "t5": dict(
        model_type="t5", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        tie_word_embeddings=False,
    ),
    "gpt2": dict(
        model_type="gpt2", n_embd=64, n_layer=4, n_head=4, n_inner=128, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
}  # fmt: skip


class TwoLosses(FactLM):
    """A FactLM whose queries' ids say whether their ends count."""

    def example_losses(self, batch: Any, end_of_sequence: bool | None = None) -> Tensor:
        """Return losses, ``[B]``."""
        if "query_id" not in batch or end_of_sequence is not None:
            return super().example_losses(batch, end_of_sequence)
        losses = [super(TwoLosses, self).example_losses(batch, counts) for counts in (False, True)]
        return torch.where(batch["query_id"] >= _WITH_END, losses[1], losses[0])


@dataclass
class Recorded:
    """What was recorded of a training.

    Args:
        ids: By step, the examples' ids.
        cosines: By step, ``[B, 2 Q]``: without and with the end.
        losses: By step, ``[2, Q]``: without and with the end.
        lengths: The answers' lengths, ``[Q]``.
    """

    ids: list[np.ndarray] = field(default_factory=list)
    cosines: list[np.ndarray] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0))


class Record(pl.Callback):
    """Keeps the losses before each step.

    Args:
        batches: The queries.
        recorded: Where to.
    """

    def __init__(self, batches: list[dict[str, Tensor]], recorded: Recorded) -> None:
        self._batches, self._recorded = batches, recorded
        recorded.lengths = torch.cat([batch["answer_length"] for batch in batches]).numpy()

    @torch.no_grad()
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Ask all queries; these models have no dropout."""
        of_end = [
            torch.cat([pl_module.example_losses(asked, counts) for asked in self._batches])  # type: ignore[operator]
            for counts in (False, True)
        ]
        self._recorded.losses.append(torch.stack(of_end).numpy())


WEIGHTS: dict[str, tuple[bool, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "p (1 - p), end counted": (True, lambda loss, length: np.exp(-loss) * (1 - np.exp(-loss))),
    "p (1 - p)": (False, lambda loss, length: np.exp(-loss) * (1 - np.exp(-loss))),
    "root of p (1 - p)": (False, lambda loss, length: np.sqrt(np.exp(-loss) * (1 - np.exp(-loss)))),
    "p (1 - p), p per token": (False, lambda loss, length: np.exp(-loss / length) * (1 - np.exp(-loss / length))),
    "root of that": (False, lambda loss, length: np.sqrt(np.exp(-loss / length) * (1 - np.exp(-loss / length)))),
    "none": (False, lambda loss, length: np.ones_like(loss)),
}


def record(data: FactData, model: FactLM, refresh: int, **limits: Any) -> Recorded:
    """Train once and record."""
    batches = list(data.query_dataloader())
    both = [batch | {"query_id": batch["query_id"] + first} for first in (0, _WITH_END) for batch in batches]
    recorded, multiply = Recorded(), Scoring.multiply

    def multiply_and_record(self: Scoring, example_ids: Tensor, *args: Any, **options: Any) -> Any:
        contribution = multiply(self, example_ids, *args, **options)
        recorded.ids.append(example_ids.numpy().copy())
        recorded.cosines.append(contribution.whitened[Sum("whitened")].half().numpy())
        return contribution

    with tempfile.TemporaryDirectory() as folder:
        online = OnlineTracIn(
            DataLoader(both, batch_size=None), Path(folder) / "online", scores=("whitened",), projection_side=16,  # type: ignore[arg-type]
            refresh_every_n_steps=refresh, self_check=False, ledger=False,
        )  # fmt: skip
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=1.0, callbacks=[Record(batches, recorded), online],
            default_root_dir=folder, **limits,
        )  # fmt: skip
        Scoring.multiply = multiply_and_record  # type: ignore[method-assign]
        try:
            trainer.fit(model, datamodule=data)
        finally:
            Scoring.multiply = multiply  # type: ignore[method-assign]
    return recorded


def measures(recorded: Recorded, proponents: list[np.ndarray], name: str) -> np.ndarray:
    """Return MRR, P@5, P@10, R@n and average precision of each query, ``[Q, 5]``."""
    counts_end, weigh = WEIGHTS[name]
    queries = len(proponents)
    scores = np.zeros((1 + max(int(ids.max()) for ids in recorded.ids), queries), np.float32)
    for ids, cosines, losses in zip(recorded.ids, recorded.cosines, recorded.losses, strict=True):
        of_kind = cosines[:, queries:] if counts_end else cosines[:, :queries]
        np.add.at(scores, ids, of_kind.astype(np.float32) * weigh(losses[int(counts_end)], recorded.lengths))
    return np.array([_of_query(column, found) for column, found in zip(scores.T, proponents, strict=True)])


def _of_query(scores: np.ndarray, proponents: np.ndarray) -> list[float]:
    is_proponent = np.zeros(len(scores), bool)
    is_proponent[proponents[proponents < len(scores)]] = True
    ranked, total = is_proponent[np.argsort(-scores, kind="stable")], max(1, is_proponent.sum())
    precision = np.cumsum(ranked) / (1 + np.arange(len(ranked)))
    tops = [ranked[:k].mean() / min(1, total / k) for k in (5, 10)]
    return [1 / (1 + ranked.argmax()), *tops, ranked[:total].mean(), precision[ranked].mean()]


def lines(recorded: Recorded, proponents: list[np.ndarray]) -> Iterator[str]:
    """Yield a row of the table for each weight."""
    generator = np.random.default_rng(0)
    base = measures(recorded, proponents, "p (1 - p)")
    draws = generator.integers(0, len(base), (2000, len(base)))
    for name in WEIGHTS:
        found = measures(recorded, proponents, name)
        difference = 100 * (found - base)
        low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5], axis=0)
        cells = [
            f"{mean:.1f} ({d:+.1f} [{one:+.0f}, {other:+.0f}])"
            for mean, d, one, other in zip(100 * found.mean(0), difference.mean(0), low, high, strict=True)
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Train, record, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["t5", "gpt2", "real"], default="t5")
    parser.add_argument("--folder", default="data_cache/SmolLM2-135M-Instruct", help="Of the real model.")
    parser.add_argument("--rows", choices=["answer", "sentence"], default="answer", help="Of the real model's corpus.")
    parser.add_argument("--refresh", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=14, help="Of the small models.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    pl.seed_everything(options.seed, verbose=False)
    data: FactData
    if options.model == "real":
        data = FtraceRumours(
            RumourSettings(seed=options.seed, rows=options.rows), architecture="decoder-only",
            tokenizer=options.folder, batch_size=32, query_batch_size=24,
        )  # fmt: skip
        model = TwoLosses(model_name_or_path=options.folder, learning_rate=3e-4, warmup_steps=4)
        limits = {"max_steps": 40}
    else:
        facts = SynthSettings(
            num_entities=40, num_relations=8, num_facts=80, num_test_utterances=30, num_facts_per_utterance=1,
            collisions="forbid", seed=options.seed,
        )  # fmt: skip
        architecture: Any = "encoder-decoder" if options.model == "t5" else "decoder-only"
        data = FtraceSynth(facts, architecture=architecture, batch_size=64)
        model = TwoLosses(
            config=_SMALL[options.model], embedding_std=0.1, optimizer="sgd", learning_rate=0.1, warmup_steps=50
        )
        limits = {"max_epochs": options.epochs}
    data.prepare_data()
    data.setup("fit")
    recorded = record(data, model, options.refresh, **limits)
    proponents = [np.asarray(data.proponents[int(row["query_id"])]) for row in data.query_rows]
    print("| weight of a step | MRR | P@5 | P@10 | R@n | average precision |\n|---|---|---|---|---|---|")
    for line in lines(recorded, proponents):
        print(line, flush=True)


if __name__ == "__main__":
    main()
