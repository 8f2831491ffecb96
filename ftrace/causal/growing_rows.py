"""Rows that grow inside one forward pass: a cell's run shares all layers below its birth with the corrupted run.

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
    """While this is open, a forward pass of a batch of one row computes all rows of a plan.

    The model makes masks and positions for one row, which serve all. Each row's states, and what replaces them, are in
    one tensor, so nothing is stored and nothing runs twice. All hooks are gone afterwards.

    Args:
        stack: The stack that rows grow in.
        plan: The rows.
        first_states: What the first layer gets of the clean and the corrupted runs, ``[1 + N, T, D]``; None: what it
            gets anyway, which is the same for all of them.
        encoder_states: What cross-attention reads of the clean and the corrupted runs, ``[1 + N, tokens, D]``.
        outputs: How many of the last places' outputs are wanted of the last layer; None: all. At the others its
            feed-forward module, the largest part of a layer, is then not run.
        watch: Gets each layer's number and its input ``[R, T, D]``, and at last the output of the last layer.
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
            trimmed = _LastPlaces(outputs)
            hook(stack.modules["mlp"][last].register_forward_pre_hook(trimmed.before, with_kwargs=True))
            hook(stack.modules["mlp"][last].register_forward_hook(trimmed.after))
        for kind, modules in stack.modules.items():
            for number, module in enumerate(modules):
                if encoder_states is not None and kind == "cross_attention":
                    spread = partial(_spread_encoder_states, plan, encoder_states)
                    hook(module.register_forward_pre_hook(spread, with_kwargs=True))
                hook(module.register_forward_hook(partial(_replace, plan, kind, number)))
        yield


class _LastPlaces:
    """Runs a module that works token by token at the last places only; it gives 0 at the others."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._left_out = 0

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take away what stands before the last places, unless the module is given more than its states."""
        self._left_out = 0
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None
        self._left_out = max(0, args[0].shape[1] - self.places)
        return (args[0][:, self._left_out :].contiguous(),), kwargs  # GPT-2's modules view it in another shape

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Put zeros where nothing was run."""
        return with_states(output, nn.functional.pad(states_of(output), (0, 0, self._left_out, 0)))


def states_of(output: Any) -> Tensor:
    """The states in what a module returns: a tensor, or the first of a tuple.

    Raises:
        ValueError: If there are none.
    """
    states = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(states, Tensor) or states.dim() != 3:
        found = f"a tensor {tuple(states.shape)}" if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(f"expected a module that returns states [rows, tokens, width], found {found}")
    return states


def with_states(output: Any, states: Tensor) -> Any:
    """What a module returns, with other states in it."""
    return type(output)([states, *output[1:]]) if isinstance(output, tuple | list) else states


def input_states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The states that a layer is called with: its first argument, or ``hidden_states``."""
    return states_of(args[0] if args else kwargs.get("hidden_states"))


def _born(plan: RowPlan, layer: int, states: Tensor) -> Tensor:
    """The rows so far and those that are born here: copies of the corrupted ones, some with a clean state."""
    born = plan.birth_at(layer)
    if not born.cells:
        return states
    new = states[1 : 1 + plan.samples].repeat(born.cells, 1, 1)
    new[born.rows, born.places] = states[0, born.places]
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
        states = states.clone()  # the module has given back its input, which the layer needs
    states[replaced.rows, replaced.places] = states[replaced.sources, replaced.places]
    return with_states(output, states)


def _spread_encoder_states(
    plan: RowPlan, encoder_states: Tensor, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give each row the encoder's states with its own noise."""
    name = next((name for name in _STATES_OF_ENCODER if name in kwargs), None)
    if name is None:
        raise ValueError(
            f"expected a cross-attention module that is called with {' or '.join(_STATES_OF_ENCODER)}, found "
            f"{sorted(kwargs)} in {type(module).__name__}"
        )
    rows = len(states_of(args[0] if args else kwargs["hidden_states"]))
    return args, {**kwargs, name: encoder_states[plan.noise_of_rows(rows)]}
