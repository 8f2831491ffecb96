"""Tokens of chats in a tokenizer's own template, and which of them the assistant says.

A template with ``{% generation %}`` marks says so itself. Otherwise, a message of the assistant is what the template
adds for it to the messages before, rendered with the prompt to answer; so each beginning of a chat must be rendered as
the beginning of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ftrace.data.continuations import border
from ftrace.data.turns import ASSISTANT, Turn

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class CountedTokens(NamedTuple):
    """Tokens of a row.

    Args:
        tokens: All of them, up to the last that counts.
        counts: Whether the loss counts each.
        closing: How many tokens at the end close the answer, and are none of its own.
    """

    tokens: list[int]
    counts: list[bool]
    closing: int = 1


def tokenize_chat(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, answer_only: bool = False
) -> CountedTokens:
    """Tokenize a chat in the tokenizer's template.

    What counts of a turn are the tokens of its content and those that the template closes it with, up to the token
    that ends the turn, also where marks leave that out. If the template doesn't end the last turn with a special token,
    the end of the sequence is added, and counts.

    Args:
        tokenizer: A fast one with a chat template.
        turns: The turns of a chat, of which the last counts.
        answer_only: Whether what the template writes before the last turn's content, such as an empty thought, is given
            and doesn't count.

    Raises:
        ValueError: If there is no template, the tokenizer is a slow one, the template refuses the chat, renders a
            beginning of it in another way than within the whole, or shows nothing of an answer.
    """
    text = _rendered(tokenizer, turns)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    counts = _marked(tokenizer, turns, text, tokens, offsets) if has_marks(tokenizer) else [False] * len(tokens)
    if not has_marks(tokenizer):
        for position, turn in enumerate(turns):
            if turn["counts"]:
                first, end = _span(tokenizer, turns[: position + 1], text)
                begin = border(text, first, offsets)
                spoken = [place for place in range(begin, len(tokens)) if offsets[place][0] < end]
                if not spoken:
                    raise _shows_nothing(turn)
                counts[begin : spoken[-1] + 1] = [True] * len(spoken)
    ends = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    for begin, end in _runs(counts):
        blank = [not text[left:right].strip() for left, right in offsets[begin:end]]
        closed = next((end - place for place, is_blank in enumerate(blank[::-1]) if not is_blank), begin)
        if closed > begin and tokens[closed - 1] in ends:
            counts[closed:end] = [False] * (end - closed)
        elif end < len(tokens) and tokens[end] in ends:
            counts[end] = True
    first, end = _runs(counts)[-1]
    tokens, counts = tokens[:end], counts[:end]
    closing = int(tokens[-1] in ends)
    content = _content(text, offsets[first][0], turns[-1])
    if content is not None:
        closing = sum(offsets[place][0] >= content[1] for place in range(first, end))
        if answer_only and text[offsets[first][0] : content[0]].strip():
            counts = [counted and offsets[place][1] > content[0] for place, counted in enumerate(counts)]
    if tokens[-1] not in ends:
        tokens, counts, closing = [*tokens, int(tokenizer.eos_token_id)], [*counts, True], closing + 1
    return CountedTokens(tokens, counts, closing)


def prompt_of_chat(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    """Render a chat up to where its last turn begins: the text after which a model answers.

    What the template writes before each answer, such as an empty thought, is a part of it.

    Raises:
        ValueError: As :func:`tokenize_chat`.
    """
    text = _rendered(tokenizer, turns)
    begin = _span(tokenizer, turns, text)[0]
    content = _content(text, begin, turns[-1])
    return text[: content[0] if content is not None and text[begin : content[0]].strip() else begin]


def has_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer's chat template marks what the assistant says."""
    return bool(_MARKS.search(_template(tokenizer)))


def size_of_template(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many bytes a template may add for each turn, by what it makes of a single one."""
    return len(_rendered(tokenizer, [Turn(role="user", content="a", counts=False)], is_prompt=True).encode())


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ValueError(
            f"expected a tokenizer with a chat template, since rows are messages, found none in "
            f"{str(tokenizer.name_or_path)!r}. Take the tokenizer of a chat model, or give rows as texts"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"expected a fast tokenizer for rows of messages, which tells which characters a token is from, found "
            f"{type(tokenizer).__name__}. Convert it with tokenizers, or give rows as texts"
        )
    return template


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, is_prompt: bool = False) -> str:
    _template(tokenizer)
    try:
        return str(tokenizer.apply_chat_template(_messages(turns), tokenize=False, add_generation_prompt=is_prompt))
    except (TemplateError, ValueError) as error:
        roles = [turn["role"] for turn in turns]
        raise ValueError(
            f"expected a chat that the tokenizer's template takes, found the roles {roles}, of which it says: {error}"
        ) from error


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _span(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], text: str) -> tuple[int, int]:
    """Return the half-open range of characters of the last of some turns, without space after it, in a chat's text."""
    asked = _rendered(tokenizer, turns[:-1], is_prompt=True) if len(turns) > 1 else ""
    answered = _rendered(tokenizer, turns)
    for name, part in (("the prompt to answer", asked), ("the answer", answered.rstrip())):
        if not text.startswith(part):
            raise ValueError(
                f"expected a chat template that renders the beginning of a chat as within the whole, found other text "
                f"up to {name} of message {len(turns)}, from {_difference(part, text)!r} on. Give rows of one answer "
                "each, or a template that marks it with {% generation %}"
            )
    if len(answered.rstrip()) <= len(asked):
        raise _shows_nothing(turns[-1])
    content = (
        _content(answered, 0, turns[0]) if len(turns) == 1 else None
    )  # templates render no prompt before a first one
    return len(asked) if content is None else content[0], len(answered.rstrip())


def _content(text: str, begin: int, turn: Turn) -> tuple[int, int] | None:
    """Find the half-open range of characters of the last turn's content; None if the template shows it otherwise."""
    content = turn["content"].strip()
    found = text.rfind(content, begin)
    return None if found < 0 else (found, found + len(content))


def _marked(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    text: str,
    tokens: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> list[bool]:
    """Return which tokens a template's marks hold, from the first turn that counts on."""
    encoded: Any = tokenizer.apply_chat_template(
        _messages(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert list(encoded["input_ids"]) == list(tokens)
    first = next(position for position, turn in enumerate(turns) if turn["counts"])
    before = 0
    if any(turn["role"] == ASSISTANT for turn in turns[:first]):
        before = border(text, _span(tokenizer, turns[: first + 1], text)[0], offsets)
    counts = [bool(mark) and place >= before for place, mark in enumerate(encoded["assistant_masks"])]
    if not any(counts):
        raise _shows_nothing(turns[-1])
    return counts


def _runs(counts: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the half-open ranges of positions that count."""
    runs = [list(places) for counted, places in groupby(range(len(counts)), counts.__getitem__) if counted]
    return [(places[0], places[-1] + 1) for places in runs]


def _shows_nothing(turn: Turn) -> ValueError:
    return ValueError(
        f"expected a chat template that shows what the assistant says, found nothing of {turn['content']!r:.100}. "
        "Take another template, or give rows as texts"
    )


def _difference(part: str, text: str) -> str:
    same = next((place for place, (one, other) in enumerate(zip(part, text, strict=False)) if one != other), len(text))
    return text[same : same + 40]
