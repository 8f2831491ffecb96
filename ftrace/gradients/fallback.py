"""The way for layers without a rule: run the layer alone once more, and differentiate that run example by example.

Where a layer draws no random numbers this is ``torch.func``: one vectorised pass over single examples. Where it does,
or can't be vectorised, the run of the whole batch is repeated with the random state that it began with, and
differentiated with one example's output gradient at a time. Either way the repeated output must equal the first, so a
layer whose output depends on anything else (a counter, a cache) is refused rather than traced wrongly. What the layer
keeps for itself (buffers, counters, lists) is put back.

Hooks on the layer itself don't fire in the repeated run, those on modules inside of it do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.modules.module import _forward_unimplemented
from torch.utils._pytree import tree_flatten, tree_unflatten

from ftrace.gradients.layout_book import UnreadableError
from ftrace.gradients.layouts import Examples, Layout
from ftrace.gradients.parts import Dense


class FallbackRule:
    """Stands where a layer's rule would; what it takes is kept by :class:`Replay`."""

    name = "fallback"


FALLBACK = FallbackRule()


class GraphRule:
    """Stands where a rule would for parameters that are read off autograd's graph, at the nodes that use them."""

    name = "graph"


GRAPH = GraphRule()


def has_forward(module: nn.Module) -> bool:
    """Whether a module can be run at all; containers of parameters can't."""
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return False  # it is run, but what it returns is a weight
    forward = type(module).forward
    # What Lightning's modules inherit only raises; their training_step is no forward of theirs.
    return forward is not _forward_unimplemented and forward.__qualname__ != "LightningModule.forward"


def owns_children(module: nn.Module) -> bool:
    """Whether a module is known to use weights of the modules inside of it without running these."""
    return isinstance(module, nn.MultiheadAttention)


@dataclass(frozen=True)
class Cotangent:
    """The gradient of one output.

    Args:
        grad: In the output's shape.
        layout: Whose rows it has. None where it is ``[B, *shape]``: each example's own, of an output that all share.
    """

    grad: Tensor
    layout: Layout | None

    def of_example(self, example: int, examples: Examples) -> Tensor:
        """One example's share, in the output's shape."""
        if self.layout is None:
            return self.grad[example]
        if examples.count(self.layout.group) == 1:
            return self.grad
        return self.layout.only(self.grad, examples.first(self.layout.group) + example, examples)

    def rows(self, examples: Examples) -> list[Tensor]:
        """Each example's share, in the output's shape."""
        if self.layout is None:
            return list(self.grad)
        return [self.layout.only(self.grad, example, examples) for example in range(examples.total)]


class Replay:
    """All that it takes to run one layer once more as it ran.

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
        self._drew = not all(map(torch.equal, began.random_state, _random_state(module)))
        versions = _weight_versions(module)
        self._written = {n for n, version in began.weight_versions.items() if versions.get(n, version) != version}
        self._device = next(module.parameters()).device
        self._autocast = torch.is_autocast_enabled(self._device.type), torch.get_autocast_dtype(self._device.type)
        self._training = {submodule: submodule.training for submodule in module.modules()}
        outputs = differentiable(output)
        self._expected = [tensor.detach().clone() for tensor in outputs]  # others may write to what it returned
        # An in-place change of a view goes around the hook on it.
        self._views = [(tensor.detach(), tensor._version) for tensor in outputs if tensor._is_view()]

    def require_untouched(self, names: list[str], path: str) -> None:
        """Hold what the layer saw and wrote against what is there now.

        Raises:
            ValueError: If it can't be run once more as it ran.
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
        """Per-example gradients of the layer's parameters.

        Args:
            names: Local (dotted) names of the parameters that are wanted.
            cotangents: Of each of the :func:`differentiable` outputs, or None where nothing has used it.
            examples: Of the batch.
            path: The layer's name, for errors.

        Raises:
            ValueError: If the layer can't be run once more as it ran.
        """
        used = [index for index, cotangent in enumerate(cotangents) if cotangent is not None]
        given = [cotangents[index] for index in used]
        slots = _slots(self._module, names)
        with self._as_it_ran(names, path):
            found = None
            if not self._drew and len(used) == 1:
                found = self._vectorised(slots, used, given, examples)
            if found is None:
                found = self._one_by_one(slots, used, given, examples, names, path)
        return {name: Dense(grad) for name, grad in found.items()}

    def _vectorised(
        self, slots: dict[str, _Slot], used: list[int], given: list[Any], examples: Examples
    ) -> dict[str, Tensor] | None:
        """By ``torch.func`` over single examples; None where the layer can't be run so."""
        grad, layout = given[0].grad, given[0].layout
        if layout is None or not examples.count(layout.group):
            return None
        layouts = [_like(value, layout, grad, anywhere=True) for value in self._inputs]

        def of_example(inputs: list[Tensor], grads: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
            own = iter(inputs)
            values = [next(own) if of_value else v for of_value, v in zip(layouts, self._inputs, strict=True)]
            outputs, pull_back, *_ = vjp(lambda p: self._run(slots, p, values, used), leaves)
            return pull_back(grads)[0], outputs

        leaves = {name: slot.value().detach().clone() for name, slot in slots.items()}
        inputs = [own.split(value, examples) for own, value in zip(layouts, self._inputs, strict=True) if own]
        try:
            with torch.no_grad():  # of the modules inside
                grads, outputs = vmap(of_example)(inputs, [layout.split(grad, examples)])
            whole = [layout.join(outputs[0], examples, grad.shape[layout.axis])]
        except Exception:  # whatever one example alone, or vmap, can't do; the way that is left says what is wrong
            return None
        return grads if self._agrees(whole, used) else None

    def _one_by_one(
        self,
        slots: dict[str, _Slot],
        used: list[int],
        given: list[Any],
        examples: Examples,
        names: list[str],
        path: str,
    ) -> dict[str, Tensor]:
        """By autograd over one more run of the batch, with the random numbers of the first."""
        leaves = {name: slot.value().detach().clone().requires_grad_() for name, slot in slots.items()}
        try:
            values = [
                value.clone().requires_grad_(own) if isinstance(value, Tensor) else _copied(value)
                for value, own in zip(self._inputs, self._watched, strict=True)
            ]
            with self._began.random_numbers(self._device), torch.enable_grad():
                outputs = self._run(slots, leaves, values, used)
        except Exception as error:
            problem = f"it can't be run once more ({type(error).__name__}: {error})"
            raise self._refusal(names, path, problem) from error
        if not self._agrees(outputs, used):
            raise self._refusal(names, path, "run once more, it returned something else")
        cotangents = _from_outside(outputs, given, examples)
        of_rows = next((one for one in cotangents if one.layout is not None), cotangents[0])
        layout = of_rows.layout
        watched: list[tuple[Tensor, Layout]] = []
        if layout is not None:
            inputs = [value for value, own in zip(values, self._watched, strict=True) if own]
            of_inputs = [_like(value, layout, of_rows.grad) for value in inputs]
            watched = [(value, own) for value, own in zip(inputs, of_inputs, strict=True) if own]
        count = examples.total if layout is None else examples.count(layout.group)
        first = 0 if layout is None else examples.first(layout.group)
        found = {name: leaf.new_zeros(count, *leaf.shape) for name, leaf in leaves.items()}
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
                    found[name][example] = grad
            for grad, (_, own) in zip(grads[len(leaves) :], watched, strict=True):
                if grad is not None and count > 1 and (grad - own.only(grad, first + example, examples)).any():
                    raise self._refusal(names, path, "its output for one example depends on the others", mixes=True)
        return found

    def _run(
        self, slots: dict[str, _Slot], leaves: dict[str, Tensor], values: list[Any], used: list[int]
    ) -> list[Tensor]:
        args, kwargs = tree_unflatten(values, self._spec)
        with _swapped([(slot.tensors, slot.local, leaves[name]) for name, slot in slots.items()]):
            found = differentiable(self._module.forward(*args, **kwargs))
        return [found[index] for index in used]

    def _agrees(self, outputs: list[Tensor], used: list[int]) -> bool:
        for output, index in zip(outputs, used, strict=True):
            expected = self._expected[index]
            if output.shape != expected.shape:
                return False
            finite = expected.isfinite()
            size = torch.where(finite, expected, 0).abs().amax() if expected.numel() else 0.0
            allowed = torch.finfo(expected.dtype).eps ** 0.7 * size
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
        """In the modes and the precision of the first run; whatever the layer keeps for itself is put back."""
        modules = list(self._module.modules())
        if any(module.training != self._training.get(module, module.training) for module in modules):
            raise self._refusal(
                names, path, "it was put into another mode between its run and the reading of gradients"
            )
        enabled, dtype = self._autocast
        buffers = [(tensors, name, before.clone()) for tensors, name, before in self._began.buffers]
        with (
            torch.autocast(self._device.type, dtype, enabled=enabled, cache_enabled=False),
            _own_attributes(modules),
            _swapped(buffers),
        ):
            yield


@dataclass(frozen=True)
class Beginning:
    """What a layer's run may change: the random state, versions of its weights, and its buffers."""

    random_state: list[Tensor]
    weight_versions: dict[str, int]
    buffers: list[tuple[dict[str, Any], str, Tensor]]  # where they are kept, and copies

    @classmethod
    def of(cls, module: nn.Module) -> Beginning:
        """As it is now."""
        buffers = [(tensors, name, buffer.clone()) for tensors, name, buffer in _buffers(module)]
        return cls(_random_state(module), _weight_versions(module), buffers)

    @contextmanager
    def random_numbers(self, device: torch.device) -> Iterator[None]:
        """Draw the same random numbers again, and leave the random state as it is."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.set_rng_state(self.random_state[0])
            if device.type == "cuda":
                torch.cuda.set_rng_state(self.random_state[1], device)
            yield


def _random_state(module: nn.Module) -> list[Tensor]:
    device = next(module.parameters()).device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _weight_versions(module: nn.Module) -> dict[str, int]:
    return {name: parameter._version for name, parameter in module.named_parameters()}


@dataclass(frozen=True)
class _Slot:
    """Where a module keeps a parameter."""

    tensors: dict[str, Any]
    local: str

    def value(self) -> Tensor:
        found: Tensor = self.tensors[self.local]
        return found


def _slots(module: nn.Module, names: Sequence[str]) -> dict[str, _Slot]:
    """Where each of these parameters is kept; each place once, though it may have several names."""
    slots: dict[str, _Slot] = {}
    seen: set[tuple[int, str]] = set()
    for name in names:
        path, _, local = name.rpartition(".")
        owner = module.get_submodule(path)
        if (id(owner), local) not in seen:
            seen.add((id(owner), local))
            slots[name] = _Slot(owner._parameters, local)
    return slots


def _buffers(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Where a module and those inside of it keep buffers, and which."""
    return [
        (submodule._buffers, name, buffer)
        for submodule in module.modules()
        for name, buffer in submodule._buffers.items()
        if buffer is not None
    ]


@contextmanager
def _swapped(replacements: Sequence[tuple[dict[str, Any], str, Tensor]]) -> Iterator[None]:
    """Other tensors in a module's places for a while; uses of the same tensor in other places are left alone."""
    before = [(tensors, name, tensors[name]) for tensors, name, _ in replacements]
    try:
        for tensors, name, tensor in replacements:
            tensors[name] = tensor
        yield
    finally:
        for tensors, name, tensor in reversed(before):
            tensors[name] = tensor


@contextmanager
def _own_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Counters, lists and the like that modules keep are as they were afterwards."""
    before = [(module, dict(module.__dict__)) for module in modules]
    internal = nn.Module().__dict__.keys()
    try:
        for module, attributes in before:
            for name, value in attributes.items():
                if name not in internal and isinstance(value, list | dict | set):
                    module.__dict__[name] = copy.copy(value)
        yield
    finally:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)


def _copied(value: Any) -> Any:
    """An argument that is no tensor: what may be written to is copied."""
    return (
        value if isinstance(value, nn.Module | torch.dtype | torch.device) or callable(value) else copy.deepcopy(value)
    )


def _like(value: Any, layout: Layout, grad: Tensor, *, anywhere: bool = False) -> Layout | None:
    """The layout of an input, where its shape lets it have the output's.

    Args:
        value: The input.
        layout: Of the output.
        grad: In the output's shape.
        anywhere: Whether examples may run along another axis: for a trial that is held against the output.
    """
    if not isinstance(value, Tensor):
        return None
    length = grad.shape[layout.axis]
    for axis in dict.fromkeys((layout.axis, *range(value.ndim if anywhere else 0))):
        if axis < value.ndim and value.shape[axis] == length:
            return replace(layout, axis=axis)
    return None


def _from_outside(outputs: list[Tensor], totals: list[Cotangent], examples: Examples) -> list[Cotangent]:
    """Of the outputs' whole gradients, the share that does not come by way of the layer's other outputs.

    An output that the layer goes on computing with has both, and repeating the layer would count the inner one twice.
    """
    order = sorted(range(len(outputs)), key=lambda i: _sequence_number(outputs[i]), reverse=True)
    found = list(totals)
    for place, later in enumerate(order):
        earlier = [i for i in order[place + 1 :] if outputs[i].requires_grad]
        if not earlier or not outputs[later].requires_grad or outputs[later].is_leaf:
            continue
        into, cotangent = [outputs[i] for i in earlier], found[later]
        if all(found[i].layout is not None for i in (later, *earlier)):
            inner = _pulled_back(outputs[later], into, cotangent.grad)
        else:  # example by example, for those that all examples share
            rows = [_pulled_back(outputs[later], into, own) for own in cotangent.rows(examples)]
            inner = [
                None if of_one[0] is None else torch.stack(of_one) if found[i].layout is None else sum(of_one)
                for i, of_one in zip(earlier, zip(*rows, strict=True), strict=True)
            ]
        for i, grad in zip(earlier, inner, strict=True):
            if grad is not None:
                found[i] = replace(found[i], grad=found[i].grad - grad)
    return found


def _pulled_back(output: Tensor, into: list[Tensor], grad: Tensor) -> list[Any]:
    return list(torch.autograd.grad(output, into, grad, retain_graph=True, allow_unused=True))


def _sequence_number(tensor: Tensor) -> int:
    return tensor.grad_fn._sequence_nr() if tensor.grad_fn is not None else -1


def differentiable(output: Any) -> list[Tensor]:
    """The floating-point tensors in a layer's output, in order, each once."""
    leaves = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return list({id(leaf): leaf for leaf in leaves}.values())
