"""What was heard of one forward pass, and once backward has passed, each example's gradients."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.coverage import Layer
from ftrace.gradients.evidence import Prints
from ftrace.gradients.fallback import Replay, differentiable
from ftrace.gradients.finding import Heard, learn_from_losses
from ftrace.gradients.graph import Graph, slot_of
from ftrace.gradients.layout_book import Key, LayoutBook, Shared, UnreadableError
from ftrace.gradients.layouts import Examples
from ftrace.gradients.module_state import Beginning
from ftrace.gradients.outputs import Output, Pass, exclusively, trained
from ftrace.gradients.parts import Part, Places
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.projection import Projection
from ftrace.gradients.rules import Rule
from ftrace.gradients.shared import SharedGradients
from ftrace.gradients.uses import FallbackOutput, FallbackUse, GraphUse, ParameterOutput, ProjectedUse, Use


class Recording:
    """What was heard of one forward pass.

    Args:
        num_examples: Examples in the batch.
        capture: Id of the capture that listens.
        projection: Project all gradients as they come; default: keep them whole.
        layers: All layers of which a gradient without a run is an error.
        compiled: Whether the module is compiled, so that hooks may have come too late.
        groups: Sizes of the batches of several dataloaders that one training step runs; together they are the examples.
        book: What is known of whose rows are whose; default: nothing.

    Attributes:
        of_pass: What its outputs have in common.
        outputs: All that was heard, by output.
        was_read: Whether its gradients have been read.
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
        book: LayoutBook | None = None,
    ) -> None:
        self.num_examples = num_examples
        self.was_read = False
        self.projection = projection
        self.examples = Examples(num_examples, tuple(groups) if len(groups) > 1 else ())
        self.of_pass = Pass(self.examples, capture, book or LayoutBook())
        self.outputs: dict[Key, Output] = {}
        self.edges: dict[Key, GradientEdge] = {}
        self._layers = layers
        self._compiled = compiled
        self._uses: list[Use | FallbackUse | GraphUse] = []
        self._capture = capture
        self._runs_of: Counter[str] = Counter()
        self._shared: SharedGradients | None = None
        self._handles: list[RemovableHandle] = []
        self._returned: dict[Key, Tensor] = {}  # parameters that layers return as they are
        self._noticing: list[RemovableHandle] = []
        self._parameters: dict[Key, nn.Parameter] = {}  # that are read off autograd's graph
        self._handles_of_parameters: list[RemovableHandle] = []
        self._was_announced = False
        self._await_backward()

    @property
    def heard(self) -> Heard:
        """Its outputs."""
        return Heard(self.outputs, self.edges, self.of_pass)

    @property
    def book(self) -> LayoutBook:
        """What is known of whose rows are whose."""
        return self.of_pass.book

    def add(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        """Take note of a layer's run, and ask autograd for the gradient of its output.

        Args:
            layer: The layer.
            inputs: What it was given.
            output: What it returned.
        """
        assert isinstance(layer.rule, Rule)
        key = self._next_key(layer)
        if self.of_pass.arrived is not None:
            self.of_pass.arrived(key, inputs)
        if self.projection is None:
            use = Use(layer, layer.rule, inputs, output, key, self.of_pass)
        else:
            use = ProjectedUse(layer, layer.rule, inputs, output, key, self.of_pass, self.projection)
        self._uses.append(use)
        self._listen(output, use)

    def add_fallback(self, layer: Layer, args: Any, kwargs: Any, output: Any, began: Beginning) -> None:
        """Take note of the run of a layer without a rule."""
        tensors = self._differentiable(layer, output)
        key = self._next_key(layer)
        if not any(tensor.requires_grad for tensor in tensors):
            return
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.of_pass.arrived is not None and given:
            self.of_pass.arrived(key, given[0])
        replay = Replay(layer.module, args, kwargs, output, began)
        outputs = []
        for number, tensor in enumerate(tensors):
            heard = FallbackOutput(key._replace(output=number), self.of_pass, layer, tensor.shape)
            if tensor.requires_grad:
                self._listen(tensor, heard)
            outputs.append(heard)
        self._uses.append(FallbackUse(layer, replay, outputs, self.projection))

    def add_parameter(self, layer: Layer, local: str) -> None:
        """Take note of a parameter that is read off autograd's graph."""
        parameter = layer.parameter(local)
        if not parameter.requires_grad:
            return
        own = replace(layer, path=layer.names[local], names={local: layer.names[local]})
        heard = self._heard_parameter(Key(own.path), own, parameter)
        self.outputs[heard.key] = heard
        self.edges[heard.key] = get_gradient_edge(parameter)
        self._parameters[heard.key] = parameter

    def _heard_parameter(self, key: Key, layer: Layer, parameter: nn.Parameter) -> Output:
        if hasattr(parameter, "full_tensor"):
            raise UnreadableError(f"{key.path!r} is sharded, and used outside of modules", [key.path])
        heard = ParameterOutput(key, self.of_pass, layer, parameter)
        self._uses.append(GraphUse(layer, heard, self.projection))
        return heard

    def _listen_to_parameters(self) -> None:
        for key, parameter in self._parameters.items():
            handle = parameter.register_hook(self.outputs[key].take_gradient)
            self._handles_of_parameters.append(handle)
            weakref.finalize(self, handle.remove)

    def _differentiable(self, layer: Layer, output: Any) -> list[Tensor]:
        tensors = differentiable(output)
        if not tensors:
            raise UnreadableError(
                f"layer {layer.path!r} ({type(layer.module).__name__}) has no rule and returned a "
                f"{type(output).__name__} in which no tensor is found",
                tuple(layer.names.values()),
            )
        return tensors

    def _next_key(self, layer: Layer) -> Key:
        run = self._runs_of[layer.path]
        self._runs_of[layer.path] += 1
        return Key(layer.path, run)

    def _listen(self, output: Tensor, heard: Output) -> None:
        base = output._base
        if base is not None and base.grad_fn is not None and base.numel() == output.numel() and _is_reshaped(output):
            # A matrix product with a bias returns a view, and an in-place change of a view goes around hooks on it.
            heard.is_flat = True
            output = base
        self.outputs[heard.key] = heard
        if output.grad_fn is None:  # a parameter that its layer returns, which outlives this pass
            heard.is_parameter = True
            if any(output is parameter for parameter in self._returned.values()):
                return  # its gradient is that of all of its uses
            self._returned[heard.key] = output
        self.edges[heard.key] = get_gradient_edge(output)  # now, before anything may change the output in place
        handle = output.register_hook(heard.take_gradient)
        if heard.is_parameter:
            self._handles.append(handle)
            weakref.finalize(self, handle.remove)

    def prepare(self, starts: Iterable[Node]) -> None:
        """Before a backward pass: find out where what is shared by all examples meets them.

        Args:
            starts: The nodes that it begins at, such as the loss's.
        """
        starts = list(starts)
        self._prepare(starts)
        self._was_announced = True
        self._listen_to_parameters()

    def _prepare(self, starts: Sequence[Node]) -> None:
        self._close_shared()
        self.of_pass.before_first = None
        self.notice(starts)
        rows = {key: output.rows for key, output in self.outputs.items()}
        shared = {key: own for key, own in rows.items() if isinstance(own, Shared)}
        if shared and self.examples.total > 1:
            edges = {key: self.edges[key] for key in shared if key in self.edges}
            self._shared = SharedGradients(edges, shared, starts, self.of_pass)
            weakref.finalize(self, self._shared.close)

    def notice(self, starts: Iterable[Node]) -> None:
        """Before a backward pass: have it known by what uses parameters, which outlive this pass and are in others.

        Args:
            starts: The nodes that it begins at.
        """
        if self._returned or self._parameters:
            graph = Graph.behind(starts)
            edges = [self.edges[key] for key in (*self._returned, *self._parameters)]
            nodes = {node for edge in edges for node, _ in graph.consumers.get(slot_of(edge), ())}
            self._noticing += [node.register_prehook(self.of_pass.notice) for node in nodes]
            for handle in self._noticing:
                weakref.finalize(self, handle.remove)

    def _close_shared(self) -> None:
        for handle in self._noticing:
            handle.remove()
        self._noticing.clear()
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        for handle in self._handles_of_parameters:
            handle.remove()
        self._handles_of_parameters.clear()
        self.of_pass.shared.clear()
        self._await_backward()

    def close(self) -> None:
        """Take no gradients any more."""
        self._close_shared()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _await_backward(self) -> None:
        """A backward pass that nobody has announced begins at the outputs that were heard."""
        this = weakref.ref(self)  # autograd's graph holds the pass, and must not hold what holds the graph

        def prepare() -> None:
            recording = this()
            if recording is not None:
                recording._prepare([edge.node for edge in recording.edges.values()])

        self.of_pass.before_first = prepare

    def backward(self, losses: Tensor) -> None:
        """Differentiate one loss per example with respect to layer outputs only: no weight gradient is computed.

        Whose rows are whose is found out at the first pass, by differentiating some examples' losses alone.

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
        if not self.edges and not unheard:
            return
        starts = [] if losses.grad_fn is None else [losses.grad_fn]
        self.prepare(starts)
        if self.unknown():
            self._learn(losses, unheard)
            self.prepare(starts)
        self._require_none(unheard, self.differentiate(losses, list(unheard.values())))

    def unknown(self) -> list[Key]:
        """Once :meth:`prepare` was called: outputs whose rows nobody has seen, or how they are shared."""
        if self.examples.total <= 1:
            return []
        return [*self.heard.unknown(), *(() if self._shared is None else self._shared.unknown)]

    def _learn(self, losses: Tensor, unheard: dict[str, nn.Parameter]) -> None:
        """Find out whose rows are whose, where that is not known yet and there are gradients to tell by."""
        self.of_pass.open = set()
        try:
            self._require_none(unheard, self.differentiate(losses, list(unheard.values()), retain=True))
            wanted = [key for key in self.unknown() if key in self.of_pass.open]
        finally:
            self.of_pass.open = None
            self.of_pass.unread.clear()
        self.forget_gradients()
        if wanted:
            learn_from_losses(self.heard, losses, wanted)

    def differentiate(
        self, losses: Tensor, parameters: Sequence[nn.Parameter] = (), *, retain: bool = False
    ) -> list[Tensor | None]:
        """Send the gradient of the sum of losses down to the layers' outputs, whose hooks take it.

        Returns:
            Gradients of the given parameters.
        """
        edges: list[Any] = list(self.edges.values())  # activation checkpointing adds to them meanwhile
        if not edges and not parameters:
            return []
        found = torch.autograd.grad(losses.sum(), [*edges, *parameters], allow_unused=True, retain_graph=retain or None)
        return list(found[len(edges) :])

    def _require_none(self, unheard: dict[str, nn.Parameter], grads: Sequence[Tensor | None]) -> None:
        """The hooks take the layers' gradients; a weight whose layer never ran must not get one."""
        for name, grad in zip(unheard, grads, strict=True):
            if grad is not None and grad.any():
                raise UnreadableError(
                    f"{name!r} gets a gradient, though its layer never ran: something uses it outside of its layer's "
                    "forward, so it can't be covered",
                    [name],
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
        if self._parameters and not self._was_announced:
            raise ValueError(
                f"{next(iter(self._parameters)).path!r} is read off autograd's graph: expected "
                "prepare([loss.grad_fn]) to be called before the backward pass"
            )
        self._require_all_read()
        self._close_shared()
        self.was_read = True
        if not self.examples.groups:
            return self._read(self._uses, self.num_examples)
        whole = self._read([use for use in self._uses if use.group is None], self.num_examples)
        of_groups = [
            self._read([use for use in self._uses if use.group == group], count)
            for group, count in enumerate(self.examples.groups)
        ]
        stacked = PerExampleGradients.stack(of_groups)
        names = dict.fromkeys([*whole.parts, *stacked.parts])
        parts: dict[str, list[Part | Places]] = {
            name: [*whole.parts.get(name, ()), *stacked.parts.get(name, ())] for name in names
        }
        return PerExampleGradients(parts, {**whole.shapes, **stacked.shapes}, self.num_examples)

    def _read(self, uses: Sequence[Use | FallbackUse | GraphUse], num_examples: int) -> PerExampleGradients:
        parts: dict[str, list[Part | Places]] = {}
        shapes: dict[str, torch.Size] = {}
        for layer, of_run in _runs(uses):
            local_names = {full: local for local, full in layer.names.items()}
            for name, part in of_run:
                parts.setdefault(name, []).append(part)
                shape = layer.parameter(local_names[name]).shape
                shapes[name] = shape if self.projection is None else self.projection.shape(shape)
        return PerExampleGradients(parts, shapes, num_examples)

    def _require_all_read(self) -> None:
        """No gradient may have come by unread, and none is to be read twice."""
        if self.of_pass.unread:
            raise next(iter(self.of_pass.unread.values()))
        # A parameter that its layer returns as it is has the gradient of all of its uses.
        for key, parameter in self._returned.items():
            heard = self.outputs[key]
            users = [use for use in self._uses if use.has_gradient() and use.layer.names]
            users = [use for use in users if any(use.layer.parameter(name) is parameter for name in use.layer.names)]
            if heard.has_gradient() and len(users) > 1:
                raise heard.unreadable("is its own parameter, which is used by another layer, or run, as well")
            if heard.of_pass.stray and not self.has_gradients():
                raise heard.unreadable(
                    "is its own parameter, and no other layer is listened to that says in which pass"
                )

    def has_gradients(self) -> bool:
        """Whether a backward pass has come by."""
        return any(use.has_gradient() for use in self._uses)

    def forget_gradients(self) -> None:
        """Ready for another backward pass through the same graph, which is to be read by itself."""
        for use in self._uses:
            use.forget_gradient()

    def _require_hooks(self) -> None:
        if self._compiled and not self.outputs:
            raise ValueError(
                "none of the covered layers was heard: a compiled module keeps to the hooks that it had when it was "
                "called first. Attach the capture before its first call, or torch.compiler.reset() it"
            )

    def runs(self) -> Iterator[tuple[Layer, list[tuple[str, Part | Places]]]]:
        """Each run of a layer by itself, in order: the layer, and its parts with the parameters' full names.

        A parameter that the layer has under two names has two parts.
        """
        self._require_all_read()
        self._close_shared()
        self.was_read = True
        yield from _runs(self._uses)

    @contextmanager
    def just(self, examples: int | Tensor) -> Iterator[None]:
        """While active, backward passes through the recorded layers carry some examples' gradients and nobody else's.

        This is what makes ordinary autograd an oracle for a single example inside the user's own batch and loss.

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
        """While active, backward passes leave prints of the gradients of outputs, and nothing else."""
        self.of_pass.prints = {}
        try:
            with exclusively(self._capture):
                yield self.of_pass.prints
        finally:
            self.of_pass.prints = None


def _runs(uses: Sequence[Use | FallbackUse | GraphUse]) -> Iterator[tuple[Layer, list[tuple[str, Part | Places]]]]:
    for use in uses:
        names = trained(use.layer)
        parts = use.parts(names)
        if parts:
            yield use.layer, [(names[local], part) for local, part in parts.items()]


def _is_reshaped(view: Tensor) -> bool:
    """Whether a view has its base's numbers in its base's order."""
    base = view._base
    return base is not None and view.is_contiguous() and base.is_contiguous()
