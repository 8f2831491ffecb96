"""Tail-patch: how one optimizer step on one training example changes the probability of a query's target.

From a snapshot (usually the last), one step is taken on a single example, and the probability of the query's target is
computed again (Chang et al. 2024, arXiv 2410.17413). The example's loss is the one that training used, the mean over
the target tokens of its row. The probability is exp(-loss of the query), with the answers that the run accepts.

All examples of a chunk take their steps in one pass, and their queries are evaluated in one pass with as many sets of
weights. Each example's gradient is computed once, however many queries it is paired with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ftrace.data import FactData
from ftrace.evaluation.tail_patch.step_rules import StepRule
from ftrace.models import FactLM, StackedFactLM
from ftrace.progress import progress

MEMORY_BUDGET = 2**30
_COPIES = 4  # of the weights' size per example: gradient, its square, changed weights, torch's own buffers


@dataclass(frozen=True)
class PatchedPairs:
    """The probability of queries' targets before and after steps on single examples.

    Args:
        query_ids: The query of each pair, ``[P]`` int64.
        example_ids: The example of each pair, ``[P]`` int64.
        before: Probability of the query's target at the snapshot, float64 ``[P]``.
        after: The same after one step on the example, float64 ``[P]``.
    """

    query_ids: np.ndarray
    example_ids: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @cached_property
    def rises(self) -> dict[tuple[int, int], float]:
        """Rise of the probability by each pair's step, by query and example."""
        pairs = zip(self.query_ids.tolist(), self.example_ids.tolist(), strict=True)
        return dict(zip(pairs, (self.after - self.before).tolist(), strict=True))


def tail_patch(
    model: FactLM,
    data: FactData,
    pairs: np.ndarray,
    rule: StepRule,
    memory_budget: int = MEMORY_BUDGET,
) -> PatchedPairs:
    """Take one step on each example, and compute the target probabilities of the queries it is paired with.

    Args:
        model: The model at a snapshot, in eval mode; it is not changed.
        pairs: Query ids and example ids, int64 ``[P, 2]``; repeated pairs are computed once.
        rule: The rule of the optimizer step.
        memory_budget: Approximate bytes that weights and activations may take; at least one example is always
            processed at a time. Results don't depend on it, beyond rounding.

    Returns:
        The distinct pairs, sorted by query, then example.

    Raises:
        ValueError: If ids are not the data's, the budget is below 1, or the model's code can't be run with many sets of
            weights at a time.
    """
    pairs = np.unique(np.asarray(pairs, np.int64).reshape(-1, 2), axis=0)
    if memory_budget < 1:
        raise ValueError(f"memory_budget: expected at least 1, found {memory_budget}")
    rows = _Rows(data, model.device)
    rows.check(pairs)
    before = _probabilities(model, rows, np.unique(pairs[:, 0]).tolist())
    after: dict[tuple[int, int], float] = {}
    if len(pairs):
        with progress("a step on each example", len(pairs)) as advance:
            for probabilities in _steps(StackedFactLM(model), rows, pairs, rule, memory_budget):
                after |= probabilities
                advance(len(probabilities))
    keys = [(query, example) for query, example in pairs.tolist()]
    return PatchedPairs(
        pairs[:, 0],
        pairs[:, 1],
        np.array([before[query] for query, _ in keys]),
        np.array([after[key] for key in keys]),
    )


class _Rows:
    """Batches of the data's rows, by their ids."""

    def __init__(self, data: FactData, device: torch.device) -> None:
        self._data = data
        self._device = device
        self._collate: Any = data.query_dataloader().collate_fn
        self._row_of = {query: row for row, query in enumerate(data.query_rows["query_id"])}

    def check(self, pairs: np.ndarray) -> None:
        """Raise an error for ids that the data doesn't have."""
        queries, examples = np.unique(pairs[:, 0]).tolist(), pairs[:, 1]
        unknown = [query for query in queries if query not in self._row_of]
        if unknown:
            raise ValueError(f"expected ids of the data's queries, found {unknown[:3]}")
        count = len(self._data.train_rows)
        if len(examples) and not (examples.min() >= 0 and examples.max() < count):
            raise ValueError(
                f"expected ids of the data's examples, 0 to {count - 1}, found {examples.min()} to {examples.max()}"
            )

    def examples(self, example_ids: Sequence[int]) -> dict[str, Tensor]:
        """Make a batch of training rows."""
        return self._batch(self._data.train_rows[list(example_ids)])

    def queries(self, query_ids: Sequence[int]) -> dict[str, Tensor]:
        """Make a batch of queries."""
        return self._batch(self._data.query_rows[[self._row_of[query] for query in query_ids]])

    def shortest_first(self, what: Literal["examples", "queries"], ids: Sequence[int]) -> list[int]:
        """Sort ids of examples or queries by the length of their texts."""
        rows = self._data.train_rows if what == "examples" else self._data.query_rows
        columns = rows[list(ids) if what == "examples" else [self._row_of[query] for query in ids]]
        texts = zip(columns["inputs_pretokenized"], columns["targets_pretokenized"], strict=True)
        lengths = [len(inputs) + len(targets) for inputs, targets in texts]
        return [ids[index] for index in np.argsort(lengths, kind="stable").tolist()]

    def _batch(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return {name: tensor.to(self._device) for name, tensor in self._collate(rows).items()}


@torch.no_grad()
def _probabilities(model: FactLM, rows: _Rows, query_ids: Sequence[int], at_once: int = 128) -> dict[int, float]:
    """Compute each query's target probability at the snapshot."""
    probabilities: dict[int, float] = {}
    for start in range(0, len(query_ids), at_once):
        some = query_ids[start : start + at_once]
        probabilities |= zip(some, _probability(model.example_losses(rows.queries(some))).tolist(), strict=True)
    return probabilities


def _probability(losses: Tensor) -> Tensor:
    return (-losses.double()).exp().cpu()


def _steps(
    stacked: StackedFactLM, rows: _Rows, pairs: np.ndarray, rule: StepRule, memory_budget: int
) -> Iterator[dict[tuple[int, int], float]]:
    """Yield target probabilities after the step, for some pairs at a time."""
    queries_of: dict[int, list[int]] = {}
    for query, example in pairs.tolist():
        queries_of.setdefault(example, []).append(query)
    examples = rows.shortest_first("examples", list(queries_of))
    queries = rows.shortest_first("queries", np.unique(pairs[:, 0]).tolist())
    # The shortest and the longest, so that the batch is padded.
    stacked.check(rows.examples([examples[0], examples[-1]]), rows.queries([queries[0], queries[-1]]))
    of_weights = _COPIES * sum(weight.numel() * weight.element_size() for weight in stacked.weights.values())
    of_example = of_weights + _activations(stacked, stacked.model.training_loss, rows.examples(examples[-1:]))
    of_query = _activations(stacked, stacked.model.example_losses, rows.queries(queries[-1:]))
    at_once = max(1, memory_budget // 2 // of_example)
    # Neighbours have equally many queries and similar lengths, so that there is little padding.
    examples.sort(key=lambda example: len(queries_of[example]))
    for start in range(0, len(examples), at_once):
        chunk = examples[start : start + at_once]
        weights = stacked.gradients(rows.examples(chunk))
        for name, before in stacked.weights.items():
            weights[name] = before - rule.change(name, weights[name])  # frees the gradient as soon as it is used
        width = max(1, memory_budget // 2 // (of_query * len(chunk)))
        for first in range(0, len(queries_of[chunk[-1]]), width):
            asked = {example: queries_of[example][first : first + width] for example in chunk}
            yield _ask(stacked, rows, weights, asked)


def _ask(
    stacked: StackedFactLM, rows: _Rows, weights: Mapping[str, Tensor], asked: Mapping[int, Sequence[int]]
) -> dict[tuple[int, int], float]:
    """Compute target probabilities of some queries of each example, with the weights after the example's step."""
    distinct = sorted({query for queries in asked.values() for query in queries})
    row_of = {query: row for row, query in enumerate(distinct)}
    width = max(map(len, asked.values()))
    batch_rows = torch.zeros(len(asked), width, dtype=torch.int64)
    for line, queries in enumerate(asked.values()):
        batch_rows[line, : len(queries)] = torch.tensor([row_of[query] for query in queries], dtype=torch.int64)
    batch = {name: tensor[batch_rows.to(tensor.device)] for name, tensor in rows.queries(distinct).items()}
    probabilities = _probability(stacked.losses(weights, batch)).tolist()
    return {
        (query, example): probability
        for (example, queries), of_example in zip(asked.items(), probabilities, strict=True)
        for query, probability in zip(queries, of_example, strict=False)  # the rest is padding
    }


def _activations(
    stacked: StackedFactLM, loss: Callable[[Mapping[str, Tensor]], Tensor], batch: Mapping[str, Tensor]
) -> int:
    """Measure the bytes besides weights that a forward pass over one row saves for its backward pass."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = loss(batch)
    del losses  # until here, no saved tensor's memory was freed and used for another
    weights = {weight.untyped_storage().data_ptr() for weight in stacked.weights.values()}
    return sum(size for pointer, size in saved.items() if pointer not in weights)
