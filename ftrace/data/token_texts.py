"""Texts of tokens as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_CONTEXT = 8  # tokens before a token that its text may depend on


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[int, str]]:
    """Divide a decoded sequence into the texts of its tokens.

    Works for any tokenizer, since it only decodes: a token's text is what it adds to the text of those before it.
    Tokens that add no text of their own, such as the pieces of a character that is spelled in bytes, share one text.

    Args:
        tokenizer: The tokens' own.
        ids: The tokens, special ones too.

    Returns:
        How many tokens share a text, and the text. The numbers sum to the number of ids, and the texts, joined, are the
        decoded sequence.
    """
    whole = _decode(tokenizer, ids)
    texts: list[tuple[int, str]] = []
    start, known = 0, 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids):
            text = whole[known:]
        else:
            first = max(0, start - _CONTEXT)
            text = _decode(tokenizer, ids[first:stop])[len(_decode(tokenizer, ids[first:start])) :]
        # An unfinished character is decoded to a mark of its own, which the whole text doesn't have there.
        if text and whole.startswith(text, known):
            texts.append((stop - start, text))
            start, known = stop, known + len(text)
    if start < len(ids):  # the last ones add nothing
        count, text = texts.pop() if texts else (0, "")
        texts.append((count + len(ids) - start, text))
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
