"""The words of a text in any script, to be compared."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

# Between the letters of a word these change how it looks, not which word it is: joiners (ZWNJ, ZWJ and CGJ), the soft
# hyphen, and variation selectors.
_UNSEEN = re.compile("[\u00ad\u034f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_ASCII_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    r"""Runs of letters and digits in lower case, with the marks that belong to them: vowel signs, accents and points.

    However a character is composed (NFC or NFD), the word is the same; so it is with and without joiners and soft
    hyphens. Scripts without spaces are not divided.

    Example:
        >>> words_of("It's a Well-known_name 4you")
        ['it', 's', 'a', 'well', 'known', 'name', '4you']
        >>> words_of("हिन्दी, שָׁלוֹם می\u200cخواهم 日本語")
        ['हिन्दी', 'שָׁלוֹם', 'میخواهم', '日本語']
        >>> words_of("Cafe\u0301") == words_of("CAF\u00c9")
        True
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    found: list[str] = _word().findall(unicodedata.normalize("NFC", _UNSEEN.sub("", text.lower())))
    return found


@cache
def _word() -> re.Pattern[str]:
    """A letter or digit, then more of them and marks (Unicode's categories Mn and Mc)."""
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    return re.compile(rf"[^\W_](?:[^\W_]|[{''.join(map(re.escape, marks))}])*")
