"""Small models of random weights that learn random tokens, traced and plain, on either device."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask for; read only once

import lightning.pytorch as pl
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
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

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore

KINDS = ("gpt2", "llama", "t5", "lora")
VOCABULARY, TOKENS, EXAMPLES, QUERIES, BATCH, ACCUMULATED = 61, 12, 24, 8, 4, 2
EXACT, PROJECTED = ("dot", "update", "cosine"), ("dot", "cosine", "whitened", "learning")
Row = dict[str, Any]


def make_model(kind: str) -> nn.Module:
    """Build a small model without dropout, the same at each call."""
    torch.manual_seed(0)
    ends: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=TOKENS, **ends,
        )  # fmt: skip
        return LlamaForCausalLM(config)
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        return T5ForConditionalGeneration(
            T5Config(vocab_size=VOCABULARY, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
        )
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=TOKENS, **no_dropout, **ends))
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
        compiled_by: The compiler of the model; None: it isn't compiled.
    """

    def __init__(self, kind: str, *, fused: bool = False, compiled_by: str | None = None) -> None:
        super().__init__()
        self.model = make_model(kind).train()
        self._fused = fused
        if compiled_by is not None:
            torch.compiler.reset()
            self.model.compile(backend=compiled_by)

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


def rows(count: int, key: str, seed: int) -> list[Row]:
    """Draw rows of tokens."""
    tokens = torch.randint(2, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row.clone(), key: place} for place, row in enumerate(tokens)]


def train(
    kind: str,
    device: str,
    precision: str | None,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
    *,
    data: Sequence[Row] | None = None,
    epochs: int = 2,
    plugins: Sequence[Any] = (),
    resume: Path | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Train with clipping and two batches a step, and return the weights, on the CPU.

    Args:
        precision: As Lightning names it; None: that of a plugin.
        data: Default: as many rows as there are examples.
        plugins: Lightning's.
        resume: A checkpoint to go on from.
        options: Of :class:`Learner`.
    """
    pl.seed_everything(0, verbose=False)
    module = Learner(kind, **options)
    trainer = pl.Trainer(
        accelerator=device, devices=1, precision=precision, max_epochs=epochs, gradient_clip_val=0.5,  # type: ignore[arg-type]
        accumulate_grad_batches=ACCUMULATED, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(one, pl.callbacks.Checkpoint) for one in callbacks),
        default_root_dir=folder, callbacks=list(callbacks), plugins=list(plugins) or None,
    )  # fmt: skip
    given = rows(EXAMPLES, "example_id", 0) if data is None else list(data)
    trainer.fit(module, DataLoader(given, batch_size=BATCH), ckpt_path=resume)  # type: ignore[arg-type]
    return {name: weights.detach().cpu() for name, weights in module.state_dict().items()}


def tracer(folder: Path, *, side: int | None = None, refresh: Any = 2) -> OnlineTracIn:
    """Make the callback, with all kinds of scores that there are with and without a projection."""
    return OnlineTracIn(
        DataLoader(rows(QUERIES, "query_id", 1), batch_size=4), folder / "online",  # type: ignore[arg-type]
        scores=EXACT if side is None else PROJECTED, projection_side=side, refresh_every_n_steps=refresh,
    )  # fmt: skip


def traced(
    kind: str, device: str, precision: str | None, *, side: int | None = None, refresh: Any = 2, **options: Any
) -> tuple[ScoreStore, dict[str, Tensor]]:
    """Train with OnlineTracIn, and return the store and the weights."""
    folder = Path(tempfile.mkdtemp())
    weights = train(kind, device, precision, folder, [tracer(folder, side=side, refresh=refresh)], **options)
    return ScoreStore.open(folder / "online"), weights


@cache
def on_cpu(kind: str, precision: str, side: int | None = None) -> ScoreStore:
    """Return what the CPU finds, which several checks compare with."""
    return traced(kind, "cpu", precision, side=side)[0]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, of the largest number."""
    expected = expected.astype(np.float64)
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())
