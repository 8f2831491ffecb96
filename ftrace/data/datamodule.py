"""FTRACE-SYNTH as a LightningDataModule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import override

from ftrace.data.collators import Architecture, make_collator
from ftrace.data.synth import SynthSettings
from ftrace.data.synth_files import FORMAT, write_synth
from ftrace.data.tokenizer import train_word_tokenizer


class FtraceSynth(LightningDataModule):
    """FTRACE-SYNTH: generated once, cached by the hash of its settings, with queries that ask for the facts.

    Training batches carry ``example_id``, query batches ``query_id``. Validation, test and prediction run over the
    queries.

    Args:
        synth: The generator's flags.
        data_dir: Where generated data is kept.
        architecture: "encoder-decoder" or "decoder-only", as the model is.
        tokenizer: Name or folder of a pretrained tokenizer; None learns one token a word from the data.
        batch_size: Rows of a training batch.
        query_batch_size: Queries of a query batch.
        num_workers: Processes that load training batches.

    Attributes:
        tokenizer: The tokenizer, once :meth:`setup` has run.
        data_path: The generated folder, with ``train.parquet`` and ``queries.parquet``.
    """

    def __init__(
        self,
        synth: SynthSettings = SynthSettings(),  # noqa: B008 - frozen
        data_dir: str = "data_cache",
        architecture: Architecture = "encoder-decoder",
        tokenizer: str | None = None,
        batch_size: int = 128,
        query_batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.synth = synth
        self.data_dir = Path(data_dir).absolute()
        self.architecture: Architecture = architecture
        self.tokenizer_name = tokenizer
        self.batch_size = batch_size
        self.query_batch_size = query_batch_size
        self.num_workers = num_workers
        self.data_path = self.data_dir / f"synth-{_hash(synth)}"
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @override
    def prepare_data(self) -> None:
        if not _is_complete(self.data_path):
            write_synth(self.data_path, self.synth, progress=True)
        if self.tokenizer_name is None and not self._own_tokenizer.exists():
            temporary = self._own_tokenizer.with_name(".tokenizer")
            train_word_tokenizer(self._texts()).save_pretrained(str(temporary))
            temporary.rename(self._own_tokenizer)

    @override
    def setup(self, stage: str | None = None) -> None:
        if self.tokenizer is None:
            self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_name or str(self._own_tokenizer))
            self.train_rows = self._read("train")
            self.query_rows = self._read("queries")

    @override
    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_rows, self.batch_size, shuffle=True)

    def example_dataloader(self, batch_size: int | None = None) -> DataLoader:
        """The training rows in order, for methods that score a finished model."""
        return self._loader(self.train_rows, batch_size or self.batch_size)

    def query_dataloader(self) -> DataLoader:
        """The queries in order, with all their accepted answers."""
        return self._loader(self.query_rows, self.query_batch_size)

    @override
    def val_dataloader(self) -> DataLoader:
        return self.query_dataloader()

    @override
    def test_dataloader(self) -> DataLoader:
        return self.query_dataloader()

    @override
    def predict_dataloader(self) -> DataLoader:
        return self.query_dataloader()

    @property
    def _own_tokenizer(self) -> Path:
        return self.data_path / "tokenizer"

    def _loader(self, rows: Any, batch_size: int, *, shuffle: bool = False) -> DataLoader:
        if self.tokenizer is None:
            raise RuntimeError("expected prepare_data() and setup() to have run before a loader is asked for")
        return DataLoader(
            rows,
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers if shuffle else 0,
            collate_fn=make_collator(self.tokenizer, self.architecture),
        )

    def _read(self, name: str) -> datasets.Dataset:
        file = str(self.data_path / f"{name}.parquet")
        hidden = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()  # it takes no time worth a bar
        try:
            return datasets.Dataset.from_parquet(file, cache_dir=str(self.data_path / "arrow"))
        finally:
            if not hidden:
                datasets.enable_progress_bars()

    def _texts(self) -> Iterator[str]:
        for name in ("train", "queries"):
            for batch in self._read(name).select_columns(["inputs_pretokenized", "targets_pretokenized"]).iter(10_000):
                for column in batch.values():
                    yield from column


def _hash(synth: SynthSettings) -> str:
    """Of the flags, and of the vocabulary's text rather than its path."""
    vocabulary = synth.relation_vocabulary
    text = Path(vocabulary).read_text() if vocabulary and Path(vocabulary).exists() else ""
    flags = asdict(replace(synth, relation_vocabulary=text or vocabulary))
    return hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:12]


def _is_complete(folder: Path) -> bool:
    manifest = folder / "manifest.json"  # present only in folders that were finished and renamed
    return manifest.exists() and json.loads(manifest.read_text()).get("format") == FORMAT
