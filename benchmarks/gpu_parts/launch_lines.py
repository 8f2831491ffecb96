"""The lines of ftrace that launch operators in a traced step, and the values that the processor waits for."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

WITHOUT_KERNEL = {
    "view", "_unsafe_view", "_reshape_alias", "reshape", "t", "transpose", "permute", "expand", "slice", "select",
    "as_strided", "detach", "alias", "unsqueeze", "squeeze", "split", "split_with_sizes", "chunk", "unbind", "diagonal",
    "unfold", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "is_same_size",
    "promote_types", "result_type", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip
WAITED_FOR = "_local_scalar_dense"
PACKAGES = ("/ftrace/", "/callbacks/")


class LaunchLines(pl.Callback):
    """Counts of operators by the line of ftrace that calls them, over some steps.

    Backward passes of these steps run in the main thread, where operators can be seen.

    Args:
        first: The first step.
        last: The one after the last.
        on_gpu: Whether only operators on a GPU count.
    """

    def __init__(self, first: int, last: int, *, on_gpu: bool) -> None:
        self._steps = range(first, last)
        self._counts = _Operators(on_gpu)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Begin or end."""
        if index == self._steps.start:
            torch.autograd.set_multithreading_enabled(False)
            self._counts.__enter__()
        elif index == self._steps.stop:
            self._counts.__exit__(None, None, None)
            torch.autograd.set_multithreading_enabled(True)

    def totals(self) -> dict[str, float]:
        """Operators a step of ftrace and of all else, which is the plain step, and values that ftrace waits for."""
        count = len(self._steps)
        ours = sum(sum(names.values()) for line, names in self._counts.by_line.items() if line)
        waits = sum(names[WAITED_FOR] for line, names in self._counts.by_line.items() if line)
        return {
            "operators of ftrace": (ours - waits) / count,
            "operators of the rest": sum(self._counts.by_line[""].values()) / count,
            "values that ftrace waits for": waits / count,
        }

    def table(self, lines: int) -> str:
        """The lines with most operators."""
        ordered = sorted(self._counts.by_line.items(), key=lambda item: -sum(item[1].values()))
        shown = []
        for line, names in ordered[:lines]:
            of_names = ", ".join(f"{name} {count / len(self._steps):g}" for name, count in names.most_common(6))
            total = sum(names.values()) / len(self._steps)
            shown.append(f"{total:7.1f}  {line or '(not ftrace)'}: {of_names}")
        return "\n".join(shown)


class _Operators(TorchDispatchMode):
    def __init__(self, on_gpu: bool) -> None:
        super().__init__()
        self._on_gpu = on_gpu
        self.by_line: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in WITHOUT_KERNEL and (not self._on_gpu or _uses_gpu(args, kwargs)):
            self.by_line[_line_of_ftrace(sys._getframe(1))][name] += 1
        return func(*args, **(kwargs or {}))


def _uses_gpu(args: Any, kwargs: Any) -> bool:
    leaves = _pytree.tree_leaves((args, kwargs))
    return any(leaf.is_cuda for leaf in leaves if isinstance(leaf, Tensor)) or any(
        leaf.type == "cuda" for leaf in leaves if isinstance(leaf, torch.device)
    )


def _line_of_ftrace(frame: FrameType | None) -> str:
    """The innermost line of ftrace in a stack; "" where there is none."""
    while frame is not None:
        for package in PACKAGES:
            before, found, path = frame.f_code.co_filename.rpartition(package)
            if found and "site-packages" not in before:
                return f"{package.strip('/')}/{path}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return ""
