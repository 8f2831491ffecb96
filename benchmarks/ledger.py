"""Do the scores explain what training did? The ledger on the demo's model, in windows of training.

    python benchmarks/ledger.py [--quick]

For SGD, SGD with momentum and AdamW: a plain run of synth_numbered leaves a checkpoint at the end of each epoch and
notes the queries' loss. Training is then resumed at its start, in its steepest part and near its end, with OnlineTracIn
following momentum exactly, for some steps that fill the ring of momentum and some that are measured. Over all queries
and intervals of the measured steps: the correlation, the slope (least squares through 0) and the relative error of the
sums, of the examples' account against predicted, and of predicted against actual.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ftrace.callbacks import OnlineTracIn
from ftrace.data import FtraceSynth, SynthSettings
from ftrace.models import FactLM
from ftrace.scores import Ledger, ScoreStore

EPOCHS = 16
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.3},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1},
    "adamw": {"optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.01},
}


def make_model(optimizer: str) -> FactLM:
    """The model of synth_numbered, and of the demo."""
    pl.seed_everything(0, verbose=False)
    config = dict(
        model_type="t5", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    return FactLM(config=config, embedding_std=0.1, answers="any", warmup_steps=50, **OPTIMIZERS[optimizer])


def make_data(folder: Path) -> FtraceSynth:
    """The data of synth_numbered."""
    settings = SynthSettings(
        num_entities=50, num_relations=10, num_facts=200, num_test_utterances=40, num_facts_per_utterance=1,
        collisions="forbid",
    )  # fmt: skip
    return FtraceSynth(settings, architecture="encoder-decoder", batch_size=128, data_dir=str(folder / "data"))


class StopAt(pl.Callback):
    """Ends training at a step without telling the learning rate's schedule."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop, if it is time."""
        if trainer.global_step >= self.step:
            trainer.should_stop = True


def fit(folder: Path, optimizer: str, callbacks: list[Any], resume: Path | None = None, **settings: Any) -> None:
    """Train."""
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=callbacks,
        enable_model_summary=False, gradient_clip_val=1.0, default_root_dir=folder, num_sanity_val_steps=0,
        limit_val_batches=0, **settings,
    )  # fmt: skip
    trainer.fit(make_model(optimizer), make_data(folder), ckpt_path=resume)


def plain_run(folder: Path, optimizer: str) -> np.ndarray:
    """Checkpoints of all epochs; returns the queries' mean loss at the end of each, the start first."""
    (folder / optimizer).mkdir()
    watch = OnlineTracIn(
        output_dir=folder / optimizer / "watch", parameters=("*.final_layer_norm.weight",), self_check=False,
        refresh_every_n_steps=100, scores=("dot",), ledger=True, projection_side=1,
    )  # fmt: skip
    save = ModelCheckpoint(folder / optimizer, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    fit(folder, optimizer, [save, watch])
    ledger = ScoreStore.open(folder / optimizer / "watch").ledger
    assert ledger is not None
    return np.append(ledger["loss"].mean(1), ledger["next_loss"][-1].mean())


def window(
    folder: Path, optimizer: str, epoch: int, integration: Any, refresh: int, fill: int, measured: int
) -> tuple[Ledger, float]:
    """The ledger of the measured steps after an epoch's end (0: from the start)."""
    resume = folder / optimizer / f"epoch={epoch - 1}.ckpt" if epoch else None
    fill = fill if epoch else 0
    first = 0 if resume is None else int(torch.load(resume, weights_only=True)["global_step"])
    output = Path(tempfile.mkdtemp(dir=folder)) / "online"
    online = OnlineTracIn(
        output_dir=output, scores=("update",), momentum="exact", integration=integration,
        refresh_every_n_steps=refresh, self_check=False, strict=False,
    )  # fmt: skip
    began = time.perf_counter()
    fit(folder, optimizer, [online, StopAt(first + fill + measured)], resume, enable_checkpointing=False)
    seconds = time.perf_counter() - began
    folder_of = output if output.exists() else output.with_name("online-incomplete")
    ledger = ScoreStore.open(folder_of).ledger
    assert ledger is not None
    kept = ledger.steps >= first + fill
    columns = {name: values[kept] for name, values in ledger.columns.items()}
    return Ledger(ledger.steps[kept], ledger.next_steps[kept], ledger.query_ids, columns), seconds


def agreement(found: np.ndarray, expected: np.ndarray) -> str:
    """Correlation, slope through 0, relative error of the sums."""
    x, y = expected.ravel(), found.ravel()
    slope = float(x @ y / (x @ x)) if x @ x else float("nan")
    error = abs(y.sum() - x.sum()) / abs(x.sum())
    return f"{np.corrcoef(x, y)[0, 1]:.4f} / {slope:.3f} / {error:.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one optimizer, few steps: does it run?")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fill, measured = (6, 10) if options.quick else (50, 40)
    refreshes = (5,) if options.quick else (1, 5, 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for optimizer in ["adamw"] if options.quick else options.optimizers:
            with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
                losses = plain_run(folder, optimizer)
            steepest = int(np.argmax(losses[1:-2] - losses[2:-1])) + 1
            print(f"\n{optimizer}: mean loss of the queries by epoch: {np.array2string(losses, precision=2)}")
            print("each: correlation / slope / relative error of the sums\n")
            print("| window | refresh | integration | examples : predicted | predicted : actual | imbalance | s |")
            print("|---|---|---|---|---|---|---|")
            for where, epoch in (("start", 0), ("steep", steepest), ("end", EPOCHS - 1)):
                for refresh in refreshes:
                    for integration in ("left", "trapezoid"):
                        ledger, seconds = window(folder, optimizer, epoch, integration, refresh, fill, measured)
                        cells = (
                            f"{where} ({ledger.steps[0]} to {ledger.next_steps[-1]})",
                            str(refresh),
                            integration,
                            agreement(ledger["examples"], ledger["predicted"]),
                            agreement(ledger["predicted"], ledger.actual),
                            f"{ledger.imbalance().max():.1e}",
                            f"{seconds:.0f}",
                        )
                        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
