"""Capture: hooks on a module that turn an ordinary forward and backward pass into per-example gradients.

Hooks read each layer's input and the gradient of its output. They return nothing: the model always computes with its
own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import ref

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftrace.gradients.coverage import Coverage, Layer, find_coverage
from ftrace.gradients.documents import Documents
from ftrace.gradients.fused_heads import CAPTURES, FusedHead, Measure
from ftrace.gradients.layout_book import LayoutBook
from ftrace.gradients.layouts import Examples
from ftrace.gradients.module_state import Beginning
from ftrace.gradients.names import leave_out
from ftrace.gradients.norms import mixes_examples
from ftrace.gradients.observation import Observation
from ftrace.gradients.outputs import exclusively, may_record
from ftrace.gradients.projection import Projection, Projections
from ftrace.gradients.recording import Recording
from ftrace.gradients.rules import LINEAR, FallbackRule, GraphRule

_Changed = TypeVar("_Changed")


class GradientCapture:
    """Hooks on a module that record per-example gradients.

    Args:
        module: Any module whose layers get the batch as their leading axis.
        patterns: Globs over parameter names (see :func:`find_coverage`).
        optimized: Parameters that the optimizer changes; default: all that require a gradient.
        projection: Project all gradients as they arrive; default: keep them unprojected.
        strict: Whether a trained parameter that can't be covered is an error.
        refuse_unrecorded: Whether it is an error if a query's loss has a gradient for a covered parameter whose layer
            has not run.
        reads_graph: Whether parameters whose use no module's hooks see, such as those that a training step uses itself,
            are read off autograd's graph. Then each backward pass must be announced by :meth:`Recording.prepare`, or be
            :meth:`Recording.backward`.

    Raises:
        ValueError: If a glob matches no parameter, or, when strict, on a parameter that can't be covered.

    Attributes:
        coverage: Which parameters are covered, by which rule, and why not.
        book: Whose rows are whose, as found out in passes with one loss for each example.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> capture = GradientCapture(model)
        >>> with capture, capture.recording(num_examples=2) as recording:
        ...     recording.backward(model(torch.ones(2, 3)).squeeze(1).square())
        >>> recording.gradients().dense("0.weight").shape
        torch.Size([2, 4, 3])
    """

    def __init__(
        self,
        module: nn.Module,
        patterns: Sequence[str] = ("*",),
        optimized: Collection[nn.Parameter] | None = None,
        projection: Projection | None = None,
        *,
        strict: bool = False,
        refuse_unrecorded: bool = True,
        reads_graph: bool = False,
    ) -> None:
        self.module = module
        self.projection = projection
        self.coverage: Coverage = find_coverage(module, patterns, optimized, reads_graph=reads_graph)
        self._recording: Recording | None = None
        self._handles: list[RemovableHandle | _KeptGraphs] = []
        if strict and self.coverage.gaps:
            gaps = [gap.parameter for gap in self.coverage.gaps]
            raise ValueError(
                f"can't cover all trained parameters. {self.coverage.summary()}\n{leave_out(gaps, patterns)}"
            )
        self._refuse_unrecorded = refuse_unrecorded
        self._compiled = False
        self._ended: Callable[[], Recording | None] = lambda: None
        self._begun: dict[str, list[Beginning]] = {}
        self.book = LayoutBook()
        self._projections: Projections | None = None
        self._late: set[str] = set()

    def attach(self) -> None:
        """Register the hooks. They do nothing until a recording is started.

        A compiled module must not have been called before: hooks that are registered later never fire.
        """
        CAPTURES.add(self)
        self._compiled = any(is_compiled(module) for module in self.module.modules())
        if self._compiled:
            self._handles.append(_KeptGraphs())
        for layer in self.coverage.layers:
            if isinstance(layer.rule, GraphRule):
                continue
            if isinstance(layer.rule, FallbackRule):
                before = partial(self._before_fallback, layer)
                self._handles.append(layer.module.register_forward_pre_hook(before))
            hook = partial(self._after_forward, layer)
            # First of all hooks: the gradient must be that of the layer's own output, not of a user's edit of it.
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
        for path, module in self.module.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self._handles.append(module.register_forward_pre_hook(partial(self._refuse_mixing, path)))

    def detach(self) -> None:
        """Remove all hooks from the module."""
        self.stop()
        CAPTURES.discard(self)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def widen(self, names: Collection[str], seen: Collection[str] = (), *, to_graph: bool = True) -> dict[str, str]:
        """Read parameters off modules further out, since something uses them outside of their layers.

        Args:
            names: The parameters.
            seen: Names of layers that have been seen running; parameters of others go along.
            to_graph: Whether autograd's graph may be used where there is no such module, if this capture reads it.

        Returns:
            By parameter, the name of the module; without parameters for which there is none. In a compiled module,
            whose hooks can't change, there is none for any.
        """
        return (
            {}
            if self._compiled
            else self._changed(lambda: self.coverage.widen(self.module, names, seen, to_graph=to_graph))
        )

    def leave_out(self, names: Collection[str], reason: str) -> None:
        """Stop reading parameters that turned out not to be readable."""
        self._changed(lambda: self.coverage.leave_out(names, reason))

    def _changed(self, change: Callable[[], _Changed]) -> _Changed:
        """Change the coverage, and hook the layers that it has afterwards."""
        was_attached = bool(self._handles) and not self._compiled
        if was_attached:
            self.detach()
        changed = change()
        if was_attached:
            self.attach()
        return changed

    def __enter__(self) -> GradientCapture:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def start(
        self,
        num_examples: int,
        *,
        unprojected: bool = False,
        projections: Sequence[Projection] = (),
        loaders: Sequence[int] = (),
        book: LayoutBook | None = None,
        observes: bool = False,
        documents: Documents | None = None,
    ) -> Recording:
        """Record the forward passes from here on, as those of one batch of examples.

        Args:
            num_examples: B.
            unprojected: Keep gradients unprojected although the capture projects them.
            projections: Project gradients with each of these; default: with the capture's own, if it has one.
            loaders: Sizes of the batches of several dataloaders that the examples are made of.
            book: What is known of whose rows are whose; default: what this capture has found out from losses.
            observes: Keep prints only.
            documents: The tokens of each example, where examples are documents of packed rows.
        """
        self._begun.clear()
        kind = Observation if observes else Recording
        self._recording = kind(
            Examples(num_examples, tuple(loaders) if len(loaders) > 1 else (), documents),
            id(self),
            None if unprojected or observes else self._joined(projections),
            layers=self.coverage.layers if self._refuse_unrecorded else [],
            compiled=self._compiled,
            book=self.book if book is None else book,
            late=self._late,
        )
        for layer in self.coverage.layers:
            if isinstance(layer.rule, GraphRule):
                for local in layer.names:
                    self._recording.add_parameter(layer, local)
        return self._recording

    def _joined(self, projections: Sequence[Projection]) -> Projections | None:
        """Join projections; those of the last recording again, where they are the same, with the axes they have."""
        members = tuple(projections) or (() if self.projection is None else (self.projection,))
        if not members:
            return None
        if self._projections is None or self._projections.members != members:
            self._projections = Projections(members)
        return self._projections

    def resume(self, recording: Recording) -> None:
        """Continue an earlier recording: layers may run again in its backward pass."""
        self._recording = recording

    def stop(self) -> None:
        """Stop recording; what was recorded can still be differentiated."""
        self._recording = None

    @contextmanager
    def recording(self, num_examples: int, *, unprojected: bool = False) -> Iterator[Recording]:
        """Record the forward passes inside the block, then continue the recording that was active before, if any.

        With activation checkpointing the backward pass belongs inside the block too, since layers run again in it.
        """
        outer = self._recording
        recording = self.start(num_examples, unprojected=unprojected)
        try:
            yield recording
        finally:
            self._recording = outer
            self._ended = ref(recording)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hide the passes inside the block from all other captures on the same model."""
        with exclusively(id(self)):
            yield

    def after_head(self, head: FusedHead, outputs: Mapping[Measure, Tensor]) -> None:
        """Record the run of a fused head, if its weight is read off its layer."""
        recording = self._recording
        if recording is None or not self._is_recording():
            return
        for layer in self.coverage.layers:
            if layer.module is head.module and layer.rule is LINEAR and layer.names:
                recording.add_head(layer, head, outputs)

    def _note_run_without_graph(self, layer: Layer) -> None:
        """Tell the recording of a layer that runs without a graph, as reentrant checkpointing runs it at first."""
        if self._recording is not None and not torch.is_grad_enabled() and may_record(id(self)):
            self._recording.expect_in_backward(layer)

    def _is_recording(self) -> bool:
        return self._recording is not None and torch.is_grad_enabled() and may_record(id(self))

    @torch.compiler.disable
    def _refuse_mixing(self, path: str, module: nn.Module, args: object) -> None:
        problem = mixes_examples(module) if self._is_recording() else None
        if problem:
            raise ValueError(f"layer {path!r} ({type(module).__name__}) {problem}")

    def _require_open(self, recording: Recording | None) -> None:
        ended = self._ended() if recording is None and torch.is_grad_enabled() and may_record(id(self)) else None
        if ended is not None and not ended.was_read and torch._C._current_graph_task_id() != -1:
            raise ValueError(
                "a layer runs again during a backward pass (activation checkpointing), and the recording ended before "
                "its backward pass: put the backward pass inside the block"
            )

    @torch.compiler.disable
    def _before_fallback(self, layer: Layer, module: nn.Module, args: object) -> None:
        if self._is_recording() and layer.names:
            self._begun.setdefault(layer.path, []).append(Beginning.of(module))

    @torch.compiler.disable
    def _after_forward(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        recording = self._recording
        if recording is None or not self._is_recording():
            self._require_open(recording)
            self._note_run_without_graph(layer)
            return
        if not layer.names:  # all left out, in a compiled module
            return
        if isinstance(layer.rule, FallbackRule):
            begun = self._begun[layer.path].pop()
            recording.add_fallback(layer, args, kwargs, output, begun)
            return
        if output.requires_grad:
            recording.add(layer, _first(args, kwargs), output)


class _KeptGraphs:
    """Setting under which compiled graphs can be differentiated several times: backward passes reuse no buffers."""

    def __init__(self) -> None:
        self._previous: bool = functorch_config.donated_buffer
        functorch_config.donated_buffer = False

    def remove(self) -> None:
        """Restore the previous setting."""
        functorch_config.donated_buffer = self._previous


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` stands between a module and its hooks."""
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Get a layer's input."""
    first: Tensor = args[0] if args else next(iter(kwargs.values()))
    return first
