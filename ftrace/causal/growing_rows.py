"""A batch whose rows grow in number during a forward pass, as cells' runs part from the corrupted run.

A cell's run is the corrupted run up to the layer of its birth, so its rows are added there.

Shape letters: N noise samples, R rows so far, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.causal.layouts import StackModules
from ftrace.causal.mediators import Module
from ftrace.causal.row_plan import RowPlan

Watch = Callable[[int, Tensor], None]
_STATES_OF_ENCODER = ("key_value_states", "encoder_hidden_states")


@contextmanager
def growing_rows(
    stack: StackModules,
    plan: RowPlan,
    first_states: Tensor | None = None,
    encoder_states: Tensor | None = None,
    outputs: int | None = None,
    watch: Watch | None = None,
) -> Iterator[None]:
    """Make forward passes of a batch of one row compute all rows of a plan, as long as the context is open.

    The model makes masks and position ids for one row, and they serve all rows. States and their replacements are rows
    of one tensor, so nothing is stored and nothing runs twice. All hooks are removed afterwards.

    Args:
        stack: The stack in which rows grow.
        first_states: The first layer's input in the clean and the corrupted runs, ``[1 + N, T, D]``; None: what the
            layer is called with, the same for all of them.
        encoder_states: What cross-attention reads in the clean and the corrupted runs, ``[1 + N, tokens, D]``.
        outputs: At how many of the last positions the last layer's output is needed; None: at all. At the others its
            feed-forward module, the most expensive part of a layer, doesn't run.
        watch: A function that is called with each layer's number and its input ``[R, T, D]``, and finally with the
            number of layers and the last layer's output.
    """
    last = len(stack.layers) - 1
    with ExitStack() as open_hooks, torch.inference_mode():

        def hook(handle: Any) -> None:
            open_hooks.callback(handle.remove)

        for number, layer in enumerate(stack.layers):
            grow = partial(_grow_before, plan, number, first_states, watch)
            hook(layer.register_forward_pre_hook(grow, with_kwargs=True))
        hook(stack.layers[last].register_forward_hook(partial(_grow_after, plan, last + 1, watch)))
        if outputs is not None:
            trimmed = _LastPositions(outputs)
            hook(stack.modules["mlp"][last].register_forward_pre_hook(trimmed.before, with_kwargs=True))
            hook(stack.modules["mlp"][last].register_forward_hook(trimmed.after))
        for kind, modules in stack.modules.items():
            for number, module in enumerate(modules):
                if encoder_states is not None and kind == "cross_attention":
                    spread = partial(_spread_encoder_states, plan, encoder_states)
                    hook(module.register_forward_pre_hook(spread, with_kwargs=True))
                hook(module.register_forward_hook(partial(_replace, plan, kind, number)))
        yield


class _LastPositions:
    """Hooks that make a token-wise module run at the last positions only; its output at the others is 0."""

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._left_out = 0

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Cut the input down to the last positions, unless the module takes more than its states."""
        self._left_out = 0
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None
        self._left_out = max(0, args[0].shape[1] - self.positions)
        return (args[0][:, self._left_out :].contiguous(),), kwargs  # GPT-2's modules call view() on it

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Fill the positions at which the module didn't run with zeros."""
        return with_states(output, nn.functional.pad(states_of(output), (0, 0, self._left_out, 0)))


def states_of(output: Any) -> Tensor:
    """Return the states in a module's output: the tensor itself, or the first entry of a tuple.

    Raises:
        ValueError: If there are none.
    """
    states = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(states, Tensor) or states.dim() != 3:
        found = f"a tensor {tuple(states.shape)}" if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(f"expected a module that returns states [rows, tokens, width], found {found}")
    return states


def with_states(output: Any, states: Tensor) -> Any:
    """Return a module's output with other states in it."""
    return type(output)([states, *output[1:]]) if isinstance(output, tuple | list) else states


def input_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the states that a layer is called with: its first argument, or ``hidden_states``."""
    return states_of(args[0] if args else kwargs.get("hidden_states"))


def _born(plan: RowPlan, layer: int, states: Tensor) -> Tensor:
    """Append the rows that are born at this layer: copies of the corrupted ones, some with a clean state."""
    born = plan.birth_at(layer)
    if not born.cells:
        return states
    new = states[1 : 1 + plan.samples].repeat(born.cells, 1, 1)
    new[born.rows, born.positions] = states[0, born.positions]
    return torch.cat([states, new])


def _grow_before(
    plan: RowPlan,
    number: int,
    first_states: Tensor | None,
    watch: Watch | None,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    states = input_states(args, kwargs)
    if number == 0:
        states = states.repeat(1 + plan.samples, 1, 1) if first_states is None else first_states
    states = _born(plan, number, states)
    if watch is not None:
        watch(number, states)
    return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


def _grow_after(
    plan: RowPlan, number: int, watch: Watch | None, layer: nn.Module, args: tuple[Any, ...], output: Any
) -> Any:
    states = _born(plan, number, states_of(output))
    if watch is not None:
        watch(number, states)
    return with_states(output, states)


def _replace(plan: RowPlan, kind: Module, number: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    replaced = plan.replaced_at(kind, number)
    if replaced is None:
        return None
    states = states_of(output)
    if any(isinstance(given, Tensor) and given.data_ptr() == states.data_ptr() for given in args):
        states = states.clone()  # the module returns its input, which the layer still needs
    states[replaced.rows, replaced.positions] = states[replaced.sources, replaced.positions]
    return with_states(output, states)


def _spread_encoder_states(
    plan: RowPlan, encoder_states: Tensor, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let each row read the encoder states of its own noise."""
    name = next((name for name in _STATES_OF_ENCODER if name in kwargs), None)
    if name is None:
        raise ValueError(
            f"expected a cross-attention module that is called with {' or '.join(_STATES_OF_ENCODER)}, found "
            f"{sorted(kwargs)} in {type(module).__name__}"
        )
    rows = len(states_of(args[0] if args else kwargs["hidden_states"]))
    return args, {**kwargs, name: encoder_states[plan.noise_of_rows(rows)]}
