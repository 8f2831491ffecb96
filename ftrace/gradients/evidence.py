"""Evidence of which example each slice of a tensor belongs to, from how it changes when some examples are changed.

Two things are done to a set of examples, and a tensor of the pass is compared with the same tensor of a plain pass:

* their inputs are exchanged for others' (*movement*): a slice that has changed depends on one of them;
* the gradients of all other examples are cut off (*cut*): a slice whose gradient stays is theirs, one whose gradient
  vanishes is another's, and one that does neither belongs to several.

Tensors are compared by prints: one number for each slice along each axis, so that passes need not be kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ftrace.gradients.documents import Documents, Place, belongs
from ftrace.gradients.layouts import Examples, Layout, candidates
from ftrace.gradients.rounding import coarsest_eps, of_a_pass

UNKNOWN, OUTSIDE, INSIDE, NEITHER = -1, 0, 1, 2


@dataclass(frozen=True)
class Prints:
    """Checksums of the slices of a tensor: equal slices have equal numbers.

    Args:
        shape: Of the tensor, without the axes that hold no examples.
        along: For each axis, ``[length]`` float64; where rows are packed, also for each pair of axes that may be rows
            and tokens, ``[rows * tokens]``.
        precision: Relative differences below it are rounding errors.
    """

    shape: tuple[int, ...]
    along: Mapping[Place, Tensor]
    precision: float

    def scale(self, axis: Place) -> Tensor:
        """Compute the scale that differences along an axis are measured by."""
        values = self.along[axis]
        finite = torch.where(values.isfinite(), values.abs(), 0)
        return finite.amax() if len(values) else values.new_zeros(())


@torch.no_grad()
def prints_of(tensor: Tensor, last: int = 0, *, bounded: bool = False, documents: Documents | None = None) -> Prints:
    """Take the prints of a tensor.

    Args:
        tensor: Of any dtype.
        last: Number of its last axes that hold features, and no examples.
        bounded: Whether numbers are compressed to a few dozen at most, so that a mask's infinities, or -1e9, don't hide
            the others. Prints are no longer proportional to the tensor then.
        documents: Those of packed rows, if any.
    """
    is_fraction = tensor.is_floating_point() or tensor.is_complex()
    precision = of_a_pass(coarsest_eps([tensor.dtype if is_fraction else torch.float64]))  # integers are summed in that
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
        last += 1
    values = tensor.detach()
    values = values.double() if not values.is_floating_point() or values.dtype == torch.float64 else values.float()
    if bounded:
        values = torch.asinh(values).nan_to_num(nan=1.0, posinf=2.0, neginf=-3.0)
    shape = tuple(values.shape[: values.ndim - last])
    for _ in range(last):
        values = _contracted(values, values.ndim - 1)
    values = values.double()
    if not shape:
        return Prints((), {}, precision)
    along: dict[Place, Tensor] = {axis: _left(values, (axis,)) for axis in range(len(shape))}
    for pair in documents.all_pairs(shape) if documents is not None else ():
        of_pair = _left(values, pair)
        along[pair] = (of_pair if pair[0] < pair[1] else of_pair.T).flatten()
    return Prints(shape, along, precision)


def _left(values: Tensor, axes: Collection[int]) -> Tensor:
    """Contract all axes but some."""
    for other in reversed(range(values.ndim)):
        if other not in axes:
            values = _contracted(values, other)
    return values


def _contracted(values: Tensor, axis: int) -> Tensor:
    weights = _weights(values.shape[axis]).to(values)
    return torch.tensordot(values, weights, dims=([axis], [0]))


@cache
def _weights(length: int) -> Tensor:
    """Draw the weights of a sum in which no two slices are interchangeable."""
    generator = torch.Generator().manual_seed(length)
    return torch.rand(length, generator=generator, dtype=torch.float64) + 0.5


@dataclass(frozen=True)
class Evidence:
    """Result of comparing one tensor in two passes.

    Args:
        members: ``[B]`` bool: the examples that were changed.
        along: For each axis, or pair of axes, ``[length]`` int8: whether a slice belongs to one of them (INSIDE), to
            another example (OUTSIDE), to both (NEITHER), or nothing is known (UNKNOWN).
    """

    members: Tensor
    along: Mapping[Place, Tensor]


def movement(plain: Prints, moved: Prints, members: Tensor) -> Evidence:
    """Compare values, or gradients, with those of a pass in which the inputs of some examples were exchanged."""
    along: dict[Place, Tensor] = {}
    for axis, before in plain.along.items():
        after = moved.along[axis]
        scale = torch.maximum(plain.scale(axis), moved.scale(axis))
        has_moved = ~((after - before).abs() <= plain.precision * scale)
        along[axis] = torch.where(has_moved, INSIDE, UNKNOWN).to(torch.int8).cpu()
    return Evidence(members, along)


def common_scale(pairs: Iterable[tuple[Prints, Prints]]) -> float:
    """Find the factor of most slices' gradients when inputs are exchanged, as a mean over tokens changes all of them.

    Args:
        pairs: Gradients in a plain pass, and in one in which some examples' inputs were exchanged.
    """
    ratios, precision = [torch.ones(1, dtype=torch.float64)], 0.0
    for plain, moved in pairs:
        precision = max(precision, plain.precision)
        for axis, before in plain.along.items():
            after = moved.along[axis] if moved.shape == plain.shape else before.new_zeros(0)
            if len(after):
                ratio = (after / before)[_is_some(plain, axis, after)]
                ratios.append(ratio[ratio > 0].cpu())
    ordered = torch.cat(ratios).sort().values
    width = 1 + 10 * precision
    votes = torch.searchsorted(ordered, ordered * width, right=True) - torch.searchsorted(ordered, ordered / width)
    return float(ordered[votes.argmax()])


def _is_some(plain: Prints, axis: Place, after: Tensor) -> Tensor:
    before = plain.along[axis]
    return (before.abs() > plain.precision * plain.scale(axis)) & before.isfinite() & after.isfinite()


def scaled_movement(plain: Prints, moved: Prints, members: Tensor, scale: float) -> Evidence:
    """Compare gradients up to a common factor.

    Args:
        plain: In a plain pass.
        moved: In one in which some examples' inputs were exchanged.
        members: ``[B]`` bool: these examples.
        scale: The factor of all gradients, see :func:`common_scale`.
    """
    along: dict[Place, Tensor] = {}
    for axis, before in plain.along.items():
        after = moved.along[axis]
        some = _is_some(plain, axis, after)
        owners = torch.full(before.shape, UNKNOWN, dtype=torch.int8, device=before.device)
        owners[some & ~((after - scale * before).abs() <= 10 * plain.precision * scale * before.abs())] = INSIDE
        along[axis] = owners.cpu()
    return Evidence(members, along)


def contradiction(shape: Sequence[int], members: Tensor) -> Evidence:
    """Give the evidence of a tensor that only one of two passes has, or that has another shape: no layout agrees."""
    along: dict[Place, Tensor] = {axis: torch.full((n,), NEITHER, dtype=torch.int8) for axis, n in enumerate(shape)}
    return Evidence(members, along)


def either(first: Evidence, second: Evidence) -> Evidence:
    """Combine the evidence of two tensors of one shape."""
    along = {axis: torch.maximum(owners, second.along[axis]) for axis, owners in first.along.items()}
    return Evidence(first.members, along)


def cut(plain: Prints, rest: Prints, members: Tensor) -> Evidence:
    """Compare gradients with those of a pass in which all other examples' were cut off."""
    along: dict[Place, Tensor] = {}
    for axis, before in plain.along.items():
        after, allowed = rest.along[axis], plain.precision * plain.scale(axis)
        owners = torch.full(before.shape, NEITHER, dtype=torch.int8, device=before.device)
        owners[(after - before).abs() <= plain.precision * before.abs()] = INSIDE
        owners[after.abs() <= plain.precision * before.abs()] = OUTSIDE
        owners[(before.abs() <= allowed) & (after.abs() <= allowed)] = UNKNOWN
        owners[~(before.isfinite() & after.isfinite())] = UNKNOWN  # too large for half precision
        along[axis] = owners.cpu()
    return Evidence(members, along)


@dataclass(frozen=True)
class Choice:
    """Conclusion from all evidence of a tensor.

    Args:
        layout: The layout that agrees with it; None where none does, or nothing is known.
        known: Whether anything is known.
        others: Other layouts that agree as well, so that they could not be told apart.
        seen: ``[B]`` bool: the examples of which a slice was seen.
    """

    layout: Layout | None
    known: bool
    others: tuple[Layout, ...] = ()
    seen: Tensor | None = None


def agrees(layout: Layout, shape: Sequence[int], evidence: Evidence, examples: Examples) -> bool:
    """Whether the evidence doesn't contradict a layout."""
    seen = evidence.along.get(layout.place)
    if seen is None:  # a contradiction, whatever the layout
        return False
    owners = layout.owners_in(shape, examples)
    expected = belongs(evidence.members, owners)
    wrong = (seen == NEITHER) | ((seen == INSIDE) & ~expected) | ((seen == OUTSIDE) & expected)
    return not bool((wrong & (owners >= 0)).any())  # what padding holds doesn't matter, as long as it has no gradient


def _unseen(layout: Layout, shape: Sequence[int], evidence: Sequence[Evidence], examples: Examples) -> int:
    """Count the slices that should have been seen, by a layout, and were not."""
    owners = layout.owners_in(shape, examples)
    return sum(int(((each.along[layout.place] == UNKNOWN) & belongs(each.members, owners)).sum()) for each in evidence)


def choose(shape: Sequence[int], evidence: Sequence[Evidence], examples: Examples) -> Choice:
    """Choose the layout of a tensor that agrees with all evidence."""
    if not any(bool((seen != UNKNOWN).any()) for each in evidence for seen in each.along.values()):
        return Choice(None, known=False)
    agreeing = [
        layout
        for layout in candidates(shape, examples)
        if all(agrees(layout, shape, each, examples) for each in evidence)
    ]
    if not agreeing:
        return Choice(None, known=True)
    chosen = min(agreeing, key=lambda layout: _unseen(layout, shape, evidence, examples))
    # Layouts that give every slice to the same example are one.
    others = tuple(layout for layout in agreeing if not chosen.says_the_same(layout, shape, examples))
    owners = chosen.owners_in(shape, examples)
    seen = torch.zeros(examples.total, dtype=torch.bool)
    for each in evidence:
        seen[owners[(each.along[chosen.place] == INSIDE) & (owners >= 0)]] = True
    return Choice(chosen, True, others, seen)
