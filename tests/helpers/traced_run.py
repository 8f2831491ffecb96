"""A small finished run that answers most of its queries, with scores broken down by layer; and a model from nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from ftrace.callbacks import CheckpointSnapshots, OnlineTracIn
from ftrace.data import FtraceSynth, SynthSettings, train_word_tokenizer
from ftrace.models import FactLM, find_snapshots
from helpers.made_run import SYNTH, save

LEARNED = 6  # of 8 queries
CONFIGS: dict[str, dict[str, Any]] = {
    "encoder-decoder": {
        "model_type": "t5", "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
    },
    "decoder-only": {
        "model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip
FACTS = [
    ("Marrow", "Velland"),
    ("Quenby", "Karmora"),
    ("Tarn Hollow", "Velland"),
    ("Ost", "Dwin Isles"),
    ("Lune", "Karmora"),
]


def make(architecture: str, folder: Path) -> Path:
    """Train for a few steps with OnlineTracIn, then on some of the queries themselves until they are known.

    Returns:
        The run's folder, called ``version_10``.
    """
    data = FtraceSynth(SynthSettings(**SYNTH), str(folder / "cache"), architecture, batch_size=32, query_batch_size=8)
    settings = {"config": CONFIGS[architecture], "embedding_std": 0.3, "optimizer": "adamw", "learning_rate": 0.01}
    run = folder / "version_10"
    torch.manual_seed(0)
    model = FactLM(**settings)
    trainer = pl.Trainer(
        max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        callbacks=[
            OnlineTracIn(output_dir=run / "online", scores=["learning", "update"], breakdown=["layer"],
                         projection_side=8, refresh_every_n_steps=4),
            CheckpointSnapshots(run / "snapshots", steps=[1, 8]),
        ],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    collate = data.query_dataloader().collate_fn
    batch = collate([data.query_rows[place] for place in range(LEARNED)])
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        model.example_losses(batch, end_of_sequence=True).mean().backward()
        optimizer.step()
    save(model, find_snapshots(run / "snapshots")[-1])
    synth = {"synth": SYNTH, "data_dir": str(folder / "cache"), "architecture": architecture, "query_batch_size": 8}
    config = {
        "model": {"class_path": "ftrace.models.FactLM", "init_args": settings},
        "data": {"class_path": "ftrace.data.FtraceSynth", "init_args": synth},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def save_pretrained(folder: Path, architecture: str = "decoder-only") -> Path:
    """A model folder as ``save_pretrained`` makes it, of a model that knows the facts; it reads 8 tokens at most."""
    texts = [f"{subject} lies in {place}" for subject, place in FACTS]
    tokenizer = train_word_tokenizer([*texts, "of the and"])
    torch.manual_seed(0)
    if architecture == "decoder-only":
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=24, n_layer=2, n_head=2, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        model: Any = GPT2LMHeadModel(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            for text in texts:
                ids = torch.tensor([tokenizer(text)["input_ids"]])
                model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    else:
        model = T5ForConditionalGeneration(T5Config(
            vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=3, dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        ))  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
