"""Masked sentences and their answers."""

from __future__ import annotations

import re

_ANSWER = re.compile(r"(<extra_id_\d+>)\s*(.*?)\s*(?=<extra_id_\d+>|$)")


def fill_in(inputs: str, targets: str) -> str:
    """The sentence with each mask replaced by its answer.

    Example:
        >>> fill_in("<extra_id_0> lies on <extra_id_1>", "<extra_id_0> Oslo <extra_id_1> a fjord")
        'Oslo lies on a fjord'
    """
    for mask, answer in _ANSWER.findall(targets):
        inputs = inputs.replace(mask, answer)
    return inputs
