"""The record of one forward pass, and after its backward pass, each example's gradients."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.backward_hooks import BackwardHooks
from ftrace.gradients.coverage import Layer
from ftrace.gradients.early import EarlyReading, Take
from ftrace.gradients.evidence import Prints
from ftrace.gradients.fallback import Replay, outputs_of
from ftrace.gradients.finding import Recorded, learn_from_losses
from ftrace.gradients.fused_heads import FusedHead, HeadUse, Measure, ProjectedHeadUse, differentiable
from ftrace.gradients.layout_book import Key, LayoutBook, UnreadableError
from ftrace.gradients.layouts import Examples
from ftrace.gradients.module_state import Beginning
from ftrace.gradients.outputs import Output, Pass, exclusively
from ftrace.gradients.parts import Part, Positions
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.projection import Projections
from ftrace.gradients.reading import read_gradients, read_runs
from ftrace.gradients.rules import Rule
from ftrace.gradients.uses import AnyUse, FallbackOutput, FallbackUse, GraphUse, ParameterOutput, ProjectedUse, Use


class Recording:
    """The record of one forward pass.

    Args:
        examples: Of the batch.
        capture: Id of the capture that records.
        projections: Project all gradients as they arrive, with each of these; default: keep them unprojected.
        layers: All layers of which a gradient without a run is an error.
        compiled: Whether the module is compiled, so that hooks may have come too late.
        book: What is known of whose rows are whose; default: nothing.
        late: Names of parameters of layers that were seen running in a backward pass, to which this adds others.

    Attributes:
        of_pass: What all its outputs have in common.
        outputs: All recorded outputs, by key.
        edges: Gradient edges into those that have a graph.
        was_read: Whether its gradients have been read.
    """

    def __init__(
        self,
        examples: Examples,
        capture: int,
        projections: Projections | None = None,
        *,
        layers: Sequence[Layer] = (),
        compiled: bool = False,
        book: LayoutBook | None = None,
        late: set[str] | None = None,
    ) -> None:
        self.examples, self.num_examples = examples, examples.total
        self.was_read = False
        self.projections = projections
        self.of_pass = Pass(self.examples, capture, book or LayoutBook())
        self.outputs: dict[Key, Output] = {}
        self.edges: dict[Key, GradientEdge] = {}
        self._layers = layers
        self._compiled = compiled
        self._uses: list[AnyUse] = []
        self._capture = capture
        self._runs_of: Counter[str] = Counter()
        self._hooks = BackwardHooks(self.of_pass)
        self._handles: list[RemovableHandle] = []
        self._returned: dict[Key, Tensor] = {}  # parameters that layers return as they are
        self._parameters: dict[Key, nn.Parameter] = {}  # that are read off autograd's graph
        self._was_announced = False
        self._late = set() if late is None else late
        self._without_graph: set[str] = set()
        self._early: EarlyReading | None = None
        self._await_backward()

    @property
    def recorded(self) -> Recorded:
        """Its outputs, and the edges into them."""
        return Recorded(self.outputs, self.edges, self.of_pass)

    @property
    def book(self) -> LayoutBook:
        """The book of what is known of whose rows are whose."""
        return self.of_pass.book

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        """Record a layer's run, and hook the gradient of its output.

        Args:
            inputs: What it was given.
            output: What it returned.
        """
        assert isinstance(layer.rule, Rule)
        key = self._next_key(layer)
        if self.of_pass.arrived is not None:
            self.of_pass.arrived(key, inputs)
        if self.projections is None:
            use = Use(layer, layer.rule, inputs, output, key, self.of_pass)
        else:
            use = ProjectedUse(layer, layer.rule, inputs, output, key, self.of_pass, self.projections)
        self._uses.append(use)
        self._hook_output(output, use)

    def add_head(self, layer: Layer, head: FusedHead, outputs: Mapping[Measure, Tensor]) -> None:
        """Record the run of a fused head of a layer, one use for each output that has a gradient."""
        for measure, output in differentiable(outputs):
            key = self._next_key(layer)
            if self.projections is None:
                use = HeadUse.of(layer, head, measure, key, self.of_pass)
            else:
                use = ProjectedHeadUse.of(layer, head, measure, key, self.of_pass, self.projections)
            self._uses.append(use)
            self._hook_output(output, use)

    def add_fallback(self, layer: Layer, args: Any, kwargs: Any, output: Any, began: Beginning) -> None:
        """Record the run of a layer without a rule."""
        tensors = outputs_of(layer, output)
        key = self._next_key(layer)
        if not any(tensor.requires_grad for tensor in tensors):
            return
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.of_pass.arrived is not None and given:
            self.of_pass.arrived(key, given[0])
        replay = Replay(layer.module, args, kwargs, output, began)
        outputs = []
        for number, tensor in enumerate(tensors):
            output_record = FallbackOutput(key._replace(output=number), self.of_pass, layer, tensor.shape)
            if tensor.requires_grad:
                self._hook_output(tensor, output_record)
            outputs.append(output_record)
        self._uses.append(FallbackUse(layer, replay, outputs, self.projections))

    def add_parameter(self, layer: Layer, local: str) -> None:
        """Record a parameter that is read off autograd's graph."""
        parameter = layer.parameter(local)
        if not parameter.requires_grad:
            return
        as_layer = replace(layer, path=layer.names[local], names={local: layer.names[local]})
        key = Key(as_layer.path)
        self.outputs[key] = self._parameter_output(key, as_layer, parameter)
        self.edges[key] = get_gradient_edge(parameter)
        self._parameters[key] = parameter

    def _parameter_output(self, key: Key, layer: Layer, parameter: nn.Parameter) -> Output:
        if hasattr(parameter, "full_tensor"):
            raise UnreadableError(f"{key.path!r} is sharded, and used outside of modules", [key.path])
        output = ParameterOutput(key, self.of_pass, layer, parameter)
        self._uses.append(GraphUse(layer, output, self.projections))
        return output

    def expect_in_backward(self, layer: Layer) -> None:
        """Note that a layer has run without a graph, so that it may run again in the backward pass."""
        self._without_graph.update(layer.names.values())

    def _next_key(self, layer: Layer) -> Key:
        if torch._C._current_graph_task_id() != -1:
            self._late.update(layer.names.values())
        run = self._runs_of[layer.path]
        self._runs_of[layer.path] += 1
        return Key(layer.path, run)

    def _hook_output(self, output: Tensor, record: Output) -> None:
        base = output._base
        if base is not None and base.grad_fn is not None and base.numel() == output.numel() and _is_reshaped(output):
            # A matrix product with a bias returns a view, and an in-place change of a view goes around hooks on it.
            record.is_flat = True
            output = base
        self.outputs[record.key] = record
        if output.grad_fn is None:  # a parameter that its layer returns, which outlives this pass
            record.is_parameter = True
            if any(output is parameter for parameter in self._returned.values()):
                return  # its gradient is that of all of its uses
            self._returned[record.key] = output
        self.edges[record.key] = get_gradient_edge(output)  # now, before anything may change the output in place
        handle = output.register_hook(record.take_gradient)
        if record.is_parameter:
            self._handles.append(handle)
            weakref.finalize(self, handle.remove)

    def prepare(self, starts: Iterable[Node]) -> None:
        """Announce a backward pass: find where outputs that all examples share meet the examples, before it runs.

        Args:
            starts: The nodes that it begins at, such as the loss's.
        """
        starts = list(starts)
        self._prepare(starts)
        self._was_announced = True
        self._hook_parameters()

    def _prepare(self, starts: Sequence[Node]) -> None:
        self._close_hooks()
        self.of_pass.before_first = None
        self.notice(starts)
        self._hooks.add_shared(self.outputs, self.edges, starts)

    def read_early(self, take: Take) -> None:
        """Have matrices' gradients read inside the next backward pass, each as soon as it is complete.

        Call it after :meth:`prepare`, when it is known whose rows are whose. What is read early is not read again by
        :meth:`gradients`. Layers that run in the backward pass, as in reentrant activation checkpointing, are left to
        its end: those that were seen doing so, and those that have run without a graph in this forward pass.

        Args:
            take: Called with the gradients, some parameters at a time, from the thread that runs the backward pass.
        """
        if self.projections is not None or self.examples.loaders or self._returned:
            return
        self._early = EarlyReading(self._uses, self.examples, take, self._late | self._without_graph)
        this = weakref.ref(self)  # autograd's graph holds the pass, and must not hold what holds the graph

        def has_arrived(use: Use) -> None:
            recording = this()
            if recording is None or recording._early is None:
                return
            if use.key in (recording.of_pass.open or ()):
                recording._early.leave(use.layer.names.values())
            recording._early.gradient_arrived(use)

        self.of_pass.has_arrived = has_arrived

    def notice(self, starts: Iterable[Node]) -> None:
        """Have a backward pass recognised by the nodes that use parameters, which are in other passes' graphs as well.

        Args:
            starts: The nodes that it begins at.
        """
        self._hooks.notice([self.edges[key] for key in (*self._returned, *self._parameters)], starts)

    def _hook_parameters(self) -> None:
        self._hooks.add_parameters(self._parameters, self.outputs)

    def _close_hooks(self) -> None:
        self._hooks.close()
        self._await_backward()

    def close(self) -> None:
        """Take no more gradients."""
        self._early = self.of_pass.has_arrived = None
        self._close_hooks()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _await_backward(self) -> None:
        """Prepare for a backward pass that nobody announces when its first gradient arrives, at the outputs."""
        this = weakref.ref(self)  # autograd's graph holds the pass, and must not hold what holds the graph

        def prepare() -> None:
            recording = this()
            if recording is not None:
                recording._prepare([edge.node for edge in recording.edges.values()])

        self.of_pass.before_first = prepare

    def backward(self, losses: Tensor, take: Take | None = None) -> None:
        """Differentiate one loss per example with respect to layer outputs only: no weight gradient is computed.

        The first pass also finds out whose rows are whose, by differentiating some examples' losses alone.

        Args:
            losses: ``[num_examples]``.
            take: Called during the pass with gradients that :meth:`gradients` then leaves out, see :meth:`read_early`.

        Raises:
            ValueError: If there is not one loss per example, a compiled module was not recorded, or a covered
                parameter is used outside of its layer.
        """
        if losses.shape != (self.num_examples,):
            raise ValueError(
                f"expected one loss per example, a tensor of shape ({self.num_examples},), found {tuple(losses.shape)}"
            )
        self._require_hooks()
        not_run = self._not_run()
        if not self.edges and not not_run:
            return
        starts = [] if losses.grad_fn is None else [losses.grad_fn]
        self.prepare(starts)
        if self.unknown():
            self._learn(losses, not_run)
            self.prepare(starts)
        if take is not None:
            self.read_early(take)
        self._require_none(not_run, self.differentiate(losses, list(not_run.values())))

    def unknown(self) -> list[Key]:
        """List outputs of which it is not known whose rows they have, or how they are shared; after :meth:`prepare`."""
        if self.examples.total <= 1:
            return []
        return [*self.recorded.unknown(), *self._hooks.unknown]

    def _learn(self, losses: Tensor, not_run: dict[str, nn.Parameter]) -> None:
        """Find out whose rows are whose, for outputs of which it is not known yet and that have a gradient."""
        self.of_pass.open = set()
        try:
            self._require_none(not_run, self.differentiate(losses, list(not_run.values()), retain=True))
            wanted = [key for key in self.unknown() if key in self.of_pass.open]
        finally:
            self.of_pass.open = None
            self.of_pass.unread.clear()
        self.forget_gradients()
        if wanted:
            learn_from_losses(self.recorded, losses, wanted)

    def differentiate(
        self, losses: Tensor, parameters: Sequence[nn.Parameter] = (), *, retain: bool = False
    ) -> list[Tensor | None]:
        """Differentiate the sum of losses down to the layers' outputs, whose hooks take the gradients.

        Returns:
            Gradients of the given parameters, None where there is none.
        """
        edges: list[Any] = list(self.edges.values())  # activation checkpointing adds to them meanwhile
        if not edges and not parameters:
            return []
        grads = torch.autograd.grad(losses.sum(), [*edges, *parameters], allow_unused=True, retain_graph=retain or None)
        return list(grads[len(edges) :])

    def _require_none(self, not_run: dict[str, nn.Parameter], grads: Sequence[Tensor | None]) -> None:
        """Refuse a gradient of a parameter whose layer never ran: no hook has taken it."""
        for name, grad in zip(not_run, grads, strict=True):
            if grad is not None and grad.any():
                raise UnreadableError(
                    f"{name!r} gets a gradient, though its layer never ran: something uses it outside of its layer's "
                    "forward, so it can't be covered",
                    [name],
                )

    def _not_run(self) -> dict[str, nn.Parameter]:
        """Find the covered parameters whose layers have not run, by name."""
        have_run = {name for use in self._uses for name in use.layer.names.values()}
        return {
            full: layer.parameter(local)
            for layer in self._layers
            for local, full in layer.names.items()
            if full not in have_run and layer.parameter(local).requires_grad
        }

    def gradients(self) -> PerExampleGradients:
        """Read per-example gradients of all covered parameters that the pass has used; call after backward.

        With several projections, those of the first; see :meth:`forms`.

        Raises:
            ValueError: If a layer's gradients can't be read off it after all.
        """
        return self.forms()[0]

    def forms(self) -> list[PerExampleGradients]:
        """Read per-example gradients once for each projection, or unprojected, as :meth:`gradients` does."""
        self._require_hooks()
        if self._parameters and not self._was_announced:
            raise ValueError(
                f"{next(iter(self._parameters)).path!r} is read off autograd's graph: expected "
                "prepare([loss.grad_fn]) to be called before the backward pass"
            )
        self._require_all_read()
        self._close_hooks()
        self.was_read = True
        if self._early is None:
            return read_gradients(self._uses, self.examples, self.projections)
        (rest,) = read_gradients(self._uses, self.examples, None, taken=self._early.taken)
        return [PerExampleGradients.sum([rest, *self._early.kept])]

    def _require_all_read(self) -> None:
        """Check that every gradient was read, and none would be read twice."""
        if self.of_pass.unread:
            raise next(iter(self.of_pass.unread.values()))
        # A parameter that its layer returns as it is has the gradient of all of its uses.
        for key, parameter in self._returned.items():
            output = self.outputs[key]
            users = [use for use in self._uses if use.has_gradient() and use.layer.names]
            users = [use for use in users if any(use.layer.parameter(name) is parameter for name in use.layer.names)]
            if output.has_gradient() and len(users) > 1:
                raise output.unreadable("is its own parameter, which is used by another layer, or run, as well")
            if output.of_pass.stray and not self.has_gradients():
                raise output.unreadable("is its own parameter, and no other layer is recorded that tells passes apart")

    def has_gradients(self) -> bool:
        """Whether a backward pass has left any gradients."""
        return any(use.has_gradient() for use in self._uses)

    def forget_gradients(self) -> None:
        """Forget all gradients, before another backward pass through the same graph that is to be read by itself."""
        for use in self._uses:
            use.forget_gradient()
        self._early = self.of_pass.has_arrived = None

    def _require_hooks(self) -> None:
        if self._compiled and not self.outputs:
            raise ValueError(
                "none of the covered layers was recorded: a compiled module keeps to the hooks that it had when it "
                "was called first. Attach the capture before its first call, or torch.compiler.reset() it"
            )

    def runs(self) -> Iterator[tuple[Layer, list[tuple[str, Part | Positions]]]]:
        """Yield each run of a layer by itself, in order: the layer, and its parts with the parameters' full names.

        A parameter that the layer has under two names has two parts.
        """
        self._require_all_read()
        self._close_hooks()
        self.was_read = True
        yield from read_runs(self._uses)

    @contextmanager
    def just(self, examples: int | Tensor) -> Iterator[None]:
        """Restrict backward passes through the recorded layers to some examples: all others' gradients are cut off.

        With it, ordinary autograd gives a single example's gradients inside the user's own batch and loss.

        Args:
            examples: One example, or ``[num_examples]`` bool.
        """
        chosen = examples if isinstance(examples, Tensor) else torch.arange(self.num_examples) == examples
        self.of_pass.chosen = chosen
        try:
            with exclusively(self._capture):
                yield
        finally:
            self.of_pass.chosen = None

    @contextmanager
    def observing(self) -> Iterator[dict[Key, Prints]]:
        """Take nothing but prints of the outputs' gradients from backward passes, while active."""
        self.of_pass.prints = {}
        try:
            with exclusively(self._capture):
                yield self.of_pass.prints
        finally:
            self.of_pass.prints = None


def _is_reshaped(view: Tensor) -> bool:
    """Whether a view has its base's numbers in its base's order."""
    base = view._base
    return base is not None and view.is_contiguous() and base.is_contiguous()
