"""What layers returned in one pass: each output takes its gradient when backward comes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ftrace.gradients.coverage import Layer
from ftrace.gradients.evidence import Prints, prints_of
from ftrace.gradients.layout_book import Key, LayoutBook, Rows, Shared, UnreadableError
from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples, Layout
from ftrace.gradients.parts import accumulation_dtype
from ftrace.gradients.rules import GraphRule, Lookups

# The capture whose own passes are under way, if any: others on the same model must be deaf to them. An id rather than
# the object, since autograd's graph gets to hold what compares itself with it.
_exclusive: int | None = None


def may_record(capture: int) -> bool:
    """Whether a capture may listen to the pass that is under way."""
    return _exclusive in (None, capture)


@contextmanager
def exclusively(capture: int) -> Iterator[None]:
    """While active, only one capture (by its id) may listen."""
    global _exclusive
    before, _exclusive = _exclusive, capture
    try:
        yield
    finally:
        _exclusive = before


class Pass:
    """What all outputs of one recorded pass have in common.

    Args:
        examples: Of the batch.
        capture: Id of the capture that listens.
        book: Whose rows are whose.

    Attributes:
        chosen: ``[B]`` bool: while it is set, gradients of all other examples are cut off on their way down.
        prints: While it is set, gradients are not kept, and their prints go here.
        shared: By shared output, each example's own gradient of it, once it is known.
        rounding: The coarsest precision that these were computed in.
        largest: The largest number that has come by on the way to them.
        open: While it is set, gets those outputs that have a gradient, though nobody has seen whose rows they have.
        unread: While that is set, errors of those outputs among them whose gradient can't be read in this pass.
        arrived: While it is set, is called with what each layer is given first.
        before_first: While it is set, is called once when the first gradient arrives.
        trusts: Whether gradients are cut off by rows that nobody has seen, too.
        backward_passes: Ids of autograd's that have come by.
        stray: By such an id, a parameter that its layer returns, whose gradient came before anything else did.
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
        self.unread: dict[Key, UnreadableError] = {}
        self.arrived: Callable[[Key, Tensor], None] | None = None
        self.before_first: Callable[[], None] | None = None
        self.trusts = True
        self.backward_passes: set[int] = set()
        self.stray: dict[int, Output] = {}

    def notice(self, *grads: object) -> None:
        """A hook on what is surely part of this pass: the backward pass that is under way comes by."""
        if may_record(self.capture):
            current = torch._C._current_graph_task_id()
            self.backward_passes.add(current)
            if current in self.stray:
                raise self.stray[current].unreadable(
                    "is its own parameter, which something uses after the last layer that is listened to: call "
                    "recording.prepare([loss.grad_fn]) before the backward pass"
                )


class Output:
    """One output of one run of a layer: takes its gradient when backward comes by.

    Autograd's graph holds this object, so it must hold nothing of the graph: such a circle is never freed.

    Args:
        key: Which output.
        of_pass: The pass that it is part of.
        layer: The layer.
        shape: Of the output, axes of features included.
        parameter_axes: How many of its last axes hold features.
        lookup: Whether it is looked up by row numbers.
        channel_axis: Which axis is moved to the end before anything is read.
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
        """Its shape, as it is read, without features."""
        shape = list(self.shape)
        if self.channel_axis != -1:
            shape.append(shape.pop(self.channel_axis))
        return tuple(shape[: len(shape) - self.parameter_axes])

    @property
    def example_axes(self) -> tuple[int, ...]:
        """The part of that shape that may hold examples."""
        return self.row_shape if self.channel_axis == -1 else self.row_shape[: self.channel_axis]

    @property
    def rows(self) -> Rows | None:
        """Whose rows it has; None where that is not known."""
        return self.of_pass.book.find(self.key, self.example_axes, self.of_pass.examples, self.lookup)

    @property
    def is_seen(self) -> bool:
        """Whether it was seen whose rows an output of its shape has."""
        return self.of_pass.book.is_seen(self.key, self.example_axes, self.of_pass.examples)

    @property
    def is_shared(self) -> bool:
        """Whether it is computed once for several examples."""
        return isinstance(self.rows, Shared) and self.of_pass.examples.total > 1

    def take_gradient(self, grad: Tensor | None) -> Tensor | None:
        """The hook on the layer's output."""
        if grad is None or not may_record(self.of_pass.capture):  # of an output that nothing has used
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
            self.of_pass.prints[self.key] = prints_of(self._laid_out(grad), self.parameter_axes)
        if self.of_pass.chosen is not None:
            return self._cut(grad, self.of_pass.chosen)
        if self.of_pass.prints is not None:
            return None
        if torch.is_grad_enabled():
            raise ValueError(
                "a backward pass with create_graph=True goes through a layer that is listened to: what it adds up is "
                "no example's gradient alone. Take penalties on gradients out of the loss"
            )
        if torch.is_autocast_enabled(grad.device.type):  # optimization by hand, inside of the user's autocast
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
            own = of_pass.shared.pop(self.key, None)
            if own is None:
                self._refuse(
                    grad,
                    "is computed once for all examples, inside of reentrant activation checkpointing, which hides "
                    "where it meets them: set use_reentrant=False"
                    if self._in_backward
                    else "is computed once for all examples, which can't be told apart where it meets them",
                )
            elif not _sums_to(own, grad, of_pass.rounding, of_pass.largest):
                self._refuse(grad, "is computed once for all examples, and used where they can't be told apart")
            else:
                own = own.reshape(len(own), *self.shape) if self.is_flat else own
                self.add(own if self.channel_axis == -1 else own.movedim(self.channel_axis + 1, -1), None)
            return
        if isinstance(rows, Shared):  # by the one example that there is
            rows = SIDE_BY_SIDE
        if isinstance(rows, Layout):
            self.add(self._laid_out(grad), rows)
        else:
            self._refuse(
                grad,
                f"returned shape {tuple(self.shape)}: expected the leading axis to be the batch of "
                f"{self.of_pass.examples.total} examples, or a multiple of it; can't tell whose rows these are",
            )

    def _refuse(self, grad: Tensor, problem: str) -> None:
        """Say that a gradient can't be read: at once, or when all are, if there is somebody who may find a way."""
        if not bool(grad.any()):
            return
        if self.of_pass.open is None:
            raise self.unreadable(problem)
        self.of_pass.open.add(self.key)
        self.of_pass.unread[self.key] = self.unreadable(problem)

    def unreadable(self, problem: str) -> UnreadableError:
        """An error that names the layer and what to leave out."""
        return UnreadableError(f"{self.called} {problem}", list(self.layer.names.values()))

    @property
    def called(self) -> str:
        """Its name in errors."""
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
        kept = kept if self.channel_axis == -1 else kept.movedim(-1, self.channel_axis)
        return kept.reshape(grad.shape)

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        raise NotImplementedError

    def forget_gradient(self) -> None:
        """Begin anew."""
        raise NotImplementedError

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Keep a gradient; a graph that is differentiated several times gives several.

        Args:
            grad: In the output's shape, channels last.
            layout: Whose rows it has; None where it is ``[B, *shape]``, each example's own of a shared output.
        """
        raise NotImplementedError


class Silent(Output):
    """An output of which nothing is kept."""

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return self.had_gradient

    def forget_gradient(self) -> None:
        """Begin anew."""

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Keep nothing."""


def _sums_to(rows: Tensor, total: Tensor, rounding: float, largest: Tensor | None) -> bool:
    """Whether each example's own gradients add up to that of all; some are nothing but the rounding of larger ones."""
    if not rows.numel():
        return True
    precision = max(rounding, torch.finfo(total.dtype).eps)
    summed, total = (tensor.to(accumulation_dtype(tensor)) for tensor in (rows.sum(0), total))
    allowed = precision**0.5 * rows.abs().sum(0).amax()
    if largest is not None:
        allowed = allowed + 10 * len(rows) * precision * largest
    return not bool(((summed - total).abs() > allowed).any())


def trained(layer: Layer) -> dict[str, str]:
    """Local and full names of those of a layer's covered parameters that require a gradient right now."""
    return {local: full for local, full in layer.names.items() if layer.parameter(local).requires_grad}
