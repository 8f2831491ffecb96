"""The way for layers without a rule: run the layer alone once more, and differentiate that run example by example.

Where a layer draws no random numbers this is ``torch.func``: one vectorised pass over single examples. Where it does,
or can't be vectorised, the run of the whole batch is repeated with the random state that it began with, and
differentiated with one example's output gradient at a time. Either way the repeated output must equal the first, so a
layer whose output depends on anything else (a counter, a cache) is refused rather than traced wrongly.

Hooks on the layer itself don't fire in the repeated run, those on modules inside of it do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.modules.module import _forward_unimplemented
from torch.utils._pytree import tree_flatten, tree_unflatten

from ftrace.gradients.parts import Dense


class FallbackRule:
    """Stands where a layer's rule would; what it takes is kept by :class:`Replay`."""

    name = "fallback"
    is_table = False


FALLBACK = FallbackRule()


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


class Replay:
    """All that it takes to run one layer once more as it ran.

    Args:
        module: The layer.
        args: Its arguments.
        kwargs: Its keyword arguments.
        output: What it returned.
        random_state: The random state that the run began with, as :func:`random_state` gives it.
    """

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, output: Any, random_state: list[Tensor]) -> None:
        flat, self._spec = tree_flatten((args, kwargs))
        self._inputs = [value.detach() if isinstance(value, Tensor) else value for value in flat]
        self._versions = [value._version if isinstance(value, Tensor) else 0 for value in flat]
        self._module = module
        self._random_state = random_state
        self._device = next(module.parameters()).device
        self._drew = not all(map(torch.equal, random_state, _random_state_now(self._device)))
        self._autocast = _autocast_state(self._device)
        self._training = [submodule.training for submodule in module.modules()]
        self._expected = [tensor.detach() for tensor in differentiable(output)]

    def parts(self, names: list[str], grads: list[Tensor | None], num_examples: int, path: str) -> dict[str, Dense]:
        """Per-example gradients of the layer's parameters.

        Args:
            names: Local (dotted) names of the parameters that are wanted.
            grads: The gradient of each of the :func:`differentiable` outputs, or None where it has none.
            num_examples: B; an output has ``B * g`` rows, each example's side by side.
            path: The layer's name, for errors.

        Raises:
            ValueError: If the layer can't be run once more as it ran.
        """
        for value, version in zip(self._inputs, self._versions, strict=True):
            if isinstance(value, Tensor) and value._version != version:
                raise ValueError(f"{self._refusal(path)} its input was changed in place afterwards")
        parameters: dict[str, Tensor] = {name: self._module.get_parameter(name) for name in names}
        used = [index for index, grad in enumerate(grads) if grad is not None]
        cotangents = [grads[index] for index in used]
        with _same_autocast(self._device, self._autocast), self._same_modes():
            found = None
            if not self._drew:
                found = self._vectorised(parameters, used, cotangents, num_examples)
            if found is None:
                found = self._one_by_one(parameters, used, cotangents, num_examples, path)
        return {name: Dense(grad) for name, grad in found.items()}

    def _vectorised(
        self, parameters: dict[str, Tensor], used: list[int], cotangents: list[Any], num_examples: int
    ) -> dict[str, Tensor] | None:
        """By ``torch.func`` over single examples; None where the layer can't be run so."""
        if num_examples == 0:
            return None
        rows = cotangents[0].shape[0]
        batched = [isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows for value in self._inputs]
        groups = rows // num_examples

        def split(tensor: Tensor) -> Tensor:
            return tensor.view(num_examples, groups, *tensor.shape[1:])

        def of_example(inputs: list[Tensor], grads: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
            given = iter(inputs)
            values = [next(given) if own else value for own, value in zip(batched, self._inputs, strict=True)]
            outputs, pull_back, *_ = vjp(lambda p: self._run(p, values, used), parameters)
            return pull_back(grads)[0], outputs

        inputs = [split(value) for own, value in zip(batched, self._inputs, strict=True) if own]
        try:
            with torch.no_grad():  # of the modules inside
                grads, outputs = vmap(of_example)(inputs, [split(grad) for grad in cotangents])
        except (RuntimeError, TypeError, ValueError):  # no batching rule, or a shape that one example alone can't have
            return None
        flat = [output.flatten(0, 1) for output in outputs]
        return grads if self._agrees(flat, used) else None

    def _one_by_one(
        self, parameters: dict[str, Tensor], used: list[int], cotangents: list[Any], num_examples: int, path: str
    ) -> dict[str, Tensor]:
        """By autograd over one more run of the batch, with the random numbers of the first."""
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}
        values = [
            value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in self._inputs
        ]
        with _random_state_of(self._device, self._random_state), torch.enable_grad():
            outputs = self._run(leaves, values, used)
        if not self._agrees(outputs, used):
            raise ValueError(f"{self._refusal(path)} run once more, it returned something else")
        rows = cotangents[0].shape[0]
        watched = [v for v in values if isinstance(v, Tensor) and v.requires_grad and v.ndim and v.shape[0] == rows]
        found = {name: leaf.new_zeros(num_examples, *leaf.shape) for name, leaf in leaves.items()}
        for example in range(num_examples):
            own = slice(example * rows // num_examples, (example + 1) * rows // num_examples)
            masked = [torch.zeros_like(grad) for grad in cotangents]
            for mask, grad in zip(masked, cotangents, strict=True):
                mask[own] = grad[own]
            grads = torch.autograd.grad(
                outputs, [*leaves.values(), *watched], masked, retain_graph=True, allow_unused=True
            )
            for name, grad in zip(leaves, grads, strict=False):
                if grad is not None:
                    found[name][example] = grad
            for grad in grads[len(leaves) :]:
                if grad is not None and (grad[: own.start].any() or grad[own.stop :].any()):
                    raise ValueError(f"{self._refusal(path)} its output for one example depends on the others")
        return found

    def _run(self, parameters: dict[str, Tensor], values: list[Any], used: list[int]) -> list[Tensor]:
        args, kwargs = tree_unflatten(values, self._spec)
        buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
        bare = _Bare(self._module)
        own = {f"module.{name}": value for name, value in {**buffers, **parameters}.items()}
        found = differentiable(functional_call(bare, own, args, kwargs))
        return [found[index] for index in used]

    def _agrees(self, outputs: list[Tensor], used: list[int]) -> bool:
        for output, index in zip(outputs, used, strict=True):
            expected = self._expected[index]
            if output.shape != expected.shape:
                return False
            allowed = torch.finfo(expected.dtype).eps ** 0.7 * expected.abs().amax() if expected.numel() else 0.0
            if not ((output - expected).abs() <= allowed).all():
                return False
        return True

    def _refusal(self, path: str) -> str:
        return (
            f"layer {path!r} ({type(self._module).__name__}) has no rule, and can't be covered by the fallback: "
            f'leave its parameters out with parameters=("*", "!{path}.*"), since'
        )

    @contextmanager
    def _same_modes(self) -> Iterator[None]:
        modules = list(self._module.modules())
        if [module.training for module in modules] != self._training:
            raise ValueError(f"{type(self._module).__name__} was put into another mode between forward and gradients")
        yield


class _Bare(nn.Module):
    """Runs a module without the hooks on itself."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def differentiable(output: Any) -> list[Tensor]:
    """The floating-point tensors in a layer's output, in order."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def random_state(module: nn.Module) -> list[Tensor]:
    """The random state that a layer's run begins with."""
    return _random_state_now(next(module.parameters()).device)


def _random_state_now(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextmanager
def _random_state_of(device: torch.device, states: list[Tensor]) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield


def _autocast_state(device: torch.device) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def _same_autocast(device: torch.device, state: tuple[bool, torch.dtype]) -> torch.autocast:
    enabled, dtype = state
    return torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=False)
