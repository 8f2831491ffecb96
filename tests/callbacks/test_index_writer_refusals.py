"""What GradientIndexWriter refuses: bad options, loops and modules that it can't follow, the folder of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.callbacks import GradientIndexWriter
from helpers.language_runs import Module, fit, rows


def test_nothing_written_is_said(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=2, epochs=[7])
    with pytest.warns(UserWarning, match=r"nothing was written.*epochs=\[7\]"):
        fit(Module("gpt2"), DataLoader(rows("gpt2", 6), batch_size=3), tmp_path, [writer], max_epochs=1)


def test_rows_of_mixed_up_examples_are_found(tmp_path: Path) -> None:
    """They sum to the gradient all the same."""
    module = Module("gpt2")
    module.model.transformer.h[0].register_forward_hook(lambda layer, args, output: output.roll(1, 0))
    writer = GradientIndexWriter(tmp_path / "index", projection_side=2)
    with pytest.raises(ValueError, match=r"GradientIndexWriter: layer .* examples of the batch can't be told apart"):
        fit(module, DataLoader(rows("gpt2", 6), batch_size=3), tmp_path, [writer])


def test_the_index_of_another_run_is_not_overwritten(tmp_path: Path) -> None:
    loader = DataLoader(rows("gpt2", 6), batch_size=3)
    fit(Module("gpt2"), loader, tmp_path, [GradientIndexWriter(tmp_path / "index", projection_side=2)], max_epochs=1)
    with pytest.raises(ValueError, match="index of another run"):
        fit(
            Module("gpt2"), loader, tmp_path, [GradientIndexWriter(tmp_path / "index", projection_side=2)], max_epochs=1
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": [0], "steps": [[0, 1]]}, "one of epochs and steps"),
        ({"epochs": []}, "epochs"),
        ({"steps": [[3, 1]]}, "ranges"),
        ({"segment_steps": 0}, "segment_steps"),
        ({"projection_side": 0}, "projection_side"),
        ({"layout": "diagonal"}, "layout"),
        ({"preconditioner": "half"}, "preconditioner"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientIndexWriter(**options)


def test_parameters_of_several_learning_rates_are_refused(tmp_path: Path) -> None:
    writer = GradientIndexWriter(tmp_path / "index", projection_side=2, parameters=("*",))
    with pytest.raises(ValueError, match="one learning rate"):
        fit(Module("gpt2", groups=True), DataLoader(rows("gpt2", 6), batch_size=3), tmp_path, [writer])


def test_manual_optimization_is_refused(tmp_path: Path) -> None:
    module = Module("gpt2")
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic optimization with one optimizer"):
        fit(
            module,
            DataLoader(rows("gpt2", 6), batch_size=3),
            tmp_path,
            [GradientIndexWriter(tmp_path / "i", projection_side=2)],
        )


class UsesWeightElsewhere(Module):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        penalty = self.model.transformer.h[0].mlp.c_fc.weight.square().sum()
        return super().training_step(batch, batch_idx) + penalty


def test_a_weight_that_is_used_outside_of_its_layer_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"outside of the modules that they are read off.*c_fc\.weight"):
        fit(
            UsesWeightElsewhere("gpt2"), DataLoader(rows("gpt2", 6), batch_size=3), tmp_path,
            [GradientIndexWriter(tmp_path / "i", projection_side=2)],
        )  # fmt: skip
