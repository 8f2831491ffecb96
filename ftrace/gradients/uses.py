"""One run of one layer: what is kept of it, and what its output's gradient then says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ftrace.gradients.coverage import Layer
from ftrace.gradients.fallback import Replay
from ftrace.gradients.parts import Dense, accumulation_dtype, only_of
from ftrace.gradients.projection import Projection
from ftrace.gradients.rules import Parts, Rule

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


class Cut:
    """Lets one example's gradient through and nobody else's, while it is set to one."""

    def __init__(self, num_examples: int, capture: int) -> None:
        self.num_examples = num_examples
        self.capture = capture
        self.example: int | None = None


class Output:
    """One output of one run of a layer: takes its gradient when backward comes by.

    Autograd's graph holds this object, so it must hold nothing of the graph: such a circle is never freed.
    """

    def __init__(self, cut: Cut, refusal: str | None) -> None:
        self.cut = cut
        self.refusal = refusal
        self.grad: Tensor | None = None

    def take_gradient(self, grad: Tensor) -> Tensor | None:
        """The hook on the layer's output."""
        if not hears(self.cut.capture):
            return None
        if self.refusal is not None:
            raise ValueError(self.refusal)
        if self.cut.example is not None:
            return only_of(grad, self.cut.example, self.cut.num_examples)
        if torch.is_grad_enabled():
            raise ValueError(
                "a backward pass with create_graph=True goes through a layer that is listened to: what it adds up is "
                "no example's gradient alone. Take penalties on gradients out of the loss"
            )
        if torch.is_autocast_enabled(grad.device.type):  # optimization by hand, inside of the user's autocast
            with torch.autocast(grad.device.type, enabled=False):
                self.add(grad)
        else:
            self.add(grad)
        return None

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return self.grad is not None

    def forget_gradient(self) -> None:
        """Begin anew."""
        self.grad = None

    def add(self, grad: Tensor) -> None:
        """Keep a gradient; a graph that is differentiated several times gives several."""
        self.grad = grad if self.grad is None else self.grad + grad


class Use(Output):
    """One run of a layer that has a rule."""

    def __init__(self, layer: Layer, rule: Rule, inputs: Tensor, cut: Cut, refusal: str | None) -> None:
        super().__init__(cut, refusal)
        self.layer = layer
        self.rule = rule
        self.kept = inputs.detach()
        self.version = inputs._version
        self.output_shape: torch.Size | None = None  # where the gradient comes in another one

    def parts(self, names: dict[str, str]) -> Parts:
        """Parts by local name, once the gradient is there."""
        return {} if self.grad is None else self.read(self.features(names), self.grad, names)

    def rows_with_gradient(self) -> tuple[bool, bool]:
        """Whether the first example has a gradient here, and whether any other has."""
        return (False, False) if self.grad is None else _first_and_others(self.grad, self.cut.num_examples)

    def features(self, names: dict[str, str]) -> Tensor:
        """What multiplies the output's gradient."""
        # What a layer doesn't save for its own backward pass, autograd doesn't guard.
        if self.kept._version != self.version and names.keys() - {"bias"}:
            raise ValueError(
                f"layer {self.layer.path!r} ({type(self.layer.module).__name__}): its input was changed in place after "
                "it ran, so its gradient can't be read off it. Change a copy instead"
            )
        return self.kept if self.rule.is_table else self.rule.features(self.layer.module, self.kept)

    def read(self, features: Tensor, grad: Tensor, names: dict[str, str]) -> Parts:
        """The rule, on features and gradients laid out by example."""
        x = by_example(features, self.cut.num_examples, is_ids=self.rule.is_table)
        grad = grad if self.output_shape is None else grad.reshape(self.output_shape)
        last = grad if self.rule.channel_axis == -1 else grad.movedim(self.rule.channel_axis, -1)
        grad = by_example(last, self.cut.num_examples)
        return self.rule.parts(self.layer.module, x, grad, names)


class ProjectedUse(Use):
    """The same, projected at once, so that nothing large is kept.

    The features of a matrix product are projected as soon as it has run, the gradient of the output when it comes by.
    """

    def __init__(
        self, layer: Layer, rule: Rule, inputs: Tensor, cut: Cut, refusal: str | None, projection: Projection
    ) -> None:
        super().__init__(layer, rule, inputs, cut, refusal)
        self.projection = projection
        self.projected: dict[str, Tensor] = {}
        self.early = "weight" in layer.names and rule.feature_axis is not None
        if self.early:
            assert rule.feature_axis is not None
            with torch.autocast(inputs.device.type, enabled=False):
                features = projection.project_factor(
                    layer.names["weight"], rule.feature_axis, rule.features(layer.module, self.kept)
                )
                # A bias is a weight whose feature is always one.
                kept = by_example(features, cut.num_examples)
                self.kept = torch.cat([kept, kept.new_ones(*kept.shape[:2], 1)], 2) if "bias" in layer.names else kept

    def has_gradient(self) -> bool:
        """Whether one has come by."""
        return bool(self.projected)

    def forget_gradient(self) -> None:
        """Begin anew."""
        self.projected = {}

    def add(self, grad: Tensor) -> None:
        """Project the gradients that follow from this one."""
        names = trained(self.layer)
        for local, found in (self._matrix_product(grad, names) if self.early else self._any(grad, names)).items():
            self.projected[local] = self.projected[local] + found if local in self.projected else found

    def rows_with_gradient(self) -> tuple[bool, bool]:
        """Whether the first example has a gradient here, and whether any other has."""
        found = [_first_and_others(grad, self.cut.num_examples) for grad in self.projected.values()]
        return any(first for first, _ in found), any(others for _, others in found)

    def _matrix_product(self, grad: Tensor, names: dict[str, str]) -> dict[str, Tensor]:
        """Weight and bias together: the output's gradient, the largest tensor here, is read once."""
        axis, side = self.rule.feature_axis, self.projection.side
        assert axis is not None
        grad = grad if self.output_shape is None else grad.reshape(self.output_shape)
        last = grad if self.rule.channel_axis == -1 else grad.movedim(self.rule.channel_axis, -1)
        products = torch.bmm(self.kept.to(last.dtype).transpose(1, 2), by_example(last, self.cut.num_examples))
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
        parts = self.read(self.features(names), grad, names)
        return {
            local: self.projection.project_part(names[local], part, self.layer.parameter(local).shape).value
            for local, part in parts.items()
        }

    def parts(self, names: dict[str, str]) -> Parts:
        """Projected parts by local name."""
        return {local: Dense(found) for local, found in self.projected.items() if local in names}


class FallbackUse:
    """One run of a layer that has none."""

    def __init__(self, layer: Layer, replay: Replay, outputs: list[Output], projection: Projection | None) -> None:
        self.layer = layer
        self.replay = replay
        self.outputs = outputs
        self.projection = projection
        self.cut = outputs[0].cut

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
        grads = [output.grad for output in self.outputs]
        if all(grad is None for grad in grads):
            return {}
        with exclusively(-1):  # nobody is to hear the layer run again
            found = self.replay.parts(list(names), grads, self.cut.num_examples, self.layer.path)
        if self.projection is None:
            return dict(found)
        shapes = {local: self.layer.parameter(local).shape for local in found}
        return {n: self.projection.project_part(names[n], part, shapes[n]) for n, part in found.items()}


def _first_and_others(grad: Tensor, num_examples: int) -> tuple[bool, bool]:
    group = grad.shape[0] // max(1, num_examples)
    return bool(grad[:group].any()), bool(grad[group:].any())


def trained(layer: Layer) -> dict[str, str]:
    """Local and full names of those of a layer's covered parameters that require a gradient right now."""
    return {local: full for local, full in layer.names.items() if layer.parameter(local).requires_grad}


def by_example(tensor: Tensor, num_examples: int, *, is_ids: bool = False) -> Tensor:
    """``[B * g, ..., D]`` as ``[B, T, D]``, or ids ``[B * g, ...]`` as ``[B, T]``."""
    last = () if is_ids else tensor.shape[-1:]
    groups = tensor.shape[0] // num_examples if num_examples else 1
    places = groups * math.prod(tensor.shape[1 : tensor.ndim - len(last)])
    return tensor.reshape(num_examples, places, *last)
