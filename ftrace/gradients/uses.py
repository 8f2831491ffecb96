"""One run of one layer: what is kept of it, and what its output's gradient then says."""

from __future__ import annotations

import torch
from torch import Tensor

from ftrace.gradients.cotangents import Cotangent
from ftrace.gradients.coverage import Layer
from ftrace.gradients.fallback import Replay
from ftrace.gradients.layout_book import Key
from ftrace.gradients.layouts import Layout, by_example
from ftrace.gradients.outputs import Output, Pass, exclusively, trained
from ftrace.gradients.parts import Dense, accumulation_dtype
from ftrace.gradients.projection import Projection
from ftrace.gradients.rules import Parts, Rule


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
        parameter_axes = rule.parameter_axes(layer.module)
        single = rule.is_single(inputs)
        channel_axis = rule.channel_axis - single
        super().__init__(key, of_pass, layer, output.shape, parameter_axes, rule.lookup, channel_axis)
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
        own = self.parameter_axes
        if layout is None:
            kept = grad.shape[grad.ndim - own :]
            rows = grad.reshape(len(grad), -1, *kept)
        else:
            rows = by_example(grad, layout, self.of_pass.examples, own)
        return rows.flatten(2) if own > 1 else rows

    def features_by_example(self, features: Tensor, layout: Layout | None) -> Tensor:
        """What multiplies the output's gradient, ``[B, T, I]``, or ids ``[B, T]``."""
        own = 0 if self.rule.is_table else self.parameter_axes
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


AnyUse = Use | FallbackUse | GraphUse
