"""Arguments of public functions and classes: what they may be stands in their annotations, and is held when called.

A signature then says it to readers, to the library and to commands.
"""

from ftrace.arguments.checking import check_arguments, checked, hold
from ftrace.arguments.kinds import (
    Count,
    Name,
    NonNegativeNumber,
    NotEmpty,
    Positive,
    PositiveNumber,
    Seed,
    Share,
    Within,
    in_words,
)

__all__ = [
    "Count",
    "Name",
    "NonNegativeNumber",
    "NotEmpty",
    "Positive",
    "PositiveNumber",
    "Seed",
    "Share",
    "Within",
    "check_arguments",
    "checked",
    "hold",
    "in_words",
]
