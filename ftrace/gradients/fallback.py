"""Per-example gradients of layers without a rule: the layer alone is run once more, and that run is differentiated.

Where a layer draws no random numbers this is ``torch.func``: one vectorised pass over single examples. Where it does,
or can't be vectorised, the run of the whole batch is repeated with the random state that it began with, and
differentiated with one example's output gradient at a time. Either way the repeated output must equal the first, so a
layer whose output depends on anything else (a counter, a cache) is refused rather than traced wrongly. What the layer
stores (buffers, counters, lists) is put back.

Hooks on the layer itself don't fire in the repeated run; those on modules inside of it do.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from ftrace.gradients.cotangents import Cotangent, from_outside
from ftrace.gradients.coverage import Layer
from ftrace.gradients.layout_book import UnreadableError
from ftrace.gradients.layouts import Examples, Layout, PackedLayout
from ftrace.gradients.module_state import (
    Beginning,
    Slot,
    kept_attributes,
    random_state,
    slots_of,
    swapped,
    weight_versions,
)
from ftrace.gradients.parts import Dense
from ftrace.gradients.rounding import coarsest_eps, of_a_layer


class Replay:
    """One run of a layer, with everything that is needed to repeat it.

    Args:
        module: The layer.
        args: Its arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
        began: The state that the run began with.
    """

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, output: Any, began: Beginning) -> None:
        flat, self._spec = tree_flatten((args, kwargs))
        self._inputs = [value.detach() if isinstance(value, Tensor) else value for value in flat]
        self._watched = [isinstance(value, Tensor) and value.requires_grad for value in flat]
        self._versions = [value._version if isinstance(value, Tensor) else 0 for value in flat]
        self._module = module
        self._began = began
        self._drew = not all(map(torch.equal, began.random_state, random_state(module)))
        versions = weight_versions(module)
        self._written = {n for n, version in began.weight_versions.items() if versions.get(n, version) != version}
        self._device = next(module.parameters()).device
        self._autocast = torch.is_autocast_enabled(self._device.type), torch.get_autocast_dtype(self._device.type)
        self._training = {submodule: submodule.training for submodule in module.modules()}
        outputs = differentiable(output)
        self._expected = [tensor.detach().clone() for tensor in outputs]  # others may write to what it returned
        # An in-place change of a view goes around the hook on it.
        self._views = [(tensor.detach(), tensor._version) for tensor in outputs if tensor._is_view()]

    def require_untouched(self, names: list[str], path: str) -> None:
        """Check that nobody has changed what the layer was given, what it returned, or its weights.

        Raises:
            ValueError: If somebody has, so that the run can't be repeated.
        """
        for value, version in zip(self._inputs, self._versions, strict=True):
            if isinstance(value, Tensor) and value._version != version:
                raise self._refusal(names, path, "its input was changed in place afterwards")
        if any(view._version != version for view, version in self._views):
            raise self._refusal(names, path, "its output, a view, was changed in place afterwards")
        if not self._written.isdisjoint(names):
            raise self._refusal(names, path, "it writes to its own weights when it runs")

    def parts(
        self, names: list[str], cotangents: Sequence[Cotangent | None], examples: Examples, path: str
    ) -> dict[str, Dense]:
        """Compute per-example gradients of the layer's parameters.

        Args:
            names: Local (dotted) names of the parameters that are wanted.
            cotangents: Of each of the :func:`differentiable` outputs, or None where nothing has used it.
            examples: Of the batch.
            path: The layer's name, for errors.

        Raises:
            ValueError: If the run can't be repeated.
        """
        used = [index for index, cotangent in enumerate(cotangents) if cotangent is not None]
        given = [cotangents[index] for index in used]
        slots = slots_of(self._module, names)
        with self._as_it_ran(names, path):
            grads = None
            if not self._drew and len(used) == 1:
                grads = self._vectorised(slots, used, given, examples)
            if grads is None:
                grads = self._one_by_one(slots, used, given, examples, names, path)
        return {name: Dense(grad) for name, grad in grads.items()}

    def _vectorised(
        self, slots: dict[str, Slot], used: list[int], given: list[Any], examples: Examples
    ) -> dict[str, Tensor] | None:
        """Differentiate single examples by ``torch.func``; None where the layer can't be run that way."""
        grad, layout = given[0].grad, given[0].layout
        if layout is None or isinstance(layout, PackedLayout) or not examples.count(layout.loader):
            return None
        layouts = [_like(value, layout, grad, examples, anywhere=True) for value in self._inputs]

        def of_example(inputs: list[Tensor], grads: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
            rows = iter(inputs)
            values = [next(rows) if of_value else v for of_value, v in zip(layouts, self._inputs, strict=True)]
            outputs, pull_back, *_ = vjp(lambda p: self._run(slots, p, values, used), leaves)
            return pull_back(grads)[0], outputs

        leaves = {name: slot.value().detach().clone() for name, slot in slots.items()}
        inputs = [
            of_value.split(value, examples) for of_value, value in zip(layouts, self._inputs, strict=True) if of_value
        ]
        try:
            with torch.no_grad(), warnings.catch_warnings():  # of the modules inside
                # Where vmap loops over an operator, that is slower, and the user can do nothing about it.
                warnings.filterwarnings("ignore", "There is a performance drop")
                grads, outputs = vmap(of_example)(inputs, [layout.split(grad, examples)])
            joined = [layout.join(outputs[0], examples, grad.shape[layout.axis])]
        except Exception:  # whatever one example alone, or vmap, can't do; the other way says what is wrong
            return None
        return grads if self._agrees(joined, used) else None

    def _one_by_one(
        self,
        slots: dict[str, Slot],
        used: list[int],
        given: list[Any],
        examples: Examples,
        names: list[str],
        path: str,
    ) -> dict[str, Tensor]:
        """Differentiate one more run of the batch by autograd, with the random numbers of the first."""
        leaves = {name: slot.value().detach().clone().requires_grad_() for name, slot in slots.items()}
        try:
            values = [
                value.clone().requires_grad_(is_watched) if isinstance(value, Tensor) else _copied(value)
                for value, is_watched in zip(self._inputs, self._watched, strict=True)
            ]
            with self._began.random_numbers(self._device), torch.enable_grad():
                outputs = self._run(slots, leaves, values, used)
        except Exception as error:
            problem = f"it can't be run once more ({type(error).__name__}: {error})"
            raise self._refusal(names, path, problem) from error
        if not self._agrees(outputs, used):
            raise self._refusal(names, path, "run once more, it returned something else")
        cotangents = from_outside(outputs, given, examples)
        of_rows = next((cotangent for cotangent in cotangents if cotangent.layout is not None), cotangents[0])
        layout = of_rows.layout
        watched: list[tuple[Tensor, Layout]] = []
        if layout is not None:
            inputs = [value for value, is_watched in zip(values, self._watched, strict=True) if is_watched]
            of_inputs = [_like(value, layout, of_rows.grad, examples) for value in inputs]
            watched = [(value, of_value) for value, of_value in zip(inputs, of_inputs, strict=True) if of_value]
        count = examples.total if layout is None else examples.count(layout.loader)
        first = 0 if layout is None else examples.first(layout.loader)
        gradients = {name: leaf.new_zeros(count, *leaf.shape) for name, leaf in leaves.items()}
        for example in range(count):
            grads = torch.autograd.grad(
                outputs,
                [*leaves.values(), *(value for value, _ in watched)],
                [cotangent.of_example(example, examples) for cotangent in cotangents],
                retain_graph=True,
                allow_unused=True,
            )
            for name, grad in zip(leaves, grads, strict=False):
                if grad is not None:
                    gradients[name][example] = grad
            for grad, (_, of_value) in zip(grads[len(leaves) :], watched, strict=True):
                if grad is not None and count > 1 and (grad - of_value.only(grad, first + example, examples)).any():
                    raise self._refusal(names, path, "its output for one example depends on the others", mixes=True)
        return gradients

    def _run(
        self, slots: dict[str, Slot], leaves: dict[str, Tensor], values: list[Any], used: list[int]
    ) -> list[Tensor]:
        args, kwargs = tree_unflatten(values, self._spec)
        with swapped([(slot.tensors, slot.local, leaves[name]) for name, slot in slots.items()]):
            outputs = differentiable(self._module.forward(*args, **kwargs))
        return [outputs[index] for index in used]

    def _agrees(self, outputs: list[Tensor], used: list[int]) -> bool:
        for output, index in zip(outputs, used, strict=True):
            expected = self._expected[index]
            if output.shape != expected.shape:
                return False
            finite = expected.isfinite()
            size = torch.where(finite, expected, 0).abs().amax() if expected.numel() else 0.0
            allowed = of_a_layer(coarsest_eps([expected.dtype])) * size
            same = (output == expected) | (output.isnan() & expected.isnan())  # infinities of a mask are
            if not (same | (finite & ((output - expected).abs() <= allowed))).all():
                return False
        return True

    def _refusal(self, names: list[str], path: str, problem: str, *, mixes: bool = False) -> UnreadableError:
        full = [f"{path}.{name}" if path else name for name in names]
        kind = type(self._module).__name__
        return UnreadableError(
            f"layer {path!r} ({kind}) has no rule, and can't be covered by the fallback: {problem}", full, mixes=mixes
        )

    @contextmanager
    def _as_it_ran(self, names: list[str], path: str) -> Iterator[None]:
        """Set the modes and the precision of the first run; put back whatever the layer stores."""
        modules = list(self._module.modules())
        if any(module.training != self._training.get(module, module.training) for module in modules):
            raise self._refusal(
                names, path, "it was put into another mode between its run and the reading of gradients"
            )
        enabled, dtype = self._autocast
        buffers = [(tensors, name, original.clone()) for tensors, name, original in self._began.buffers]
        with (
            torch.autocast(self._device.type, dtype, enabled=enabled, cache_enabled=False),
            kept_attributes(modules),
            swapped(buffers),
        ):
            yield


def _copied(value: Any) -> Any:
    """Copy an argument that is no tensor, if the layer may write to it."""
    return (
        value if isinstance(value, nn.Module | torch.dtype | torch.device) or callable(value) else copy.deepcopy(value)
    )


def _like(value: Any, layout: Layout, grad: Tensor, examples: Examples, *, anywhere: bool = False) -> Layout | None:
    """Give an input the layout of the output, if its shape allows.

    Args:
        value: The input.
        layout: Of the output.
        grad: In the output's shape.
        examples: Of the batch.
        anywhere: Whether examples may run along another axis: for a trial that is compared with the output.
    """
    if not isinstance(value, Tensor):
        return None
    if isinstance(layout, PackedLayout):
        return layout if layout.fits(value.shape, examples) else None
    length = grad.shape[layout.axis]
    for axis in dict.fromkeys((layout.axis, *range(value.ndim if anywhere else 0))):
        if axis < value.ndim and value.shape[axis] == length:
            return replace(layout, axis=axis)
    return None


def differentiable(output: Any) -> list[Tensor]:
    """List the floating-point tensors in a layer's output, in order, each once."""
    leaves = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return list({id(leaf): leaf for leaf in leaves}.values())


def outputs_of(layer: Layer, output: Any) -> list[Tensor]:
    """List the floating-point tensors in what a layer without a rule has returned.

    Raises:
        UnreadableError: If there is none.
    """
    tensors = differentiable(output)
    if not tensors:
        raise UnreadableError(
            f"layer {layer.path!r} ({type(layer.module).__name__}) has no rule and returned a "
            f"{type(output).__name__} in which no tensor is found",
            tuple(layer.names.values()),
        )
    return tensors
