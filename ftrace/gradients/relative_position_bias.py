"""T5's relative position bias: a table whose output has no batch axis and is shared by all layers of a stack.

The gradient of what the table returns is a sum over examples, so no hook on it can tell them apart. Each attention
layer that *uses* the bias gets it expanded to one copy an example, and hands the unexpanded one on to the next layer.
The order in which autograd adds up the uses stays what it was, so trained weights stay bit-identical; expanding once
and sharing the result would change them (measured: 1.4e-9).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.names import full_name
from ftrace.gradients.parts import Lookup
from ftrace.gradients.rules import Parts, Rule

_STACKS = ("transformers.models.t5.modeling_t5.T5Stack", "transformers.models.mt5.modeling_mt5.MT5Stack")


def _parts(module: nn.Module, ids: Tensor, grad: Tensor, wanted: Container[str]) -> Parts:
    assert isinstance(module, nn.Embedding)
    return {"weight": Lookup(ids, grad, module.num_embeddings)}


RELATIVE_POSITION_BIAS = Rule("relative position bias", ("weight",), _parts, is_table=True, channel_axis=1)


def _self_attentions(module: nn.Module) -> Iterator[list[Any]]:
    """The self-attention layers of each T5 stack, first layer (which owns the table) first."""
    for stack in module.modules():
        if full_name(stack) in _STACKS:
            blocks: Any = stack.block
            yield [block.layer[0].SelfAttention for block in blocks]


def find_tables(module: nn.Module) -> dict[nn.Module, Rule]:
    """The bias tables in a module, which need this rule rather than Embedding's."""
    return {attentions[0].relative_attention_bias: RELATIVE_POSITION_BIAS for attentions in _self_attentions(module)}


def is_unknown_table(parent: nn.Module, table: nn.Module) -> bool:
    """Whether this is the bias table of some other stack: what it returns has no batch axis either."""
    return getattr(parent, "relative_attention_bias", None) is table


def listen(
    module: nn.Module, table: nn.Module, record: Callable[[Tensor, Tensor], None], listening: Callable[[], bool]
) -> list[RemovableHandle]:
    """Hook the attention layers that use a table.

    Args:
        module: The module that contains the T5 stack.
        table: The stack's ``relative_attention_bias``.
        record: Is given the row numbers ``[B, T*S]`` and the expanded bias ``[B, H, T, S]`` of each use.
        listening: Whether to act on the forward pass that is under way.

    Returns:
        Handles that remove the hooks.
    """
    attentions = next(found for found in _self_attentions(module) if found[0].relative_attention_bias is table)
    buckets: list[Tensor] = []  # of the pass under way, [T, S]; computed by the first layer only
    handed_on: dict[nn.Module, Tensor] = {}

    def remember_buckets(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        buckets[:] = [args[0]]

    def expand(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not listening():
            return args, kwargs
        bias = kwargs.get("position_bias")
        if bias is None:
            if layer is not attentions[0]:
                raise ValueError(f"expected layer {layer.layer_idx} of a T5 stack to be given a position_bias")
            bias = _compute_bias(layer, args[0], kwargs.get("past_key_values"))
        handed_on[layer] = bias
        rows = args[0].shape[0]
        expanded = bias.expand(rows, -1, -1, -1)
        if expanded.requires_grad:
            record(buckets[0].reshape(1, -1).expand(rows, -1), expanded)
        return args, {**kwargs, "position_bias": expanded}

    def hand_on(layer: nn.Module, args: object, kwargs: object, output: tuple[Any, ...]) -> tuple[Any, ...]:
        if layer not in handed_on:
            return output
        return (output[0], handed_on.pop(layer), *output[2:])

    handles = [table.register_forward_hook(remember_buckets, prepend=True)]
    for layer in attentions:
        handles.append(layer.register_forward_pre_hook(expand, with_kwargs=True))
        # First of all hooks, so that two listeners nest: the last to expand is the first to hand on.
        handles.append(layer.register_forward_hook(hand_on, with_kwargs=True, prepend=True))
    return handles


def _compute_bias(layer: Any, hidden_states: Tensor, past_key_values: Any) -> Tensor:
    """The bias as the layer itself would compute it."""
    past = 0 if past_key_values is None else past_key_values.get_seq_length(layer.layer_idx)
    length = hidden_states.shape[1]
    bias: Tensor = layer.compute_bias(length, length + past, device=hidden_states.device, past_seen_tokens=past)
    return bias
