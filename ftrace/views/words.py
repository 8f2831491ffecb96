"""Words of a text with their places, in any script; and which of them a query shares with an example."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from ftrace.views.marked_text import Span

COMMON = 0.2  # a word that is in more than this share of the examples says nothing of one of them
_SAMPLE = 200  # texts from which it is told which words are common
_FEW = 20  # examples, among which no word is called common
SENTINEL = re.compile(r"<extra_id_\d+>")
_WORD = re.compile(r"[^\W_]+")
# Latin, Greek, Cyrillic and Armenian letters with usual signs: no accents apart from their letters, no joiners.
_SIMPLE = re.compile("[\x00-\xac\xae-\u02ff\u0370-\u0482\u048a-\u0590\u2010-\u2027\u2030-\u205e\u20a0-\u20bf]*")
_JOINERS = "\u00ad\u034f\u200c\u200d"  # between letters they change how a word looks, not which it is
# Han, Kana, Thai, Lao, Burmese and Khmer are written without spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Word(NamedTuple):
    """A word in a text.

    Args:
        begin: Where it begins.
        end: Where it ends.
        key: The word in the form in which it is compared: without case, composed, without joiners.
    """

    begin: int
    end: int
    key: str


def words_in(text: str) -> list[Word]:
    """List the words of a text: runs of letters and digits, with their accents.

    Masks such as ``<extra_id_0>`` are no words. Where a script has no spaces, each two neighbouring characters are one.

    Example:
        >>> [word.key for word in words_in("The Mayor of <extra_id_0> was 24-entity")]
        ['the', 'mayor', 'of', 'was', '24', 'entity']
        >>> [word.key for word in words_in("東京都は")]
        ['東京', '京都', '都は']
    """
    text = _without_masks(text)
    if _SIMPLE.fullmatch(text):
        return [Word(match.start(), match.end(), _composed(match.group())) for match in _WORD.finditer(text)]
    return list(_words(text))


def word_keys(text: str) -> list[str]:
    """List the words of a text in the form in which they are compared, as :func:`words_in` does and sooner."""
    text = _without_masks(text)
    if text.isascii():
        return _WORD.findall(text.lower())
    return [word.key for word in words_in(text)]


def _without_masks(text: str) -> str:
    return SENTINEL.sub(lambda match: " " * len(match.group()), text)


def _words(text: str) -> Iterator[Word]:
    begin = None
    for place, character in enumerate([*text, " "]):
        inside = character.isalnum() or (
            begin is not None and (character in _JOINERS or unicodedata.category(character)[0] == "M")
        )
        if inside and begin is None:
            begin = place
        elif not inside and begin is not None:
            yield from _parts(text, begin, place)
            begin = None


def _parts(text: str, begin: int, end: int) -> Iterator[Word]:
    """Divide a run of letters where it is written without spaces."""
    place = begin
    while place < end:
        unspaced = bool(_UNSPACED.match(text[place]))
        stop = place + 1
        while stop < end and bool(_UNSPACED.match(text[stop])) == unspaced:
            stop += 1
        if not unspaced or stop - place == 1:
            yield Word(place, stop, _key(text[place:stop]))
        else:
            yield from (Word(first, first + 2, text[first : first + 2]) for first in range(place, stop - 1))
        place = stop


def _key(word: str) -> str:
    return _composed("".join(c for c in word if c not in _JOINERS))


def _composed(word: str) -> str:
    return unicodedata.normalize("NFC", word).casefold()


def sample_step(count: int) -> int:
    """Return the distance of the texts, of so many, that :class:`SampledWords` is to look at."""
    return max(1, count // _SAMPLE)


class SampledWords:
    """The words of a sample of the examples' texts, from which it is told which words say nothing of an example.

    Args:
        texts: The sample. Among fewer than twenty texts, no word is common.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._counts: Counter[str] = Counter()
        self._total = 0
        for text in texts:
            self._total += 1
            self._counts.update(set(word_keys(text)))

    def common(self, words: Collection[str]) -> set[str]:
        """Return those of some words, given by their keys, that are in so many texts that sharing them says nothing."""
        if self._total < _FEW:
            return set()
        return {word for word in words if self._counts[word] > COMMON * self._total}


def shared_spans(text: str, words: Collection[str]) -> tuple[Span, ...]:
    """Return where a text has any of some words; spans that touch are one.

    Args:
        text: The text.
        words: Keys of the words.

    Example:
        >>> shared_spans("Oslo lies in Norway", {"oslo", "norway"})
        ((0, 4), (13, 19))
    """
    spans: list[Span] = []
    for begin, end in _places(text, words):
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return tuple(spans)


def _places(text: str, words: Collection[str]) -> Iterator[Span]:
    """Find some words in a text; most texts are ASCII, of which few words are looked at."""
    if text.isascii():
        matches = _WORD.finditer(_without_masks(text).lower())
        return (match.span() for match in matches if match.group() in words)
    return ((word.begin, word.end) for word in words_in(text) if word.key in words)
