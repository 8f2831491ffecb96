"""A question put to a finished run's model: what it answers, and how likely it finds any other answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from ftrace.data import FactData, QuestionForm, unknown_words
from ftrace.data.turns import Turn, with_answer
from ftrace.evaluation.beam_search import beam_answers, is_right, normalised
from ftrace.models import FactLM
from ftrace.models.fact_lm import IGNORED

Row = Mapping[str, Any]
_ASKED_FOR_LENGTH = 512  # queries whose answers tell how long answers are
_LONGEST_QUESTION = 2048  # tokens; attention takes memory with the square of their number
_FORMS = 4  # of an answer, for which there are as many beams
_TOKENS = 8  # of an answer, at least


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
        answers: "any": forms of one answer count together, as in the loss of the run's queries. "one": each alone.

    Attributes:
        inputs: The question as the model reads it.
        query: The data set's own query that asks the same, apart from case, spaces and final marks; None if none does.
        form: The form of the data set's rows.

    Raises:
        ValueError: If it is empty, or the model can't answer it.
    """

    def __init__(self, data: FactData, text: str, answers: Literal["one", "any"] = "any") -> None:
        self.data = data
        self._counts_forms = answers == "any"
        self.form = QuestionForm.of(data)
        self._text = self._without_strange_mark(text)
        self.inputs = self.form.inputs(self._text)
        self._check_length()
        self.query = self._same_query()
        if self.query is not None:
            self.inputs = self.query["inputs_pretokenized"]

    def _without_strange_mark(self, text: str) -> str:
        """Leave out a question mark at the end if a tokenizer of words would know the last word but for it."""
        assert self.data.tokenizer is not None
        bare = text.rstrip().removesuffix("?")
        word, strange = bare.split()[-1:], text.split()[-1:]
        if word == strange or not word or not unknown_words(self.data.tokenizer, strange[0]):
            return text
        return text if unknown_words(self.data.tokenizer, word[0]) else bare

    def _check_length(self) -> None:
        """Make sure that the question is not so long that the model would take hours, or run out of memory."""
        assert self.data.tokenizer is not None
        count = len(self.data.tokenizer(self.inputs, verbose=False)["input_ids"])
        longest = min(_LONGEST_QUESTION, self.data.tokenizer.model_max_length)
        if count > longest:
            raise ValueError(f"question: expected at most {longest:,} tokens, found {count:,}. Ask with fewer words")

    def _same_query(self) -> Row | None:
        wanted = _key(self.inputs)
        for place, inputs in enumerate(self.data.query_rows["inputs_pretokenized"]):
            if _key(inputs) == wanted:
                return dict(self.data.query_rows[place])
        return None

    @property
    def accepted(self) -> tuple[str, ...]:
        """The answers that are right, as far as they are known."""
        return tuple(map(self.form.bare, self.query["answers"])) if self.query is not None else ()

    @cached_property
    def _forms(self) -> dict[str, tuple[str, ...]]:
        """For each answer that the data set knows, all the forms in which it counts as the same."""
        forms: dict[str, set[tuple[str, ...]]] = {}
        for answers in self.data.answer_forms():
            bare = tuple(map(self.form.bare, answers))
            for answer in bare:
                forms.setdefault(normalised(answer), set()).add(bare)
        # A text that has several lists of forms may be the name of several things.
        return {answer: next(iter(of_queries)) for answer, of_queries in forms.items() if len(of_queries) == 1}

    def forms(self, answer: str) -> tuple[str, ...]:
        """Return the forms of an answer that count together, as far as the data set knows them: first its own.

        Args:
            answer: The answer alone.
        """
        text = self.form.bare(answer)
        accepted = self.accepted if self.is_right(text) else self._forms.get(normalised(text), ())
        spelled = next((form for form in accepted if normalised(form) == normalised(text)), text)
        others = tuple(form for form in accepted if form != spelled)
        return (spelled, *(others if self._counts_forms else ()))

    def is_right(self, answer: str) -> bool | None:
        """Tell whether an answer is right; None if nobody knows."""
        text = self.form.bare(answer)
        if self.query is None or self.form.answers_end:
            return None if self.query is None else is_right(text, self.accepted)
        words = text.split()  # a text goes on after the answer
        return any(is_right(" ".join(words[: len(accepted.split())]), [accepted]) for accepted in self.accepted)

    def row(self, answer: str) -> Row:
        """Return the query that has an answer, in all its forms.

        Args:
            answer: The answer alone.

        Raises:
            ValueError: If it is empty.
        """
        forms = self.forms(answer)
        answers = [f"{form}{self.form.after_answer}" for form in forms]
        row = {"query_id": 0, "inputs_pretokenized": self.inputs, "answers": answers}
        if self.query is not None and self.is_right(answer):
            row = {**self.query, "query_id": 0}
        targets = self.form.targets(self.inputs, forms[0])
        return {**row, "targets_pretokenized": targets, "turns": self._turns(forms[0])}

    def _turns(self, answer: str) -> list[Turn] | None:
        """Return the turns of the question with an answer, where the data's rows have turns."""
        if self.query is None:
            return self.form.turns(self._text, answer)
        turns = self.query.get("turns")
        return None if turns is None else with_answer(turns, answer)

    def batch(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows as the data set's queries are."""
        batch: dict[str, Tensor] = self.data.query_dataloader().collate_fn(list(rows))
        return batch

    def losses(self, model: FactLM, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the losses by which answers are traced, as those of the data set's queries, ``[B]``, in nats."""
        return model.example_losses(batch, end_of_sequence=None if self.form.answers_end else False)

    @torch.no_grad()
    def given(self, model: FactLM, answer: str) -> GivenAnswer:
        """Ask how likely an answer is, in all its forms together.

        Args:
            model: The model, in eval mode.
            answer: The answer alone.

        Raises:
            ValueError: If it is empty.
        """
        batch = {name: tensor.to(model.device) for name, tensor in self.batch([self.row(answer)]).items()}
        text, *others = self.forms(answer)
        loss = float(model.example_losses(batch, end_of_sequence=self.form.answers_end)[0])
        return GivenAnswer(text, _probability(-loss), tuple(others), self.is_right(text), self.form.answers_end)

    def likeliest(self, model: FactLM, count: int) -> list[GivenAnswer]:
        """Ask for the most likely answers: that with the likeliest form, then others by their probability.

        Args:
            model: The model, in eval mode.
            count: How many.
        """
        assert self.data.tokenizer is not None
        some = self.data.query_rows[0]["answers"][0]  # the collator wants an answer, which the model doesn't see
        batch = {name: tensor.to(model.device) for name, tensor in self.batch([self.row(some)]).items()}
        beams = count * max(_FORMS, len(self.accepted))
        (answers,) = beam_answers(model, batch, self.data.tokenizer, beams, self.longest())
        likeliest: dict[str, GivenAnswer] = {}
        for answer in answers:
            text = self.form.bare(answer.text or answer.beginning or "")
            if not text or len(likeliest) == count:
                continue
            if answer.text is None and self.form.answers_end:
                likeliest.setdefault(text, GivenAnswer(text, _probability(answer.log_probability), ends=False))
            else:
                likeliest.setdefault("\n".join(sorted(self.forms(text))), self.given(model, text))
        ranked = list(likeliest.values())
        return [*ranked[:1], *sorted(ranked[1:], key=lambda answer: -answer.probability)]

    def longest(self) -> int:
        """Return how many tokens an answer may have: twice the longest of the data set's own.

        Where answers have no end, it is as many as the longest has: then the model goes on with something else.
        """
        rows = islice(self.data.query_rows, _ASKED_FOR_LENGTH)
        labels = self.batch([dict(row) for row in rows])["answer_labels"]
        longest = int((labels != IGNORED).sum(-1).max())
        return max(_TOKENS, 2 * longest) if self.form.answers_end else longest - 1


def _key(inputs: str) -> str:
    """Return a question as it is compared with others."""
    return " ".join(inputs.split()).casefold().rstrip(" .!?")


def _probability(log_probability: float) -> float:
    return min(1.0, math.exp(log_probability))
