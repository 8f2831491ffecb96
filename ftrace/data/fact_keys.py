"""Keys of facts, from which relation, subject and object are read."""

from __future__ import annotations

import re
from typing import NamedTuple


class FactParts(NamedTuple):
    """Relation, subject and object of a fact.

    Args:
        relation: Key of the relation.
        subject: Key of the relation's first entity.
        object: Key of the relation's second entity.
    """

    relation: str
    subject: str
    object: str


def synth_parts(key: str) -> FactParts | None:
    """Split the key of a fact of FTRACE-SYNTH, such as r3-e1-e2; None if it isn't one."""
    parts = re.fullmatch(r"(r\d+)-(e\d+)-(e\d+)", key)
    return FactParts(*parts.groups()) if parts else None


def trex_parts(key: str) -> FactParts | None:
    """Split the key of a fact of FTRACE-TREX, such as P361,Q48,Q771405; None if it isn't one."""
    parts = key.split(",")
    if len(parts) != 3:
        return None
    relation, of, subject = parts  # keys name the object before the subject
    return FactParts(relation, subject, of)


def parts_of_key(key: str) -> FactParts | None:
    """Split a fact's key of which it isn't known which data set it is of; None if it has the form of none.

    Example:
        >>> parts_of_key("r3-e1-e2")
        FactParts(relation='r3', subject='e1', object='e2')
        >>> parts_of_key("P361,Q48,Q771405")
        FactParts(relation='P361', subject='Q771405', object='Q48')
        >>> parts_of_key("in Norway, the capital, Oslo")
    """
    is_of_trex = re.match(r"P\d+,", key)  # any text may have two commas
    return trex_parts(key) if is_of_trex else synth_parts(key)
