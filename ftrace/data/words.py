"""Words of a text in any script, in a form that can be compared."""

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
    r"""Split a text into runs of letters and digits in lower case, with their vowel signs, accents and points.

    The composition of characters (NFC or NFD), joiners and soft hyphens make no difference. Scripts without spaces are
    not divided.

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
    words: list[str] = _word().findall(unicodedata.normalize("NFC", _UNSEEN.sub("", text.lower())))
    return words


@cache
def _word() -> re.Pattern[str]:
    """Compile the pattern of a word: a letter or digit, then more of them and marks (Unicode's Mn and Mc)."""
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    return re.compile(rf"[^\W_](?:[^\W_]|[{''.join(map(re.escape, marks))}])*")
