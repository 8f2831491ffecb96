"""Records of a rehearsal's passes, and the differences between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ftrace.gradients.evidence import Choice, Evidence, Prints, choose, contradiction, either, movement
from ftrace.gradients.finding import Recorded, compared, learn_ways, write_choices
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


def choices_by_gradients(
    plain: Backward,
    passes: Sequence[tuple[Tensor, Backward]],
    wanted: Sequence[Key],
    compare: Callable[[Prints, Prints, Tensor], Evidence],
    earlier: Mapping[Key, Sequence[Evidence]],
) -> dict[Key, Choice]:
    """Choose the layouts of outputs by their gradients, together with earlier evidence.

    Args:
        plain: A plain pass.
        passes: The changed examples, ``[B]`` bool, and the pass, of each pass in which some examples were changed.
        wanted: The outputs.
        compare: Compares the prints of a plain and such a pass.
        earlier: Evidence by output.
    """
    choices = {}
    for key in wanted:
        prints = plain.prints[key]
        evidence = [compared(compare, prints, other.prints.get(key), members) for members, other in passes]
        shape = plain.recorded.outputs[key].example_axes
        choices[key] = choose(shape, [*earlier.get(key, ()), *evidence], plain.recorded.examples)
    return choices


def write_conclusions(
    plain: Backward,
    passes: Sequence[tuple[Tensor, Backward]],
    choices: Mapping[Key, Choice],
    compare: Callable[[Prints, Prints, Tensor], Evidence],
) -> tuple[list[Key], list[Key]]:
    """Write choices into the book, and how outputs without a layout are shared.

    Args:
        plain: A plain pass.
        passes: The changed examples, ``[B]`` bool, and the pass, of each pass in which some examples were changed.
        choices: By output.
        compare: Compares the prints of a plain and such a pass.

    Returns:
        Outputs without any evidence, and those with no layout and no way.
    """
    apart = write_choices(plain.recorded, choices)
    apart += [key for key, choice in choices.items() if not choice.known]
    told = {key for key, choice in choices.items() if choice.known}
    if apart:
        others = [(members, other.nodes) for members, other in passes]
        apart, told_behind = learn_ways(plain.recorded, apart, plain.nodes, others, compare)
        told |= told_behind
    return [key for key in apart if key not in told], [key for key in apart if key in told]
