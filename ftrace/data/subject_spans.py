"""Position of a prompt's subject, in characters and in tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_JOINERS = "\u200c\u200d"


def subject_span(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    subject: str,
    start: int | None = None,
    add_special_tokens: bool = True,
) -> tuple[int, int]:
    """Find the half-open range of a text's tokens that hold a subject.

    A token belongs to the subject if it holds one of its characters, or a part of one. A space before the subject is
    not part of it, though it may share its first token.

    Args:
        tokenizer: A fast tokenizer, which knows the characters that its tokens are from.
        text: The prompt.
        subject: As the text spells it.
        start: Position of its first character; None finds it, if it occurs once: as whole words, or else as part of
            longer ones.
        add_special_tokens: Whether the tokenizer adds its special tokens, which are then counted.

    Raises:
        ValueError: If the subject is empty, is not in the text or is there more than once, if no consecutive tokens
            hold it, or if the tokenizer is a slow one.
    """
    require_offsets(tokenizer)
    characters = subject_characters(text, subject, start)
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    return tokens_of_subject(tokenizer, encoded["input_ids"], encoded["offset_mapping"], text, characters)


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a slow tokenizer, which doesn't know the characters that its tokens are from.

    Raises:
        ValueError: If it is one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "expected a fast tokenizer, which knows the characters that its tokens are from, found "
            f"{type(tokenizer).__name__}. Load it with AutoTokenizer.from_pretrained(name, use_fast=True)"
        )


def tokens_of_subject(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    text: str,
    characters: tuple[int, int],
) -> tuple[int, int]:
    """Find the half-open range of tokens that hold a subject's characters.

    Args:
        tokenizer: The one that made the tokens.
        ids: The tokens.
        offsets: Half-open range of characters of each token.
        text: The text that the tokens are from.
        characters: Half-open range of the subject's characters; see :func:`subject_characters`.

    Raises:
        ValueError: If no consecutive tokens hold them.
    """
    first, end = characters
    subject = text[first:end]
    positions = [position for position, (left, right) in enumerate(offsets) if left < end and right > first]
    while positions and is_blank(tokenizer, ids[positions[0]]):
        positions.pop(0)  # some tokenizers put a space before a text and attribute it to the first character
    if not positions:
        raise ValueError(
            f"subject {subject!r}: expected tokens that hold it, found none in {text!r}: the tokenizer leaves its "
            "characters out. Spell it in others"
        )
    between = set(range(positions[0], positions[-1])) - set(positions)
    if any(offsets[position][0] < offsets[position][1] for position in between):
        raise ValueError(
            f"subject {subject!r}: expected tokens in a row, found them at {positions} in {text!r}: the tokenizer "
            "changes the order of characters. Take another one"
        )
    return positions[0], positions[-1] + 1


def is_blank(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token is nothing but space."""
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return not text.strip()


def subject_characters(text: str, subject: str, start: int | None = None) -> tuple[int, int]:
    """Find the half-open range of a subject's characters; see :func:`subject_span`.

    Raises:
        ValueError: If the subject is empty, is not in the text, or is there more than once.
    """
    wanted = subject.strip()
    if not wanted:
        raise ValueError(
            "no subject: expected the words of the prompt that its fact is about, found none. Give them as subject"
        )
    if start is not None:
        if text[start : start + len(subject)] != subject:
            raise ValueError(
                f"subject_start: expected the place of {subject!r} in characters, found {start}, where "
                f"{text[start : start + len(subject)]!r} stands in {text!r}"
            )
        first = start + len(subject) - len(subject.lstrip())
        return first, first + len(wanted)
    starts = [match.start() for match in re.finditer(f"(?={re.escape(wanted)})", text)]
    starts = [first for first in starts if _is_whole(text, first, first + len(wanted))] or starts
    if not starts:
        raise ValueError(f"subject {wanted!r}: expected it in the prompt, found {text!r}. {_remedy(text, wanted)}")
    if len(starts) > 1:
        raise ValueError(
            f"subject {wanted!r}: expected it once in the prompt, found it {len(starts)} times in {text!r}. Give the "
            f"place of the one that is meant as subject_start: {' or '.join(map(str, starts))}"
        )
    return starts[0], starts[0] + len(wanted)


def _is_whole(text: str, first: int, end: int) -> bool:
    """Return whether a range of characters is whole words: no letter, digit or mark is right before or after it."""
    around = [*text[max(first - 1, 0) : first], *text[end : end + 1]]
    return not any(
        unicodedata.category(character)[0] in "LNM" or character == "_" or character in _JOINERS for character in around
    )


def _remedy(text: str, subject: str) -> str:
    """Say what to do about a subject that is not in the text."""
    likened = [unicodedata.normalize("NFKC", words).casefold() for words in (subject, text)]
    if likened[0] in likened[1]:
        return "They differ in case, or in how their characters are composed: spell it as the prompt does"
    return "Spell it as the prompt does"
