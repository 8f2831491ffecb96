"""Mediators: what is restored at one layer and one token, and what a run then has to replace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Module = Literal["attention", "mlp", "cross_attention"]
Mediator = Literal[
    "hidden", "attention_severed", "mlp_severed", "cross_attention_severed", "mlp", "attention", "cross_attention"
]
"""
"hidden": the layer's output. "..._severed": the same, while the module's outputs at that token keep their corrupted
values in all layers above. "mlp", "attention", "cross_attention": the module's outputs in a window of layers around
this one.
"""
MEDIATORS: tuple[Mediator, ...] = get_args(Mediator)


@dataclass(frozen=True)
class Override:
    """A range of layers in which a module's outputs are replaced by those of another run.

    Args:
        module: The kind of module.
        first: The first layer.
        stop: One past the last layer.
        source: The run that the outputs come from: the clean one, or the corrupted one with the same noise.
    """

    module: Module
    first: int
    stop: int
    source: Literal["clean", "corrupted"]


@dataclass(frozen=True)
class Cell:
    """A corrupted run with something restored at one position.

    Args:
        position: The token's position.
        birth: The layer at whose input the run parts from the corrupted one; the number of layers stands for the last
            layer's output.
        restores_state: Whether the state there is set to its clean value at the position.
        overrides: What is replaced at the position from there on.
    """

    position: int
    birth: int
    restores_state: bool
    overrides: tuple[Override, ...] = ()

    @property
    def changes_from(self) -> int:
        """The first layer at whose input something may differ from the corrupted run."""
        return self.birth if self.restores_state else self.birth + 1


def make_cell(mediator: Mediator, layer: int, position: int, num_layers: int, window: int) -> Cell:
    """Make a cell of a grid. Equal cells are the same run, such as those of severed and plain states at the last layer.

    Args:
        mediator: What is restored.
        layer: The layer at which it is restored.
        position: The position at which it is restored.
        num_layers: The number of layers in the stack.
        window: For "mlp", "attention" and "cross_attention": how many layers around this one are restored together.
            The window is cut off at either end of the stack, as in Meng et al. (2022).

    Example:
        >>> make_cell("mlp_severed", 11, 3, 12, 10) == make_cell("hidden", 11, 3, 12, 10)
        True
        >>> make_cell("mlp", 2, 0, 12, 10).overrides
        (Override(module='mlp', first=0, stop=7, source='clean'),)
    """
    if mediator == "hidden" or mediator.endswith("_severed"):
        severed = module_of(mediator)
        above = layer + 1 < num_layers and severed is not None
        overrides = (Override(severed, layer + 1, num_layers, "corrupted"),) if above and severed else ()
        return Cell(position, layer + 1, True, overrides)
    module = module_of(mediator)
    assert module is not None
    first, stop = max(0, layer - window // 2), min(num_layers, layer - (-window // 2))
    return Cell(position, first, False, (Override(module, first, stop, "clean"),))


def module_of(mediator: Mediator) -> Module | None:
    """Return the kind of module that a mediator restores or severs; None for the plain hidden state.

    Example:
        >>> module_of("cross_attention_severed"), module_of("hidden")
        ('cross_attention', None)
    """
    name = mediator.removesuffix("_severed")
    return None if name == "hidden" else name  # type: ignore[return-value]
