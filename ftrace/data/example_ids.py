"""Ids for data sets that have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ftrace.arguments import Name, checked


@checked
class WithExampleIds(Dataset[dict[str, Any]]):
    """Map-style dataset whose samples also carry their own index, so that every batch says which examples it holds.

    If a training uses several data sets, their ids must differ. Number them together,
    ``WithExampleIds(ConcatDataset([a, b]))``, or, for several loaders, each from a ``first`` of its own.

    Args:
        dataset: Anything with ``__getitem__`` and ``__len__``. Samples are dictionaries, or tuples named by ``names``.
        key: Key of the id in each sample.
        names: Names for the fields of samples that are tuples, such as ``("x", "y")``.
        first: The id of the first row.

    Attributes:
        ids: Ids of all rows, by index.

    Raises:
        TypeError: If the dataset is iterable-style, which has no indices; when a sample is asked for, if it is neither
            a dictionary nor a tuple with names.
        ValueError: If ids would not fit into 64 bits; when a sample is asked for, if it already has the key, or another
            number of fields than names.

    Example:
        >>> WithExampleIds([{"x": 5}, {"x": 6}])[1]
        {'x': 6, 'example_id': 1}
        >>> WithExampleIds([(5, True), (6, False)], names=("x", "y"))[1]
        {'x': 6, 'y': False, 'example_id': 1}
        >>> WithExampleIds([{"x": 7}], first=2)[0]
        {'x': 7, 'example_id': 2}
    """

    def __init__(
        self, dataset: Any, key: Name = "example_id", names: Sequence[str] | None = None, first: int = 0
    ) -> None:
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            raise TypeError(
                f"expected a map-style dataset, found {type(dataset).__name__}, whose samples have no index. Give its "
                f'samples a stable "{key}" yourself'
            )
        self.dataset = dataset
        self.key = key
        self.names = None if names is None else tuple(names)
        if isinstance(first, bool) or not isinstance(first, int) or not -(2**63) <= first <= 2**63 - 1 - len(dataset):
            raise ValueError(
                f"first: expected a whole number from which {len(dataset)} ids fit into 64 bits, -2^63 to 2^63 - 1, "
                f"found {first!r}"
            )
        self.first = first

    @property
    def ids(self) -> range:
        """The ids of all rows, by index."""
        return range(self.first, self.first + len(self))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        index = index % len(self)
        sample = self.dataset[index]
        if self.names is not None and not isinstance(sample, Mapping):
            if len(sample) != len(self.names):
                raise ValueError(f"expected samples of {len(self.names)} fields {self.names}, found {len(sample)}")
            sample = dict(zip(self.names, sample, strict=True))
        if not isinstance(sample, Mapping):
            kind = type(sample).__name__
            raise TypeError(f'expected samples that are dictionaries, found {kind}. Name its fields: names=("x", "y")')
        if self.key in sample:
            raise ValueError(f'samples already have "{self.key}": expected none')
        return {**sample, self.key: self.ids[index]}
