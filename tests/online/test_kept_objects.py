"""What a module keeps is as before after passes of our own, whatever kind of object it is in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn

from ftrace.online.undisturbed.kept_state import KeptState


@dataclass(slots=True)
class Slotted:
    """A counter whose class has no dictionary of attributes."""

    count: int = 0
    seen: list[int] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: iter([1, 2, 3]))
    late: int = field(init=False)


class AlsoSlotted(Slotted):
    """With a dictionary besides."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0


class OfAScript:
    """A counter of a class that the user's script or notebook defines."""

    def __init__(self) -> None:
        self.count = 0


OfAScript.__module__ = "__main__"


def module_with(**kept: Any) -> nn.Module:
    module = nn.Linear(1, 1)
    for name, value in kept.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("kind", [Slotted, AlsoSlotted])
def test_attributes_in_slots_are_put_back(kind: type[Slotted]) -> None:
    meter = kind()
    with KeptState(module_with(meter=meter)).in_place():
        meter.count += 1
        meter.seen.append(5)
        meter.late = 3
        assert next(meter.numbers) == 1
        del meter.seen
        if isinstance(meter, AlsoSlotted):
            meter.more = 1
    assert (meter.count, meter.seen, hasattr(meter, "late"), list(meter.numbers)) == (0, [], False, [1, 2, 3])
    assert getattr(meter, "more", 0) == 0


def test_objects_of_a_script_are_put_back() -> None:
    meter = OfAScript()
    with KeptState(module_with(meters={"first": [meter]})).in_place():
        meter.count += 1
    assert meter.count == 0


def test_hooks_that_a_pass_removes_are_put_back_in_order() -> None:
    """Such as one that removes itself once it has run."""
    module = module_with()
    first = module.register_forward_hook(lambda *args: None)
    second = module.register_forward_hook(lambda *args: None, with_kwargs=True)
    before = {name: list(value) for name, value in vars(module).items() if name.startswith("_forward_hooks")}
    with KeptState(module).in_place():
        first.remove()
        module.register_forward_hook(lambda *args: None)
        second.remove()
    assert {name: list(value) for name, value in vars(module).items() if name.startswith("_forward_hooks")} == before
    first.remove()
    assert list(module._forward_hooks) == [second.id]
