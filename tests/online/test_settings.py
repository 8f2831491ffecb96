"""The settings of a traced run have one source: the callback's arguments are their fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest

from ftrace.callbacks import OnlineTracIn
from ftrace.online import TraceSettings

BESIDE = {"describe", "queries", "output_dir", "query_losses", "query_learned"}


def described(kind: type) -> dict[str, str]:
    """The lines of a class's ``Args``, by name, on one line each."""
    text = (inspect.getdoc(kind) or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n(?=    \w+: )", "\n" + text)
    pairs = (entry.strip().partition(": ") for entry in entries if entry.strip())
    return {name: " ".join(words.split()) for name, _, words in pairs}


def test_the_callback_has_the_same_settings_defaults_and_words() -> None:
    fields = {field.name: field for field in dataclasses.fields(TraceSettings)}
    arguments = {n: p for n, p in inspect.signature(OnlineTracIn.__init__).parameters.items() if n != "self"}
    assert arguments.keys() - BESIDE == fields.keys()
    assert {name: arguments[name].default for name in fields} == {n: field.default for n, field in fields.items()}
    of_callback, of_settings = described(OnlineTracIn), described(TraceSettings)
    assert of_settings.keys() == fields.keys()
    assert {name: of_callback[name] for name in of_settings} == of_settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": ()}, r"scores: expected some of \['dot', .*\], found \(\)"),
        ({"scores": "dot"}, "scores: expected a list"),
        ({"breakdown": ("step",)}, "breakdown: expected some of"),
        ({"refresh_every_n_steps": 0}, "refresh_every_n_steps: expected at least 1, found 0"),
        ({"projection_side": 0}, "projection_side: expected 1 to 4,096, found 0"),
        ({"momentum": "exact"}, 'momentum="exact" is of the kind "update"'),
        ({"scores": ("learning",)}, r"expected projection_side=K"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TraceSettings(**settings)


def test_one_projection_serves_all_parts_of_a_run() -> None:
    """It keeps the random directions that it has drawn."""
    settings = TraceSettings(projection_side=4)
    assert settings.projection is settings.rules.projection is settings.projection


@pytest.mark.parametrize(
    ("scores", "expected"),
    [(("dot",), 1), (("dot", "update", "cosine"), 1), (("learning",), "auto"), (("update", "whitened"), "auto")],
)
def test_exact_kinds_are_exact_by_default(scores: tuple[str, ...], expected: Any) -> None:
    side = 4 if expected == "auto" else None
    assert TraceSettings(scores=scores, projection_side=side).refresh_every == expected
    assert TraceSettings(scores=scores, projection_side=side, refresh_every_n_steps=7).refresh_every == 7
