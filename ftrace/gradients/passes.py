"""What was seen of the passes of a rehearsal, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ftrace.gradients.evidence import Evidence, Prints, contradiction, either, movement
from ftrace.gradients.finding import Recorded
from ftrace.gradients.layout_book import Key
from ftrace.gradients.node_prints import NodePrints
from ftrace.gradients.observation import Observation


@dataclass
class Backward:
    """What was seen of a pass with its backward pass.

    Args:
        recorded: Its outputs.
        prints: Of their gradients.
        nodes: Of the nodes behind some of them, for each backward pass of the step.
    """

    recorded: Recorded
    prints: dict[Key, Prints]
    nodes: list[NodePrints]

    def pairs(self, other: Backward) -> Iterator[tuple[Prints, Prints]]:
        """What came to the same outputs and nodes in another pass."""
        for key in self.prints.keys() & other.prints.keys():
            yield self.prints[key], other.prints[key]
        for own, others in zip(self.nodes, other.nodes, strict=False):
            for place in own.prints.keys() & others.prints.keys():
                yield own.prints[place], others.prints[place]


def movement_of(plain: Observation, moved: Observation, key: Key, shape: Sequence[int], members: Tensor) -> Evidence:
    """What became of a layer's input and output when some examples' inputs were exchanged."""
    if key not in moved.values:
        return contradiction(shape, members)
    before, after = plain.values[key], moved.values[key]
    if before[1].shape != tuple(shape) or after[1].shape != tuple(shape):
        return contradiction(shape, members)
    found = movement(before[1], after[1], members)
    if before[0] is not None and after[0] is not None and before[0].shape == after[0].shape == tuple(shape):
        found = either(found, movement(before[0], after[0], members))
    return found


def has_any(prints: Prints) -> bool:
    """Whether a gradient has anything in it but zeros."""
    return any(bool(own.any()) for own in prints.along.values()) or not prints.shape


def sum_of(first: Prints | None, second: Prints) -> Prints:
    """Prints of what several backward passes bring to one output together."""
    if first is None:
        return second
    along = {axis: own + second.along[axis] for axis, own in first.along.items()}
    return Prints(first.shape, along, first.precision)
