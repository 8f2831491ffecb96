"""Fact-tracing data as a LightningDataModule: a tokenizer, and batches of the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import override

from ftrace.data.collators import TextCollator, make_collator
from ftrace.data.fact_tables import TABLES, FactDataSettings, FactTables
from ftrace.data.lengths import limit_of_model
from ftrace.data.messages import tell
from ftrace.data.row_lengths import RowLengths
from ftrace.data.tokenizer import check_tokenizer, has_tokenizer, save_tokenizer, train_word_tokenizer
from ftrace.files.whole_files import whole_folder

if TYPE_CHECKING:
    from torch import Tensor


class FactData(FactTables, LightningDataModule):
    """Data module of training rows and queries in a folder: :class:`ftrace.data.FactTables`, and their batches.

    Training batches carry ``example_id``, query batches ``query_id``. Validation, test and prediction run over the
    queries.

    A subclass takes its own arguments first, and then those of :class:`FactDataSettings`, by place or by name:

        def __init__(self, source: str, *args: Any, **settings: Any) -> None:
            super().__init__(f"mine-{hash_of(source)}", FactDataSettings(*args, **settings))

    jsonargparse follows these to the dataclass, so they are options of their own on the command line and in configs.

    Args:
        folder_name: Name of the data's folder within ``settings.data_dir``.
        settings: What all data modules have.

    Attributes:
        batch_size: As given in the settings, but Lightning's ``Tuner.scale_batch_size`` may set it.
        tokenizer: The tokenizer, once :meth:`setup` has run.
    """

    def __init__(self, folder_name: str, settings: FactDataSettings) -> None:
        super().__init__(folder_name, settings)
        self.batch_size = settings.batch_size
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @override
    def prepare_data(self) -> None:
        self.make_tables()

    @override
    def _is_ready(self) -> bool:
        return not self._lacks_tokenizer() and super()._is_ready()

    @override
    def _make_all(self) -> None:
        super()._make_all()
        if self._lacks_tokenizer():
            learned = train_word_tokenizer(self._texts(), split_hyphens=self.settings.split_hyphens)
            with whole_folder(self._learned_tokenizer) as temporary:
                save_tokenizer(learned, temporary)

    def _lacks_tokenizer(self) -> bool:
        return self.pretrained_tokenizer is None and not self._learned_tokenizer.exists()

    @override
    def setup(self, stage: str | None = None) -> None:
        if self.tokenizer is None:
            if self.pretrained_tokenizer is None:
                check_tokenizer(self._learned_tokenizer)
            self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_source, trust_remote_code=False)
            # What is too long is cut, and said below; this would say that the model fails.
            self.tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
            self.open_tables()
            for line in self._lengths.described():
                tell(line)

    @override
    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_rows, self.batch_size, shuffle=True)

    def example_dataloader(self, batch_size: int | None = None) -> DataLoader:
        """Return a loader of the training rows in order, for methods that score a finished model."""
        return self._loader(self.train_rows, batch_size or self.batch_size)

    def query_dataloader(self) -> DataLoader:
        """Return a loader of the queries in order, with all their accepted answers."""
        return self._loader(self.query_rows, self.settings.query_batch_size)

    def query_batches(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Collate rows of queries, of this data or of the same form, as :meth:`query_dataloader` does.

        Args:
            rows: Like those of :attr:`query_rows`.
        """
        loader = self.query_dataloader()
        size = loader.batch_size or 1
        return [loader.collate_fn(list(rows[start : start + size])) for start in range(0, len(rows), size)]

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
    def pretrained_tokenizer(self) -> str | None:
        """Name or folder of the pretrained tokenizer: as in the settings, or the trained model's; None learns one."""
        if self.settings.tokenizer is not None or self.trainer is None:
            return self.settings.tokenizer
        module = getattr(self.trainer, "lightning_module", None)  # Lightning knows it before it asks for data
        name = module.hparams.get("model_name_or_path") if module is not None else None
        return name if name is not None and has_tokenizer(name) else None

    @property
    def tokenizer_source(self) -> str:
        """Name or folder of the tokenizer: the pretrained one, or the one that was learned from the data."""
        return self.pretrained_tokenizer or str(self._learned_tokenizer)

    @cached_property
    def _lengths(self) -> RowLengths:
        """How long the rows are and may be, once :meth:`setup` has run."""
        assert self.tokenizer is not None
        limit, who = self.settings.max_length, "max_length"
        if limit is None and self.pretrained_tokenizer is not None:
            limit, who = limit_of_model(self.tokenizer, self.pretrained_tokenizer)
        return RowLengths(self.train_rows, self.query_rows, self._collator(None), limit, who)

    def check_length(self, positions: int) -> None:
        """Refuse rows that are longer than a model takes.

        Args:
            positions: How many tokens it has positions for.

        Raises:
            ValueError: If :attr:`settings` let longer rows through, and there are some.
        """
        self._lengths.check(positions)

    def _collator(self, max_length: int | None) -> TextCollator:
        assert self.tokenizer is not None
        several = self.has_several_answers
        return make_collator(self.tokenizer, self.architecture, several_answers=several, max_length=max_length)

    @property
    def _learned_tokenizer(self) -> Path:
        return self.data_path / ("tokenizer-hyphens" if self.settings.split_hyphens else "tokenizer")

    def _loader(self, rows: Any, batch_size: int, *, shuffle: bool = False) -> DataLoader:
        if self.tokenizer is None:
            raise RuntimeError("expected prepare_data() and setup() to have run before a loader is asked for")
        return DataLoader(
            rows,
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=self.settings.num_workers if shuffle else 0,
            collate_fn=self._collator(self._lengths.longest),
        )

    def _texts(self) -> Iterator[str]:
        for name in TABLES:
            for batch in (
                self._tables.open(name).select_columns(["inputs_pretokenized", "targets_pretokenized"]).iter(10_000)
            ):
                for column in batch.values():
                    yield from column
