"""How long rows may be, and what is kept of longer ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedTokenizerBase

_NO_LIMIT = 10**9  # transformers writes 10^30 where a tokenizer knows of none


def limit_of_model(tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[int | None, str]:
    """Return how many tokens a pretrained model takes, and who says so; None if nobody does.

    Args:
        tokenizer: The model's.
        source: The hub name or folder that it is from, whose config may say more.
    """
    limits = []
    if tokenizer.model_max_length < _NO_LIMIT:
        limits.append((int(tokenizer.model_max_length), "model_max_length of the tokenizer"))
    positions = _positions(source)
    if positions is not None:
        limits.append((positions, "max_position_embeddings of the model's config"))
    return min(limits, default=(None, ""))


def _positions(source: str) -> int | None:
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):  # a tokenizer may come without a model
        return None
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(positions) if positions else None


def kept(counts: Sequence[bool], begin: int, longest: int | None) -> list[int]:
    """Return the positions that are kept of a row of a decoder-only model's tokens.

    The last answer is kept, and as much as fits of what is right before it. Of an answer that is too long by itself,
    the beginning is kept, with one token before it. A text is all answer, so its beginning is kept.

    Args:
        counts: Whether the loss counts each token; the last does.
        begin: How many tokens at the beginning are kept in any case: 1 if a text begins with a special token, else 0.
        longest: How many tokens may be kept; None keeps all.

    Example:
        >>> kept([False, False, False, True, True], 1, 4)
        [0, 2, 3, 4]
        >>> kept([False, False, True, True, True], 0, 3)
        [1, 2, 3]
        >>> kept([True, True, True], 0, 2)
        [0, 1]
    """
    count = len(counts)
    if longest is None or count <= longest:
        return list(range(count))
    before = next((place for place in range(count - 1, begin - 1, -1) if not counts[place]), begin - 1)
    room = longest - begin
    first = max(begin, min(count - room, before if room > 1 or not begin else before + 1))
    return [*range(begin), *range(first, first + room)]
