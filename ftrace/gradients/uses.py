"""Runs of layers: what each forward call saves, and how its output gradient becomes per-example gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ftrace.gradients.cotangents import Cotangent
from ftrace.gradients.coverage import Layer
from ftrace.gradients.fallback import Replay
from ftrace.gradients.layout_book import Key
from ftrace.gradients.layouts import Layout, by_example
from ftrace.gradients.outputs import Output, Pass, exclusively, trained
from ftrace.gradients.parts import Dense, Part, Positions, accumulation_dtype
from ftrace.gradients.projection import Projections
from ftrace.gradients.rules import Parts, Rule


class Use(Output):
    """One run of a layer that has a rule.

    Args:
        inputs: What it was given.
        output: What it returned.
        key: Of the run.
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

    def release(self) -> None:
        """Forget all tensors: the gradients were read."""
        self.grad, self.kept = None, self.kept.new_empty(0)

    @property
    def loader(self) -> int | None:
        """Index of the dataloader whose examples it has; None for all."""
        return None if self.layout is None else self.layout.loader

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        return self.grad is not None

    def forget_gradient(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Add a gradient, as ``[B, T, O]``."""
        self.layout = layout
        rows = self.grad_by_example(grad, layout)
        self.grad = rows if self.grad is None else self.grad + rows
        if self.of_pass.has_arrived is not None:
            self.of_pass.has_arrived(self)

    def grad_by_example(self, grad: Tensor, layout: Layout | None) -> Tensor:
        """Lay a gradient out by example, ``[B, T, O]``."""
        last = self.parameter_axes
        if layout is None:
            kept = grad.shape[grad.ndim - last :]
            rows = grad.reshape(len(grad), -1, *kept)
        else:
            rows = by_example(grad, layout, self.of_pass.examples, last)
        return rows.flatten(2) if last > 1 else rows

    def features_by_example(self, features: Tensor, layout: Layout | None) -> Tensor:
        """Lay features out by example, ``[B, T, I]``, or ids, ``[B, T]``."""
        last = 0 if self.rule.is_table else self.parameter_axes
        if layout is None:
            flat = features.reshape(1, -1, *features.shape[features.ndim - last :])
            rows = flat.expand(self.of_pass.examples.total, *flat.shape[1:])
        else:
            rows = by_example(features, layout, self.of_pass.examples, last)
        return rows.flatten(2) if last > 1 else rows

    def forms(self, names: dict[str, str]) -> list[Parts]:
        """Get the parts by local name, once for each projection, or unprojected; empty without a gradient."""
        if self.grad is None:
            return []
        features = self.features_by_example(self.features(names), self.layout)
        return [self.rule.parts(self.layer.module, features, self.grad, names)]

    def features(self, names: dict[str, str]) -> Tensor:
        """Compute the features, whose product with the output's gradient is the weight's, from the layer's input."""
        # What a layer doesn't save for its own backward pass, autograd doesn't guard.
        if self.kept._version != self.version and names.keys() - {"bias"}:
            raise self.unreadable(
                "had its input changed in place after it ran, so its gradient can't be read off it: change a copy "
                "instead"
            )
        return self.kept if self.rule.is_table else self.rule.features(self.layer.module, self.kept)


class ProjectedUse(Use):
    """One run of a layer that has a rule, projected at once so that nothing large is kept; vectors stay as they are.

    The features of a matrix product are projected as soon as it has run, the output's gradient when it arrives.
    """

    def __init__(
        self,
        layer: Layer,
        rule: Rule,
        inputs: Tensor,
        output: Tensor,
        key: Key,
        of_pass: Pass,
        projections: Projections,
    ) -> None:
        super().__init__(layer, rule, inputs, output, key, of_pass)
        self.projections = projections
        self.projected: list[dict[str, Tensor]] = [{} for _ in projections.members]
        self.early = "weight" in layer.names and rule.feature_axis is not None
        if self.early:
            assert rule.feature_axis is not None
            with torch.autocast(inputs.device.type, enabled=False):
                kept = projections.project_factor(
                    layer.names["weight"], rule.feature_axis, rule.features(layer.module, self.kept)
                )
                # A bias is a weight whose feature is always one.
                self.kept = torch.cat([kept, kept.new_ones(*kept.shape[:-1], 1)], -1) if "bias" in layer.names else kept

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        return any(self.projected)

    def forget_gradient(self) -> None:
        """Forget the gradient."""
        self.projected = [{} for _ in self.projections.members]

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Project the parameters' gradients that follow from this one, and add them."""
        self.layout = layout
        names = trained(self.layer)
        rows = self.grad_by_example(grad, layout)
        gradients = self._matrix_product(rows, names) if self.early else self._any(rows, names)
        for of_projection, new in zip(self.projected, gradients, strict=True):
            for local, projected in new.items():
                of_projection[local] = of_projection[local] + projected if local in of_projection else projected

    def _matrix_product(self, grad: Tensor, names: dict[str, str]) -> list[dict[str, Tensor]]:
        """Project weight and bias together, so that the output's gradient, the largest tensor here, is read once."""
        axis = self.rule.feature_axis
        assert axis is not None
        features = self.features_by_example(self.kept, self.layout)
        products = torch.bmm(features.to(grad.dtype).transpose(1, 2), grad)
        bias = products[:, -1].to(accumulation_dtype(products)) if "bias" in names else None
        projected: list[dict[str, Tensor]] = []
        for projection, place in zip(self.projections.members, self.projections.places, strict=True):
            of_projection: dict[str, Tensor] = {}
            if "weight" in names:
                weight = projection.project_factor(names["weight"], 1 - axis, products[:, place])
                of_projection["weight"] = weight.transpose(1, 2) if axis == 1 else weight
            if bias is not None:
                of_projection["bias"] = bias
            projected.append(of_projection)
        return projected

    def _any(self, grad: Tensor, names: dict[str, str]) -> list[dict[str, Tensor]]:
        """Project the parts that the rule gives."""
        features = self.features_by_example(self.features(names), self.layout)
        parts = self.rule.parts(self.layer.module, features, grad, names)
        return [
            {local: part.value for local, part in of_projection.items()}
            for of_projection in projected_parts(self.projections, self.layer, names, parts)
        ]

    def forms(self, names: dict[str, str]) -> list[Parts]:
        """Get the parts by local name, once for each projection."""
        if not self.has_gradient():
            return []
        return [
            {local: Dense(projected) for local, projected in of_projection.items() if local in names}
            for of_projection in self.projected
        ]


class FallbackOutput(Output):
    """One output of a layer without a rule."""

    def __init__(self, key: Key, of_pass: Pass, layer: Layer, shape: torch.Size) -> None:
        super().__init__(key, of_pass, layer, shape)
        self.cotangent: Cotangent | None = None

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        return self.cotangent is not None

    def forget_gradient(self) -> None:
        """Forget the gradient."""
        self.cotangent = None

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Add a gradient, laid out as it is."""
        previous = 0 if self.cotangent is None else self.cotangent.grad
        self.cotangent = Cotangent(previous + grad, layout)


class FallbackUse:
    """One run of a layer without a rule."""

    def __init__(
        self, layer: Layer, replay: Replay, outputs: list[FallbackOutput], projections: Projections | None
    ) -> None:
        self.layer = layer
        self.replay = replay
        self.outputs = outputs
        self.projections = projections

    @property
    def loader(self) -> int | None:
        """Index of the dataloader whose examples it has; None for all."""
        layouts = [output.cotangent.layout for output in self.outputs if output.cotangent is not None]
        loaders = {None if layout is None else layout.loader for layout in layouts}
        if len(loaders) > 1:
            raise self.outputs[0].unreadable("returned outputs that have the examples of several dataloaders")
        return loaders.pop() if loaders else None

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        return any(output.has_gradient() for output in self.outputs)

    def forget_gradient(self) -> None:
        """Forget the gradient."""
        for output in self.outputs:
            output.forget_gradient()

    def forms(self, names: dict[str, str]) -> list[Parts]:
        """Get the parts by local name, once for each projection, or unprojected; empty without any gradient."""
        self.replay.require_untouched(list(names), self.layer.path)
        cotangents = [output.cotangent for output in self.outputs]
        if all(cotangent is None for cotangent in cotangents):
            return []
        with exclusively(-1):  # no capture may record the repeated run
            parts = self.replay.parts(list(names), cotangents, self.outputs[0].of_pass.examples, self.layer.path)
        if self.projections is None:
            return [dict(parts)]
        return [dict(of_projection) for of_projection in projected_parts(self.projections, self.layer, names, parts)]


class ParameterOutput(Output):
    """Parameter that is read off autograd's graph, as an output that all examples share."""

    def __init__(self, key: Key, of_pass: Pass, layer: Layer, parameter: Tensor) -> None:
        super().__init__(key, of_pass, layer, parameter.shape, parameter.ndim, "shared")
        self.is_parameter = True
        self.grads: Tensor | None = None

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        return self.grads is not None

    def forget_gradient(self) -> None:
        """Forget the gradient."""
        self.grads = None

    def add(self, grad: Tensor, layout: Layout | None) -> None:
        """Add each example's gradient, ``[B, *shape]``; with a layout, there is one example."""
        grads = grad if layout is None else grad.unsqueeze(0)
        self.grads = grads if self.grads is None else self.grads + grads


class GraphUse:
    """All uses of a parameter that is read off autograd's graph."""

    loader = None  # all dataloaders' examples

    def __init__(self, layer: Layer, output: ParameterOutput, projections: Projections | None) -> None:
        self.layer = layer
        self.output = output
        self.projections = projections

    def has_gradient(self) -> bool:
        """Whether a gradient has arrived."""
        return self.output.has_gradient()

    def forget_gradient(self) -> None:
        """Forget the gradient."""
        self.output.forget_gradient()

    def forms(self, names: dict[str, str]) -> list[Parts]:
        """Get its part by local name, once for each projection, or unprojected; empty without a gradient."""
        if self.output.grads is None:
            return []
        parts: Parts = dict.fromkeys(names, Dense(self.output.grads))
        if self.projections is None:
            return [parts]
        return [dict(of_projection) for of_projection in projected_parts(self.projections, self.layer, names, parts)]


def projected_parts(
    projections: Projections, layer: Layer, names: Mapping[str, str], parts: Mapping[str, Part | Positions]
) -> list[dict[str, Dense]]:
    """Project the parts of matrices' gradients, by local name, with each projection; vectors stay as they are.

    Vectors are small, and are projected all together when the gradients are read (``reading.py``).
    """
    shapes = {local: layer.parameter(local).shape for local in parts}
    vectors: dict[str, Dense] = {}
    for local, part in parts.items():
        if len(shapes[local]) < 2:
            summed = part.summed() if isinstance(part, Positions) else part
            assert isinstance(summed, Dense)
            vectors[local] = Dense(summed.value.to(accumulation_dtype(summed.value)))
    return [
        vectors
        | {
            local: projection.project_part(names[local], part, shapes[local])
            for local, part in parts.items()
            if local not in vectors
        }
        for projection in projections.members
    ]


AnyUse = Use | FallbackUse | GraphUse
