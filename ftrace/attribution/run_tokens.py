"""Scores of the tokens of a finished run's examples, each query's near the step at which it was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from ftrace.attribution.token_products import TokenProductReader, read_examples
from ftrace.data import FactData
from ftrace.models import FactLM
from ftrace.progress import track
from ftrace.scores import NEVER_ASKED, Answered, AnswerRecord, ExampleTokenScores, QueryTokenScores

_NONE = "Scores aren't told token by token"
_WHAT = (
    "A token's value is what it adds to the product of the example's and the query's loss gradients: times a learning "
    "rate, by how many nats (to first order) a step of plain gradient descent on the example lowers the query's loss."
)
_WHERE = {
    "encoder-decoder": "Tokens of the input count where they are read, those of the target where they are predicted.",
    "decoder-only": "Tokens count where they are read; each is predicted at the one before it.",
}


class FinishedRun(Protocol):
    """What is needed of a finished run."""

    @property
    def data(self) -> FactData:
        """Its data, set up."""

    @property
    def snapshots(self) -> Sequence[Path]:
        """Folders of its snapshots, by step."""

    def model_at(self, snapshot: Path) -> FactLM:
        """Load the model at a snapshot, in eval mode."""


@dataclass(frozen=True)
class MadeTokens:
    """Scores of tokens, as far as they could be made.

    Args:
        by_query: By query id.
        reasons: Why there are none, or none of some queries and examples, a sentence each.
    """

    by_query: Mapping[int, QueryTokenScores] = field(default_factory=dict)
    reasons: Sequence[str] = ()


def make_tokens(
    run: FinishedRun | None,
    answers: AnswerRecord | None,
    examples: Mapping[int, Sequence[int]],
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> MadeTokens:
    """Divide the products of queries' and examples' gradients over the examples' tokens.

    Each query is looked at near the step at which the model learned it: see :func:`snapshot_for`.
    Values don't depend on ``batch_size``, beyond rounding.

    Args:
        run: The run; None if there is none.
        answers: When each query was answered right, as the run's online scores record it; None: not known.
        examples: By query id, ids of the examples to look at.
        batch_size: The most examples in memory at once.
        device: What to compute on.

    Returns:
        What could be made, and why not more: a report can do without.
    """
    if run is None:
        return MadeTokens(reasons=[f"{_NONE}: that takes a run's model and snapshots. Give the run's folder"])
    try:
        if not _has_snapshots(run):
            return MadeTokens(reasons=[f"{_NONE}: the run has no snapshots. Train with CheckpointSnapshots"])
        return _make(run, answers, examples, batch_size, torch.device(device))
    except (ValueError, OSError) as error:
        return MadeTokens(reasons=[f"{_NONE}: {error}"])


def snapshot_for(learned_step: int | None, snapshots: Sequence[Path]) -> Path:
    """Choose the snapshot at which a query's gradient says most.

    A fact that has long been learned has hardly any gradient left, and long before it is learned, the gradient is about
    what all facts have in common. So it is the snapshot nearest to the step at which the query was first answered
    right, the earlier one of two: for a query that was right before training, the snapshot before it. For a query that
    never was right, or of which nobody knows, it is the last one.

    Step 0 counts like any other, and the snapshot's name says so: what products say there, before anything was learned,
    can be no more than how alike the texts are.

    Args:
        learned_step: The step before which it was first right, -1 for never; None: not known.
        snapshots: Folders named "step-..." by their steps, ascending; at least one.

    Example:
        >>> folders = [Path("step-00000000"), Path("step-00000004"), Path("step-00000020")]
        >>> [snapshot_for(step, folders).name for step in (2, 12, 13, -1, None)]
        ['step-00000000', 'step-00000004', 'step-00000020', 'step-00000020', 'step-00000020']
    """
    if learned_step is None or learned_step < 0:
        return snapshots[-1]
    return min(snapshots, key=lambda folder: abs(int(folder.name.removeprefix("step-")) - learned_step))


def _has_snapshots(run: FinishedRun) -> bool:
    try:
        return len(run.snapshots) > 0
    except ValueError:  # as Run says that there are none, with its folder's name
        return False


def _make(
    run: FinishedRun,
    answers: AnswerRecord | None,
    examples: Mapping[int, Sequence[int]],
    batch_size: int,
    device: torch.device,
) -> MadeTokens:
    places = {query: place for place, query in enumerate(run.data.query_rows["query_id"])}
    count = len(run.data.train_rows)
    known = {
        query: [example for example in of_query if 0 <= example < count]
        for query, of_query in examples.items()
        if query in places
    }
    reasons = []
    if len(known) < len(examples):
        reasons.append(
            f"{len(examples) - len(known)} of {len(examples)} queries are not told token by token: the run's data "
            "doesn't have them. Give the run that the scores are of"
        )
    lacking = sum(len(examples[query]) - len(of_query) for query, of_query in known.items())
    if lacking:
        reasons.append(
            f"{lacking} examples are not told token by token: the run's data has ids from 0 to {count - 1}. Give the "
            "run that the scores are of"
        )
    answered = {} if answers is None else answers.states()
    chosen = [
        (snapshot_for(answered.get(query, NEVER_ASKED).step, run.snapshots), query)
        for query, of_query in known.items()
        if of_query
    ]
    by_query: dict[int, QueryTokenScores] = {}
    reader, loaded = None, None
    work = sorted(chosen, key=lambda pair: pair[0])
    for snapshot, query in track(work, "tokens"):
        if reader is None or snapshot != loaded:
            reader = None  # its memory is needed
            reader, loaded = TokenProductReader(run.model_at(snapshot).to(device)), snapshot
        told, left_out = _of_query(run.data, reader, places[query], known[query], batch_size)
        why = _why_there(answered.get(query, NEVER_ASKED))
        note = " ".join([_WHAT, _WHERE[run.data.architecture], why, *_told_of(left_out, told)])
        by_query[query] = QueryTokenScores(snapshot.name, note, told)
    return MadeTokens({query: by_query[query] for query in known if query in by_query}, reasons)


def _of_query(
    data: FactData, reader: TokenProductReader, place: int, example_ids: Sequence[int], batch_size: int
) -> tuple[list[ExampleTokenScores], dict[str, float]]:
    """Make the scores of one query, and sum the absolute products of what they leave out, by name."""
    assert data.tokenizer is not None
    (batch,) = data.query_batches([data.query_rows[place]])
    query = reader.query(batch)
    collate = data.example_dataloader().collate_fn
    examples: list[ExampleTokenScores] = []
    left_out: dict[str, float] = {}
    for start in range(0, len(example_ids), batch_size):
        ids = example_ids[start : start + batch_size]
        products = reader.products(collate([data.train_rows[example] for example in ids]), query)
        examples.extend(read_examples(ids, products, data.tokenizer))
        for name, values in products.left_out.items():
            left_out[name] = left_out.get(name, 0.0) + float(values.abs().sum())
    return examples, left_out


def _why_there(answered: Answered) -> str:
    if answered.state == "unknown":
        return "The snapshot is the last."
    if answered.state == "never":
        return "The snapshot is the last, as the query was never answered right."
    if answered.was_known:
        return f"The snapshot is the nearest to step {answered.first_right}: the query was {answered}."
    return f"The snapshot is the nearest to step {answered.first_right}, where the query was first answered right."


def _told_of(left_out: Mapping[str, float], examples: Sequence[ExampleTokenScores]) -> list[str]:
    """Say what the values leave out, if anything, and how much of all that is."""
    if not left_out:
        return []
    sums = [sum(sum(sequence.values) for sequence in example.sequences) for example in examples]
    size = sum(map(abs, sums)) + sum(left_out.values())
    shares = ", ".join(f"{name} ({value / size if size else 0:.1%})" for name, value in sorted(left_out.items()))
    return [f"Left out, as they don't keep tokens apart, with their share of the totals: {shares}."]
