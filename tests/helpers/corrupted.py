"""Contributions that are changed on their way into the scores, for tests of what must notice."""

from collections.abc import Callable
from typing import Any

import pytest

from ftrace.gradients import PerExampleGradients
from ftrace.gradients.parts import Part
from ftrace.online.scoring.early_products import EarlyProducts
from ftrace.online.scoring.scoring import Scoring


def change_contributions(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Part], Part]) -> None:
    """Change each part of one parameter's gradients, once for each batch, before they are multiplied in any way."""
    multiply, take = Scoring.multiply, EarlyProducts.take

    def changed(gradients: PerExampleGradients) -> None:
        if name in gradients.parts:  # autograd still needs the tensors as they are
            gradients.parts[name] = tuple(change(part) for part in gradients.parts[name])

    def multiply_changed(self: Scoring, example_ids: Any, forms: Any, *args: Any, **settings: Any) -> Any:
        changed(forms.plain)
        return multiply(self, example_ids, forms, *args, **settings)

    def take_changed(self: EarlyProducts, gradients: PerExampleGradients) -> None:
        changed(gradients)
        take(self, gradients)

    monkeypatch.setattr(Scoring, "multiply", multiply_changed)
    monkeypatch.setattr(EarlyProducts, "take", take_changed)
