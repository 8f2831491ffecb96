"""Prompts for causal tracing: a text that asks for a fact, the subject in it, and the answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FactPrompt:
    """A text that a model is to go on with, or whose mask it is to fill in.

    Args:
        name: Its name, unique among the prompts: files are called after it.
        prompt: The text. Where it has a mask such as ``<extra_id_0>``, that is where the answer belongs.
        subject: What the fact is about, as the text spells it.
        answers: The accepted surfaces of the answer, the prompt's own first.
        foil: Another answer, whose logit the answer's is compared with; None: the model's likeliest other token.
        subject_start: Where the subject begins, in characters; None where it stands there only once.
        fact: Key of the fact, where it is known: prompts of one fact are one observation.
        query_id: The query that it is, where it is one.
    """

    name: str
    prompt: str
    subject: str
    answers: tuple[str, ...]
    foil: str | None = None
    subject_start: int | None = None
    fact: str | None = None
    query_id: int | None = None
