"""What was heard of one forward pass, and once backward has passed, each example's gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ftrace.gradients.coverage import Layer
from ftrace.gradients.fallback import Beginning, Replay, differentiable
from ftrace.gradients.parts import Part, Places
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.projection import Projection
from ftrace.gradients.rules import Rule
from ftrace.gradients.uses import Cut, FallbackUse, Output, ProjectedUse, Use, exclusively, trained


class Recording:
    """What was heard of one forward pass.

    Args:
        num_examples: Rows of the batch. A layer that gets a multiple of them (several answers a query, tokens
            flattened into rows) is taken to hold each example's rows side by side.
        capture: Id of the capture that listens.
        projection: Project all gradients as they come; default: keep them whole.
        layers: All layers of which a gradient without a run is an error.
        compiled: Whether the module is compiled, so that hooks may have come too late.
        groups: Sizes of the batches of several dataloaders that one training step runs one after another; together
            they are the examples.

    Attributes:
        was_read: Whether its gradients have been read.
        has_single: Whether a run of one row may be one dataloader's batch, and not a table of positions.
        rows: Rows that the model's last lookup had: what a table of positions, looked up once, is expanded to.
    """

    def __init__(
        self,
        num_examples: int,
        capture: int,
        projection: Projection | None = None,
        *,
        layers: Sequence[Layer] = (),
        compiled: bool = False,
        groups: Sequence[int] = (),
    ) -> None:
        self.num_examples = num_examples
        self.rows = num_examples
        self.was_read = False
        self.projection = projection
        self._layers = layers
        self._compiled = compiled
        self._uses: list[Use | FallbackUse] = []
        self._positions: list[Use] = []
        self._edges: list[GradientEdge] = []
        self._capture = capture
        self._cut = Cut(num_examples, capture)  # of runs that have all examples' rows
        self._groups = [Cut(size, capture) for size in groups] if len(groups) > 1 else []
        self._runs_of: Counter[tuple[str, int]] = Counter()
        self.has_single = 1 in groups and len(groups) > 1

    def add(
        self, layer: Layer, inputs: Tensor, output: Tensor, *, expanded: bool = False, positions: bool = False
    ) -> None:
        """Take note of a layer's run, and ask autograd for the gradient of its output.

        Args:
            layer: The layer.
            inputs: What it was given.
            output: What it returned.
            expanded: Whether that is one copy an example of what the layer itself returned.
            positions: Whether the model's own code has been given these copies, as rows of positions.
        """
        assert isinstance(layer.rule, Rule)
        cut = self._cut_of(layer, output)
        refusal = self._refusal(layer, inputs, output, cut.num_examples)
        if self.projection is None:
            use = Use(layer, layer.rule, inputs, cut, refusal)
        else:
            use = ProjectedUse(layer, layer.rule, inputs, cut, refusal, self.projection)
        self._uses.append(use)
        base = output._base
        if positions:
            self._positions.append(use)
        if (
            not expanded
            and base is not None
            and base.grad_fn is not None
            and base.numel() == output.numel()
            and _is_reshaped(output)
        ):
            # A matrix product with a bias returns a view, and an in-place change of a view goes around hooks on it.
            use.output_shape = output.shape
            output = base
        self._listen(output, use)

    def add_fallback(self, layer: Layer, args: Any, kwargs: Any, output: Any, began: Beginning) -> None:
        """Take note of the run of a layer without a rule."""
        tensors = differentiable(output)
        if not tensors:
            raise ValueError(
                f"layer {layer.path!r} ({type(layer.module).__name__}) has no rule and returned a "
                f"{type(output).__name__} in which no tensor is found: leave its parameters out"
            )
        if not any(tensor.requires_grad for tensor in tensors):
            return
        replay = Replay(layer.module, args, kwargs, output, began)
        outputs = []
        cut = self._cut_of(layer, tensors[0])
        for tensor in tensors:
            heard = Output(cut, self._refusal(layer, None, tensor, cut.num_examples))
            if tensor.requires_grad:
                self._listen(tensor, heard)
            outputs.append(heard)
        self._uses.append(FallbackUse(layer, replay, outputs, self.projection))

    def _listen(self, output: Tensor, heard: Output) -> None:
        self._edges.append(get_gradient_edge(output))  # now, before anything may change the output in place
        output.register_hook(heard.take_gradient)

    def _cut_of(self, layer: Layer, output: Tensor) -> Cut:
        """Whose rows a run has: all examples', or those of one dataloader's batch.

        Batches of one size are told apart by their order, which the caller's own check has to confirm.
        """
        rows = output.shape[0] if output.ndim else -1
        same = [cut for cut in self._groups if cut.num_examples == rows]
        if not same or rows == self.num_examples:
            return self._cut
        run = self._runs_of[layer.path, rows]
        self._runs_of[layer.path, rows] += 1
        if run >= len(same):
            raise ValueError(
                f"layer {layer.path!r} ({type(layer.module).__name__}) ran {run + 1} times on {rows} rows, and "
                f"{len(same)} dataloaders have batches of that size: can't tell whose rows these are. Give the "
                "dataloaders other batch sizes, or run their batches as one"
            )
        return same[run]

    def _refusal(self, layer: Layer, inputs: Tensor | None, output: Tensor, num_examples: int) -> str | None:
        """Why a layer's gradient can't be taken apart; an error only if it ever gets a gradient."""
        rows = output.shape[0] if output.ndim >= (1 if inputs is None else 2) else -1
        whole = rows == num_examples or (num_examples and rows > 0 and rows % num_examples == 0)
        of_positions = isinstance(layer.rule, Rule) and layer.rule.is_table and inputs is not None and inputs.ndim == 1
        if whole and not (of_positions and rows != num_examples):
            return None
        left_out = ", ".join(f'"!{name}"' for name in list(layer.names.values())[:3])
        hint = " Look positions up with ids of shape [1, T]," if of_positions else ""
        return (
            f"layer {layer.path!r} ({type(layer.module).__name__}) returned shape {tuple(output.shape)}: expected the "
            f"leading axis to be the batch of {num_examples} examples, or a multiple of it. Per-example gradients "
            f"can't be read off it.{hint} {'or l' if hint else 'L'}eave its parameters out with "
            f'parameters=("*", {left_out}).'
        )

    def backward(self, losses: Tensor) -> None:
        """Differentiate one loss per example with respect to layer outputs only: no weight gradient is computed.

        Args:
            losses: ``[num_examples]``.

        Raises:
            ValueError: If there is not one loss per example, a compiled module has not been listened to, or a covered
                parameter is used outside of its layer.
        """
        if losses.shape != (self.num_examples,):
            raise ValueError(
                f"expected one loss per example, a tensor of shape ({self.num_examples},), found {tuple(losses.shape)}"
            )
        self._require_hooks()
        unheard = self._unheard()
        if not self._edges and not unheard:
            return
        # The hooks take the layers' gradients; a weight whose layer never ran must not get one.
        inputs: list[Any] = [*self._edges, *unheard.values()]
        found = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)
        for name, grad in zip(unheard, found[len(self._edges) :], strict=True):
            if grad is not None and grad.any():
                raise ValueError(
                    f"{name!r} gets a gradient, though its layer never ran: something uses it outside of its layer's "
                    f'forward, so it can\'t be covered. Leave it out with parameters=("*", "!{name}")'
                )

    def _unheard(self) -> dict[str, nn.Parameter]:
        """Covered parameters whose layers have not run, by name."""
        heard = {name for use in self._uses for name in use.layer.names.values()}
        return {
            full: layer.parameter(local)
            for layer in self._layers
            for local, full in layer.names.items()
            if full not in heard and layer.parameter(local).requires_grad
        }

    def gradients(self) -> PerExampleGradients:
        """Per-example gradients of all covered parameters that the pass has used; call after backward.

        Raises:
            ValueError: If a layer's gradients can't be read off it after all.
        """
        self._require_hooks()
        self._require_broadcasting()
        self.was_read = True
        whole = self._read([use for use in self._uses if use.cut is self._cut], self.num_examples)
        if not self._groups:
            return whole
        of_groups = [
            self._read([use for use in self._uses if use.cut is cut], cut.num_examples) for cut in self._groups
        ]
        stacked = PerExampleGradients.stack(of_groups)
        names = dict.fromkeys([*whole.parts, *stacked.parts])
        parts: dict[str, list[Part | Places]] = {
            name: [*whole.parts.get(name, ()), *stacked.parts.get(name, ())] for name in names
        }
        return PerExampleGradients(parts, {**whole.shapes, **stacked.shapes}, self.num_examples)

    def _read(self, uses: Sequence[Use | FallbackUse], num_examples: int) -> PerExampleGradients:
        parts: dict[str, list[Part | Places]] = {}
        shapes: dict[str, torch.Size] = {}
        for layer, of_run in _runs(uses):
            local_names = {full: local for local, full in layer.names.items()}
            for name, part in of_run:
                parts.setdefault(name, []).append(part)
                shape = layer.parameter(local_names[name]).shape
                shapes[name] = shape if self.projection is None else self.projection.shape(shape)
        return PerExampleGradients(parts, shapes, num_examples)

    def has_gradients(self) -> bool:
        """Whether a backward pass has come by."""
        return any(use.has_gradient() for use in self._uses)

    def forget_gradients(self) -> None:
        """Ready for another backward pass through the same graph, which is to be read by itself."""
        for use in self._uses:
            use.forget_gradient()

    def _require_hooks(self) -> None:
        if self._compiled and not self._uses:
            raise ValueError(
                "none of the covered layers was heard: a compiled module keeps to the hooks that it had when it was "
                "called first. Attach the capture before its first call, or torch.compiler.reset() it"
            )

    def _require_broadcasting(self) -> None:
        """A table of positions, expanded to one copy an example, must have been used by every example."""
        for use in self._positions:
            first, others = use.rows_with_gradient()
            if first and not others and any(u.rows_with_gradient()[1] for u in self._uses if isinstance(u, Use)):
                raise ValueError(
                    f"layer {use.layer.path!r} ({type(use.layer.module).__name__}) looked rows up once for the batch, "
                    "and only the first example has used them: its output may only be broadcast over the batch, not "
                    "indexed. Look them up for each example"
                )

    def runs(self) -> Iterator[tuple[Layer, list[tuple[str, Part | Places]]]]:
        """Each run of a layer by itself, in order: the layer, and its parts with the parameters' full names.

        A parameter that the layer has under two names has two parts.
        """
        self.was_read = True
        yield from _runs(self._uses)

    @contextmanager
    def just(self, example: int) -> Iterator[None]:
        """While active, backward passes through the recorded layers carry one example's gradient and nobody else's.

        This is what makes ordinary autograd an oracle for a single example inside the user's own batch and loss.
        """
        self._cut.example = example
        for cut in self._groups:
            inside = 0 <= example < cut.num_examples
            cut.example = example if inside else -1  # nobody
            example = example - cut.num_examples if not inside else -1
        try:
            with exclusively(self._capture):
                yield
        finally:
            for cut in (self._cut, *self._groups):
                cut.example = None


def _runs(uses: Sequence[Use | FallbackUse]) -> Iterator[tuple[Layer, list[tuple[str, Part | Places]]]]:
    for use in uses:
        names = trained(use.layer)
        parts = use.parts(names)
        if parts:
            yield use.layer, [(names[local], part) for local, part in parts.items()]


def _is_reshaped(view: Tensor) -> bool:
    """Whether a view has its base's numbers in its base's order."""
    base = view._base
    return base is not None and view.is_contiguous() and base.is_contiguous()
