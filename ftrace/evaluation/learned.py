"""The queries that a model has learned; the others have nothing to trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ftrace.evaluation.beam_search import beam_answers, is_right
from ftrace.models import FactLM
from ftrace.models.fact_lm import IGNORED
from ftrace.progress import track

Rule = Literal["paper", "last"]
BEAMS = 3


@dataclass(frozen=True)
class LearnedQueries:
    """The queries that were learned, and how that was determined.

    Args:
        rule: "paper": the best answer of a beam search at the last snapshot is right, and none of the best three at
            the first one is (Akyürek et al. 2022). "last": greedy decoding at the last snapshot is right.
        query_ids: Ids of the learned queries.
        asked: Number of queries that were asked.
        right_at_last: Number that are answered correctly at the last snapshot.
        known_at_first: Number of those that were already known at the first snapshot, and so were not learned.
        snapshots: Names of the snapshots used: first and last, or only the last.
        key: Fingerprint of what the result depends on, for callers that store it.
    """

    rule: Rule
    query_ids: list[int]
    asked: int
    right_at_last: int
    known_at_first: int
    snapshots: list[str]
    key: str = ""

    def __str__(self) -> str:
        known = f"; {self.known_at_first} known {self._first()}" if self.known_at_first else ""
        return f"learned, of {self.asked}{known}"

    def _first(self) -> str:
        """Say when the first snapshot was taken, which need not be the start."""
        name = self.snapshots[0] if self.snapshots else ""
        step = name.removeprefix("step-")
        if not step.isdecimal():
            return "at the first snapshot"
        return f"at step {int(step):,}, {'before training' if int(step) == 0 else 'the first snapshot'}"


def find_learned_queries(
    last: FactLM,
    first: Callable[[], FactLM],
    queries: DataLoader,
    answers: Mapping[int, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    rule: Rule = "paper",
    snapshots: Sequence[str] = (),
) -> LearnedQueries:
    """Find the queries that a model has learned.

    Args:
        last: The model at its last snapshot, in eval mode.
        first: Loads the model at its first snapshot, in eval mode; not called for the rule "last".
        queries: Batches with ``query_id`` and accepted answers.
        answers: For each query's id, the accepted surface forms of its answer.
        tokenizer: The tokenizer of the data.
        rule: See :class:`LearnedQueries`.
        snapshots: Names of the snapshots, to be recorded in the result.

    Raises:
        ValueError: If the rule is unknown.
    """
    if rule == "last":
        right = _greedily_right(last, queries)
        known: set[int] = set()
    elif rule == "paper":
        at_last = _beams_right(last, queries, answers, tokenizer, "answers of the last snapshot")
        right = [query for query, of_beams in at_last.items() if of_beams[0]]
        at_first = _beams_right(first(), queries, answers, tokenizer, "answers of the first snapshot")
        known = {query for query in right if any(at_first[query])}
    else:
        raise ValueError(f'rule: expected "paper" or "last", found {rule!r}')
    learned = [query for query in right if query not in known]
    return LearnedQueries(rule, learned, len(answers), len(right), len(known), list(snapshots))


@torch.no_grad()
def _greedily_right(model: FactLM, queries: DataLoader) -> list[int]:
    right: list[int] = []
    for batch in queries:
        right += batch["query_id"][model.learned(_to(batch, model)).cpu()].tolist()
    return right


def _beams_right(
    model: FactLM,
    queries: DataLoader,
    answers: Mapping[int, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    title: str,
) -> dict[int, list[bool]]:
    """Tell for each query whether each of its most likely answers is right, best first."""
    is_query_right = {}
    batches: Iterable[dict[str, Tensor]] = track(queries, title)
    for batch in batches:
        labels = batch["answer_labels"]
        longest = int((labels != IGNORED).sum(-1).max())
        likely = beam_answers(model, _to(batch, model), tokenizer, BEAMS, longest + 1)
        for query, of_query in zip(batch["query_id"].tolist(), likely, strict=True):
            is_query_right[query] = [is_right(answer.text, answers[query]) for answer in of_query]
    return is_query_right


def _to(batch: Mapping[str, Tensor], model: FactLM) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
