"""Is tracing right on a GPU? Scores against those of the CPU, training against plain training, in each precision.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu      # the same lines without a GPU, to see that they run

Small models of random weights (GPT-2, Llama, T5, GPT-2 with LoRA) learn random tokens with AdamW, clipping and two
batches a step, traced with all kinds of scores and all checks on. Printed is a table with a bound beside each figure;
the exit code is 1 if a line is WRONG. For time and memory on a GPU: ``online.py --setting.device cuda``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from checked_lines import Line, print_lines
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ftrace.callbacks import GradientIndexWriter, OnlineTracIn
from ftrace.index import GradientIndex
from ftrace.scores import ScoreStore

VOCABULARY, TOKENS, EXAMPLES, QUERIES = 61, 12, 24, 8
EXACT, PROJECTED = ("dot", "update", "cosine"), ("dot", "cosine", "whitened", "learning")
# Of the largest score. In float32, sums come in another order. Llama and T5 compute norms and rotations in float32
# whatever their dtype, and second moments of gradients that are rounding only scale what `update` sees of them.
BOUNDS = {"64-true": 1e-9, "32-true": 1e-3}
FLOAT32_INSIDE = {"llama": 1e-4, "t5": 1e-4}
OF_UPDATE = 0.05
AGREES = 0.9  # correlation of scores in half precision with those in float64


def make_model(kind: str) -> nn.Module:
    """Build a small model without dropout, the same at each call."""
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=TOKENS,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        return T5ForConditionalGeneration(
            T5Config(vocab_size=VOCABULARY, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
        )
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=TOKENS, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    if kind != "lora":
        return model
    adapted = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


class Learner(pl.LightningModule):
    """A language model that learns with AdamW.

    Args:
        kind: The kind of model.
        fused: Whether steps are fused.
    """

    def __init__(self, kind: str, *, fused: bool = False) -> None:
        super().__init__()
        self.model = make_model(kind).train()
        self._fused = fused

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of tokens, in the logits' own dtype, which the model's own loss isn't."""
        labels, config = batch["labels"], cast(Any, self.model.config)
        if config.is_encoder_decoder:
            logits = self.model(input_ids=batch["input_ids"], labels=labels).logits
        else:
            logits, labels = self.model(input_ids=batch["input_ids"]).logits[:, :-1], labels[:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW of what is trained."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.01, fused=self._fused)


def rows(count: int, key: str, seed: int) -> list[dict[str, Any]]:
    """Draw rows of tokens."""
    tokens = torch.randint(2, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row.clone(), key: place} for place, row in enumerate(tokens)]


def train(
    kind: str, device: str, precision: str, folder: Path, callbacks: list[pl.Callback], *, fused: bool = False
) -> dict[str, Tensor]:
    """Train, and return the weights, on the CPU."""
    pl.seed_everything(0, verbose=False)
    module = Learner(kind, fused=fused)
    trainer = pl.Trainer(
        accelerator=device, devices=1, precision=precision, max_epochs=2, gradient_clip_val=0.5,  # type: ignore[arg-type]
        accumulate_grad_batches=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows(EXAMPLES, "example_id", 0), batch_size=4))  # type: ignore[arg-type]
    return {name: weights.detach().cpu() for name, weights in module.state_dict().items()}


def traced(
    kind: str, device: str, precision: str, *, side: int | None = None, refresh: Any = 2, **options: Any
) -> tuple[ScoreStore, dict[str, Tensor]]:
    """Train with OnlineTracIn, and return the store and the weights."""
    folder = Path(tempfile.mkdtemp())
    online = OnlineTracIn(
        DataLoader(rows(QUERIES, "query_id", 1), batch_size=4), folder / "online",  # type: ignore[arg-type]
        scores=EXACT if side is None else PROJECTED, projection_side=side, refresh_every_n_steps=refresh,
    )  # fmt: skip
    weights = train(kind, device, precision, folder, [online], **options)
    return ScoreStore.open(folder / "online"), weights


def of_scores(kind: str, device: str) -> Iterator[Line]:
    """Compare scores on the device with those on the CPU, in float64 and float32, exact and projected."""
    for precision, bound in BOUNDS.items():
        for side in (None, 4):
            expected, _ = traced(kind, "cpu", precision, side=side)
            found, _ = traced(kind, device, precision, side=side)
            for score in expected.kinds:
                allowed = max(bound, FLOAT32_INSIDE.get(kind, 0.0))
                if score == "update" and (precision == "32-true" or kind in FLOAT32_INSIDE):
                    allowed = OF_UPDATE
                one, other = (store.matrix(score).astype(np.float64) for store in (expected, found))
                error = float(np.abs(one - other).max() / np.abs(one).max())
                how = "exact" if side is None else f"side {side}"
                yield Line(f"{kind}: {score}, {how}, {precision}", f"{error:.1e}", f"{allowed:.0e}", error <= allowed)
            ledger = found.manifest["ledger"]
            if side is None:
                balanced, worst = ledger["balanced"], ledger["worst_imbalance"]
                yield Line(f"{kind}: ledger, {precision}", f"{worst:.1e}", "balanced", balanced is True)


def of_precisions(kind: str, device: str) -> Iterator[Line]:
    """Trace in half precision, with fused steps and with TF32: no false alarm, and scores like those in float64."""
    expected, _ = traced(kind, "cpu", "64-true")
    ways: list[tuple[str, str, bool, str]] = [
        ("bf16-mixed", "bf16-mixed", False, "highest"), ("bf16-true", "bf16-true", False, "highest"),
    ]  # fmt: skip
    if device == "cuda":
        ways += [
            ("16-mixed", "16-mixed", False, "highest"), ("fused AdamW", "32-true", True, "highest"),
            ("TF32", "32-true", False, "high"),
        ]  # fmt: skip
    for name, precision, fused, products in ways:
        torch.set_float32_matmul_precision(products)
        try:
            found, _ = traced(kind, device, precision, fused=fused)
            ids = np.searchsorted(found.example_ids, expected.example_ids)
            agrees = float(np.corrcoef(expected.matrix("dot").ravel(), found.matrix("dot")[ids].ravel())[0, 1])
            skipped = len(found.manifest["steps_skipped"])
            figure = f"{agrees:.3f}" + (f", {skipped} steps skipped" if skipped else "")
            yield Line(f"{kind}: {name}", figure, f"{AGREES}", agrees >= AGREES)
        except Exception as error:  # a line of the table, so that the others are seen, too
            yield Line(f"{kind}: {name}", f"{type(error).__name__}: {error}"[:160], f"{AGREES}", False)
        finally:
            torch.set_float32_matmul_precision("highest")


def of_training(kind: str, device: str) -> Iterator[Line]:
    """Train with and without tracing: weights must be equal, bit by bit."""
    torch.use_deterministic_algorithms(True)
    try:
        for precision in ("32-true", "bf16-mixed"):
            plain = train(kind, device, precision, Path(tempfile.mkdtemp()), [])
            _, weights = traced(kind, device, precision, side=4, refresh="auto")
            differing = [name for name, one in plain.items() if not torch.equal(one, weights[name])]
            yield Line(f"{kind}: weights, {precision}", f"{len(differing)} differ", "0 differ", not differing)
    finally:
        torch.use_deterministic_algorithms(False)


def of_index(kind: str, device: str) -> Iterator[Line]:
    """Compare the rows of an index that is written while training with those that the CPU writes."""
    found = []
    for where in ("cpu", device):
        folder = Path(tempfile.mkdtemp())
        writer = GradientIndexWriter(folder / "index", projection_side=4, segment_steps=6, dtype="float64")
        train(kind, where, "64-true", folder, [writer])
        index = GradientIndex(folder / "index")
        found.append(np.concatenate([segment.rows(0, len(segment)).double().numpy() for segment in index.segments]))
    error = float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())
    bound = max(BOUNDS["64-true"], FLOAT32_INSIDE.get(kind, 0.0))
    yield Line(f"{kind}: rows of an index, 64-true", f"{error:.1e}", f"{bound:.0e}", error <= bound)


def main() -> int:
    """Check, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--models", nargs="+", default=["gpt2", "llama", "t5", "lora"])
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    console = Console(markup=False, highlight=False, width=140)
    if options.device == "cuda":
        console.print(torch.cuda.get_device_name(), torch.__version__)
    lines = []
    for kind in options.models:
        for check in (of_scores, of_precisions, of_training, of_index):
            for line in check(kind, options.device):
                lines.append(line)
                console.print(line.name, line.figure, line.verdict, sep=" | ")
    return print_lines(console, lines)


if __name__ == "__main__":
    sys.exit(main())
