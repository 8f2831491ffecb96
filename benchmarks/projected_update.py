"""How much noise does projecting add to `update` under AdamW from its first step? Three small models.

    python benchmarks/projected_update.py [--models gpt2 t5 own] [--sides 8 16] [--seeds 3] [--steps 60]

Each model is trained once, without warmup, and traced by several OnlineTracIn at once: exactly, and projected with
several sides and seeds. Printed are medians over seeds: the ledger's account `projection` as a share of what the
queries gained and lost, and Spearman's rank correlation of the projected scores with the exact ones, a mean over
queries, over all examples.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.data import FtraceSynth, SynthSettings
from ftrace.models import FactLM
from ftrace.scores import ScoreStore
from ftrace.scores.correlation import rank_correlation

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        model_type="gpt2", n_embd=64, n_layer=2, n_head=4, n_inner=128, n_positions=32, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "t5": dict(
        model_type="t5", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
TRACING: dict[str, dict[str, Any]] = {
    "left, eventual": {},
    "trapezoid, exact momentum": {"integration": "trapezoid", "momentum": "exact", "refresh_every_n_steps": 5},
}


class OwnNet(pl.LightningModule):
    """A bag of words and a perceptron: words of a Zipf distribution, most of which few examples have."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(500, 48)
        self.net = nn.Sequential(nn.Linear(48, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 20))

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Return one loss for each row."""
        logits = self.net(self.words(batch["words"]).mean(1))
        return nn.functional.cross_entropy(logits, batch["label"], reduction="none")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's loss."""
        return self.example_losses(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def own_rows(count: int, key: str, seed: int) -> list[dict[str, Any]]:
    """Draw rows of eight words; the label is a function of the rarest one."""
    generator = np.random.default_rng(seed)
    words = np.minimum(generator.zipf(1.3, (count, 8)) - 1, 499)
    return [{key: i, "words": torch.from_numpy(row), "label": int(row.max()) % 20} for i, row in enumerate(words)]


def make(model: str, folder: Path) -> tuple[pl.LightningModule, Any, Any]:
    """Make a model, its examples and its queries."""
    pl.seed_everything(0, verbose=False)
    if model == "own":
        examples: Any = DataLoader(own_rows(512, "example_id", 0), batch_size=32, shuffle=True)  # type: ignore[arg-type]
        return OwnNet(), examples, DataLoader(own_rows(16, "query_id", 1), batch_size=16)  # type: ignore[arg-type]
    settings = SynthSettings(
        num_entities=20, num_relations=4, num_facts=20, num_test_utterances=4, num_facts_per_utterance=1
    )
    architecture = "decoder-only" if model == "gpt2" else "encoder-decoder"
    data = FtraceSynth(settings, architecture=architecture, batch_size=32, data_dir=str(folder / "data"))
    data.prepare_data()
    data.setup("fit")
    lm = FactLM(
        config=CONFIGS[model], embedding_std=0.1, answers="any", optimizer="adamw", learning_rate=2e-3, warmup_steps=0
    )
    return lm, data, None


def measure(model: str, tracing: dict[str, Any], sides: list[int], seeds: int, steps: int) -> dict[int, np.ndarray]:
    """Return for each side, by seed: share of the account, and rank correlation."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, data, queries = make(model, folder)
        runs = {(None, 0): folder / "exact"} | {(k, s): folder / f"{k}-{s}" for k in sides for s in range(seeds)}
        callbacks: list[pl.Callback] = [
            OnlineTracIn(
                queries, path, scores=("update",), projection_side=side, seed=seed, self_check=False, **tracing
            )
            for (side, seed), path in runs.items()
        ]
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, callbacks=callbacks,
        )  # fmt: skip
        if queries is None:
            trainer.fit(module, datamodule=data)
        else:
            trainer.fit(module, data)
        stores = {run: ScoreStore.open(path) for run, path in runs.items()}
        exact = stores[None, 0]
        print(f"    {exact.ledger.summary()}", flush=True)  # type: ignore[union-attr]
        return {k: np.array([_measures(stores[k, s], exact) for s in range(seeds)]) for k in sides}


def _measures(store: ScoreStore, exact: ScoreStore) -> tuple[float, float]:
    ledger = store.ledger
    assert ledger is not None
    share = np.abs(ledger["projection"].sum(0)).sum() / np.abs(ledger.actual).sum()
    pairs = zip(store.matrix("update").T, exact.matrix("update").T, strict=True)
    return float(share), float(np.mean([rank_correlation(*pair) for pair in pairs]))


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2", "t5", "own"])
    parser.add_argument("--sides", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tracing", nargs="+", default=list(TRACING))
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("| model | tracing | K | projection, share of gained and lost | rank correlation with exact |")
    print("|---|---|---|---|---|")
    for model in options.models:
        for tracing in options.tracing:
            measured = measure(model, TRACING[tracing], options.sides, options.seeds, options.steps)
            for side, values in measured.items():
                (share, correlation), low, high = np.median(values, 0), values.min(0), values.max(0)
                print(
                    f"| {model} | {tracing} | {side} | {share:.3g} ({low[0]:.3g} to {high[0]:.3g}) "
                    f"| {correlation:.3f} ({low[1]:.3f} to {high[1]:.3f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
