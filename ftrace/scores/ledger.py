"""The ledger: how each query's loss changed between two refreshes, and what explains the change to first order.

It has one row for each interval between refreshes and each query, in nats, positive where the loss fell:

    actual        the loss at the interval's start minus the loss at its end
    predicted     minus <query gradient, true change of all trained weights>, along the interval
    examples      the scores of the kind ``update`` that were added
    momentum      momentum of gradients that is not attributed to examples in this interval
    decay         weight decay
    uncovered     changes of parameters that the scores don't cover
    projection    the error that projecting gradients made in ``examples``
    rounding      steps that were rounded to the dtype of weights in half precision

The last six are the accounts. They are computed independently and add up to ``predicted``. The difference
``actual - predicted`` is due to curvature and stale query gradients.

Tables also have ``right`` and ``next_right``: whether the query was answered right at the interval's start and at its
end, as the run's :class:`AnswerRecord` says; NaN where that is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ftrace.files.digests import DamagedError
from ftrace.scores.answer_record import AnswerRecord
from ftrace.scores.arrow_arrays import as_numpy
from ftrace.scores.ledger_tables import ledger_arrays, ledger_html, ledger_table
from ftrace.scores.names import Names
from ftrace.shown_text import counted

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

ACCOUNTS = ("examples", "momentum", "decay", "uncovered", "projection", "rounding")
_ADDED = ("rounding",)  # which ledgers of earlier versions don't have: nothing was booked there
COLUMNS = ("loss", "next_loss", "predicted", "predicted_left", *ACCOUNTS)
FILE = "ledger.parquet"
_LEARNED = "learned"  # ledgers of earlier versions have who was right at each interval's end
_LEAST_FALL = 0.1  # a net fall below this fraction of all that was gained and lost is not what shares are taken of
_MOST_SHARE = 2.0  # nor are shares beyond this, which say how small the fall is and not what explains it
_MOST_MOVED = 2.0  # nor does an account explain what is more than this many times all that was gained and lost
# An account that moves the queries' losses by more than they moved is not explained by the scores any more.
_REMEDIES = {
    "projection": (
        "the random error of projecting",
        "Take a larger projection_side, or exact scores (projection_side=None)",
    ),
    "momentum": (
        "momentum that is not attributed to examples",
        'Take momentum="exact" if nats matter; rankings suffer less',
    ),
    "uncovered": ("the change of parameters that scores don't cover", 'Cover them: parameters=("*",)'),
    "rounding": (
        "what rounding made of the steps of weights in half precision",
        'Train weights in float32: FactLM(dtype="float32"), or Trainer(precision="bf16-mixed")',
    ),
}
_CURVATURE = "what curvature leaves unexplained"


@dataclass(frozen=True)
class Summary:
    """A run's ledger in a few numbers, in nats, on average over queries.

    Args:
        fall: How much the queries' losses fell over the run.
        moved: How much they rose and fell, interval by interval, the sum of both.
        explained: How much of the fall each account explains, and ``curvature``. Of a ledger without accounts,
            ``predicted`` takes their place.
        remedies: By account, and ``curvature``: what it is, and what to do if it is large.
    """

    fall: float
    moved: float
    explained: Mapping[str, float]
    remedies: Mapping[str, tuple[str, str]] = field(default_factory=lambda: _REMEDIES)

    @property
    def nonsense(self) -> str:
        """Why the numbers explain nothing; empty if they do."""
        if not all(map(math.isfinite, (self.fall, self.moved, *self.explained.values()))):
            return "some of the queries' losses, or of their accounts, are infinite"
        main = self.explained[self._main]
        if abs(main) > _MOST_MOVED * self.moved > 0:
            what = "the scores add up" if self._main == "examples" else "the steps add up, to first order,"
            return (
                f"{what} to {_nats(main)} for each query, which gained and lost {_nats(self.moved)}: "
                f"{abs(main) / self.moved:,.3g} times as much"
            )
        return ""

    @property
    def shares(self) -> dict[str, float]:
        """The same as shares of the fall; empty where they would say nothing.

        That is so if the fall is next to nothing beside what was gained and lost, if an account is more than twice as
        large as the fall, if the scores predict a rise, and if they would be :attr:`nonsense`.
        """
        if abs(self.fall) < max(_LEAST_FALL * self.moved, 1e-300) or self.nonsense:
            return {}
        shares = {name: nats / self.fall for name, nats in self.explained.items()}
        is_told = max(map(abs, shares.values())) <= _MOST_SHARE and shares[self._main] >= 0
        return shares if is_told else {}

    @property
    def _main(self) -> str:
        """The account that is to explain the fall."""
        return "examples" if "examples" in self.explained else "predicted"

    def __str__(self) -> str:
        if not self.moved:
            return "the queries' losses did not change"
        if self.nonsense:
            return f"what explains the fall of the queries' losses is in doubt: {self.nonsense}"
        shares = self.shares
        if not shares:
            return self._in_nats()
        what = f"of what the queries {'learned' if self.fall > 0 else 'forgot'} ({abs(self.fall):.3g} nats each)"
        if "examples" not in shares:
            return f"to first order, the steps explain {_percent(shares['predicted'])} {what}"
        return f"the scores explain {_percent(shares['examples'])} {what}; {_listed(shares, _percent, 1e-2)}"

    def _in_nats(self) -> str:
        """Say what was predicted, what was measured and what made the difference, where shares say nothing."""
        main = self.explained[self._main]
        measured = f"{_change(self.fall)} was measured, after the queries gained and lost {_nats(self.moved)} each"
        if self._main != "examples":
            remedy = "so scores don't count nats here; compare examples by `cosine` or `learning`"
            return f"to first order, the steps predict {_change(main)} where {measured}: {remedy}"
        said = f"the scores predict {_change(main)} where {measured}"
        said += f"; {_listed(self.explained, _nats, 1e-2 * self.moved)}"
        largest = max(self.remedies.keys() & self.explained.keys(), key=lambda name: abs(self.explained[name]))
        if abs(self.explained[largest]) <= abs(self.fall):
            return said
        what, remedy = self.remedies[largest]
        return f"{said}. The largest part is {what}: {remedy[:1].lower()}{remedy[1:]}"


def _listed(sizes: Mapping[str, float], write: Callable[[float], str], least: float) -> str:
    """List what is beside the examples: momentum, decay and curvature, and others as far as they are not next to 0."""
    return ", ".join(
        f"{name} {write(size)}"
        for name, size in sizes.items()
        if name in ("momentum", "decay", "curvature") or (name != "examples" and abs(size) >= least / 2)
    )


def _change(fall: float) -> str:
    return f"a rise by {_nats(-fall)}" if fall < 0 else f"a fall by {_nats(fall)}"


def _nats(nats: float) -> str:
    return f"{nats:.3g} nats"


def _percent(share: float) -> str:
    return f"{round(share, 2) + 0.0:.0%}"  # and never -0%


class Ledger:
    """The ledger of one run.

    Args:
        steps: ``[R]``, the optimizer step at which each interval begins.
        next_steps: ``[R]``, the step at which the next interval begins.
        query_ids: ``[Q]`` int64.
        columns: Each of :data:`COLUMNS`, ``[R, Q]`` float64; NaN where a value is unknown.
        names: The queries' names, for tables; default: they are called by their ids.
        answers: When queries were right, of the same queries; default: nobody knows.
    """

    def __init__(
        self,
        steps: np.ndarray,
        next_steps: np.ndarray,
        query_ids: np.ndarray,
        columns: Mapping[str, np.ndarray],
        names: Names | None = None,
        answers: AnswerRecord | None = None,
    ) -> None:
        self.steps = np.asarray(steps, np.int64)
        self.next_steps = np.asarray(next_steps, np.int64)
        self.query_ids = np.asarray(query_ids, np.int64)
        shape = (len(self.steps), len(self.query_ids))
        self.columns = {name: np.asarray(columns[name], np.float64).reshape(shape) for name in COLUMNS}
        self.names = Names(self.query_ids) if names is None else names
        nobody = np.zeros((0, len(self.query_ids)), np.int8)
        self.answers = AnswerRecord(np.zeros(0), self.query_ids, nobody) if answers is None else answers

    def __getitem__(self, column: str) -> np.ndarray:
        """Return one column, ``[R, Q]``."""
        return self.tabled()[column]

    def tabled(self) -> dict[str, np.ndarray]:
        """Return all columns of a table, ``[R, Q]`` each: ``actual``, :data:`COLUMNS`, ``right`` and ``next_right``."""
        ends = {"right": self.answers.at(self.steps), "next_right": self.answers.at(self.next_steps)}
        return {"actual": self.actual, **self.columns, **ends}

    @property
    def actual(self) -> np.ndarray:
        """How much each loss fell, ``[R, Q]``."""
        return self.columns["loss"] - self.columns["next_loss"]

    @property
    def has_accounts(self) -> bool:
        """Whether accounts were kept, as they are if the kind ``update`` is scored."""
        return not bool(np.isnan(self.columns["examples"]).all())

    def accounted(self) -> np.ndarray:
        """Return the sum of the accounts, ``[R, Q]``, which must equal ``predicted``."""
        return np.sum([self.columns[name] for name in ACCOUNTS], axis=0)

    def imbalance(self) -> np.ndarray:
        """Return how far each interval's accounts are from ``predicted``, as a share of all it booked, ``[R]``."""
        error = np.linalg.norm(np.nan_to_num(self.accounted() - self.columns["predicted"]), axis=1)
        booked = sum(np.linalg.norm(np.nan_to_num(self.columns[name]), axis=1) for name in (*ACCOUNTS, "predicted"))
        return np.divide(error, booked, out=np.zeros_like(error), where=booked > 0)

    def learned_steps(self) -> np.ndarray:
        """Return the step before which each query was first answered right, ``[Q]``: 0 if before training; -1 if never.

        :attr:`answers` also says what was known before, or forgotten.
        """
        return self.answers.first_right_steps()

    def summary(self) -> Summary:
        """Summarize what explains the total fall of the queries' losses."""
        queries = max(1, len(self.query_ids))
        names = ACCOUNTS if self.has_accounts else ("predicted",)
        columns = {name: self.columns[name] for name in names}
        columns["curvature"] = self.actual - self.columns["predicted"]
        explained = {name: float(np.nansum(values)) / queries for name, values in columns.items()}
        fall, moved = float(np.nansum(self.actual)), float(np.nansum(np.abs(self.actual)))
        return Summary(fall / queries, moved / queries, explained, self.remedies)

    @property
    def remedies(self) -> dict[str, tuple[str, str]]:
        """By account, and ``curvature``: what it is, and what to do if it is large."""
        is_left = np.array_equal(self.columns["predicted"], self.columns["predicted_left"], equal_nan=True)
        is_old = len(self.steps) > 0 and bool((self.next_steps - self.steps > 1).any())
        ways = [*(["refresh more often"] if is_old else []), *(['take integration="trapezoid"'] if is_left else [])]
        why = "query gradients were too old" if is_old else "single steps changed the query gradients"
        remedy = " or ".join(ways) or "a smaller learning rate would help"
        return {**_REMEDIES, "curvature": (f"{_CURVATURE} ({why})", f"{remedy[:1].upper()}{remedy[1:]}")}

    def doubts(self) -> list[str]:
        """Say why scores of the kind ``update`` can't be trusted, one sentence for each reason; none if they can.

        An account is in doubt if it adds up to more, over the run, than all that the queries learned and forgot. What
        they gained and lost is compared, and not what remains of it, which may be next to nothing.
        """
        if not self.has_accounts:
            return []
        moved = float(np.nansum(np.abs(self.actual)))
        accounts = {**self.columns, "curvature": self.actual - self.columns["predicted"]}
        sentences = []
        for name, (what, remedy) in self.remedies.items():
            size = float(np.abs(np.nansum(accounts[name], axis=0)).sum())
            if size > moved:
                times = f"{size / moved:.3g} times " if moved else "more than "
                sentences.append(
                    f"`update` is in doubt: {what} comes to {times}all that the queries learned and forgot. {remedy}"
                )
        return sentences

    def to_pandas(self) -> pd.DataFrame:
        """Make a table for pandas with a row for each interval and query.

        Returns:
            Columns ``step``, ``next_step``, ``query_id``, ``query_name`` if the queries have names, ``actual``, each of
            :data:`COLUMNS`, ``right`` and ``next_right``.
        """
        return ledger_table(self.steps, self.next_steps, self.names, self.tabled())

    def to_xarray(self) -> xr.Dataset:
        """Label the ledger for xarray: a variable ``step x query`` for each column.

        Raises:
            ImportError: If xarray is not installed.
        """
        return ledger_arrays(self.steps, self.next_steps, self.names, self.tabled())

    def __repr__(self) -> str:
        return f"Ledger: {self._size()}\n  {self.summary()}" + "".join(f"\n  {doubt}" for doubt in self.doubts())

    def _repr_html_(self) -> str:
        summary = self.summary()
        facts = [("summary", str(summary)), *(("in doubt", sentence) for sentence in self.doubts())]
        return ledger_html(
            f"Ledger: {self._size()}",
            facts,
            summary.explained,
            summary.shares,
            self.names,
            self.columns,
            list(self.answers.states().values()),
        )

    def _size(self) -> str:
        intervals = f"{counted(len(self.steps), 'interval')} x {counted(len(self.query_ids), 'query', 'queries')}"
        return f"{intervals}, steps {self.steps[0]:,} to {self.next_steps[-1]:,}" if len(self.steps) else intervals

    def write(self, file: Path) -> None:
        """Write a Parquet table with one row for each interval and query."""
        rows, queries = self.actual.shape
        table = {
            "step": np.repeat(self.steps, queries),
            "next_step": np.repeat(self.next_steps, queries),
            "query_id": np.tile(self.query_ids, rows),
            "actual": self.actual.ravel(),
            **{name: values.ravel() for name, values in self.columns.items()},
        }
        pq.write_table(pa.table(table).replace_schema_metadata({"num_queries": str(queries)}), file)

    @classmethod
    def open(cls, file: Path, names: Names | None = None, answers: AnswerRecord | None = None) -> Ledger:
        """Read a ledger that :meth:`write` has written.

        Args:
            file: The file.
            names: As in :class:`Ledger`.
            answers: As in :class:`Ledger`; default: what ledgers of earlier versions say, of intervals' ends.

        Raises:
            DamagedError: If it is missing or damaged.
        """
        integers = ("step", "next_step", "query_id")
        try:
            table = pq.read_table(file.absolute())  # a relative one with a colon is taken for a URI
            for name in set(_ADDED) - set(table.column_names):
                known = as_numpy(table.column("projection"))
                table = table.append_column(name, pa.array(0 * known))  # NaN where there are no accounts
            has_ends = answers is None and _LEARNED in table.column_names
            floats = (*COLUMNS, _LEARNED) if has_ends else COLUMNS
            for name in (*integers, *floats):
                expected, column = pa.int64() if name in integers else pa.float64(), table.column(name)
                if column.type != expected or column.null_count:
                    raise ValueError(f"expected {expected} without nulls under {name!r}, found {column.type}")
            stored = {name: as_numpy(table.column(name)) for name in (*integers, *floats)}
            queries = int(table.schema.metadata[b"num_queries"])
            every = max(1, queries)
            columns = {name: stored[name] for name in COLUMNS}
            steps, next_steps = stored["step"][::every], stored["next_step"][::every]
            query_ids = stored["query_id"][:queries]
            if has_ends:
                ends = stored[_LEARNED].reshape(len(steps), len(query_ids))
                answers = AnswerRecord.of_ends(steps, next_steps, query_ids, ends)
            return cls(steps, next_steps, query_ids, columns, names, answers)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DamagedError(f"{str(file)!r} is missing or no ledger ({reason})") from error

    @classmethod
    def empty(cls) -> Ledger:
        """Make the ledger of a run that has not begun."""
        nothing: Any = np.zeros(0)
        return cls(nothing, nothing, nothing, dict.fromkeys(COLUMNS, nothing))
