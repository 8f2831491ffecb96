"""Masked sentences and their answers, and texts that continue others."""

from __future__ import annotations

import re

_ANSWER = re.compile(r"(<extra_id_\d+>)\s*(.*?)\s*(?=<extra_id_\d+>|$)", re.S)
SENTINEL = re.compile(r"<extra_id_\d+>")


def fill_in(inputs: str, targets: str) -> str:
    """Return the sentence with each mask replaced by its answer; without masks, the inputs with their continuation.

    Example:
        >>> fill_in("<extra_id_0> lies on <extra_id_1>", "<extra_id_0> Oslo <extra_id_1> a fjord")
        'Oslo lies on a fjord'
        >>> fill_in("The capital of Norway is", "Oslo")
        'The capital of Norway is Oslo'
        >>> fill_in("", "In T5, <extra_id_0> is a mask")
        'In T5, <extra_id_0> is a mask'
    """
    answers = _ANSWER.findall(targets) if inputs else []  # a row that is text alone has no masks
    if not answers:
        return inputs + continuation(inputs, targets)
    for mask, answer in answers:
        inputs = inputs.replace(mask, answer)
    return inputs


def continuation(inputs: str, targets: str) -> str:
    """Return the targets as they follow the inputs: after a space, unless there is one or the inputs are empty.

    Example:
        >>> continuation("The capital of Norway is", "Oslo")
        ' Oslo'
    """
    joined = not inputs or not targets or inputs[-1].isspace() or targets[0].isspace()
    return targets if joined else f" {targets}"


def split_sentinel(targets: str) -> tuple[str, str]:
    """Split targets into the sentinel that they begin with, empty if there is none, and the rest.

    Example:
        >>> split_sentinel("<extra_id_0> Oslo"), split_sentinel("Oslo")
        (('<extra_id_0>', ' Oslo'), ('', 'Oslo'))
    """
    sentinel = SENTINEL.match(targets)
    return (sentinel.group(), targets[sentinel.end() :]) if sentinel else ("", targets)


def next_sentinel(targets: str) -> str:
    """Return the sentinel that would come next after targets; empty if they have none.

    Example:
        >>> next_sentinel("<extra_id_0> Oslo"), next_sentinel("Oslo")
        ('<extra_id_1>', '')
    """
    sentinels = SENTINEL.findall(targets)
    return f"<extra_id_{int(sentinels[-1][10:-1]) + 1}>" if sentinels else ""


def answers_in(targets: str) -> list[str]:
    """List the answers in targets, without sentinels and repetitions.

    Example:
        >>> answers_in("<extra_id_0> Oslo <extra_id_1> a fjord")
        ['Oslo', 'a fjord']
    """
    stripped = (answer.strip() for answer in SENTINEL.split(targets))
    return list(dict.fromkeys(answer for answer in stripped if answer))
