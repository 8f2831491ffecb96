"""What ``ftrace ask`` does: a run's model is asked, and the examples that taught it are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ftrace.commands.answer_lists import render_lists
from ftrace.commands.answer_scores import IndexTooLarge, scores_of_index, scores_of_store
from ftrace.commands.asking import GivenAnswer, Question
from ftrace.commands.free_cores import use_free_cores
from ftrace.console import PlainConsole
from ftrace.data import FactData, unknown_words
from ftrace.models import FactLM
from ftrace.runs import Run
from ftrace.views import CUT, AskedAbout, QuestionView, Said, plain, print_view, render_question

_ONLINE = "online"


def answer_question(
    opened: Run,
    at: Path,
    question: str,
    answer: str | None,
    k: int,
    opponents: int,
    likeliest: int,
    index: str | None,
    scores: str | None,
) -> None:
    """Ask a run's model at a snapshot, and print what there is; see :func:`ftrace.commands.ask.ask`."""
    use_free_cores()
    model = opened.model_at(at)
    asked = Question(opened.data, question, model.hparams["answers"])
    wanted = None if answer is None else _known_answer(answer, asked)
    compared, view = _ask(asked, model, wanted, likeliest, at.name)
    console = PlainConsole()
    print_view(render_question(view), console)
    if scores is not None:
        scored = scores_of_store(opened, asked, compared, scores)
    else:
        try:
            scored = scores_of_index(opened, at, asked, compared, index)
        except IndexTooLarge as error:
            if not any(each.right for each in compared) or not (opened.folder / _ONLINE).is_dir():
                raise
            _tell(console, f"{error}. Until then, what was scored while the run trained:")
            scored = scores_of_store(opened, asked, compared, _ONLINE)
    _tell(console, *scored.lines)
    online = opened.folder / _ONLINE if scores is None else None
    for part in render_lists(asked, scored, k, opponents, online, CUT if console.is_terminal else None):
        print_view(part, console)
    if len(compared) == 1 and console.is_terminal:
        console.print()
        _tell(console, "Who argues for another answer, and who against it: --answer TEXT")


def _known_answer(answer: str, question: Question) -> str:
    """Return an answer alone, if the model can give it.

    Raises:
        ValueError: If it is empty, or the model knows none of its words.
    """
    text = question.form.bare(answer)
    if not text:
        raise ValueError(f"answer: expected words, found {answer!r}")
    unknown = _unknown_words(question.data, text)
    if unknown and len(unknown) == len(set(text.split())):
        raise ValueError(f"answer: expected words that the model knows, found {_described(unknown)}")
    return text


def _ask(
    question: Question, model: FactLM, wanted: str | None, count: int, snapshot: str
) -> tuple[list[GivenAnswer], QuestionView]:
    """Ask the model, and return the answers to be compared, its best one first, and what is to be seen."""
    likeliest = question.likeliest(model, count)
    if not likeliest:
        raise ValueError("expected an answer of the model, found none but empty ones. Train it for longer")
    compared, others = likeliest[:1], []
    notes = []
    unknown = _unknown_words(question.data, f"{question.inputs} {wanted or ''}")
    if unknown:
        notes.append(f"The model doesn't know {_described(unknown)}: it reads unknown words")
    if wanted is not None:
        given = question.given(model, wanted)
        if question.forms(given.text)[0] in question.forms(likeliest[0].text):
            notes.append(f"{wanted!r} is the model's own answer")
        else:
            compared.append(given)
            others.append(_asked_about(given, "your answer, the right one" if given.right else "your answer"))
    if question.query is not None and not any(answer.right for answer in compared):
        right = question.given(model, question.query["targets_pretokenized"])
        compared = [*compared, right][:2]
        if not any(answer.right for answer in likeliest):  # else it is in the list
            others.append(_asked_about(right, "the right answer"))
    said = [Said(answer.text if answer.ends else f"{answer.text} …", answer.probability, answer.right)
            for answer in likeliest]  # fmt: skip
    forms = tuple(answer.forms for answer in likeliest)
    query_id = None if question.query is None else int(question.query["query_id"])
    view = QuestionView(question.inputs, query_id, tuple(said), forms, tuple(others), snapshot, tuple(notes))
    return compared, view


def _asked_about(answer: GivenAnswer, why: str) -> AskedAbout:
    return AskedAbout(answer.text, answer.probability, answer.forms, why)


def _unknown_words(data: FactData, text: str) -> dict[str, list[str]]:
    assert data.tokenizer is not None
    return unknown_words(data.tokenizer, text)


def _described(words: Mapping[str, Sequence[str]]) -> str:
    """List words that a model doesn't know, with what it knows instead."""
    return ", ".join(
        f"{word!r} (it knows {' and '.join(map(repr, near))})" if near else repr(word) for word, near in words.items()
    )


def _tell(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(plain(line), style="dim"), soft_wrap=True)
