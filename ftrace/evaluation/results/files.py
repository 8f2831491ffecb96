"""Files of the proponents retrieved for each query, in the format of TrackStar's released results: JSON lines.

A line has ``example_id``, ``query_set``, ``inputs_plaintext``, ``targets_plaintext``, and its proponents as three lists
of equal length, ``proponents``, ``proponent_ids`` and ``proponent_scores``; results of gradient methods have the same
three lists of opponents. ``proponent_correct`` or ``proponent_ais_scores`` say which proponents state the query's fact.
All other fields (T-REx: ``fact_id``, ``relation``, ``8b_generations``, ``c4_frequency_bucket`` ...) are kept unchanged.

Source: Chang et al. 2024, arXiv 2410.17413, and the description of its released data files.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ftrace.data.json_rows import is_text
from ftrace.data.row_files import SourceRow, as_text, read_rows
from ftrace.files.whole_files import whole_file

RESULT_SUFFIXES = (".jsonl", ".jsonl.gz")
ENTAILED = 0.5  # a proponent with a higher entailment score states the fact

_QUERY = ("example_id", "query_set", "inputs_plaintext", "targets_plaintext")
_PROPONENTS = ("proponents", "proponent_ids", "proponent_scores")
_OPPONENTS = ("opponents", "opponent_ids", "opponent_scores")
_LABELS = ("proponent_correct", "proponent_ais_scores")
_FORMAT = (*_QUERY, *_PROPONENTS, *_OPPONENTS, *_LABELS)

Name = str | int


@dataclass(frozen=True)
class Passages:
    """Training examples that were retrieved for one query, best first.

    Args:
        texts: Text of each example.
        ids: Name of each example: text, or a whole number.
        scores: Score of each example, a finite number.

    Raises:
        ValueError: If the lists differ in length, or a value is of the wrong type.
    """

    texts: Sequence[str]
    ids: Sequence[Name]
    scores: Sequence[float]

    def __post_init__(self) -> None:
        texts = [_text(text, "texts", index) for index, text in enumerate(self.texts)]
        ids = [_name(name, "ids", index) for index, name in enumerate(self.ids)]
        scores = _finite("scores", self.scores)
        if not len(texts) == len(ids) == len(scores):
            raise ValueError(
                "expected as many ids and scores as texts, "
                f"found {len(texts)} texts, {len(ids)} ids and {len(scores)} scores"
            )
        _set(self, texts=tuple(texts), ids=tuple(ids), scores=scores)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """The proponents and opponents retrieved for one query.

    Args:
        example_id: The query's name, text or a whole number, by which files are aligned.
        query_set: The set of queries that it belongs to.
        prompt: The query's input (``inputs_plaintext``).
        target: The answer that was traced (``targets_plaintext``).
        proponents: The proponents, best first.
        opponents: The opponents, strongest first; None for methods that have none.
        correct: Whether each proponent states the fact (``proponent_correct``); None if unknown.
        ais_scores: Entailment score of each proponent (``proponent_ais_scores``); None if there are none.
        annotations: All other fields, as JSON values, such as ``fact_id`` and ``relation``.

    Raises:
        ValueError: If the number of labels differs from that of the proponents, a value is of the wrong type, or an
            annotation has the name of another field.

    Example:
        >>> retrieved = Passages(texts=["Paris is in France.", "Rome is in Italy."], ids=[7, 2], scores=[0.5, 0.25])
        >>> result = RetrievalResult(
        ...     example_id=0, query_set="trex", prompt="Paris is in", target="France", proponents=retrieved,
        ...     ais_scores=[0.9, 0.5], annotations={"relation": "country"},
        ... )
        >>> result.states_fact
        (True, False)
    """

    example_id: Name
    query_set: str
    prompt: str
    target: str
    proponents: Passages
    opponents: Passages | None = None
    correct: Sequence[bool] | None = None
    ais_scores: Sequence[float] | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _set(self, example_id=_name(self.example_id, "example_id"))
        query_set, prompt, target = (
            _text(text, name) for name, text in zip(_QUERY[1:], (self.query_set, self.prompt, self.target), strict=True)
        )
        _set(self, query_set=query_set, prompt=prompt, target=target)
        if self.correct is not None:
            labels = [_of_type(label, _LABELS[0], index, (bool, np.bool_), "true or false")
                      for index, label in enumerate(self.correct)]  # fmt: skip
            _set(self, correct=tuple(map(bool, labels)))
        if self.ais_scores is not None:
            _set(self, ais_scores=_finite(_LABELS[1], self.ais_scores))
        for name, given in zip(_LABELS, (self.correct, self.ais_scores), strict=True):
            if given is not None and len(given) != len(self.proponents):
                raise ValueError(
                    f"{name}: expected one for each of the {len(self.proponents)} proponents, found {len(given)}"
                )
        taken = [name for name in _FORMAT if self.annotations.get(name) is not None]
        if taken:
            raise ValueError(f"annotations: expected other fields than the result's own, found {taken}")

    @property
    def states_fact(self) -> tuple[bool, ...] | None:
        """Whether each proponent states the query's fact, by annotation or else by entailment; None if unknown."""
        if self.correct is not None:
            return tuple(self.correct)
        if self.ais_scores is not None:
            return tuple(score > ENTAILED for score in self.ais_scores)
        return None

    @property
    def labelled_by(self) -> Literal["annotation", "entailment"] | None:
        """Where the labels of the proponents come from; None without labels."""
        if self.correct is not None:
            return "annotation"
        return None if self.ais_scores is None else "entailment"


def read_results(file: str | Path) -> Iterator[RetrievalResult]:
    """Read the results of a file one by one; only the names of the queries stay in memory.

    Args:
        file: ``.jsonl`` or ``.jsonl.gz``.

    Raises:
        ValueError: If the file can't be read or has another ending, a field is missing or of the wrong type, or a query
            occurs twice; the message names the file and the line.
    """
    file = _known(file)
    row_numbers: dict[str, int] = {}
    for row in read_rows(file, nulls=True):
        result = _from_row(row)
        first = row_numbers.setdefault(str(result.example_id), row.number)
        if first != row.number:
            raise ValueError(
                f"{row.place}: expected each example_id once, found {result.example_id!r} in row {first} already"
            )
        yield result


def write_results(file: str | Path, results: Iterable[RetrievalResult]) -> int:
    """Write results to a file, whole or not at all, so that they may be read from the same file meanwhile.

    Args:
        file: ``.jsonl`` or ``.jsonl.gz``; replaced if it exists.
        results: The results, which are taken one by one.

    Returns:
        The number of results.

    Raises:
        ValueError: If the file has another ending, a query occurs twice, or an annotation is not JSON.
    """
    file = _known(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if file.suffix == ".gz" else open
    names: set[str] = set()
    with whole_file(file) as temporary, opener(temporary, "wt", encoding="utf-8", newline="\n") as lines:
        for result in results:
            if str(result.example_id) in names:
                raise ValueError(f"{file}: expected each example_id once, found {result.example_id!r} twice")
            names.add(str(result.example_id))
            lines.write(_to_line(result))
    return len(names)


def is_result_file(name: str) -> bool:
    """Tell whether the name of a file ends like that of a file of results."""
    return name.endswith(RESULT_SUFFIXES)


def _known(file: str | Path) -> Path:
    if not is_result_file(str(file)):
        raise ValueError(f"{file}: expected a file of results that ends in {' or '.join(RESULT_SUFFIXES)}")
    return Path(file)


def _from_row(row: SourceRow) -> RetrievalResult:
    missing = [name for name in (*_QUERY, *_PROPONENTS) if name not in row.fields]
    if missing:
        raise ValueError(f"{row.place}: no field {missing[0]!r}, {row.found(missing[0])}")
    used = {name for name in _FORMAT if row.fields.get(name) is not None}
    try:
        return RetrievalResult(
            example_id=row.fields["example_id"],
            query_set=row.fields["query_set"],
            prompt=row.fields["inputs_plaintext"],
            target=row.fields["targets_plaintext"],
            proponents=_passages(row, _PROPONENTS),
            opponents=_passages(row, _OPPONENTS) if used.intersection(_OPPONENTS) else None,
            correct=_list(row, "proponent_correct") if "proponent_correct" in used else None,
            ais_scores=_list(row, "proponent_ais_scores") if "proponent_ais_scores" in used else None,
            annotations={name: value for name, value in row.fields.items() if name not in used},
        )
    except ValueError as error:
        raise ValueError(f"{row.place}: {str(error).removeprefix(f'{row.place}: ')}") from error


def _passages(row: SourceRow, names: tuple[str, str, str]) -> Passages:
    lists = [_list(row, name) for name in names]
    try:
        return Passages(*lists)
    except ValueError as error:
        raise ValueError(f"{names[0]}: {error}") from error


def _list(row: SourceRow, name: str) -> list[Any]:
    if name not in row.fields:
        raise ValueError(f"no field {name!r}, {row.found(name)}")
    if not isinstance(row.fields[name], list):
        raise row.wrong(name, "a list")
    values: list[Any] = row.fields[name]
    return values


def _to_line(result: RetrievalResult) -> str:
    fields: dict[str, Any] = dict(
        zip(_QUERY, (result.example_id, result.query_set, result.prompt, result.target), strict=True)
    )
    for names, passages in ((_PROPONENTS, result.proponents), (_OPPONENTS, result.opponents)):
        if passages is not None:
            fields.update(zip(names, (passages.texts, passages.ids, passages.scores), strict=True))
    fields.update((name, labels) for name, labels in zip(_LABELS, (result.correct, result.ais_scores), strict=True)
                  if labels is not None)  # fmt: skip
    try:
        line = json.dumps({**fields, **result.annotations}, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"example_id {result.example_id!r}: annotations: expected JSON values, {error}") from error
    if not is_text(line):
        raise ValueError(
            f"example_id {result.example_id!r}: expected text, found half of a surrogate pair, which is no character. "
            "Write the whole character, or leave it out"
        )
    return line


def _set(instance: object, **values: Any) -> None:
    """Set fields of a frozen dataclass, to replace arguments by their converted values."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def _of_type(value: Any, name: str, index: int | None, wanted: type | tuple[type, ...], words: str) -> Any:
    if not isinstance(value, wanted):
        where = name if index is None else f"{name}[{index}]"
        raise ValueError(f"{where}: expected {words}, found {value!r:.100}")
    return value


def _text(value: Any, name: str, index: int | None = None) -> str:
    text = as_text(value)
    return str(_of_type(value, name, index, str, "text or a whole number")) if text is None else text


def _name(value: Any, name: str, index: int | None = None) -> Name:
    if isinstance(value, bool):
        value = None
    value = _of_type(value, name, index, (str, Integral), "text or a whole number")
    return value if isinstance(value, str) else int(value)


def _finite(name: str, values: Sequence[Any]) -> tuple[float, ...]:
    """Convert finite numbers to Python's own types, which are what JSON supports."""
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
            raise ValueError(f"{name}[{index}]: expected a finite number, found {value!r:.100}")
    return tuple(value if isinstance(value, int) else float(value) for value in values)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number larger than any floating-point number
        return False
