"""Layouts: each slice of a tensor goes to its example, and comes back to where it was."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples, Layout, by_example, candidates

THREE = Examples(3)


def tensor_like(owners: list[int], axis: int, others: tuple[int, ...] = (2, 5)) -> Tensor:
    """Each slice along an axis holds its owner's number."""
    shape = [1] * (len(others) + 1)
    shape[axis] = len(owners)
    full = [*others[:axis], len(owners), *others[axis:]]
    return torch.tensor(owners).view(shape).expand(full).clone()


ORDERS = {
    "one slice each": (Layout(), [0, 1, 2]),
    "side by side": (Layout(), [0, 0, 1, 1, 2, 2]),
    "in blocks": (Layout(before=None, after=1), [0, 1, 2, 0, 1, 2]),
    "in two blocks": (Layout(before=2), [0, 0, 1, 1, 2, 2] * 2),
    "in blocks, two side by side": (Layout(before=None, after=2), [0, 0, 1, 1, 2, 2] * 3),
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ORDERS)
def test_each_slice_belongs_to_its_example(name: str, axis: int) -> None:
    order, owners = ORDERS[name]
    layout = Layout(axis, order.before, order.after)
    tensor = tensor_like(owners, axis)
    assert layout.fits(tensor.shape, THREE)
    assert layout.owners(len(owners), THREE).tolist() == owners
    split = layout.split(tensor, THREE)
    assert split.shape[0] == 3
    assert all(bool((split[example] == example).all()) for example in range(3))
    numbered = torch.arange(tensor.numel()).view(tensor.shape)
    assert torch.equal(layout.join(layout.split(numbered, THREE), THREE, len(owners)), numbered)
    rows = by_example(tensor.unsqueeze(-1), layout, THREE)
    assert rows.shape == (3, tensor.numel() // 3, 1)
    assert all(bool((rows[example] == example).all()) for example in range(3))


@pytest.mark.parametrize("name", ORDERS)
def test_other_examples_slices_are_set_to_zero(name: str) -> None:
    layout, owners = ORDERS[name]
    tensor = torch.rand(len(owners), 2, dtype=torch.float64) + 1
    tensor[0, 0] = torch.nan  # of the first example, and of nobody else
    alone = [layout.only(tensor, example, THREE) for example in range(3)]
    for example, kept in enumerate(alone):
        own = torch.tensor(owners) == example
        assert torch.equal(kept[own].nan_to_num(), tensor[own].nan_to_num())
        assert not kept[~own].any()
    two = layout.choose(tensor, torch.tensor([False, True, True]), THREE)
    assert torch.equal(two, alone[1] + alone[2])


def test_examples_of_one_of_several_dataloaders() -> None:
    examples = Examples(5, (2, 3))
    layout = Layout(1, before=None, after=1, loader=1)
    tensor = tensor_like([2, 3, 4, 2, 3, 4], 1)
    assert layout.fits(tensor.shape, examples)
    assert not layout.fits((5, 4), examples)
    assert layout.owners(6, examples).tolist() == [2, 3, 4, 2, 3, 4]
    split = layout.split(tensor, examples)
    assert [int(own.unique()) for own in split] == [2, 3, 4]
    assert torch.equal(layout.only(tensor, 3, examples), tensor * (tensor == 3))
    assert not layout.only(tensor, 0, examples).any()  # of the other dataloader


def test_a_dataloader_that_has_run_out_has_no_slices() -> None:
    examples = Examples(3, (3, 0))
    layout = Layout(loader=1)
    assert layout.fits((0, 4), examples)
    assert not layout.fits((3, 4), examples)
    assert layout.owners(0, examples).tolist() == []
    empty = torch.zeros(0, 4)
    assert layout.split(empty, examples).shape == (0, 0, 4)
    assert layout.choose(empty, torch.ones(3, dtype=torch.bool), examples).shape == (0, 4)
    assert by_example(empty, layout, examples).shape[0] == 0
    assert all(one.loader != 1 for one in candidates((3, 4), examples))
    assert Layout(loader=0) in list(candidates((3, 4), examples))


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(), (4, 3)),
        (Layout(2), (3, 3)),
        (Layout(before=2), (9,)),
        (Layout(before=None, after=2), (3,)),
        (Layout(loader=0), (3,)),
        (Layout(), ()),
    ],
)
def test_a_shape_that_can_not_have_a_layout(layout: Layout, shape: tuple[int, ...]) -> None:
    assert not layout.fits(shape, THREE)


@pytest.mark.parametrize("length", [3, 6, 12, 18, 36])
def test_candidates_are_all_the_orders_that_there_are(length: int) -> None:
    found = list(candidates((length,), THREE))
    owners = [tuple(layout.owners(length, THREE).tolist()) for layout in found]
    expected = {
        tuple((index // after) % 3 for index in range(length))
        for after in range(1, length + 1)
        if length % (3 * after) == 0
    }
    assert set(owners) == expected
    assert len(owners) == len(expected)
    assert found[0] == SIDE_BY_SIDE


def test_candidates_of_each_axis_and_of_each_dataloader() -> None:
    found = list(candidates((2, 4), Examples(4, (2, 2))))
    assert {(layout.axis, layout.loader) for layout in found} == {(0, 0), (0, 1), (1, None), (1, 0), (1, 1)}
    assert list(candidates((5, 7), THREE)) == []
    assert list(candidates((3, 4), Examples(3, (1, 2)))) == [
        Layout(), Layout(loader=0), Layout(1, loader=1), Layout(1, None, 1, loader=1)
    ]  # fmt: skip
    assert list(candidates((), THREE)) == []


def test_a_layout_that_was_found_in_one_shape_holds_in_others() -> None:
    """Blocks stay blocks when there are more of them, and two pieces side by side stay two."""
    for layout, owners in ORDERS.values():
        count = len(owners) // 3
        for batch in (2, 5):
            examples = Examples(batch)
            length = count * batch
            before, after = layout.factors(length, batch) or (0, 0)
            expected = [example for _ in range(before) for example in range(batch) for _ in range(after)]
            assert layout.owners(length, examples).tolist() == expected


def test_one_example_has_all_places() -> None:
    tensor = torch.arange(24.0).view(2, 3, 4)
    for layout in (Layout(), Layout(1), Layout(before=None, after=1)):
        assert by_example(tensor, layout, Examples(1)).shape == (1, 6, 4)
    assert by_example(torch.zeros(0, 3, 4), Layout(), Examples(1)).shape == (1, 0, 4)
    assert by_example(torch.arange(4.0), Layout(), Examples(1)).tolist() == [[[0, 1, 2, 3]]]


def test_layouts_are_told_in_words() -> None:
    words = {str(Layout(axis, *order, loader=loader)) for axis, order, loader in itertools.product(
        (0, 1), ((1, None), (None, 1), (2, None), (None, 2)), (None, 1)
    )}  # fmt: skip
    assert len(words) == 16
    assert {"side by side along axis 0", "in blocks along axis 1 of dataloader 1"} <= words
