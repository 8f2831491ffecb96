"""Options that several commands have, and settings that a command takes as flags of its own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from ftrace.arguments import Name, Positive, Within, checked, hold
from ftrace.commands import config_values

config_values.use_everywhere()
set_parsing_settings(docstring_parse_attribute_docstrings=True)  # help of a flag: the line under the settings' field

Settings = TypeVar("Settings")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@checked
@dataclass(frozen=True)
class ProcessSettings:
    """The processes that share a command's work."""

    accelerator: Name = "auto"
    """Lightning's, such as "cpu" or "gpu"."""
    devices: Annotated[int, Within(1, 1024)] | Name = 1
    """How many processes share the work."""
    strategy: Name = "auto"
    """Lightning's, such as "ddp"."""

    def __post_init__(self) -> None:
        if isinstance(self.devices, str) and not re.fullmatch(r"auto|-1|\d+(,\d+)*", self.devices):
            raise ValueError(
                f"devices: expected how many, auto, -1 for all, or their numbers such as 0,1; found {self.devices!r}"
            )
        if self.accelerator != "auto":
            _check_accelerator(self.accelerator)
        if self.strategy != "auto":
            _check_strategy(self.strategy)


def _check_accelerator(name: str) -> None:
    """Refuse a name that Lightning doesn't know, and a device that this machine doesn't have."""
    from lightning.pytorch.accelerators import AcceleratorRegistry

    registry: Any = AcceleratorRegistry
    known = {each: [each] for each in registry.available_accelerators()} | {"gpu": ["cuda", "mps"]}
    if name not in known:
        raise ValueError(f"accelerator: expected one of auto, {', '.join(sorted(known))}, found {name!r}")
    if not any(registry[each]["accelerator"].is_available() for each in known[name]):
        raise ValueError(f"accelerator: expected one that this machine has, found {name!r}. Take auto, or cpu")


def _check_strategy(name: str) -> None:
    """Refuse a name that Lightning doesn't know."""
    from lightning.pytorch.strategies import StrategyRegistry

    registry: Any = StrategyRegistry
    if name not in registry.available_strategies():
        raise ValueError(f"strategy: expected auto, or one that Lightning knows such as ddp, found {name!r}")


def add_trust(command: ArgumentParser) -> None:
    """Add the flag by which a user trusts a run: see :class:`ftrace.runs.Run`."""
    command.add_argument(
        "--trust", action="store_true",
        help="Follow the classes that the run's config names and that aren't ftrace's own. Their code runs here, so "
        "trust a run that somebody else has made only if you have read it.",
    )  # fmt: skip


def take(kind: type[Settings], options: dict[str, Any]) -> Settings:
    """Make settings of a command's options, and remove these from the options.

    Args:
        kind: A dataclass; fields that the options lack keep their defaults.
        options: By name.
    """
    names = [field.name for field in fields(kind) if field.name in options]  # type: ignore[arg-type]
    return kind(**{name: options.pop(name) for name in names})


def add_old_names(command: ArgumentParser, types: Mapping[str, Any]) -> None:
    """Add flags under old names, which are not in the help and None where they aren't given.

    Args:
        command: The command's parser.
        types: Of what they take, by old name.
    """
    for old, given in types.items():
        command.add_argument(f"--{old}", type=given | None, default=None, help=argparse.SUPPRESS)


def number_of_bytes(name: str, given: int | str) -> int:
    """Read a number of bytes.

    Args:
        name: The option, for messages.
        given: The number, or a text such as "500MiB".

    Raises:
        ValueError: If it is none.

    Example:
        >>> number_of_bytes("memory_budget", "1.5GiB"), number_of_bytes("memory_budget", "4096")
        (1610612736, 4096)
    """
    if isinstance(given, int):
        return int(hold(name, given, Positive))
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", given)
    if not match or match.group(2) not in ("", *_UNITS):
        raise ValueError(f"{name}: expected a number of bytes such as 500MiB or 2GiB, found {given!r}")
    return int(hold(name, int(float(match.group(1)) * _UNITS.get(match.group(2), 1)), Positive))
