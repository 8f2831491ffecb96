"""Outputs of layers in one pass: each takes its gradient during the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients.coverage import Layer
from ftrace.gradients.evidence import Prints, prints_of
from ftrace.gradients.layout_book import Key, LayoutBook, Rows, Shared, UnreadableError
from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples, Layout, PackedLayout
from ftrace.gradients.parts import accumulation_dtype
from ftrace.gradients.rounding import coarsest_eps, of_passes
from ftrace.gradients.rules import GraphRule, Lookups

# The capture that is running passes of its own, if any: others on the same model must not record them. An id rather
# than the object, since autograd's graph holds whatever compares itself with it.
_exclusive: int | None = None


def may_record(capture: int) -> bool:
    """Whether a capture may record the current pass."""
    return _exclusive in (None, capture)


@contextmanager
def exclusively(capture: int) -> Iterator[None]:
    """Let only one capture (by its id) record, while active."""
    global _exclusive
    previous, _exclusive = _exclusive, capture
    try:
        yield
    finally:
        _exclusive = previous


class Pass:
    """State that all outputs of one recorded pass share.

    Args:
        examples: Of the batch.
        capture: Id of the capture that records.
        book: Whose rows are whose.

    Attributes:
        chosen: ``[B]`` bool: while it is set, gradients of all other examples are cut off at the layers' outputs.
        prints: While it is set, prints of gradients are added to it, and the gradients are not kept.
        shared: By shared output, each example's gradient of it, once it is known.
        rounding: The coarsest precision that these were computed in.
        largest: The largest number in the gradients from which these were computed.
        open: While it is set, outputs are added to it that have a gradient, although it was not seen whose rows they
            have.
        padded: While it is set, outputs are added to it whose gradient isn't zero where packed rows are padded.
        unread: While ``open`` is set, errors of those outputs in it whose gradient can't be read in this pass.
        arrived: While it is set, called with the first argument of each layer.
        has_arrived: While it is set, called with each unprojected use whose gradient has arrived.
        before_first: While it is set, called once when the first gradient arrives.
        trusts: Whether to cut gradients also where the layout was only assumed.
        backward_passes: Autograd's ids of the backward passes through this pass.
        stray: By such an id, a parameter that its layer returns, whose gradient arrived before any other.
    """

    def __init__(self, examples: Examples, capture: int, book: LayoutBook) -> None:
        self.examples = examples
        self.capture = capture
        self.book = book
        self.chosen: Tensor | None = None
        self.prints: dict[Key, Prints] | None = None
        self.shared: dict[Key, Tensor] = {}
        self.rounding = 0.0
        self.largest: Tensor | None = None
        self.open: set[Key] | None = None
        self.padded: set[Key] | None = None
        self.unread: dict[Key, UnreadableError] = {}
        self.arrived: Callable[[Key, Tensor], None] | None = None
        self.has_arrived: Callable[[Any], None] | None = None
        self.before_first: Callable[[], None] | None = None
        self.trusts = True
        self.backward_passes: set[int] = set()
        self.stray: dict[int, Output] = {}

    def notice(self, *grads: object) -> None:
        """Remember the id of the current backward pass: the hook on nodes that are certainly part of this pass."""
        if may_record(self.capture):
            current = torch._C._current_graph_task_id()
            self.backward_passes.add(current)
            if current in self.stray:
                raise self.stray[current].unreadable(
                    "is its own parameter, which something uses after the last recorded layer: call "
                    "recording.prepare([loss.grad_fn]) before the backward pass"
                )


class Output:
    """One output of one run of a layer, which takes its gradient during the backward pass.

    Autograd's graph holds this object, so it must hold nothing of the graph: such a cycle is never freed.

    Args:
        key: Of the output.
        of_pass: The pass that it is part of.
        shape: Of the output, axes of features included.
        parameter_axes: Number of its last axes that hold features.
        lookup: Whether it is looked up by row numbers.
        channel_axis: The axis that is moved to the end before anything is read.
    """

    def __init__(
        self,
        key: Key,
        of_pass: Pass,
        layer: Layer,
        shape: torch.Size,
        parameter_axes: int = 0,
        lookup: Lookups = "no",
        channel_axis: int = -1,
    ) -> None:
        self.key = key
        self.of_pass = of_pass
        self.layer = layer
        self.parameter_axes = parameter_axes
        self.lookup = lookup
        self.channel_axis = channel_axis
        self.shape = shape
        self.is_flat = False  # whether the gradient comes in another shape
        self.is_parameter = False  # that the layer has returned as it is, or is read off autograd's graph
        self.had_gradient = False
        self._in_backward = torch._C._current_graph_task_id() != -1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Its shape, channels last, without features."""
        shape = list(self.shape)
        if self.channel_axis != -1:
            shape.append(shape.pop(self.channel_axis))
        return tuple(shape[: len(shape) - self.parameter_axes])

    @property
    def example_axes(self) -> tuple[int, ...]:
        """The axes of that shape that may hold examples."""
        return self.row_shape if self.channel_axis == -1 else self.row_shape[: self.channel_axis]

    @property
    def rows(self) -> Rows | None:
        """Layout of its rows, or how it is shared; None where that is not known."""
        return self.of_pass.book.find(self.key, self.example_axes, self.of_pass.examples, self.lookup)

    @property
    def is_seen(self) -> bool:
        """Whether it was seen whose rows an output of this shape has."""
        return self.of_pass.book.is_seen(self.key, self.example_axes, self.of_pass.examples)

    @property
    def is_shared(self) -> bool:
        """Whether it is computed once for several examples."""
        return isinstance(self.rows, Shared) and self.of_pass.examples.total > 1

    def take_gradient(self, grad: Tensor | None) -> Tensor | None:
        """Take the gradient: the hook on the layer's output."""
        if grad is None or not may_record(self.of_pass.capture):  # None: of an output that nothing has used
            return None
        if not self.is_parameter:
            self.of_pass.notice()
        elif torch._C._current_graph_task_id() not in self.of_pass.backward_passes:  # of another graph
            self.of_pass.stray[torch._C._current_graph_task_id()] = self
            return None
        self.had_gradient = True
        if self.of_pass.before_first is not None:
            before_first, self.of_pass.before_first = self.of_pass.before_first, None
            before_first()
        if self.of_pass.prints is not None:
            self.of_pass.prints[self.key] = prints_of(
                self._laid_out(grad), self.parameter_axes, documents=self.of_pass.examples.documents
            )
        if self.of_pass.chosen is not None:
            return self._cut(grad, self.of_pass.chosen)
        if self.of_pass.prints is not None:
            return None
        if torch.is_grad_enabled():
            raise ValueError(
                "a backward pass with create_graph=True goes through a recorded layer: the sums that it takes are not "
                "gradients of single examples. Take penalties on gradients out of the loss"
            )
        if torch.is_autocast_enabled(grad.device.type):  # manual optimization, inside of the user's autocast
            with torch.autocast(grad.device.type, enabled=False):
                self._take(grad)
        else:
            self._take(grad)
        return None

    def _take(self, grad: Tensor) -> None:
        rows, of_pass = self.rows, self.of_pass
        if of_pass.open is not None and not self.is_seen and of_pass.examples.total > 1:
            if not bool(grad.any()):
                return
            of_pass.open.add(self.key)
            if of_pass.trusts and of_pass.book.verified and self.key not in of_pass.book.known:
                self._refuse(
                    grad,
                    "has a gradient that changes with no example's inputs, so nobody can tell whose it is: the loss "
                    "may have a term of no example's, such as a penalty (use weight_decay)",
                )
                return
        if isinstance(rows, Shared) and of_pass.examples.total > 1:
            by_example = of_pass.shared.pop(self.key, None)
            if by_example is None:
                self._refuse(
                    grad,
                    "is computed once for all examples, inside of reentrant activation checkpointing, which hides "
                    "where it meets them: set use_reentrant=False"
                    if self._in_backward
                    else "is computed once for all examples, which can't be told apart where it meets them",
                )
            elif not _sums_to(by_example, grad, of_pass.rounding, of_pass.largest):
                self._refuse(grad, "is computed once for all examples, and used where they can't be told apart")
            else:
                if self.is_flat:
                    by_example = by_example.reshape(len(by_example), *self.shape)
                if self.channel_axis != -1:
                    by_example = by_example.movedim(self.channel_axis + 1, -1)
                self.add(by_example, None)
            return
        if isinstance(rows, Shared):  # there is one example
            rows = SIDE_BY_SIDE
        if isinstance(rows, Layout):
            laid_out, padded = self._laid_out(grad), of_pass.padded
            if padded is not None and isinstance(rows, PackedLayout) and rows.has_padding(laid_out, of_pass.examples):
                padded.add(self.key)
            self.add(laid_out, rows)
        else:
            self._refuse(
                grad,
                f"returned shape {tuple(self.shape)}: expected the leading axis to be the batch of "
                f"{self.of_pass.examples.total} examples, or a multiple of it; can't tell whose rows these are",
            )

    def _refuse(self, grad: Tensor, problem: str) -> None:
        """Raise the error that a gradient can't be read; or note it, if another way of reading it may be found."""
        if not bool(grad.any()):
            return
        if self.of_pass.open is None:
            raise self.unreadable(problem)
        self.of_pass.open.add(self.key)
        self.of_pass.unread[self.key] = self.unreadable(problem)

    def unreadable(self, problem: str) -> UnreadableError:
        """Make an error that names the layer, and says what to leave out."""
        return UnreadableError(f"{self.called} {problem}", list(self.layer.names.values()))

    @property
    def called(self) -> str:
        """The layer's, or parameter's, name in errors."""
        if isinstance(self.layer.rule, GraphRule):
            return f"parameter {self.layer.path!r}"
        return f"layer {self.layer.path!r} ({type(self.layer.module).__name__})"

    def _laid_out(self, grad: Tensor) -> Tensor:
        grad = grad.reshape(self.shape) if self.is_flat else grad
        return grad if self.channel_axis == -1 else grad.movedim(self.channel_axis, -1)

    def _cut(self, grad: Tensor, chosen: Tensor) -> Tensor | None:
        rows = self.rows
        trusted = self.of_pass.trusts or self.is_seen
        if not trusted or not isinstance(rows, Layout) or self.of_pass.examples.total == 1:
            return None
        kept = rows.choose(self._laid_out(grad), chosen, self.of_pass.examples)
        return self._as_given(kept, grad)

    def _as_given(self, laid_out: Tensor, grad: Tensor) -> Tensor:
        """Undo :meth:`_laid_out`."""
        laid_out = laid_out if self.channel_axis == -1 else laid_out.movedim(-1, self.channel_axis)
        return laid_out.reshape(grad.shape)

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        raise NotImplementedError

    def forget_gradient(self) -> None:
        """Forget the gradient."""
        raise NotImplementedError

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Add a gradient; a graph that is differentiated several times gives several.

        Args:
            grad: In the output's shape, channels last.
            layout: Whose rows it has; None where it is ``[B, *shape]``: each example's gradient of a shared output.
        """
        raise NotImplementedError


class Silent(Output):
    """Output of which nothing is kept."""

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        return self.had_gradient

    def forget_gradient(self) -> None:
        """Forget the gradient."""

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Keep nothing."""


def _sums_to(rows: Tensor, total: Tensor, rounding: float, largest: Tensor | None) -> bool:
    """Whether the examples' gradients add up to the total, within rounding of the largest numbers on the way."""
    if not rows.numel():
        return True
    eps = max(rounding, coarsest_eps([total.dtype]))
    summed, total = (tensor.to(accumulation_dtype(tensor)) for tensor in (rows.sum(0), total))
    allowed = of_passes(eps) * rows.abs().sum(0).amax()
    if largest is not None:
        allowed = allowed + 10 * len(rows) * eps * largest
    return not bool(((summed - total).abs() > allowed).any())


def trained(layer: Layer) -> dict[str, str]:
    """Get local and full names of those of a layer's covered parameters that currently require a gradient."""
    return {local: full for local, full in layer.names.items() if layer.parameter(local).requires_grad}
