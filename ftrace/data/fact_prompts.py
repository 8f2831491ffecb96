"""Prompts for causal tracing: a text that asks for a fact, the subject in it, and the answer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ftrace.arguments import Count, Name, checked
from ftrace.data.row_files import SourceRow, read_rows

_OPTIONAL = ("answer", "answers", "foil", "subject_start", "id", "fact")
_LONGEST_NAME = 80


@checked
@dataclass(frozen=True)
class FactPrompt:
    """Text that a model is to continue, or whose mask it is to fill in.

    Whether it can be traced is decided later, by :func:`ftrace.data.tokenize_prompt`.

    Args:
        name: Unique among the prompts; used in names of files.
        prompt: The text. A mask such as ``<extra_id_0>``, if there is one, stands for the answer.
        subject: What the fact is about, as the text spells it; empty if unknown.
        answers: The accepted surfaces of the answer, the prompt's own first.
        foil: Another answer, whose logit the answer's is compared with; None: the model's likeliest other token.
        subject_start: Position of the subject's first character; None if the text has the subject only once.
        fact: Key of the fact, if known: prompts of one fact count as one observation.
        query_id: Id of the query that the prompt was made from, if any.
        targets: That query's target text: a model that was trained on such rows answers in its form, with or without a
            sentinel.
        seam: What stands between the text and an answer, if that doesn't follow by a space alone, as in chats and
            prompts with completions; None: a space, unless there is one.
        is_chat: Whether the text is rendered in a chat template, with all special tokens.
    """

    name: Name
    prompt: str
    subject: str
    answers: tuple[str, ...]
    foil: str | None = None
    subject_start: Count | None = None
    fact: str | None = None
    query_id: int | None = None
    targets: str | None = None
    seam: str | None = None
    is_chat: bool = False


@checked
def read_prompts(file: Path) -> list[FactPrompt]:
    """Read prompts from a file: records of ``known_1000`` (Meng et al. 2022, arXiv 2202.05262), or a user's own.

    A record of ``known_1000`` has ``known_id``, ``subject``, ``attribute`` (the answer) and ``prompt``; its other
    fields are not read. A user's has ``prompt``, ``subject`` and ``answer``, and may have ``answers`` (more that are
    accepted), ``foil``, ``subject_start``, ``id`` and ``fact``.

    A prompt with an empty answer, or without its subject, is not an error here. It is refused when it is tokenized, so
    that the others can be traced.

    Args:
        file: JSON lines, JSON or Parquet.

    Raises:
        ValueError: If the file can't be read, a record lacks a field or has one of the wrong kind, an id occurs twice,
            or there are no prompts.
    """
    prompts: list[FactPrompt] = []
    ids: dict[str, str] = {}
    names: set[str] = set()
    for row in read_rows(file, nulls=True):
        prompt, subject = _text(row, "prompt"), _text(row, "subject")
        answers = _answers(row)
        _check_spelling(row)
        name = _unused(_name(row, ids), names)
        names.add(name.casefold())  # some file systems don't tell A from a
        prompts.append(
            FactPrompt(
                name,
                prompt,
                subject,
                answers,
                foil=_text(row, "foil") if _has(row, "foil") else None,
                subject_start=_start(row),
                fact=row.text("fact") if _has(row, "fact") else None,
            )
        )
    if not prompts:
        raise ValueError(f"{file}: expected at least one prompt, found none")
    return prompts


def _has(row: SourceRow, field: str) -> bool:
    return row.fields.get(field) is not None


def _text(row: SourceRow, field: str) -> str:
    """Return a required field of text; empty if it is null."""
    if field in row.fields and row.fields[field] is None:
        return ""
    return row.text(field, empty=True)


def _answers(row: SourceRow) -> tuple[str, ...]:
    """Return the prompt's own answer, then the other accepted ones."""
    field = next((field for field in ("answer", "attribute", "answers") if _has(row, field)), None)
    if field is None:
        if "answer" in row.fields or "attribute" in row.fields:
            return ("",)
        raise ValueError(f'{row.place}: expected the field "answer" (or "attribute"), {row.found("answer")}')
    first = [] if field == "answers" else [_text(row, field)]
    more = row.texts("answers", empty=True) if _has(row, "answers") else []
    return tuple(dict.fromkeys([*first, *more])) or ("",)


def _start(row: SourceRow) -> int | None:
    if not _has(row, "subject_start"):
        return None
    start = row.fields["subject_start"]
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise row.wrong("subject_start", "the place of the subject's first character, counted from 0")
    return start


def _check_spelling(row: SourceRow) -> None:
    """Refuse a field that is nearly an optional one: it would be ignored in silence."""
    for field in sorted(row.fields.keys() - {*_OPTIONAL, "attribute"}):
        near = difflib.get_close_matches(field, [name for name in _OPTIONAL if name not in row.fields], 1, 0.85)
        if near:
            raise ValueError(f"{row.place}: unknown field {field!r}. Write it {near[0]!r}, or leave it out")


def _name(row: SourceRow, ids: dict[str, str]) -> str:
    """Return a name that is fit for files, from the prompt's id or else from its row number."""
    field = next((field for field in ("id", "known_id") if _has(row, field)), None)
    if field is None:
        return f"prompt-{row.number}"
    given = row.text(field)
    if given in ids:
        raise row.wrong(field, f"an id of its own, not {given!r}, that {ids[given]} has too")
    ids[given] = f"row {row.number}"
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", given).strip("-.")[:_LONGEST_NAME]
    prefix = "known-" if field == "known_id" else "" if re.search("[A-Za-z]", safe) else "prompt-"
    return f"{prefix}{safe}" if safe else f"prompt-{row.number}"


def _unused(name: str, used: Collection[str]) -> str:
    """Return the name, with the first number from 2 that makes it unique if it is in use."""
    candidate, number = name, 2
    while candidate.casefold() in used:
        candidate, number = f"{name}-{number}", number + 1
    return candidate
