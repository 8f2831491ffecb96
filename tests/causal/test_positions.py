"""Groups of places: every place where the definitions put it."""

from __future__ import annotations

import pytest

from ftrace.causal import position_groups
from ftrace.causal.positions import groups_of
from helpers.made_traces import made_trace

SHORT = {
    "before the subject": "before", "first subject token": "first", "middle subject tokens": "middle",
    "last subject token": "last of subject", "first token after": "after", "further tokens": "further",
    "last token": "last", "given tokens": "given",
}  # fmt: skip


def found(num_tokens: int, subject: tuple[int, int], reading: str = "one way") -> dict[str, list[int]]:
    groups = position_groups(num_tokens, subject, reading)  # type: ignore[arg-type]
    return {SHORT[name]: places.tolist() for name, places in groups.items()}


CASES = [
    (9, (1, 5), dict(first=[1], middle=[2, 3], last_of_subject=[4], after=[5], further=[6, 7], last=[8])),
    (9, (0, 2), dict(first=[0], last_of_subject=[1], after=[2], further=[3, 4, 5, 6, 7], last=[8])),
    (4, (1, 2), dict(first=[1], last_of_subject=[1], after=[2], last=[3])),
    (3, (1, 2), dict(first=[1], last_of_subject=[1], last=[2])),  # the first one after is the last one
]


@pytest.mark.parametrize("reading", ["one way", "both ways"])
@pytest.mark.parametrize(("num_tokens", "subject", "expected"), CASES)
def test_places_are_in_their_groups(num_tokens: int, subject: tuple[int, int], expected: dict, reading: str) -> None:
    names = ["first", "middle", "last of subject", "after", "further", "last"]
    wanted = {name: expected.get(name.replace(" ", "_"), []) for name in names}
    if reading == "both ways":
        wanted = {"before": list(range(subject[0])), **wanted}
    got = found(num_tokens, subject, reading)
    assert got == wanted
    assert list(got) == list(wanted)


def test_a_subject_that_ends_the_prompt() -> None:
    got = found(5, (2, 5))
    assert (got["first"], got["middle"], got["last of subject"], got["last"]) == ([2], [3], [], [4])
    got = found(5, (2, 5), "both ways")
    assert (got["first"], got["middle"], got["last of subject"], got["last"]) == ([2], [3], [4], [])
    assert found(3, (2, 3)) == {name: [] for name in found(3, (2, 3))} | {"last": [2]}


@pytest.mark.parametrize("reading", ["one way", "both ways"])
def test_every_place_is_in_one_group_but_a_lone_subject(reading: str) -> None:
    for num_tokens in range(1, 8):
        for start in range(num_tokens):
            for end in range(start + 1, num_tokens + 1):
                places = sorted(place for own in found(num_tokens, (start, end), reading).values() for place in own)
                twice = [start] if end == start + 1 and (end < num_tokens or reading == "both ways") else []
                first = start if reading == "one way" else 0
                assert places == sorted([*range(min(first, num_tokens - 1), num_tokens), *twice])


def test_a_decoder_without_a_subject() -> None:
    assert found(3, (0, 0)) == {"given": [0, 1], "last": [2]}
    assert found(1, (1, 1)) == {"given": [], "last": [0]}


def test_stacks_read_in_their_ways() -> None:
    trace = made_trace(decoder_tokens=["<pad>", "<mask>"])
    assert next(iter(groups_of(trace, "encoder"))) == "before the subject"
    assert list(groups_of(trace, "decoder")) == ["given tokens", "last token"]
    assert next(iter(groups_of(made_trace(), "decoder"))) == "first subject token"
    with pytest.raises(ValueError, match="expected a subject in the encoder of prompt 'prompt', found none"):
        groups_of(made_trace(subject=(1, 1), decoder_tokens=["<pad>"]), "encoder")


@pytest.mark.parametrize(("num_tokens", "subject"), [(3, (2, 4)), (3, (2, 1)), (3, (-1, 1)), (0, (0, 0))])
def test_a_subject_outside_the_prompt_is_refused(num_tokens: int, subject: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"found positions {subject[0]} to {subject[1]} of {num_tokens}"):
        position_groups(num_tokens, subject)
