"""Each rule alone against plain autograd, one example at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from ftrace.gradients import GradientCapture, Projection, QueryGradients, find_coverage, inner_products
from helpers import oracle

BATCH = 4

TOKEN_LAYERS = {
    "linear": lambda: nn.Linear(5, 3),
    "linear without bias": lambda: nn.Linear(5, 3, bias=False),
    "conv1d of hugging face": lambda: Conv1D(3, 5),
    "layer norm": lambda: nn.LayerNorm(5),
    "layer norm without bias": lambda: nn.LayerNorm(5, bias=False),
    "rms norm": lambda: nn.RMSNorm(5, eps=1e-5),
    "t5 norm": lambda: T5LayerNorm(5),
    "llama norm": lambda: LlamaRMSNorm(5),
    "olmo norm": lambda: Olmo2RMSNorm(5),
    "gemma norm": lambda: GemmaRMSNorm(5),
}
CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "1d, all options": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=3, dilation=2, padding_mode="circular"), (4, 9)),
    "1d, groups": (lambda: nn.Conv1d(4, 6, 3, groups=2, padding="same"), (4, 9)),
    "2d": (lambda: nn.Conv2d(3, 5, (2, 3)), (3, 6, 7)),
    "2d without bias": (lambda: nn.Conv2d(3, 5, 1, bias=False), (3, 6, 7)),
    "2d, all options": (
        lambda: nn.Conv2d(3, 5, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect"),
        (3, 6, 7),
    ),
    "2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 6, 7)),
    "2d, same size": (lambda: nn.Conv2d(3, 5, (2, 4), padding="same"), (3, 6, 7)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 6, 7)),
    "batch norm in eval mode": (lambda: _with_statistics(nn.BatchNorm2d(4)), (4, 6, 7)),
    "batch norm of vectors": (lambda: _with_statistics(nn.BatchNorm1d(4)), (4,)),
}


def _with_statistics(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean += torch.linspace(-1, 1, 4)
    norm.running_var *= torch.linspace(1, 3, 4)
    return norm.double().eval()


def _randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter, dtype=torch.float64)
    return module


def _check(module: nn.Module, inputs: Tensor) -> None:
    # Gemma's norm does all of its arithmetic in float32, its own backward pass included.
    tolerance = 1e-5 if isinstance(module, GemmaRMSNorm) else 1e-9
    torch.manual_seed(1)
    weights = torch.randn_like(module(inputs))

    def losses() -> Tensor:
        return (module(inputs).sin() * weights).flatten(1).sum(1)

    with GradientCapture(module) as capture, capture.recording(len(inputs)) as recording:
        recording.backward(losses())
    assert not {line.parameter for line in capture.coverage.lines if line.rules == ("fallback",)}
    found = recording.gradients()
    expected = oracle.gradients(module, losses)
    for name in expected[0]:
        torch.testing.assert_close(
            found.dense(name), torch.stack([row[name] for row in expected]), rtol=tolerance, atol=1e-3 * tolerance
        )


@pytest.mark.parametrize("places", [(), (1,), (7,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", TOKEN_LAYERS)
def test_rule_equals_autograd(name: str, places: tuple[int, ...]) -> None:
    inputs = torch.randn(BATCH, *places, 5, dtype=torch.float64)
    _check(_randomised(TOKEN_LAYERS[name]()), inputs)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_autograd(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    _check(_randomised(layer()), torch.randn(BATCH, *shape, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in TOKEN_LAYERS if name != "conv1d of hugging face"])
def test_rule_takes_non_contiguous_inputs(name: str) -> None:
    inputs = torch.randn(5, 7, BATCH, dtype=torch.float64).permute(2, 1, 0)
    _check(_randomised(TOKEN_LAYERS[name]()), inputs)


@pytest.mark.parametrize("name", ["1d, groups", "2d"])
# PyTorch 2.13 itself crashes in the backward pass of a GroupNorm whose channels come last.
def test_convolution_takes_non_contiguous_inputs(name: str) -> None:
    layer, (channels, *places) = CONVOLUTIONS[name]
    inputs = torch.randn(BATCH, *places, channels, dtype=torch.float64).movedim(-1, 1)
    _check(_randomised(layer()), inputs)


@pytest.mark.parametrize("name", [*TOKEN_LAYERS, *CONVOLUTIONS])
def test_no_examples_give_no_gradients(name: str) -> None:
    layer, shape = CONVOLUTIONS[name] if name in CONVOLUTIONS else (TOKEN_LAYERS[name], (7, 5))
    module = _randomised(layer())
    with GradientCapture(module) as capture, capture.recording(0) as recording:
        recording.backward(module(torch.randn(0, *shape, dtype=torch.float64)).flatten(1).sum(1))
    found = recording.gradients()
    for parameter, value in module.named_parameters():
        assert found.dense(parameter).shape == (0, *value.shape)
    assert inner_products(found, QueryGradients(found), list(found.parts)).shape == (0, 0)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding_equals_autograd(padding_idx: int | None) -> None:
    ids = torch.randint(0, 6, (BATCH, 9))  # with repetitions
    _check(_randomised(nn.Embedding(6, 3, padding_idx=padding_idx)), ids)


def test_rows_side_by_side_belong_to_one_example() -> None:
    module = _randomised(nn.Linear(5, 3))
    inputs = torch.randn(BATCH, 6, 5, dtype=torch.float64)

    def losses() -> Tensor:
        return module(inputs.flatten(0, 1)).sin().view(BATCH, -1).sum(1)

    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.backward(losses())
    expected = oracle.gradients(module, losses)
    torch.testing.assert_close(
        recording.gradients().dense("weight"), torch.stack([row["weight"] for row in expected]), rtol=1e-9, atol=1e-12
    )


def test_output_changed_in_place_afterwards() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mul_(3.0).sin()

    _check(_randomised(Changed()), torch.randn(BATCH, 5, dtype=torch.float64))


def test_a_users_hook_that_edits_the_output_is_seen_through() -> None:
    module = _randomised(nn.Sequential(nn.Linear(5, 3)))
    module[0].register_forward_hook(lambda layer, args, output: 2 * output)
    _check(module, torch.randn(BATCH, 5, dtype=torch.float64))


def test_layer_that_runs_twice_is_summed_with_its_cross_terms() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).tanh())

    _check(_randomised(Twice()), torch.randn(BATCH, 3, 5, dtype=torch.float64))


def test_an_input_that_is_changed_in_place_afterwards_is_refused() -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = x.sin()
            y = self.layer(hidden)
            hidden.mul_(2)
            return y

    module = _randomised(Careless())
    with GradientCapture(module) as capture, capture.recording(BATCH) as recording:
        recording.backward(module(torch.randn(BATCH, 5, dtype=torch.float64)).sum(1))
    with pytest.raises(ValueError, match=r"layer 'layer' \(Linear\) had its input changed in place after it ran"):
        recording.gradients()


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_in_train_mode_is_refused_by_name(affine: bool) -> None:
    module = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, affine=affine))
    gaps = find_coverage(module).gaps
    assert [gap.parameter for gap in gaps] == (["1.weight", "1.bias"] if affine else [])
    assert all("normalises by the statistics of its batch" in gap.reason for gap in gaps)
    message = r"layer '1' \(BatchNorm1d\) normalises by the statistics of its batch"
    with GradientCapture(module) as capture, capture.recording(4), pytest.raises(ValueError, match=message):
        module(torch.randn(4, 5))


@pytest.mark.parametrize("change", ["add", "relu", "set", "dropout"])
@pytest.mark.parametrize("side", [None, 9])
def test_outputs_of_three_axes_that_are_changed_in_place(change: str, side: int | None) -> None:
    """A matrix product with a bias returns a view there, and autograd routes around views that are changed."""

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), Conv1D(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.first, self.second):
                before, x = x, layer(x)
                if change == "add":
                    x += before
                elif change == "relu":
                    x = x.relu_()
                elif change == "set":
                    x[:, 0] = 0
                else:
                    x = nn.functional.dropout(x, 0.0, inplace=True)
            return x

    module = _randomised(Changed())
    inputs = torch.randn(BATCH, 3, 5, dtype=torch.float64)

    def losses() -> Tensor:
        return module(inputs).sin().flatten(1).sum(1)

    projection = None if side is None else Projection(side)
    rows = oracle.gradients(module, losses)
    for query in (True, False):
        with GradientCapture(module, projection=projection) as capture, capture.recording(BATCH) as recording:
            recording.backward(losses()) if query else losses().sum().backward()
        found = recording.gradients()
        for name in rows[0]:
            expected = torch.stack([row[name] for row in rows])
            expected = expected if projection is None else projection.project(name, expected)
            torch.testing.assert_close(found.dense(name), expected, rtol=1e-9, atol=1e-12, msg=name)


class Positions(nn.Module):
    def __init__(self, use: str) -> None:
        super().__init__()
        self.use, self.table, self.head = use, nn.Embedding(9, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.arange(x.shape[1])
        if self.use == "one axis":
            return self.head((x + self.table(ids)).sin())
        found = self.table(ids[None])
        return self.head((x + (found[0] if self.use == "indexed" else found)).sin())


@pytest.mark.parametrize("use", ["broadcast", "indexed", "one axis"])
@pytest.mark.parametrize("places", [4, 7, 8])  # as many as examples, a multiple of them, or neither
def test_positions_that_are_looked_up_once(use: str, places: int) -> None:
    _check(_randomised(Positions(use)), torch.randn(BATCH, places, 5, dtype=torch.float64))


def _single_inputs() -> dict[str, tuple[nn.Module, Tensor]]:
    """Layers on one input without a batch axis, and that input."""
    found = {name: (layer(), torch.randn(5)) for name, (layer) in TOKEN_LAYERS.items()}
    for name, (layer, shape) in CONVOLUTIONS.items():
        if name[0] in "12":
            found[name] = layer(), torch.randn(shape)
    return found


@pytest.mark.parametrize("name", _single_inputs())
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("side", [None, 9])
def test_inputs_without_a_batch_axis(name: str, count: int, one_by_one: bool, side: int | None) -> None:
    """What all examples share, or each example in a run of its own."""
    torch.manual_seed(2)
    layer, one_input = _single_inputs()[name]
    module, one_input = _randomised(layer), one_input.double()
    inputs = torch.randn(count, *one_input.shape, dtype=torch.float64)
    weights = torch.randn(count, *module(one_input).shape, dtype=torch.float64)

    def losses() -> Tensor:
        if one_by_one:
            return torch.stack([(module(own).sin() * w).sum() for own, w in zip(inputs, weights, strict=True)])
        return (module(one_input).sin() * weights).flatten(1).sum(1)

    projection = None if side is None else Projection(side)
    with GradientCapture(module, projection=projection) as capture, capture.recording(count) as recording:
        recording.backward(losses())
    found = recording.gradients()
    rows = oracle.gradients(module, losses)
    tolerance = 1e-5 if isinstance(module, GemmaRMSNorm) else 1e-9
    for parameter in rows[0]:
        expected = torch.stack([row[parameter] for row in rows])
        expected = expected if projection is None else projection.project(parameter, expected)
        torch.testing.assert_close(found.dense(parameter), expected, rtol=tolerance, atol=1e-2 * tolerance)
