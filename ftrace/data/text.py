"""Masked sentences and their answers, and texts that go on where others end."""

from __future__ import annotations

import re

_ANSWER = re.compile(r"(<extra_id_\d+>)\s*(.*?)\s*(?=<extra_id_\d+>|$)", re.S)
SENTINEL = re.compile(r"<extra_id_\d+>")


def fill_in(inputs: str, targets: str) -> str:
    """The sentence with each mask replaced by its answer; without masks, the inputs and what follows them.

    Example:
        >>> fill_in("<extra_id_0> lies on <extra_id_1>", "<extra_id_0> Oslo <extra_id_1> a fjord")
        'Oslo lies on a fjord'
        >>> fill_in("The capital of Norway is", "Oslo")
        'The capital of Norway is Oslo'
    """
    answers = _ANSWER.findall(targets)
    if not answers:
        return inputs + continuation(inputs, targets)
    for mask, answer in answers:
        inputs = inputs.replace(mask, answer)
    return inputs


def continuation(inputs: str, targets: str) -> str:
    """The targets as they follow the inputs: after a space, unless one is there or nothing stands before them.

    Example:
        >>> continuation("The capital of Norway is", "Oslo")
        ' Oslo'
    """
    joined = not inputs or not targets or inputs[-1].isspace() or targets[0].isspace()
    return targets if joined else f" {targets}"


def split_sentinel(targets: str) -> tuple[str, str]:
    """The sentinel that targets begin with, if they do, and the rest.

    Example:
        >>> split_sentinel("<extra_id_0> Oslo"), split_sentinel("Oslo")
        (('<extra_id_0>', ' Oslo'), ('', 'Oslo'))
    """
    found = SENTINEL.match(targets)
    return (found.group(), targets[found.end() :]) if found else ("", targets)


def next_sentinel(targets: str) -> str:
    """The sentinel that would come after targets; none where they have none.

    Example:
        >>> next_sentinel("<extra_id_0> Oslo"), next_sentinel("Oslo")
        ('<extra_id_1>', '')
    """
    sentinels = SENTINEL.findall(targets)
    return f"<extra_id_{int(sentinels[-1][10:-1]) + 1}>" if sentinels else ""


def answers_in(targets: str) -> list[str]:
    """The answers in targets, without sentinels; each once.

    Example:
        >>> answers_in("<extra_id_0> Oslo <extra_id_1> a fjord")
        ['Oslo', 'a fjord']
    """
    stripped = (answer.strip() for answer in SENTINEL.split(targets))
    return list(dict.fromkeys(answer for answer in stripped if answer))
