"""One run of one layer: what is kept of it, and what its output's gradient then says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ftrace.gradients.coverage import Layer
from ftrace.gradients.evidence import Prints, prints_of
from ftrace.gradients.fallback import Cotangent, GraphRule, Replay
from ftrace.gradients.layout_book import Key, LayoutBook, Rows, Shared, UnreadableError
from ftrace.gradients.layouts import SIDE_BY_SIDE, Examples, Layout, by_example
from ftrace.gradients.parts import Dense, accumulation_dtype
from ftrace.gradients.projection import Projection
from ftrace.gradients.rules import Lookups, Parts, Rule

# The capture whose own passes are under way, if any: others on the same model must be deaf to them. An id rather than
# the object, since autograd's graph gets to hold what compares itself with it.
_exclusive: int | None = None


def hears(capture: int) -> bool:
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
        open: While it is set, gets those outputs that have a gradient, though nobody has seen whose rows they have.
        unread: While that is set, errors of those outputs among them whose gradient can't be read in this pass.
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
        self.open: set[Key] | None = None
        self.unread: dict[Key, UnreadableError] = {}
        self.before_first: Callable[[], None] | None = None
        self.trusts = True
        self.backward_passes: set[int] = set()
        self.stray: dict[int, Output] = {}

    def notice(self, *grads: object) -> None:
        """A hook on what is surely part of this pass: the backward pass that is under way comes by."""
        if hears(self.capture):
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
        own_axes: How many of its last axes hold features.
        lookup: Whether it is looked up by row numbers.
        channel_axis: Which axis is moved to the end before anything is read.
    """

    def __init__(
        self,
        key: Key,
        of_pass: Pass,
        layer: Layer,
        shape: torch.Size,
        own_axes: int = 0,
        lookup: Lookups = "no",
        channel_axis: int = -1,
    ) -> None:
        self.key = key
        self.of_pass = of_pass
        self.layer = layer
        self.own_axes = own_axes
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
        return tuple(shape[: len(shape) - self.own_axes])

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
        if grad is None or not hears(self.of_pass.capture):  # of an output that nothing has used
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
            self.of_pass.prints[self.key] = prints_of(self._laid_out(grad), self.own_axes)
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
            elif not _sums_to(own, grad, of_pass.rounding):
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


class Use(Output):
    """One run of a layer that has a rule.

    Args:
        layer: The layer.
        rule: Its rule.
        inputs: What it was given.
        output: What it returned.
        key: Which run.
        of_pass: The pass.
    """

    def __init__(self, layer: Layer, rule: Rule, inputs: Tensor, output: Tensor, key: Key, of_pass: Pass) -> None:
        own_axes = rule.own_axes(layer.module)
        single = rule.is_single(inputs)
        channel_axis = rule.channel_axis - single
        super().__init__(key, of_pass, layer, output.shape, own_axes, rule.lookup, channel_axis)
        self.rule = rule
        self.kept = inputs.detach().unsqueeze(0) if single else inputs.detach()
        self.version = inputs._version
        self.grad: Tensor | None = None
        self.layout: Layout | None = None

    @property
    def group(self) -> int | None:
        """The dataloader whose examples it has; None for all."""
        return None if self.layout is None else self.layout.group

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return self.grad is not None

    def forget_gradient(self) -> None:
        """Begin anew."""
        self.grad = None

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Keep the gradient, ``[B, T, O]``."""
        self.layout = layout
        rows = self.grad_by_example(grad, layout)
        self.grad = rows if self.grad is None else self.grad + rows

    def grad_by_example(self, grad: Tensor, layout: Layout | None) -> Tensor:
        """A gradient as :meth:`add` gets it, as ``[B, T, O]``."""
        own = self.own_axes
        if layout is None:
            kept = grad.shape[grad.ndim - own :]
            rows = grad.reshape(len(grad), -1, *kept)
        else:
            rows = by_example(grad, layout, self.of_pass.examples, own)
        return rows.flatten(2) if own > 1 else rows

    def features_by_example(self, features: Tensor, layout: Layout | None) -> Tensor:
        """What multiplies the output's gradient, ``[B, T, I]``, or ids ``[B, T]``."""
        own = 0 if self.rule.is_table else self.own_axes
        if layout is None:
            flat = features.reshape(1, -1, *features.shape[features.ndim - own :])
            rows = flat.expand(self.of_pass.examples.total, *flat.shape[1:])
        else:
            rows = by_example(features, layout, self.of_pass.examples, own)
        return rows.flatten(2) if own > 1 else rows

    def parts(self, names: dict[str, str]) -> Parts:
        """Parts by local name, once the gradient is there."""
        if self.grad is None:
            return {}
        features = self.features_by_example(self.features(names), self.layout)
        return self.rule.parts(self.layer.module, features, self.grad, names)

    def features(self, names: dict[str, str]) -> Tensor:
        """What multiplies the output's gradient, as the layer saw it."""
        # What a layer doesn't save for its own backward pass, autograd doesn't guard.
        if self.kept._version != self.version and names.keys() - {"bias"}:
            raise self.unreadable(
                "had its input changed in place after it ran, so its gradient can't be read off it: change a copy "
                "instead"
            )
        return self.kept if self.rule.is_table else self.rule.features(self.layer.module, self.kept)


class ProjectedUse(Use):
    """The same, projected at once, so that nothing large is kept.

    The features of a matrix product are projected as soon as it has run, the gradient of the output when it comes by.
    """

    def __init__(
        self,
        layer: Layer,
        rule: Rule,
        inputs: Tensor,
        output: Tensor,
        key: Key,
        of_pass: Pass,
        projection: Projection,
    ) -> None:
        super().__init__(layer, rule, inputs, output, key, of_pass)
        self.projection = projection
        self.projected: dict[str, Tensor] = {}
        self.early = "weight" in layer.names and rule.feature_axis is not None
        if self.early:
            assert rule.feature_axis is not None
            with torch.autocast(inputs.device.type, enabled=False):
                kept = projection.project_factor(
                    layer.names["weight"], rule.feature_axis, rule.features(layer.module, self.kept)
                )
                # A bias is a weight whose feature is always one.
                self.kept = torch.cat([kept, kept.new_ones(*kept.shape[:-1], 1)], -1) if "bias" in layer.names else kept

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return bool(self.projected)

    def forget_gradient(self) -> None:
        """Begin anew."""
        self.projected = {}

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Project the gradients that follow from this one."""
        self.layout = layout
        names = trained(self.layer)
        rows = self.grad_by_example(grad, layout)
        for local, own in (self._matrix_product(rows, names) if self.early else self._any(rows, names)).items():
            self.projected[local] = self.projected[local] + own if local in self.projected else own

    def _matrix_product(self, grad: Tensor, names: dict[str, str]) -> dict[str, Tensor]:
        """Weight and bias together: the output's gradient, the largest tensor here, is read once."""
        axis, side = self.rule.feature_axis, self.projection.side
        assert axis is not None
        features = self.features_by_example(self.kept, self.layout)
        products = torch.bmm(features.to(grad.dtype).transpose(1, 2), grad)
        found = {}
        if "weight" in names:
            weight = self.projection.project_factor(names["weight"], 1 - axis, products[:, :side])
            found["weight"] = weight.transpose(1, 2) if axis == 1 else weight
        if "bias" in names:
            bias = products[:, side].to(accumulation_dtype(products))
            found["bias"] = self.projection.project(names["bias"], bias)
        return found

    def _any(self, grad: Tensor, names: dict[str, str]) -> dict[str, Tensor]:
        """Whatever the rule gives, projected."""
        features = self.features_by_example(self.features(names), self.layout)
        parts = self.rule.parts(self.layer.module, features, grad, names)
        return {
            local: self.projection.project_part(names[local], part, self.layer.parameter(local).shape).value
            for local, part in parts.items()
        }

    def parts(self, names: dict[str, str]) -> Parts:
        """Projected parts by local name."""
        return {local: Dense(found) for local, found in self.projected.items() if local in names}


class FallbackOutput(Output):
    """One output of a layer without a rule."""

    def __init__(self, key: Key, of_pass: Pass, layer: Layer, shape: torch.Size) -> None:
        super().__init__(key, of_pass, layer, shape)
        self.cotangent: Cotangent | None = None

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return self.cotangent is not None

    def forget_gradient(self) -> None:
        """Begin anew."""
        self.cotangent = None

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Keep the gradient as it is."""
        before = 0 if self.cotangent is None else self.cotangent.grad
        self.cotangent = Cotangent(before + grad, layout)


class FallbackUse:
    """One run of a layer that has none."""

    def __init__(
        self, layer: Layer, replay: Replay, outputs: list[FallbackOutput], projection: Projection | None
    ) -> None:
        self.layer = layer
        self.replay = replay
        self.outputs = outputs
        self.projection = projection

    @property
    def group(self) -> int | None:
        """The dataloader whose examples it has; None for all."""
        layouts = [one.cotangent.layout for one in self.outputs if one.cotangent is not None]
        groups = {None if layout is None else layout.group for layout in layouts}
        if len(groups) > 1:
            raise self.outputs[0].unreadable("returned outputs that have the examples of several dataloaders")
        return groups.pop() if groups else None

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return any(output.has_gradient() for output in self.outputs)

    def forget_gradient(self) -> None:
        """Begin anew."""
        for output in self.outputs:
            output.forget_gradient()

    def parts(self, names: dict[str, str]) -> Parts:
        """Parts by local name, once the gradients are there."""
        self.replay.require_untouched(list(names), self.layer.path)
        cotangents = [output.cotangent for output in self.outputs]
        if all(cotangent is None for cotangent in cotangents):
            return {}
        with exclusively(-1):  # nobody is to hear the layer run again
            found = self.replay.parts(list(names), cotangents, self.outputs[0].of_pass.examples, self.layer.path)
        if self.projection is None:
            return dict(found)
        shapes = {local: self.layer.parameter(local).shape for local in found}
        return {n: self.projection.project_part(names[n], part, shapes[n]) for n, part in found.items()}


class ParameterOutput(Output):
    """A parameter that is read off autograd's graph: a tensor that is there once for all examples."""

    def __init__(self, key: Key, of_pass: Pass, layer: Layer, parameter: Tensor) -> None:
        super().__init__(key, of_pass, layer, parameter.shape, parameter.ndim, "shared")
        self.is_parameter = True
        self.grads: Tensor | None = None

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return self.grads is not None

    def forget_gradient(self) -> None:
        """Begin anew."""
        self.grads = None

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Keep each example's gradient, ``[B, *shape]``; where there is one example, that is the whole."""
        own = grad if layout is None else grad.unsqueeze(0)
        self.grads = own if self.grads is None else self.grads + own


class GraphUse:
    """All uses of a parameter that is read off autograd's graph."""

    group = None  # all dataloaders' examples

    def __init__(self, layer: Layer, output: ParameterOutput, projection: Projection | None) -> None:
        self.layer = layer
        self.output = output
        self.projection = projection

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return self.output.has_gradient()

    def forget_gradient(self) -> None:
        """Begin anew."""
        self.output.forget_gradient()

    def parts(self, names: dict[str, str]) -> Parts:
        """Its part by local name, once the gradient is there."""
        if self.output.grads is None:
            return {}
        part = Dense(self.output.grads)
        if self.projection is None:
            return dict.fromkeys(names, part)
        return {
            local: self.projection.project_part(name, part, self.layer.parameter(local).shape)
            for local, name in names.items()
        }


def _sums_to(rows: Tensor, total: Tensor, rounding: float) -> bool:
    """Whether each example's own gradients add up to that of all."""
    precision = max(rounding, torch.finfo(total.dtype).eps) ** 0.5
    summed, total = (tensor.to(accumulation_dtype(tensor)) for tensor in (rows.sum(0), total))
    allowed = precision * rows.abs().sum(0).amax() if rows.numel() else 0.0
    return not bool(((summed - total).abs() > allowed).any())


def trained(layer: Layer) -> dict[str, str]:
    """Local and full names of those of a layer's covered parameters that require a gradient right now."""
    return {local: full for local, full in layer.names.items() if layer.parameter(local).requires_grad}
