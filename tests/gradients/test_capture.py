"""Capture: nothing is disturbed, several can record at once, and parameters that can't be covered are named."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from ftrace.gradients import GradientCapture, PerExampleGradients, QueryGradients, find_coverage, inner_products
from helpers import oracle, tiny


def _gradients(kind: str, model: nn.Module, batch: dict[str, torch.Tensor]) -> PerExampleGradients:
    rows = len(batch["labels"])
    with GradientCapture(model) as capture, capture.recording(rows) as recording:
        recording.backward(tiny.losses(model, batch))
    return recording.gradients()


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_stacked_batches_equal_one_batch(kind: str) -> None:
    model = tiny.MODELS[kind]().eval()
    short, long = tiny.batch(kind, 2, seed=3, length=5), tiny.batch(kind, 3, seed=4, length=8)
    stacked = PerExampleGradients.stack([_gradients(kind, model, batch) for batch in (short, long)])
    expected = oracle.matrix(
        [row for batch in (short, long) for row in oracle.gradients(model, lambda b=batch: tiny.losses(model, b))]
    )
    dense = torch.cat([stacked.dense(name).flatten(1) for name, _ in model.named_parameters()], 1)
    assert oracle.relative_error(dense, expected) < 1e-9


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("kind", tiny.MODELS)
def test_recording_leaves_gradients_bit_identical(kind: str, with_mask: bool) -> None:
    batch = tiny.batch(kind, rows=5)
    if not with_mask:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    grads = []
    for records in (False, True):
        model = tiny.MODELS[kind](torch.float32).train()
        capture = GradientCapture(model)
        if records:
            capture.attach()
            capture.start(5)
        model(**batch).loss.backward()
        capture.detach()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, recorded) for plain, recorded in zip(*grads, strict=True))


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_two_captures_at_once_agree_and_leave_gradients_bit_identical(kind: str) -> None:
    batch = tiny.batch(kind, rows=5)
    plain = tiny.MODELS[kind](torch.float32)
    plain(**batch).loss.backward()
    model = tiny.MODELS[kind](torch.float32)
    captures = [GradientCapture(model), GradientCapture(model)]
    for capture in captures:
        capture.attach()
    recordings = [capture.start(5) for capture in captures]
    model(**batch).loss.backward()
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)
    first, second = (recording.gradients() for recording in recordings)
    assert all(torch.equal(first.total(name), second.total(name)) for name in first.parts)


def test_detached_capture_leaves_no_hooks() -> None:
    model = tiny.t5()
    with GradientCapture(model):
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_of_a_pass_outlives_it() -> None:
    model = tiny.t5()
    seen: list[weakref.ref[torch.Tensor]] = []
    model.encoder.final_layer_norm.register_forward_hook(lambda m, a, output: seen.append(weakref.ref(output)))
    with GradientCapture(model) as capture, capture.recording(3) as recording:
        model(**tiny.batch("t5", 3)).loss.backward()
    recording.gradients()
    del recording
    assert seen[0]() is None


def test_one_example_of_a_batch_by_autograd_through_its_own_graph() -> None:
    model = tiny.gpt2()
    batch = tiny.batch("gpt2", 4)
    with GradientCapture(model) as capture, capture.recording(4) as recording:
        loss = model(**batch).loss
        with recording.just(2):
            found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        loss.backward()
    gradients = recording.gradients()
    for (name, _), expected in zip(model.named_parameters(), found, strict=True):
        torch.testing.assert_close(gradients.dense(name)[2], expected, rtol=1e-9, atol=1e-12, msg=name)


class _Gap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.layer = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_coverage_says_what_became_of_each_parameter() -> None:
    model = _Gap()
    coverage = find_coverage(model, ("*", "!*.bias"), optimized=[model.scale, *model.layer.parameters()])
    assert {line.parameter: line.status for line in coverage.lines} == {
        "scale": "unsupported",
        "layer.weight": "covered",
        "layer.bias": "excluded",
        "frozen.weight": "frozen",
        "frozen.bias": "frozen",
    }
    assert "_Gap has no forward to hook" in coverage.gaps[0].reason


def test_a_gap_is_an_error_where_that_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"can't cover all trained parameters\. .*\n  scale: _Gap has no forward"):
        GradientCapture(_Gap(), strict=True)
    GradientCapture(_Gap(), ("*", "!scale"), strict=True)


def test_tied_parameters_are_covered_once_and_name_their_aliases() -> None:
    line = next(line for line in find_coverage(tiny.t5()).lines if line.parameter == "shared.weight")
    assert line.status == "covered"
    assert set(line.rules) == {"Embedding", "Linear"}
    assert "lm_head.weight" in line.aliases


def test_a_tied_parameter_goes_by_any_of_its_names() -> None:
    covered = find_coverage(tiny.gpt2(), ("*", "!lm_head.weight")).covered
    assert "transformer.wte.weight" not in covered


def test_a_glob_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the glob '\*\.query' matches no parameter. There are: 'transformer"):
        find_coverage(tiny.gpt2(), ("*.query",))


@pytest.mark.parametrize("option", [{"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}], ids=str)
def test_embedding_options_that_are_no_sum_over_examples_are_refused(option: dict[str, object]) -> None:
    gap = find_coverage(nn.Embedding(4, 2, **option)).gaps[0]
    assert f"Embedding({next(iter(option))}=" in gap.reason


def test_a_leading_axis_that_is_not_the_batch_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    message = r"layer '0' \(Linear\) returned shape \(5, 2\): expected the leading axis"
    with GradientCapture(model) as capture, capture.recording(4):
        model(torch.ones(5, 3))  # whatever the loss doesn't use may have any shape
        with pytest.raises(ValueError, match=message):
            model(torch.ones(5, 3)).sum().backward()


@pytest.mark.parametrize("covered", [("*wpe*",), ("*", "!*wte*")], ids=str)
def test_positions_are_told_apart_where_the_token_embedding_is_not_covered(covered: tuple[str, ...]) -> None:
    """Two rows an example, as several answers a query have: only the lookup of tokens says how many rows there are."""
    model = tiny.gpt2().eval()
    batch = tiny.batch("gpt2", rows=6)

    def losses() -> torch.Tensor:
        return tiny.losses(model, batch).view(3, 2).sum(1)

    with GradientCapture(model, covered) as capture, capture.recording(3) as recording:
        recording.backward(losses())
    expected = torch.stack([row["transformer.wpe.weight"] for row in oracle.gradients(model, losses)])
    torch.testing.assert_close(recording.gradients().dense("transformer.wpe.weight"), expected, rtol=1e-9, atol=1e-12)


def test_a_capture_is_deaf_to_anothers_own_passes() -> None:
    model = tiny.t5()
    with GradientCapture(model) as mine, GradientCapture(model) as other:
        recording = other.start(3)
        with mine.exclusively(), mine.recording(5) as own:
            own.backward(tiny.losses(model, tiny.batch("t5", 5)))
        loss = model(**tiny.batch("t5", 3)).loss
        mine_too = mine.start(3)
        assert not mine_too.gradients().parts
        with recording.just(0):
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(recording.gradients().total(name), parameter.grad, rtol=1e-9, atol=1e-12)
    assert own.gradients().num_examples == 5


def test_a_parameter_that_is_frozen_meanwhile_has_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with GradientCapture(model) as capture:
        model[1].weight.requires_grad_(False)
        with capture.recording(4) as recording:
            model(torch.ones(4, 3)).sum().backward()
    assert recording.gradients().parts.keys() == {"0.weight", "0.bias", "1.bias"}


def test_batches_that_use_other_layers_stack_with_zeros() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]).double()
    with GradientCapture(model) as capture:
        batches = []
        for layer, rows in ((0, 2), (1, 3)):
            with capture.recording(rows) as recording:
                recording.backward(model[layer](torch.ones(rows, 4, 3, dtype=torch.float64)).flatten(1).sum(1))
            batches.append(recording.gradients())
    stacked = PerExampleGradients.stack(batches)
    assert torch.equal(stacked.dense("0.weight")[:2], batches[0].dense("0.weight"))
    assert not stacked.dense("0.weight")[2:].any()
    assert torch.equal(stacked.dense("1.bias")[2:], batches[1].dense("1.bias"))
    assert not stacked.dense("1.bias")[:2].any()


def test_not_one_loss_per_example_is_an_error() -> None:
    model = nn.Linear(3, 2)
    message = r"expected one loss per example, .*\(4,\), found \(\)"
    with GradientCapture(model) as capture, capture.recording(4) as recording, pytest.raises(ValueError, match=message):
        recording.backward(model(torch.ones(4, 3)).sum())


class _Borrowed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(x) @ self.layer.weight


def test_a_weight_that_is_used_without_its_layer_is_named_in_a_querys_pass() -> None:
    model = _Borrowed()
    with GradientCapture(model) as capture, capture.recording(4) as recording:
        losses = model(torch.randn(4, 3)).sum(1)
        with pytest.raises(ValueError, match=r"'layer.weight' gets a gradient, though its layer never ran"):
            recording.backward(losses)
    with GradientCapture(model, ("*", "!layer.*")) as capture, capture.recording(4) as recording:
        recording.backward(model(torch.randn(4, 3)).sum(1))
    assert recording.gradients().parts.keys() == {"other.weight", "other.bias"}


def test_penalties_on_gradients_are_refused() -> None:
    model = nn.Linear(3, 1)
    with GradientCapture(model) as capture, capture.recording(4):
        out = model(torch.randn(4, 3))
        with pytest.raises(ValueError, match="create_graph=True goes through a recorded layer"):
            torch.autograd.grad(out.sum(), model.weight, create_graph=True)


def test_layers_that_run_again_after_the_recording_has_ended_are_an_error() -> None:
    model = tiny.gpt2().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with GradientCapture(model) as capture:
        with capture.recording(4) as recording:
            loss = tiny.losses(model, tiny.batch("gpt2", 4)).sum()
        with pytest.raises(ValueError, match="the recording ended before its backward pass"):
            loss.backward()
        assert not recording.was_read


def test_layers_of_several_precisions() -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2).double()])

    def losses() -> torch.Tensor:
        return model[1](model[0](torch.ones(4, 3)).tanh().double()).sin().sum(1)

    with GradientCapture(model) as capture, capture.recording(4) as recording:
        recording.backward(losses())
    found = recording.gradients()
    expected = oracle.matrix([{n: g.double() for n, g in row.items()} for row in oracle.gradients(model, losses)])
    for way in (None, "gram", "materialised", "contraction"):
        prepared = QueryGradients(PerExampleGradients.stack([found]), way)
        assert oracle.relative_error(inner_products(found, prepared, list(found.parts)), expected @ expected.T) < 1e-6


def test_two_precisions_on_two_sides_are_an_error() -> None:
    sides = []
    for dtype in (torch.float32, torch.float64):
        model = nn.Linear(3, 2).to(dtype)
        with GradientCapture(model) as capture, capture.recording(4) as recording:
            recording.backward(model(torch.ones(4, 3, dtype=dtype)).sum(1))
        sides.append(recording.gradients())
    with pytest.raises(ValueError, match=r"of one precision, found torch.float64 and torch.float32"):
        inner_products(sides[1], QueryGradients(sides[0]), ["weight"])


def test_parameters_of_two_precisions_may_be_multiplied_one_by_one() -> None:
    """As in the backward pass, or with an optimizer for each precision."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2).double()])
    with GradientCapture(model) as capture, capture.recording(4) as recording:
        recording.backward(sum(layer(torch.randn(4, 3).to(layer.weight.dtype)).double().sum(1) for layer in model))
    found = recording.gradients()
    for way in (None, "gram", "materialised", "contraction"):
        for name in found.parts:
            for queries in (found.only(found.parts), found.only([name])):
                products = inner_products(found.only([name]), QueryGradients(queries, way), [name])
                rows = found.dense(name).flatten(1)
                torch.testing.assert_close(products.double(), rows.double() @ rows.double().T, rtol=1e-5, atol=1e-5)


def test_a_lazy_module_is_to_be_run_first() -> None:
    with pytest.raises(ValueError, match="'weight' has no shape yet"):
        find_coverage(nn.LazyLinear(3))


def test_trained_parameters_in_the_same_memory_are_gaps() -> None:
    """A step on one moves the other, so that no score of either says what the steps do."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data.T)
    reasons = {gap.parameter: gap.reason for gap in find_coverage(model).gaps}
    assert reasons.keys() == {"0.weight", "1.weight"}
    assert "same memory as '1.weight'" in reasons["0.weight"]
    assert find_coverage(model, optimized=[model[0].weight]).covered == ("0.weight",)
    model[1].weight = nn.Parameter(model[0].weight.data.T.clone())
    assert not find_coverage(model).gaps


def test_gradients_of_parts_of_one_memory_are_read() -> None:
    """As cuDNN keeps those of recurrent layers."""
    memory = torch.randn(24)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    for layer, part, shape in zip(model, memory.split(12), ((4, 3), (3, 4)), strict=True):
        layer.weight = nn.Parameter(part.view(shape))
    assert not find_coverage(model).gaps
