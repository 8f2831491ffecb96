"""The record of one pass of a rehearsal, of which only prints are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ftrace.gradients.coverage import Layer
from ftrace.gradients.evidence import Prints, prints_of
from ftrace.gradients.fallback import outputs_of
from ftrace.gradients.fused_heads import FusedHead, Measure, SilentHead, differentiable
from ftrace.gradients.layout_book import Key
from ftrace.gradients.module_state import Beginning
from ftrace.gradients.outputs import Output, Silent
from ftrace.gradients.recording import Recording
from ftrace.gradients.rules import Rule


class Observation(Recording):
    """A pass of which only prints are kept: of what goes into layers, of what comes out, and of gradients.

    Attributes:
        values: By output, prints of the input (None where it has another shape) and of the output.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.values: dict[Key, tuple[Prints | None, Prints]] = {}

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        """Take prints of a layer's run."""
        assert isinstance(layer.rule, Rule)
        rule = layer.rule
        parameter_axes = rule.parameter_axes(layer.module)
        channel_axis = rule.channel_axis - rule.is_single(inputs)
        record = Silent(
            self._next_key(layer), self.of_pass, layer, output.shape, parameter_axes, rule.lookup, channel_axis
        )
        channels_last = output if channel_axis == -1 else output.movedim(channel_axis, -1)
        of_input = None
        if channel_axis == -1:
            of_input = self._prints_of(inputs, 0 if rule.is_table else parameter_axes)
        self.values[record.key] = of_input, self._prints_of(channels_last, parameter_axes)
        self._hook_output(output, record)

    def add_head(self, layer: Layer, head: FusedHead, outputs: Mapping[Measure, Tensor]) -> None:
        """Take prints of the run of a fused head."""
        for _, output in differentiable(outputs):
            record = SilentHead(self._next_key(layer), self.of_pass, layer, head.shape)
            record.head = head
            self.values[record.key] = None, self._prints_of(head.spread(output.detach()))
            self._hook_output(output, record)

    def add_fallback(self, layer: Layer, args: Any, kwargs: Any, output: Any, began: Beginning) -> None:
        """Take prints of the run of a layer without a rule."""
        key = self._next_key(layer)
        for number, tensor in enumerate(outputs_of(layer, output)):
            record = Silent(key._replace(output=number), self.of_pass, layer, tensor.shape)
            self.values[record.key] = None, self._prints_of(tensor)
            if tensor.requires_grad:
                self._hook_output(tensor, record)

    def _prints_of(self, tensor: Tensor, last: int = 0) -> Prints:
        return prints_of(tensor, last, bounded=True, documents=self.examples.documents)

    def _parameter_output(self, key: Key, layer: Layer, parameter: nn.Parameter) -> Output:
        output = Silent(key, self.of_pass, layer, parameter.shape, parameter.ndim, "shared")
        output.is_parameter = True
        self.values[key] = None, Prints((), {}, 1.0)
        self._handles.append(parameter.register_hook(output.take_gradient))
        return output

    def _hook_parameters(self) -> None:
        """Do nothing: the hooks were registered when the parameters were recorded."""
