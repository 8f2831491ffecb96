"""How causal tracing's mediators, outcomes and tokens are called where a person reads them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from ftrace.causal.prompt_trace import Outcome
from ftrace.evaluation import Estimate

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
    """What an outcome is called and counted in.

    Args:
        name: The outcome.
        factor: What its values are multiplied by.
        sign: What stands after a value.
        points: What differences of values are counted in.
    """

    name: str
    factor: float
    sign: str
    points: str

    def text(self, value: float) -> str:
        """A value with its unit, three digits."""
        return f"{_three_digits(self.factor * value)}{self.sign}"

    def effect(self, estimate: Estimate) -> str:
        """An estimated difference without its unit and, where it is known, its interval.

        Example:
            >>> UNITS["probability"].effect(Estimate(0.25, -0.01, 0.5))
            '25.0 [−1.00, 50.0]'
        """
        mean, low, high = (_three_digits(self.factor * one) for one in (estimate.mean, estimate.low, estimate.high))
        return mean if math.isnan(estimate.low) else f"{mean} [{low}, {high}]"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


UNITS: Mapping[Outcome, Unit] = {
    "probability": Unit("probability", 100, "%", "percentage points"),
    "log_probability": Unit("log-probability", 1, "", "nats"),
    "logit_difference": Unit("logit difference", 1, "", "logits"),
}


def in_order(mediators: Iterable[str]) -> list[str]:
    """Mediators in the order in which they are shown, unknown ones last."""
    given = list(mediators)
    return [one for one in MEDIATORS if one in given] + [one for one in given if one not in MEDIATORS]


def mediator_title(mediator: str) -> str:
    """What a mediator is called in pictures and tables."""
    return MEDIATORS.get(mediator, mediator)


def token_label(token: str, *, of_subject: bool = False) -> str:
    r"""A token as a label: short, drawable, and with a star where it is of the subject.

    Example:
        >>> token_label(" Need", of_subject=True), token_label(" "), token_label("a\n"), token_label("b" * 30)
        ('Need*', '␣', 'a\\n', 'bbbbbbbbbbbbbbbbbbb…')
    """
    text = drawable(token.strip(" ") or "␣")
    text = text if len(text) <= _LONGEST_TOKEN else f"{text[: _LONGEST_TOKEN - 1]}…"
    return f"{text}*" if of_subject else text


def drawable(text: str) -> str:
    """A text with escapes for line breaks and for what no installed font has a sign for, which would be empty boxes."""
    return "".join(
        one if one.isprintable() and ord(one) in _signs() else one.encode("unicode_escape").decode() for one in text
    )


def wrapped(text: str, width: int, most: int = 3) -> str:
    """A text broken into lines; its own line breaks are kept, and each part has a few lines at most."""
    parts = (textwrap.wrap(part, max(width, 20), max_lines=most, placeholder=" …") for part in text.split("\n"))
    return "\n".join("\n".join(part) for part in parts)


@cache
def font_families() -> tuple[str, ...]:
    """Installed fonts that labels are drawn with, one after the other where the first lacks a sign."""
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FAMILIES if name in installed)


@cache
def _signs() -> frozenset[int]:
    fonts = (get_font(findfont(FontProperties(family=name))) for name in font_families())
    return frozenset(sign for font in fonts for sign in font.get_charmap())
