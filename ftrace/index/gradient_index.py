"""A gradient index on disk: its manifest and its segments.

index.json              how rows were made, of which model and data; a mismatch is an error
segment-00000120/       rows at the weights of step 120
snapshots/step-*/       where the callback wrote it: the weights of each segment
norms/                  of rows, for tasks that were searched for; made anew if they are damaged or missing
example_names.json      names by id, if ids were made from names
examples.parquet        texts of the examples, if they are known: see :mod:`ftrace.scores.texts`
files.json              size and digest of these two
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from torch import nn

from ftrace.arguments import Name, checked
from ftrace.files.digests import DamagedError, FolderCheck, facts_of_file
from ftrace.files.manifests import DIGEST, read_json, write_json, write_manifest
from ftrace.files.noted_files import note_files, noted_files
from ftrace.files.snapshot_files import SnapshotFiles
from ftrace.files.whole_files import whole_file
from ftrace.index.features import GradientFeatures
from ftrace.index.fingerprints import model_fingerprint
from ftrace.index.index_views import index_html, rows_table
from ftrace.index.manifest import FORM, INDEX, read_manifest
from ftrace.index.segment import Segment
from ftrace.index.segment_facts import SEGMENT
from ftrace.index.settings import IndexSettings
from ftrace.scores import EXAMPLE_ID, Texts
from ftrace.scores.names import Names
from ftrace.shown_text import counted, plain

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = INDEX
EXAMPLE_NAMES = "example_names.json"
EXAMPLES = "examples.parquet"
_NOT_ASKED_FOR = ("version", DIGEST)


def begin_index(
    folder: Path, settings: IndexSettings, module: nn.Module, names: Sequence[str], facts: Mapping[str, Any]
) -> GradientFeatures:
    """Make the folder of an index, or continue one of the same settings.

    Args:
        folder: The index's.
        settings: The options of the index.
        module: The model.
        names: The parameters that the index covers.
        facts: More for the manifest. They must be the same as well.

    Returns:
        The features of the index, before any second moments are known.

    Raises:
        ValueError: If the folder holds something else, or an index of other settings.
    """
    features = GradientFeatures(settings.features, names)
    seen = {name for of_block in features.blocks.values() for name in of_block}
    manifest = {
        "format": FORM.format,
        "settings": _plain(settings),
        "model": model_fingerprint(module),
        "blocks": features.blocks,
        "left_out": [name for name, p in module.named_parameters() if p.requires_grad and name not in seen],
        **facts,
    }
    given = json.loads(json.dumps(manifest))
    if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        there, asked = _flat(read_manifest(folder)), _flat(given)
        there = {key: value for key, value in there.items() if key not in _NOT_ASKED_FOR}
        different = sorted(key for key in there.keys() | asked.keys() if there.get(key) != asked.get(key))
        if different:
            few = [
                f"{key}: {_short(there.get(key))} there, {_short(asked.get(key))} asked for" for key in different[:2]
            ]
            more = f"; {len(different) - 2} more" if len(different) > 2 else ""
            raise ValueError(
                f"{str(folder)!r} holds an index of other settings ({'; '.join(few)}{more}). Give the same ones to go "
                "on, or name another folder"
            )
        return features
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / MANIFEST, FORM, manifest)
    return features


def write_examples(folder: Path, texts: Texts) -> None:
    """Write the texts of an index's examples into its folder, in place of earlier ones."""
    with whole_file(folder / EXAMPLES) as temporary:
        texts.write(temporary)
    note_files(folder, [EXAMPLES])


def write_names(folder: Path, names: Mapping[int, str]) -> None:
    """Write the names of an index's examples by their ids into its folder, in place of earlier ones."""
    write_json(folder / EXAMPLE_NAMES, {str(number): name for number, name in names.items()})
    note_files(folder, [EXAMPLE_NAMES])


@checked
class GradientIndex:
    """An index, opened for search.

    Args:
        folder: The index's.

    Raises:
        ValueError: If it is none, or unfinished or damaged.
    """

    def __init__(self, folder: Name | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.settings = msgspec.convert(self.manifest["settings"], IndexSettings)
        self.blocks: dict[str, list[str]] = self.manifest["blocks"]
        folders = sorted(self.folder.glob("segment-*"))
        unfinished = [segment.name for segment in folders if not (segment / SEGMENT).exists()]
        if unfinished or not folders:
            raise ValueError(
                f"{str(self.folder)!r} is not finished: {', '.join(unfinished) or 'no segment'}. Give the command "
                "that writes it again, and it continues where it was"
            )
        self.segments = [Segment(segment) for segment in folders]
        digest = facts_of_file(self.folder / MANIFEST)["xxh3_128"]
        for segment in self.segments:
            if segment.manifest.get("index", digest) != digest:
                raise DamagedError(f"{str(segment.folder)!r} was closed with another {MANIFEST}. Index again")

    @property
    def size(self) -> int:
        """D: the numbers of a row."""
        return len(self.blocks) * self.settings.features.projection_side**2

    @property
    def names(self) -> list[str]:
        """The parameters that it covers."""
        return [name for names in self.blocks.values() for name in names]

    @cached_property
    def _files(self) -> FolderCheck:
        """What is noted of the files beside the segments."""
        return noted_files(self.folder)

    def _beside(self, name: str) -> Path | None:
        """Return a file beside the segments, verified; None if the index has none."""
        file = self.folder / name
        if name not in self._files.files and not file.exists():
            return None
        self._files.check(name)
        return file

    def checked_files(self) -> Iterator[str]:
        """Read everything, and yield the path of each file that is what was written.

        Raises:
            ValueError: If a file differs, by name.
        """
        yield str(self.folder / MANIFEST)
        for name in self._files.check_all():
            yield str(self.folder / name)
        for segment in self.segments:
            yield from segment.checked_files()
        for manifest in sorted(self.folder.glob("snapshots/step-*/snapshot.json")):
            yield from SnapshotFiles(manifest.parent).check_all()

    @cached_property
    def examples(self) -> Texts | None:
        """Texts of the examples; None if they aren't known."""
        file = self._beside(EXAMPLES)
        return None if file is None else Texts(file, EXAMPLE_ID)

    @cached_property
    def num_rows(self) -> int:
        """The number of rows of all segments."""
        return sum(map(len, self.segments))

    @property
    def names_of_examples(self) -> Names:
        """The names of the examples, by their ids."""
        file = self._beside(EXAMPLE_NAMES)
        names = {} if file is None else read_json(file, dict[str, str], digest=False)
        names.pop(DIGEST, None)
        try:
            ids = np.array([int(number) for number in names], np.int64)
        except (ValueError, OverflowError) as error:
            raise DamagedError(f"{str(file)!r} is damaged: expected ids of 64 bits ({error})") from error
        return Names(ids, np.array(list(names.values()), dtype=np.str_) if names else None, self.examples)

    def to_pandas(self) -> pd.DataFrame:
        """Make a table for pandas with a line for each row of the index.

        Returns:
            Columns ``segment`` (the step of its weights), ``step`` (the optimizer step that the row is of),
            ``example_id``, ``example_name`` if the examples have names, and ``weight`` (the row's, in weighted scores).

        Raises:
            ValueError: If there are more than ten million rows, or a file is damaged.
        """
        return rows_table(self.segments, self.names_of_examples)

    def __repr__(self) -> str:
        lines = [f"  {name}: {value}" for name, value in self._facts()]
        return "\n".join([f"GradientIndex({plain(str(self.folder))!r}): {self._size()}", *map(plain, lines)])

    def _repr_html_(self) -> str:
        facts = [("folder", str(self.folder)), *self._facts()]
        return index_html(f"GradientIndex: {self._size()}", facts, self.segments)

    def _size(self) -> str:
        rows, segments = counted(self.num_rows, "row"), counted(len(self.segments), "segment")
        return f"{rows} of {counted(self.size, 'number')} in {segments}"

    def _facts(self) -> list[tuple[str, str]]:
        features = self.settings.features
        left_out = len(self.manifest.get("left_out", ()))
        covered = counted(len(self.names), "parameter") + f" in {counted(len(self.blocks), 'block')}"
        return [
            ("rows", f"{features.entries}, projected to {features.projection_side} x {features.projection_side}"),
            ("dtype", self.settings.dtype),
            ("covered", f"{covered}; {left_out:,} left out" if left_out else covered),
            ("texts", "none" if self.examples is None else "of examples"),
        ]

    def features(self, segment: Segment, module: nn.Module) -> GradientFeatures:
        """Make the features that a segment's rows were made with.

        Raises:
            ValueError: If the model is a different one.
        """
        fingerprint = model_fingerprint(module)
        if fingerprint != self.manifest["model"]:
            raise ValueError(
                f"{str(self.folder)!r} is of a model with other parameters than {type(module).__name__}: fingerprint "
                f"{self.manifest['model']}, found {fingerprint}"
            )
        order = {name: position for position, (name, _) in enumerate(module.named_parameters())}
        names = sorted(self.names, key=order.__getitem__)
        like = next(module.parameters())
        return GradientFeatures(self.settings.features, names, segment.preconditioners(like))


def _plain(settings: IndexSettings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names; options of the index itself have no prefix."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and key != "blocks":
            flat |= _flat(value, prefix if key in ("settings", "features") else f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
