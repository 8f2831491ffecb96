"""``ftrace ask``: what a finished run's model answers to a question, and which training examples taught it that."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal

from jsonargparse import ArgumentParser

from ftrace.arguments import Count, Name, Positive, checked
from ftrace.commands.options import add_trust
from ftrace.run_folder import newest_run
from ftrace.runs import Run
from ftrace.shown_text import plain


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
    command.add_argument("-k", "--k", type=int, default=5, help="How many proponents of each answer.")
    command.add_function_arguments(ask, skip={"run", "question", "k", "trust"})
    add_trust(command)


def command(question: Sequence[str], **options: object) -> None:
    """Ask a run's model a question: what it answers, how surely, who taught it that, and who taught another answer."""
    ask(question=" ".join(question), **options)  # type: ignore[arg-type]


@checked
def ask(
    run: Name,
    question: str,
    answer: str | None = None,
    k: Positive = 5,
    opponents: Count = 3,
    likeliest: Positive = 5,
    index: Name | None = None,
    scores: Name | None = None,
    snapshot: Literal["last", "first"] | Count = "last",
    trust: bool = False,
) -> None:
    """Ask a run's model a question: what it answers, how surely, who taught it that, and who taught another answer.

    Args:
        run: The run's folder, or the one that its versions are in: the newest is taken.
        question: Any text.
        answer: Another answer, to be compared with the model's; default: the right one, if the model is wrong and the
            question is one of the run's queries.
        k: How many proponents of each answer.
        opponents: How many opponents of each answer.
        likeliest: How many of the model's likeliest answers to print.
        index: The gradient index to search, a folder or a name in the run's; default: the one in the run's folder. If
            there is none, it is made and kept, unless that takes minutes.
        scores: STORE[:KIND] of a score store instead, such as online:learning, for the run's own queries alone.
        snapshot: The model that is asked: "last", "first", or a step.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    for name, text in (("question", question), ("answer", answer or "")):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{name}: expected UTF-8, found {text!r:.200}. Set the terminal to UTF-8, or type it anew")
    if index is not None and scores is not None:
        raise ValueError("expected one of index and scores, found both")
    opened = Run(newest_run(run), trust)
    at = opened.snapshot(snapshot)
    if not question.strip():
        example = shlex.join(["ftrace", "ask", run, opened.tables.query_rows[0]["inputs_pretokenized"]])
        raise ValueError(f"question: expected words, found none. For example: {plain(example)}")
    from ftrace.commands.answering import answer_question  # imports torch

    answer_question(opened, at, question, answer, k, opponents, likeliest, index, scores)
