"""Evidence: what is done to some examples shows in their slices, and a layout is chosen if nothing speaks against."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ftrace.gradients.evidence import (
    INSIDE,
    NEITHER,
    OUTSIDE,
    UNKNOWN,
    Evidence,
    Prints,
    choose,
    common_scale,
    contradiction,
    cut,
    either,
    movement,
    prints_of,
    scaled_movement,
)
from ftrace.gradients.finding import member_sets
from ftrace.gradients.layouts import Examples, Layout

FOUR = Examples(4)
MEMBERS = torch.tensor([True, False, True, False])
Compare = Callable[[Prints, Prints, Tensor], Evidence]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def values(tensor: Tensor, last: int = 0) -> Prints:
    return prints_of(tensor, last, bounded=True)


def exchanged(tensor: Tensor, layout: Layout, members: Tensor) -> Tensor:
    """The same with other numbers in the slices of some examples."""
    kept = layout.choose(tensor, ~members, FOUR)
    return kept + layout.choose(random(*tensor.shape, seed=1).to(tensor), members, FOUR)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_the_slices_that_move_are_seen_and_no_others(dtype: torch.dtype) -> None:
    tensor = random(4, 3, 5, dtype=dtype)
    for bounded in (False, True):
        before = prints_of(tensor, 1, bounded=bounded)
        after = prints_of(exchanged(tensor, Layout(), MEMBERS), 1, bounded=bounded)
        assert before.shape == (4, 3)
        found = movement(before, after, MEMBERS)
        assert found.along[0].tolist() == [INSIDE, UNKNOWN, INSIDE, UNKNOWN]
        assert found.along[1].tolist() == [INSIDE] * 3


def test_rounding_is_no_movement() -> None:
    tensor = random(4, 300, dtype=torch.float32)
    noisy = tensor * (1 + 1e-7 * random(4, 300, seed=2, dtype=torch.float32))
    assert not (movement(values(tensor), values(noisy), MEMBERS).along[0] == INSIDE).any()


def test_slices_do_not_stand_for_each_other() -> None:
    """A row whose numbers change places has moved, and so has one that gives to another what it loses."""
    tensor = random(4, 3)
    turned = tensor.clone()
    turned[0] = tensor[0].roll(1)
    turned[2, 0] += 1
    turned[2, 1] -= 1
    found = movement(values(tensor), values(turned), MEMBERS).along[0]
    assert found.tolist() == [INSIDE, UNKNOWN, INSIDE, UNKNOWN]


@pytest.mark.parametrize("masked", [-torch.inf, torch.inf, torch.nan, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_numbers_neither_move_nor_hide_the_others(masked: float, dtype: torch.dtype) -> None:
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    before = random(4, 6, 6, dtype=dtype)
    after = exchanged(before, Layout(), MEMBERS)
    before, after = (tensor.masked_fill(mask, masked) for tensor in (before, after))
    found = movement(values(before), values(after), MEMBERS)
    assert found.along[0].tolist() == [INSIDE, UNKNOWN, INSIDE, UNKNOWN]
    assert not (movement(values(before), values(before.clone()), MEMBERS).along[0] == INSIDE).any()


def test_a_mask_that_is_exchanged_has_moved() -> None:
    before = torch.zeros(4, 1, 1, 6).masked_fill(
        torch.arange(6) >= torch.tensor([3, 5, 4, 6]).view(4, 1, 1, 1), -torch.inf
    )
    after = before[[1, 1, 3, 3]]
    found = movement(values(before), values(after), MEMBERS)
    assert found.along[0].tolist() == [INSIDE, UNKNOWN, INSIDE, UNKNOWN]


def test_numbers_and_ids_that_are_no_floats() -> None:
    ids = torch.tensor([[3, 50_000], [4, 7], [5, 8], [6, 9]])
    other = ids.clone()
    other[0, 1] -= 1
    assert movement(values(ids), values(other), MEMBERS).along[0].tolist() == [INSIDE] + [UNKNOWN] * 3
    flags = torch.tensor([[True, False]] * 4)
    assert movement(values(flags), values(~flags), MEMBERS).along[0].tolist() == [INSIDE] * 4


def test_a_number_without_axes_says_nothing() -> None:
    found = values(torch.tensor(2.0))
    assert (found.shape, found.along) == ((), {})
    assert not choose((), [movement(found, found, MEMBERS)], FOUR).known


def test_gradients_that_are_cut_off() -> None:
    grad = random(5, 3)
    rest = grad.clone()
    rest[1] = 0  # another's
    rest[2] *= 0.3  # of several
    grad[3] = rest[3] = 0
    rest[4] = torch.inf  # overflowed, which says nothing
    found = cut(prints_of(grad), prints_of(rest), MEMBERS)
    assert found.along[0].tolist() == [INSIDE, OUTSIDE, NEITHER, UNKNOWN, UNKNOWN]


def scaled(grad: Tensor, moved: Tensor) -> Evidence:
    pair = prints_of(grad), prints_of(moved)
    return scaled_movement(*pair, MEMBERS, common_scale([pair]))


def test_infinite_gradients_say_nothing() -> None:
    grad = random(4, 3)
    grad[1, 0] = torch.nan
    moved = 2 * grad
    moved[0] = random(3, seed=3)
    found = scaled_movement(
        prints_of(grad), prints_of(moved), MEMBERS, common_scale([(prints_of(grad), prints_of(moved))])
    ).along[0]
    assert found.tolist() == [INSIDE, UNKNOWN, UNKNOWN, UNKNOWN]
    assert cut(prints_of(grad), prints_of(grad), MEMBERS).along[0].tolist() == [INSIDE, UNKNOWN, INSIDE, INSIDE]


def test_a_mean_over_other_tokens_is_no_movement_of_gradients() -> None:
    grad = random(6, 3)
    moved = 1.7 * grad
    moved[2] = random(3, seed=3)
    found = scaled_movement(
        prints_of(grad), prints_of(moved), MEMBERS, common_scale([(prints_of(grad), prints_of(moved))])
    ).along[0]
    assert found.tolist() == [UNKNOWN, UNKNOWN, INSIDE, UNKNOWN, UNKNOWN, UNKNOWN]
    assert movement(prints_of(grad), prints_of(moved), MEMBERS).along[0].tolist() == [INSIDE] * 6


LAYOUTS = {
    "side by side": (Layout(), (8, 5)),
    "in blocks": (Layout(before=None, after=1), (8, 5)),
    "time first": (Layout(1), (6, 4)),
    "as many positions as examples": (Layout(1), (4, 4)),
    "in the middle": (Layout(1, before=2), (3, 16, 2)),
}


def told_by(layout: Layout, shape: tuple[int, ...], compare: str) -> list[Evidence]:
    tensor = random(*shape)
    found = []
    for members in member_sets(Examples(4)):
        if compare == "movement":
            found.append(movement(values(tensor), values(exchanged(tensor, layout, members)), members))
        else:
            found.append(cut(prints_of(tensor), prints_of(layout.choose(tensor, members, FOUR)), members))
    return found


@pytest.mark.parametrize("compare", ["movement", "cut"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_told(name: str, compare: str) -> None:
    layout, shape = LAYOUTS[name]
    choice = choose(shape, told_by(layout, shape, compare), FOUR)
    assert choice.known
    assert choice.layout is not None
    assert choice.layout.axis == layout.axis
    length = shape[layout.axis]
    assert torch.equal(choice.layout.owners(length, FOUR), layout.owners(length, FOUR))
    assert not choice.others
    assert choice.seen is not None
    assert choice.seen.all()


def test_layouts_that_can_not_be_told_apart_are_named() -> None:
    """One set of examples leaves open which of its two is which."""
    members = torch.tensor([True, True, False, False])
    tensor = random(8, 5)
    one = movement(values(tensor), values(exchanged(tensor, Layout(), members)), members)
    choice = choose((8,), [Evidence(members, {0: one.along[0]})], FOUR)
    assert choice.layout == Layout()
    assert choice.others == ()
    unseen = Evidence(members, {0: torch.tensor([INSIDE] + [UNKNOWN] * 7, dtype=torch.int8)})
    choice = choose((8,), [unseen], FOUR)
    assert choice.layout is not None
    assert len(choice.others) >= 1


def test_evidence_that_no_layout_agrees_with() -> None:
    shape = (8, 5)
    mixed = movement(values(random(*shape)), values(random(*shape, seed=1)), MEMBERS)
    choice = choose(shape, [mixed], FOUR)
    assert choice.known
    assert choice.layout is None
    assert choose(shape, [contradiction(shape, MEMBERS)], FOUR).layout is None
    assert not choose(shape, [movement(values(random(*shape)), values(random(*shape)), MEMBERS)], FOUR).known


def test_two_tensors_say_more_than_one() -> None:
    some = Evidence(MEMBERS, {0: torch.tensor([INSIDE, UNKNOWN, UNKNOWN, UNKNOWN], dtype=torch.int8)})
    more = Evidence(MEMBERS, {0: torch.tensor([UNKNOWN, UNKNOWN, INSIDE, UNKNOWN], dtype=torch.int8)})
    assert either(some, more).along[0].tolist() == [INSIDE, UNKNOWN, INSIDE, UNKNOWN]


@pytest.mark.parametrize("total", range(2, 41))
def test_sets_of_examples_tell_any_two_apart(total: int) -> None:
    sets = member_sets(Examples(total))
    codes = torch.stack([members.long() for members in sets])
    assert len({tuple(code) for code in codes.T.tolist()}) == total
    for members in sets:
        assert 0 < int(members.sum()) < total
    assert codes.any(0).all()  # each is exchanged once at least
    assert not codes.all(0).any()  # and left alone once
