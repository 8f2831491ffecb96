"""What a model answers to queries: its most likely answer, and how likely it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftrace.data import SENTINEL
from ftrace.evaluation.beam_search import beam_answers, is_right
from ftrace.models import FactLM
from ftrace.models.fact_lm import IGNORED

_BEAMS = 3  # as for whether a query is learned, so that both see the same answer


@dataclass(frozen=True)
class ModelAnswer:
    """A model's most likely answer to a query.

    Args:
        text: The answer without sentinels; in the spelling of an accepted answer if it is right. None if the answer
            has not ended.
        probability: Its probability, its end included.
        right: Whether it is an accepted answer.
    """

    text: str | None
    probability: float
    right: bool


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
        of_batch = beam_answers(model, on_device, tokenizer, _BEAMS, longest + 1)
        for query, best in zip(batch["query_id"].tolist(), of_batch, strict=True):
            given[query] = _answer(best[0].text, best[0].log_probability, answers[query])
    return given


def _answer(text: str | None, log_probability: float, accepted: Sequence[str]) -> ModelAnswer:
    probability = min(1.0, math.exp(log_probability))
    if text is None:
        return ModelAnswer(None, probability, False)
    same = next((answer for answer in accepted if is_right(text, [answer])), None)
    return ModelAnswer(SENTINEL.sub(" ", text).strip() if same is None else same, probability, same is not None)
