"""Records of a rehearsal's passes, and the differences between two of them."""

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
    """Record of a pass that was differentiated.

    Args:
        recorded: Its outputs.
        prints: Of their gradients.
        nodes: Prints at the nodes behind some of them, for each backward pass of the step.
    """

    recorded: Recorded
    prints: dict[Key, Prints]
    nodes: list[NodePrints]

    def pairs(self, other: Backward) -> Iterator[tuple[Prints, Prints]]:
        """Yield the prints of each output and node, here and in another pass."""
        for key in self.prints.keys() & other.prints.keys():
            yield self.prints[key], other.prints[key]
        for nodes, others in zip(self.nodes, other.nodes, strict=False):
            for slot in nodes.prints.keys() & others.prints.keys():
                yield nodes.prints[slot], others.prints[slot]


def movement_of(plain: Observation, moved: Observation, key: Key, shape: Sequence[int], members: Tensor) -> Evidence:
    """Compare a layer's input and output with those of a pass in which some examples' inputs were exchanged."""
    if key not in moved.values:
        return contradiction(shape, members)
    before, after = plain.values[key], moved.values[key]
    if before[1].shape != tuple(shape) or after[1].shape != tuple(shape):
        return contradiction(shape, members)
    evidence = movement(before[1], after[1], members)
    if before[0] is not None and after[0] is not None and before[0].shape == after[0].shape == tuple(shape):
        evidence = either(evidence, movement(before[0], after[0], members))
    return evidence


def has_any(prints: Prints) -> bool:
    """Whether a gradient has numbers other than zero."""
    return any(bool(numbers.any()) for numbers in prints.along.values()) or not prints.shape


def sum_of(first: Prints | None, second: Prints) -> Prints:
    """Add up the prints of one output's gradients from several backward passes."""
    if first is None:
        return second
    along = {axis: numbers + second.along[axis] for axis, numbers in first.along.items()}
    return Prints(first.shape, along, first.precision)
