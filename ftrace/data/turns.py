"""Rows that are chats, or a prompt and its completion, in the forms that Hugging Face's TRL defines.

Such a row is kept as a list of turns. A chat's turns have roles, and the model's chat template joins them; a prompt and
its completion have none, and follow each other as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import pyarrow as pa

from ftrace.data.row_files import SourceRow, as_text

ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool")
FIELDS = ("messages", "prompt", "completion")
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("counts", pa.bool_())]))


class Turn(TypedDict):
    """One turn of a row.

    Args:
        role: Who speaks; None in a prompt and its completion, which are texts.
        content: What is said.
        counts: Whether the loss counts it.
    """

    role: str | None
    content: str
    counts: bool


def is_chat(turns: Sequence[Turn] | None) -> bool:
    """Return whether turns are a chat's, which needs a chat template."""
    return bool(turns) and turns[0]["role"] is not None  # type: ignore[index]


def has_turns(row: SourceRow, *, alone: bool) -> bool:
    """Return whether a row is a chat, or a prompt and its completion.

    Args:
        row: The row.
        alone: Whether it has no other texts; then one of the fields is enough, and the lack of another is an error.
    """
    present = [name in row.fields for name in FIELDS]
    return present[0] or all(present[1:]) or (alone and any(present))


def turns_of(row: SourceRow) -> list[Turn]:
    """Read the turns of a row with ``messages``, or ``prompt`` and ``completion``, up to the last that counts.

    What comes after it can't change the loss.

    Raises:
        ValueError: If a field is malformed, a role unknown, or nothing counts.
    """
    if "messages" in row.fields:
        turns = _messages(row, "messages", counts=True)
    else:
        missing = [name for name in ("prompt", "completion") if name not in row.fields]
        if missing:
            raise ValueError(f"{row.place}: no field {missing[0]!r}, {row.found(missing[0])}")
        are_texts = [as_text(row.fields[name]) is not None for name in ("prompt", "completion")]
        if are_texts[0] != are_texts[1]:
            expected = "text, as the prompt is" if are_texts[0] else "a list of messages, as the prompt is"
            raise row.wrong("completion", expected)
        if all(are_texts):
            prompt = Turn(role=None, content=row.text("prompt", empty=True), counts=False)
            return [prompt, Turn(role=None, content=row.text("completion"), counts=True)]
        completion = _messages(row, "completion", counts=True)
        turns = [*_messages(row, "prompt", counts=False), *completion]
    counted = [position for position, turn in enumerate(turns) if turn["counts"]]
    if not counted:
        name = "messages" if "messages" in row.fields else "completion"
        roles = [turn["role"] for turn in turns]
        raise ValueError(
            f"{row.place}: field {name!r}: expected a message of the assistant, which the loss is on, found the roles "
            f"{roles}"
        )
    return turns[: counted[-1] + 1]


def as_query(turns: Sequence[Turn]) -> list[Turn]:
    """Return turns of which the last alone counts: a query's answer."""
    return [Turn(role=turn["role"], content=turn["content"], counts=turn is turns[-1]) for turn in turns]


def with_answer(turns: Sequence[Turn], answer: str) -> list[Turn]:
    """Return a query's turns with another answer; a completion keeps the space that it begins with.

    Example:
        >>> asked = Turn(role=None, content="Oslo is in", counts=False)
        >>> with_answer([asked, Turn(role=None, content=" Norway", counts=True)], "Sweden")[-1]["content"]
        ' Sweden'
    """
    last = turns[-1]
    content = answer
    if last["role"] is None and answer[:1].strip():
        content = seam(turns) + answer
    return [*turns[:-1], Turn(role=last["role"], content=content, counts=True)]


def seam(turns: Sequence[Turn]) -> str:
    """Return the space with which the last turn begins."""
    content = turns[-1]["content"]
    return content[: len(content) - len(content.lstrip())]


def readable(turns: Sequence[Turn]) -> tuple[str, str]:
    r"""Return turns as a person reads them: all but the last, one a line, and the last.

    A single user's message, and a prompt, are what they are, without a role before them.

    Example:
        >>> asked = Turn(role="user", content="Where is Oslo?", counts=False)
        >>> answered = Turn(role="assistant", content="In Norway.", counts=True)
        >>> readable([asked, answered])
        ('Where is Oslo?', 'In Norway.')
        >>> readable([Turn(role="system", content="Be brief.", counts=False), asked, answered])[0]
        'system: Be brief.\nuser: Where is Oslo?'
    """
    *before, last = turns
    if [turn["role"] for turn in before] in ([None], ["user"]):
        return before[0]["content"], last["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in before), last["content"]


def _messages(row: SourceRow, name: str, *, counts: bool) -> list[Turn]:
    messages = row.fields[name]
    if not isinstance(messages, list) or not messages:
        raise row.wrong(name, 'a list of messages, each with "role" and "content"')
    return [_turn(row, name, number, message, counts) for number, message in enumerate(messages, 1)]


def _turn(row: SourceRow, name: str, number: int, message: Any, counts: bool) -> Turn:
    where = f"{row.place}: field {name!r}, message {number}"
    fields = message if isinstance(message, Mapping) else {}
    given = {key: value for key, value in fields.items() if value is not None}
    if not {"role", "content"} <= given.keys():
        raise ValueError(f'{where}: expected an object with "role" and "content", found {message!r:.200}')
    others = sorted(set(given) - {"role", "content"})
    if others:
        raise ValueError(
            f'{where}: expected "role" and "content" alone, found {others}. Tools, names and thoughts are not read: '
            "leave the field out, or write it into the content"
        )
    role = given["role"]
    if role not in ROLES:
        near = difflib.get_close_matches(str(role), ROLES, n=1)
        raise ValueError(
            f"{where}: expected a role of {', '.join(ROLES)}, found {role!r}{f'; nearest: {near[0]}' if near else ''}"
        )
    content = as_text(given["content"])
    if content is None:
        raise ValueError(f"{where}: expected text as content, found {given['content']!r:.200}")
    if role == ASSISTANT and not content.strip():
        raise ValueError(f"{where}: expected words of the assistant, found none in {content!r}. Leave the row out")
    return Turn(role=role, content=content, counts=counts and role == ASSISTANT)
