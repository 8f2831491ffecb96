"""Names of causal tracing's mediators, outcomes and tokens in pictures and tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from ftrace.evaluation import Estimate

if TYPE_CHECKING:
    from ftrace.causal.prompt_trace import Outcome

MEDIATORS: Mapping[str, str] = {
    "hidden": "hidden state",
    "attention_severed": "attention severed",
    "mlp_severed": "MLP severed",
    "cross_attention_severed": "cross-attention severed",
    "mlp": "MLP window",
    "attention": "attention window",
    "cross_attention": "cross-attention window",
}
_LONGEST_TOKEN = 20
_FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans", "PingFang SC", "Hiragino Sans",
    "Microsoft YaHei", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Arial Unicode MS", "Unifont",
)  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """Name and unit of an outcome.

    Args:
        name: Name of the outcome.
        factor: Factor by which its values are multiplied to be shown.
        sign: Sign after a value.
        points: Unit of differences of values.
    """

    name: str
    factor: float
    sign: str
    points: str

    def text(self, value: float) -> str:
        """Format a value with its unit, three digits."""
        return f"{_three_digits(self.factor * value)}{self.sign}"

    def effect(self, estimate: Estimate) -> str:
        """Format an estimated difference without its unit, and its interval if it is known.

        Example:
            >>> UNITS["probability"].effect(Estimate(0.25, -0.01, 0.5))
            '25.0 [−1.00, 50.0]'
        """
        mean, low, high = (_three_digits(self.factor * value) for value in (estimate.mean, estimate.low, estimate.high))
        return mean if math.isnan(estimate.low) else f"{mean} [{low}, {high}]"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


UNITS: Mapping[Outcome, Unit] = {
    "probability": Unit("probability", 100, "%", "percentage points"),
    "log_probability": Unit("log-probability", 1, "", "nats"),
    "logit_difference": Unit("logit difference", 1, "", "logits"),
}


def in_order(mediators: Iterable[str]) -> list[str]:
    """Sort mediators into the order in which they are shown, unknown ones last."""
    given = list(mediators)
    known = [mediator for mediator in MEDIATORS if mediator in given]
    return known + [mediator for mediator in given if mediator not in MEDIATORS]


def mediator_title(mediator: str) -> str:
    """Return a mediator's name in pictures and tables."""
    return MEDIATORS.get(mediator, mediator)


def token_label(token: str, *, of_subject: bool = False) -> str:
    r"""Make a label of a token: short, drawable, and with a star if it is part of the subject.

    Example:
        >>> token_label(" Need", of_subject=True), token_label(" "), token_label("a\n"), token_label("b" * 30)
        ('Need*', '␣', 'a\\n', 'bbbbbbbbbbbbbbbbbbb…')
    """
    text = drawable(token.strip(" ") or "␣")
    text = text if len(text) <= _LONGEST_TOKEN else f"{text[: _LONGEST_TOKEN - 1]}…"
    return f"{text}*" if of_subject else text


def drawable(text: str) -> str:
    """Escape line breaks and characters that no installed font has, which would be drawn as empty boxes."""
    return "".join(
        character
        if character.isprintable() and ord(character) in _signs()
        else character.encode("unicode_escape").decode()
        for character in text
    )


def wrapped(text: str, width: int, most: int = 3) -> str:
    """Break a text into lines; line breaks in it are kept, and each part between them gets at most ``most`` lines."""
    parts = (textwrap.wrap(part, max(width, 20), max_lines=most, placeholder=" …") for part in text.split("\n"))
    return "\n".join("\n".join(part) for part in parts)


@cache
def font_families() -> tuple[str, ...]:
    """List the installed fonts that labels are drawn with; each is for characters that those before it lack."""
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FAMILIES if name in installed)


@cache
def _signs() -> frozenset[int]:
    """Return the characters that can be drawn, bold ones too, of which a font may have fewer."""
    regular, bold = (
        {
            sign
            for family in font_families()
            for sign in get_font(findfont(FontProperties(family=family, weight=weight))).get_charmap()
        }
        for weight in ("normal", "bold")
    )
    return frozenset(regular & bold)
