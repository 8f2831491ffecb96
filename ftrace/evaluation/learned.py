"""Which queries the model has learned: only those have something to trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ftrace.evaluation.beam_search import IGNORED, beam_answers, is_right
from ftrace.models import FactLM

Rule = Literal["paper", "last"]
BEAMS = 3


@dataclass(frozen=True)
class LearnedQueries:
    """The queries that were learned, and how that was found.

    Args:
        rule: "paper": the best answer of a beam search at the last snapshot is right, and none of the best three at
            the first one is (Akyürek et al. 2022). "last": greedy decoding at the last snapshot is right.
        query_ids: The learned queries.
        asked: How many were asked.
        right_at_last: How many are right at the last snapshot.
        known_at_first: How many of those were known at the first one already, and so have not been learned.
        snapshots: Names of the snapshots that were asked: first and last, or the last.
        key: What this was found with, for whoever keeps it.
    """

    rule: Rule
    query_ids: list[int]
    asked: int
    right_at_last: int
    known_at_first: int
    snapshots: list[str]
    key: str = ""

    def __str__(self) -> str:
        known = f"; {self.known_at_first} known from the start" if self.known_at_first else ""
        return f"learned, of {self.asked}{known}"


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
        first: Gives the model at its first snapshot, in eval mode; the rule "last" doesn't ask for it.
        queries: Batches with ``query_id`` and accepted answers.
        answers: For each query's id, the surfaces of its answer that are accepted.
        tokenizer: The data's.
        rule: As in :class:`LearnedQueries`.
        snapshots: Names of the snapshots, to be noted.

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
    """For each query, whether each of its best answers is right, best first."""
    found = {}
    batches: Iterable[dict[str, Tensor]] = track(queries, title, total=len(queries))
    for batch in batches:
        labels = batch["answer_labels"]
        longest = int((labels != IGNORED).sum(-1).max())
        texts = beam_answers(model, _to(batch, model), tokenizer, BEAMS, longest + 1)
        for query, of_query in zip(batch["query_id"].tolist(), texts, strict=True):
            found[query] = [is_right(text, answers[query]) for text in of_query]
    return found


def _to(batch: Mapping[str, Tensor], model: FactLM) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
