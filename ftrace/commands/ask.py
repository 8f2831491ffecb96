"""``ftrace ask``: what a finished run's model answers to a question, and which training examples taught it that."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jsonargparse import ArgumentParser
from rich.console import Console, RenderableType
from rich.text import Text

from ftrace.commands.answer_scores import AnswerScores, IndexTooLarge, find_index, make_small_index, score_answers
from ftrace.commands.answer_source import AnswerSource
from ftrace.commands.asking import GivenAnswer, Question
from ftrace.commands.index_corpus import Corpus
from ftrace.commands.stores import open_with_kind
from ftrace.data import FactData, unknown_words
from ftrace.models import FactLM
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.views import (
    CUT,
    AskedAbout,
    QuestionView,
    Said,
    StoreSource,
    make_query_view,
    print_view,
    render_examples,
    render_question,
)

_ONLINE = "online"
_COLUMN = 24  # characters of an answer at the head of a column


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "run", type=str, metavar="RUN", help="The run's folder, or the one that its versions are in: the newest."
    )
    command.add_argument(
        "question", nargs="*", type=str, metavar="QUESTION",
        help='Any text, such as "the painter of X was": the answer comes at its end, or where it has a blank: ___, ... '
        "or a ? by itself. Masks and chat templates are added as the run's rows have them.",
    )  # fmt: skip
    command.add_function_arguments(ask, skip={"run", "question"})


def command(question: Sequence[str], **options: object) -> None:
    """Ask a run's model a question: what it answers, how surely, who taught it that, and who taught another answer."""
    ask(question=" ".join(question), **options)  # type: ignore[arg-type]


def ask(
    run: str,
    question: str,
    answer: str | None = None,
    k: int = 5,
    opponents: int = 3,
    answers: int = 5,
    index: str | None = None,
    scores: str | None = None,
    snapshot: Literal["last", "first"] | int = "last",
) -> None:
    """Ask a run's model a question: what it answers, how surely, who taught it that, and who taught another answer.

    Args:
        run: The run's folder, or the one that its versions are in: the newest is taken.
        question: Any text.
        answer: Another answer, to be compared with the model's; default: the right one, if the model is wrong and the
            question is one of the run's queries.
        k: How many proponents of each answer.
        opponents: How many opponents of each answer.
        answers: How many of the model's likeliest answers to print.
        index: The gradient index to search, a folder or a name in the run's; default: the one in the run's folder. If
            there is none, it is made and kept, unless that takes minutes.
        scores: STORE[:KIND] of a score store instead, such as online:learning, for the run's own queries alone.
        snapshot: The model that is asked: "last", "first", or a step.
    """
    for name, number, least in (("k", k, 1), ("opponents", opponents, 0), ("answers", answers, 1)):
        if number < least:
            raise ValueError(f"{name}: expected at least {least}, found {number}")
    if index is not None and scores is not None:
        raise ValueError("expected one of index and scores, found both")
    asked = _Asked(Run(newest_run(run)), question, answer, snapshot)
    console = Console()
    asked.print_answers(console, answers)
    for view in asked.views(index, scores, k, opponents, console):
        print_view(view, console)


class _Asked:
    """A question, put to a run's model."""

    def __init__(self, run: Run, text: str, answer: str | None, snapshot: Literal["last", "first"] | int) -> None:
        self.run = run
        self.data: FactData = run.data
        if not text.strip():
            example = self.data.query_rows[0]["inputs_pretokenized"]
            raise ValueError(
                f"question: expected words, found none. Ask for example: ftrace ask {shlex.quote(str(run.folder))} "
                f"{shlex.quote(example)}"
            )
        self.question = Question(self.data, text)
        self.snapshot = run.snapshot(snapshot)
        self.answer = None if answer is None else self._known_answer(answer)

    def _known_answer(self, answer: str) -> str:
        """Return another answer, if the model can give it."""
        text = self.question.form.bare(answer)
        if not text:
            raise ValueError(f"answer: expected words, found {answer!r}")
        assert self.data.tokenizer is not None
        unknown = unknown_words(self.data.tokenizer, text)
        if unknown and len(unknown) == len(set(text.split())):
            raise ValueError(f"answer: expected words that the model knows; {_unknown(unknown)}")
        return text

    def print_answers(self, console: Console, count: int) -> None:
        """Print the question, the model's answers to it, and how likely another one is."""
        model: FactLM = self.run.model_at(self.snapshot)
        likeliest = self.question.likeliest(model, count)
        if not likeliest:
            raise ValueError("expected an answer of the model, found none but empty ones. Train it for longer")
        self.best = self.question.given(model, likeliest[0].text)
        self.other: GivenAnswer | None = None
        others, notes = [], self._notes()
        if self.best.right and self.best.forms:
            others.append(AskedAbout("", self.best.probability, (), "in any of its forms"))
        if self.answer is not None:
            other = self.question.given(model, self.answer)
            if _same(other, self.best):
                notes.append(f"{self.answer!r} is what the model answers")
            else:
                self.other = other
                others.append(_asked_about(other, "your answer" + (", which is right" if other.right else "")))
        if self.best.right is False and not (self.other and self.other.right):
            assert self.question.query is not None
            right = self.question.given(model, self.question.form.bare(self.question.query["targets_pretokenized"]))
            self.other = self.other or right
            others.append(_asked_about(right, "the right answer"))
        query_id = None if self.question.query is None else int(self.question.query["query_id"])
        said = [Said(answer.text if answer.ends else f"{answer.text} …", answer.probability, answer.right)
                for answer in likeliest]  # fmt: skip
        view = QuestionView(
            self.question.inputs, query_id, tuple(said), tuple(others), self.snapshot.name, tuple(notes)
        )
        print_view(render_question(view), console)

    def _notes(self) -> list[str]:
        assert self.data.tokenizer is not None
        texts = [self.question.inputs, *([self.answer] if self.answer else [])]
        unknown = unknown_words(self.data.tokenizer, " ".join(texts))
        return [f"The model doesn't know {_unknown(unknown)}. It reads them as unknown words"] if unknown else []

    def views(
        self, index: str | None, scores: str | None, k: int, opponents: int, console: Console
    ) -> Sequence[RenderableType]:
        """Lay out who taught each answer, and who argues for one rather than the other."""
        answers = [self.best, *([self.other] if self.other else [])]
        source, answers, data = self._scores(answers, index, scores, console)
        names = [_short(answer.text) for answer in answers]
        if len(set(names)) < len(names):
            names[1] += " (2)"
        cut = CUT if console.is_terminal else None

        def column(place: int, text: str = "") -> AnswerSource:
            """Make the source of an answer's scores; words that an example shares with a text will be marked."""
            row = {"text": self.question.inputs, "answer": text, **self._facts(data)}
            return AnswerSource(names[place], source.ids, source.scores[:, place], data, row)

        views: list[RenderableType] = []
        for place, answer in enumerate(answers):
            others = [column(other) for other in range(len(answers)) if other != place]
            view = make_query_view([column(place, answer.text), *others], 0, k, opponents, by_first=True)
            titles = (f"Who taught “{answer.text}”", f"Who argued against “{answer.text}”")
            views.append(render_examples(view, *titles, cut))
        if len(answers) == 2:
            best, other = answers
            row = {"text": self.question.inputs, "answer": f"{other.text} {best.text}", **self._facts(data)}
            difference = AnswerSource("difference", source.ids, source.scores[:, 1] - source.scores[:, 0], data, row)
            view = make_query_view([difference, column(1), column(0)], 0, k, k, by_first=True)
            titles = (
                f"Who argues for “{other.text}” rather than “{best.text}”",
                f"Who argues for “{best.text}” rather than “{other.text}”",
            )
            views.append(render_examples(view, *titles, cut))
        return views

    def _facts(self, data: FactData) -> dict[str, object]:
        """Return what is known of the question's fact: the examples that state it, if their ids are of these data."""
        query = self.question.query
        if query is None:
            return {}
        if data is self.data and len(query["proponent_ids"]):
            return {"proponent_ids": query["proponent_ids"]}
        return {"fact": query["fact"]} if query["fact"] else {}

    def _scores(
        self, answers: list[GivenAnswer], index: str | None, scores: str | None, console: Console
    ) -> tuple[AnswerScores, list[GivenAnswer], FactData]:
        """Score examples for the answers, or for those of them that the scores are of."""
        if scores is not None:
            return *self._of_store(scores, answers, console), self.data
        step = None if self.snapshot == self.run.last_snapshot else int(self.snapshot.name.removeprefix("step-"))
        opened, notes = find_index(self.run, index, step)
        if opened is None:
            try:
                opened = make_small_index(self.run, self.snapshot)
            except IndexTooLarge as error:
                if not any(answer.right for answer in answers) or not (self.run.folder / _ONLINE).is_dir():
                    raise
                notes.append(f"{error}. Here are the scores of {_ONLINE} instead")
                _tell(console, *notes)
                return *self._of_store(_ONLINE, answers, console), self.data
        corpus = Corpus.of(opened, str(self.run.folder))
        scored = score_answers(opened, corpus, self.question, [self.question.row(answer.text) for answer in answers])
        steps = sorted({segment.step for segment in opened.segments})
        at = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps from {steps[0]} to {steps[-1]}, summed"
        _tell(
            console, *notes,
            f"Scores: cosines of gradients at {at}, from {opened.folder}. + made an answer likelier, - less likely",
        )  # fmt: skip
        return scored, answers, corpus.data

    def _of_store(
        self, given: str, answers: list[GivenAnswer], console: Console
    ) -> tuple[AnswerScores, list[GivenAnswer]]:
        """Read the scores of a store, which are of the right answer."""
        query = self.question.query
        if query is None:
            raise ValueError(
                "scores: expected one of the run's queries as the question, since a store has scores of no other. "
                "Leave it out, and a gradient index is searched"
            )
        right = [answer for answer in answers if answer.right]
        if not right:
            raise ValueError(
                "scores: expected the right answer, since a store has scores of no other. Leave it out, and a gradient "
                "index is searched"
            )
        store, kind = open_with_kind(self.run.folder, given)
        source = StoreSource(store, kind)
        ids = np.asarray(store.example_ids)
        values = store.scores(int(query["query_id"]), source.kind)
        _tell(
            console, *(f"Doubtful: {doubt}" for doubt in source.doubts()),
            f"Scores: {source.kind}, from {store.path}; they are of the right answer in all its forms",
        )  # fmt: skip
        return AnswerScores(ids, values[:, None]), right


def _asked_about(answer: GivenAnswer, why: str) -> AskedAbout:
    return AskedAbout(answer.text, answer.probability, answer.forms, why)


def _same(answer: GivenAnswer, other: GivenAnswer) -> bool:
    """Tell whether two answers are one, perhaps in different forms."""
    return answer.text == other.text or bool(answer.right and other.right)


def _short(text: str) -> str:
    return text if len(text) <= _COLUMN else f"{text[: _COLUMN - 1]}…"


def _unknown(words: dict[str, list[str]]) -> str:
    described = []
    for word, near in words.items():
        described.append(f"{word!r}" + (f" (it knows {', '.join(map(repr, near))})" if near else ""))
    return ", ".join(described)


def _tell(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line, style="dim"), soft_wrap=True)
