"""Listening to a module: from an ordinary forward and backward pass to per-example gradients.

Hooks read each layer's input and the gradient of its output. Nothing is added to the computation but expansions of
tensors that the model shares between examples (position tables), which leave trained weights bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ftrace.gradients import relative_position_bias
from ftrace.gradients.coverage import Coverage, Layer, find_coverage
from ftrace.gradients.fallback import Beginning, FallbackRule
from ftrace.gradients.layers import find_rule
from ftrace.gradients.norms import mixes_examples
from ftrace.gradients.projection import Projection
from ftrace.gradients.recording import Recording
from ftrace.gradients.uses import exclusively, hears


class GradientCapture:
    """Per-example gradients of a module, by hooks.

    Args:
        module: Any module whose layers get the batch as their leading axis.
        patterns: Globs over parameter names (see :func:`find_coverage`).
        optimized: Parameters that the optimizer changes; default: all that require a gradient.
        projection: Project all gradients as they come; default: keep them whole.
        strict: Whether a trained parameter that can't be covered is an error.
        refuse_unheard: Whether it is an error if a query's loss has a gradient for a covered parameter whose layer
            has not run.

    Raises:
        ValueError: If a glob matches no parameter, or, when strict, on a parameter that can't be covered.

    Attributes:
        coverage: What became of each parameter.

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
        refuse_unheard: bool = True,
    ) -> None:
        self.module = module
        self.projection = projection
        self.coverage: Coverage = find_coverage(module, patterns, optimized)
        self._recording: Recording | None = None
        self._handles: list[RemovableHandle] = []
        if strict and self.coverage.gaps:
            raise ValueError(f"can't cover all trained parameters. {self.coverage.summary()}")
        self._refuse_unheard = refuse_unheard
        self._compiled = False
        self._ended: Callable[[], Recording | None] = lambda: None
        self._begun: dict[str, list[Beginning]] = {}

    def attach(self) -> None:
        """Register the hooks. They do nothing until a recording is started.

        A compiled module must not have been called before: hooks that come later never fire.
        """
        self._compiled = any(is_compiled(module) for module in self.module.modules())
        for layer in self.coverage.layers:
            if layer.rule is relative_position_bias.RELATIVE_POSITION_BIAS:
                record = partial(self._record_bias, layer)
                handles = relative_position_bias.listen(self.module, layer.module, record, self._is_listening)
                self._handles.extend(handles)
                continue
            if isinstance(layer.rule, FallbackRule):
                before = partial(self._before_fallback, layer)
                self._handles.append(layer.module.register_forward_pre_hook(before))
            hook = partial(self._after_forward, layer)
            # First of all hooks: the gradient must be that of the layer's own output, not of a user's edit of it.
            self._handles.append(layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
        for table in _lookup_tables(self.module):
            self._handles.append(table.register_forward_pre_hook(self._count_rows, with_kwargs=True))
        for path, module in self.module.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self._handles.append(module.register_forward_pre_hook(partial(self._refuse_mixing, path)))

    def detach(self) -> None:
        """Remove the hooks; the module is as it was."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> GradientCapture:
        self.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def start(self, num_examples: int, *, whole: bool = False, groups: Sequence[int] = ()) -> Recording:
        """Listen to the forward passes from here on, as of one batch of examples.

        Args:
            num_examples: B.
            whole: Keep gradients whole although the capture projects them.
            groups: Sizes of the batches of several dataloaders, that the examples are made of.
        """
        self._begun.clear()
        projection = None if whole else self.projection
        layers = self.coverage.layers if self._refuse_unheard else []
        self._recording = Recording(
            num_examples, id(self), projection, layers=layers, compiled=self._compiled, groups=groups
        )
        return self._recording

    def stop(self) -> None:
        """Listen no more; what was recorded can still be differentiated."""
        self._recording = None

    @contextmanager
    def recording(self, num_examples: int, *, whole: bool = False) -> Iterator[Recording]:
        """Listen to the forward passes inside the block, then go back to whatever was listened to before.

        With activation checkpointing the backward pass belongs inside the block too, since layers run again in it.
        """
        outer = self._recording
        recording = self.start(num_examples, whole=whole)
        try:
            yield recording
        finally:
            self._recording = outer
            self._ended = ref(recording)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """For passes of one's own over a model that others may listen to as well: they don't hear the block."""
        with exclusively(id(self)):
            yield

    def _is_listening(self) -> bool:
        return self._recording is not None and torch.is_grad_enabled() and hears(id(self))

    @torch.compiler.disable
    def _count_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = _first(args, kwargs)
        if self._recording is not None and self._is_listening() and ids.shape[0] > 1:
            self._recording.rows = ids.shape[0]

    @torch.compiler.disable
    def _refuse_mixing(self, path: str, module: nn.Module, args: object) -> None:
        problem = mixes_examples(module) if self._is_listening() else None
        if problem:
            raise ValueError(f"layer {path!r} ({type(module).__name__}) {problem}")

    def _record_bias(self, layer: Layer, ids: Tensor, bias: Tensor) -> None:
        assert self._recording is not None
        self._recording.add(layer, ids, bias, expanded=True)

    def _require_open(self, recording: Recording | None) -> None:
        ended = self._ended() if recording is None and torch.is_grad_enabled() and hears(id(self)) else None
        if ended is not None and not ended.was_read and torch._C._current_graph_task_id() != -1:
            raise ValueError(
                "a layer runs again during a backward pass (activation checkpointing), and the recording ended before "
                "its backward pass: put the backward pass inside the block"
            )

    @torch.compiler.disable
    def _before_fallback(self, layer: Layer, module: nn.Module, args: object) -> None:
        if self._is_listening():
            self._begun.setdefault(layer.path, []).append(Beginning.of(module))

    @torch.compiler.disable
    def _after_forward(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        recording = self._recording
        if recording is None or not self._is_listening():
            self._require_open(recording)
            return None
        if isinstance(layer.rule, FallbackRule):
            begun = self._begun[layer.path].pop()
            recording.add_fallback(layer, args, kwargs, output, begun)
            return None
        if not output.requires_grad:
            return None
        inputs = _first(args, kwargs)
        expanded = None
        if layer.rule.is_table and inputs.shape[0] == 1 and recording.num_examples > 1 and not recording.has_single:
            inputs = inputs.expand(recording.rows, *inputs.shape[1:])
            output = expanded = output.expand(recording.rows, *output.shape[1:])
        recording.add(layer, inputs, output, expanded=expanded is not None, positions=expanded is not None)
        return expanded


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` stands between a module and its hooks."""
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A layer's input."""
    first: Tensor = args[0] if args else next(iter(kwargs.values()))
    return first


def _lookup_tables(module: nn.Module) -> list[nn.Module]:
    """Tables that ids are looked up in, covered or not; not those of relative positions, which have no batch axis."""
    biases = relative_position_bias.find_tables(module)
    rules = {layer: find_rule(layer) for layer in module.modules() if layer not in biases}
    return [layer for layer, rule in rules.items() if rule is not None and rule.is_table]
