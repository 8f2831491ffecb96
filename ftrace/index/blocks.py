"""The weights that an index covers, and the blocks of its rows that they share.

TrackStar pools attention and MLP weights into eight groups of consecutive layers each, and leaves embeddings, head,
norms and biases out (Chang et al. 2024, arXiv 2410.17413, section 3 and appendix).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from ftrace.arguments import Positive, checked
from ftrace.gradients import layer_of
from ftrace.index.settings import Layout

_ATTENTION = re.compile(r"att", re.IGNORECASE)
_MLP = re.compile(r"mlp|dense|ffn|ff\b|feed_?forward|fc\d?\b", re.IGNORECASE)
_TABLES = (nn.Embedding, nn.EmbeddingBag)


def block_weights(module: nn.Module) -> list[str]:
    """List the matrices in a model's numbered blocks: no embeddings, no head, no norms, no biases.

    Raises:
        ValueError: If there is none.

    Example:
        >>> block_weights(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(4, 3)))
        ['0.weight']
    """
    tables = {id(p) for part in module.modules() if isinstance(part, _TABLES) for p in part.parameters(recurse=False)}
    names = [
        name
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in tables and re.search(r"(^|\.)\d+(\.|$)", name)
    ]
    if not names:
        raise ValueError(
            f"parameters: expected {type(module).__name__} to have matrices in numbered blocks, found none. Name what "
            'the index is to cover, such as parameters=("*",)'
        )
    return names


@checked
def make_blocks(names: Sequence[str], layout: Layout = "pooled", layer_groups: Positive = 8) -> dict[str, list[str]]:
    """Group names of parameters by the block that they share.

    Args:
        names: In the model's order.
        layout: "pooled": attention, MLP and other weights of consecutive layers, in ``layer_groups`` groups each;
            "layer": all of a layer; "parameter": each by itself.
        layer_groups: Of "pooled"; each layer is a group where there are fewer. Encoder and decoder count as one stack.

    Raises:
        ValueError: On an unknown layout, or fewer than one group.

    Example:
        >>> make_blocks(["h.0.attn.weight", "h.1.attn.weight", "h.1.mlp.weight"], layer_groups=1)
        {'attention 0': ['h.0.attn.weight', 'h.1.attn.weight'], 'mlp 0': ['h.1.mlp.weight']}
    """
    if layout == "parameter":
        return {name: [name] for name in names}
    blocks: dict[str, list[str]] = {}
    if layout == "layer":
        for name in names:
            blocks.setdefault(layer_of(name), []).append(name)
        return blocks
    by_kind: dict[str, dict[str, list[str]]] = {}
    for name in names:
        by_kind.setdefault(_kind(name), {}).setdefault(layer_of(name), []).append(name)
    for kind, layers in by_kind.items():
        layers_of_group = max(1.0, len(layers) / layer_groups)
        for position, of_layer in enumerate(layers.values()):
            blocks.setdefault(f"{kind} {int(position / layers_of_group)}", []).extend(of_layer)
    return blocks


def _kind(name: str) -> str:
    if not re.search(r"(^|\.)\d+(\.|$)", name):
        return layer_of(name)
    within_layer = name.removeprefix(layer_of(name))
    return "attention" if _ATTENTION.search(within_layer) else "mlp" if _MLP.search(within_layer) else "other"
