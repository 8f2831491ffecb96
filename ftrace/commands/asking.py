"""A question put to a finished run's model: what it answers, and how likely it finds any other answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ftrace.data import FactData, QuestionForm
from ftrace.evaluation.beam_search import IGNORED, beam_answers, is_right
from ftrace.models import FactLM

Row = Mapping[str, Any]
_ASKED_FOR_LENGTH = 512  # queries whose answers tell how long answers are
_TOKENS = 8  # of an answer, at least; of a continuation that has no end


@dataclass(frozen=True)
class GivenAnswer:
    """An answer to a question.

    Args:
        text: The answer alone, as it was given.
        probability: Its probability, or that of all its forms together.
        forms: Other forms of it that count as the same answer.
        right: Whether it is right; None if nobody knows.
        ends: Whether it came to an end. Otherwise its probability is that of the text so far.
    """

    text: str
    probability: float
    forms: tuple[str, ...] = ()
    right: bool | None = None
    ends: bool = True


class Question:
    """A question in the form of a data set's rows.

    Args:
        data: The data set, set up.
        text: The question, as a person typed it.

    Attributes:
        inputs: The question as the model reads it.
        query: The data set's own query that asks the same, apart from case, spaces and final marks; None if none does.
        form: The form of the data set's rows.

    Raises:
        ValueError: If it is empty, or the model can't answer it.
    """

    def __init__(self, data: FactData, text: str) -> None:
        self.data = data
        self.form = QuestionForm.of(data)
        self.inputs = self.form.inputs(text)
        self.query = self._same_query()
        if self.query is not None:
            self.inputs = self.query["inputs_pretokenized"]

    def _same_query(self) -> Row | None:
        wanted = _key(self.inputs)
        for place, inputs in enumerate(self.data.query_rows["inputs_pretokenized"]):
            if _key(inputs) == wanted:
                return dict(self.data.query_rows[place])
        return None

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answers that are right, as far as they are known."""
        return tuple(self.query["answers"]) if self.query is not None else ()

    def is_right(self, answer: str) -> bool | None:
        """Tell whether an answer is right; None if nobody knows."""
        if self.query is None:
            return None
        return is_right(self.form.bare(answer), [self.form.bare(accepted) for accepted in self.accepted])

    def row(self, answer: str) -> Row:
        """Return the query that has an answer; one with all accepted answers if it is right.

        Args:
            answer: The answer alone.

        Raises:
            ValueError: If it is empty.
        """
        if self.query is not None and self.is_right(answer):
            return {**self.query, "query_id": 0}
        targets = self.form.targets(self.inputs, answer)
        answers = [f"{self.form.bare(answer)}{self.form.after_answer}"]
        return {
            "query_id": 0, "inputs_pretokenized": self.inputs, "targets_pretokenized": targets, "answers": answers,
        }  # fmt: skip

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows as the data set's queries are."""
        batch: dict[str, Tensor] = self.data.query_dataloader().collate_fn(list(rows))
        return batch

    def losses(self, model: FactLM, batch: Mapping[str, Tensor]) -> Tensor:
        """Return -log probability of the rows' answers, in nats, ``[B]``; without their end where rows have none."""
        return model.example_losses(batch, end_of_sequence=self.form.answers_end)

    @torch.no_grad()
    def given(self, model: FactLM, answer: str) -> GivenAnswer:
        """Ask how likely an answer is; of one that is right, all accepted forms together.

        Args:
            model: The model, in eval mode.
            answer: The answer alone.

        Raises:
            ValueError: If it is empty.
        """
        batch = {name: tensor.to(model.device) for name, tensor in self.batch([self.row(answer)]).items()}
        loss = float(self.losses(model, batch)[0])
        text, right = self.form.bare(answer), self.is_right(answer)
        forms = tuple(form for form in map(self.form.bare, self.accepted) if form != text) if right else ()
        return GivenAnswer(text, _probability(-loss), forms, right, self.form.answers_end)

    def likeliest(self, model: FactLM, count: int) -> list[GivenAnswer]:
        """Ask for the most likely answers, best first.

        Args:
            model: The model, in eval mode.
            count: How many.
        """
        assert self.data.tokenizer is not None
        some = self.data.query_rows[0]["answers"][0]  # the collator wants an answer, which the model doesn't see
        batch = {name: tensor.to(model.device) for name, tensor in self.batch([self.row(some)]).items()}
        (answers,) = beam_answers(model, batch, self.data.tokenizer, count, self._longest())
        texts: dict[tuple[str, bool], float] = {}
        for answer in answers:
            ended = answer.text is not None
            text = self.form.bare(answer.text or answer.beginning or "")
            if text:
                texts[text, ended] = texts.get((text, ended), 0.0) + _probability(answer.log_probability)
        ranked = sorted(texts.items(), key=lambda item: -item[1])
        return [
            GivenAnswer(text, probability, (), self.is_right(text) if ended else None, ended)
            for (text, ended), probability in ranked
        ]

    def _longest(self) -> int:
        """Return how many tokens an answer may have: twice the longest of the data set's own."""
        if not self.form.answers_end:
            return _TOKENS
        rows = islice(self.data.query_rows, _ASKED_FOR_LENGTH)
        labels = self.batch([dict(row) for row in rows])["answer_labels"]
        return max(_TOKENS, 2 * int((labels != IGNORED).sum(-1).max()))


def _key(inputs: str) -> str:
    """Return a question as it is compared with others."""
    return " ".join(inputs.split()).casefold().rstrip(" .!?")


def _probability(log_probability: float) -> float:
    return min(1.0, math.exp(log_probability))
