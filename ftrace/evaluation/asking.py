"""A model is asked queries: what it answers, how likely that is, and which queries it has learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ftrace.data import SENTINEL
from ftrace.evaluation.answers import ModelAnswer
from ftrace.evaluation.beam_search import beam_answers, is_right
from ftrace.evaluation.learned import LearnedQueries, Rule
from ftrace.models import FactLM
from ftrace.models.fact_lm import IGNORED
from ftrace.progress import track

BEAMS = 3  # also of answers, so that both see the same


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
        rule: See :class:`ftrace.evaluation.LearnedQueries`.
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


def find_answers(
    model: FactLM,
    batches: Iterable[Mapping[str, Tensor]],
    answers: Mapping[int, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[int, ModelAnswer]:
    """Ask a model queries.

    Args:
        model: The model, in eval mode.
        batches: The queries, as the datamodule's collator gives them.
        answers: For each query's id, the accepted surface forms of its answer.
        tokenizer: The tokenizer of the data.

    Returns:
        The most likely answer of a beam search, by the query's id.
    """
    given: dict[int, ModelAnswer] = {}
    for batch in batches:
        longest = int((batch["answer_labels"] != IGNORED).sum(-1).max())
        on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
        of_batch = beam_answers(model, on_device, tokenizer, BEAMS, longest + 1)
        for query, best in zip(batch["query_id"].tolist(), of_batch, strict=True):
            given[query] = _answer(best[0].text, best[0].log_probability, answers[query])
    return given


def _answer(text: str | None, log_probability: float, accepted: Sequence[str]) -> ModelAnswer:
    probability = min(1.0, math.exp(log_probability))
    if text is None:
        return ModelAnswer(None, probability, False)
    same = next((answer for answer in accepted if is_right(text, [answer])), None)
    return ModelAnswer(SENTINEL.sub(" ", text).strip() if same is None else same, probability, same is not None)
