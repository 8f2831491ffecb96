"""The mediators: what is restored at one layer and one token, and what that means for a run."""

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
    """A module's outputs that are replaced by those of another run.

    Args:
        module: Which module.
        first: The first layer.
        stop: One past the last layer.
        source: Whose outputs: the clean run's, or those of the corrupted run with the same noise.
    """

    module: Module
    first: int
    stop: int
    source: Literal["clean", "corrupted"]


@dataclass(frozen=True)
class Cell:
    """A corrupted run with something restored at one place.

    Args:
        place: The token's place.
        birth: The layer at whose input the run parts from the corrupted one; the number of layers: after the last.
        restores_state: Whether the state that enters that layer is set to its clean value at the place.
        overrides: What is replaced at the place from there on.
    """

    place: int
    birth: int
    restores_state: bool
    overrides: tuple[Override, ...] = ()

    @property
    def changes_from(self) -> int:
        """The first layer at whose input something may differ from the corrupted run."""
        return self.birth if self.restores_state else self.birth + 1


def make_cell(mediator: Mediator, layer: int, place: int, num_layers: int, window: int) -> Cell:
    """The cell of a grid. Equal cells are one run, such as a severed one at the last layer and the plain one.

    Args:
        mediator: What is restored.
        layer: At which layer.
        place: At which token.
        num_layers: How many layers there are.
        window: Of "mlp", "attention" and "cross_attention": how many layers around this one, cut off at either end as
            Meng et al. (2022) do.

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
        return Cell(place, layer + 1, True, overrides)
    module = module_of(mediator)
    assert module is not None
    first, stop = max(0, layer - window // 2), min(num_layers, layer - (-window // 2))
    return Cell(place, first, False, (Override(module, first, stop, "clean"),))


def module_of(mediator: Mediator) -> Module | None:
    """The module that a mediator restores or severs; None for the plain hidden state.

    Example:
        >>> module_of("cross_attention_severed"), module_of("hidden")
        ('cross_attention', None)
    """
    name = mediator.removesuffix("_severed")
    return None if name == "hidden" else name  # type: ignore[return-value]
