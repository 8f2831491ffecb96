"""Collectives of all processes, and what they amount to in a single process.

All processes must call each function, in the same order, except within :func:`alone`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_is_alone = False


def num_processes() -> int:
    """Return the number of processes that train the model."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if num_processes() > 1 else 0


@contextmanager
def alone() -> Iterator[None]:
    """Let collectives be of this process only within the block, since others may be gone or elsewhere."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over processes; return the same tensor if there is one process."""
    if _is_single():
        return tensor
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def of_first_process(tensor: Tensor) -> Tensor:
    """Return process 0's tensor; the same tensor if there is one process."""
    if _is_single():
        return tensor
    shared = tensor.detach().to(collective_device(), copy=True).contiguous()
    dist.broadcast(shared, src=0)
    return shared.to(tensor.device)


def any_process(here: Sequence[bool]) -> list[bool]:
    """Tell which conditions hold in at least one process."""
    if _is_single():
        return list(here)
    return sum_over_processes(torch.tensor([int(holds) for holds in here], device=collective_device())).bool().tolist()


def gather_objects(value: Any) -> list[Any]:
    """Collect each process's value, by rank."""
    if _is_single():
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> list[Tensor] | None:
    """Collect each process's rows ``[n, ...]``, with any number n, on process 0; return None on others."""
    if _is_single():
        return [rows]
    counts = gather_objects(len(rows))
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else rows.device
    if process_rank() == 0:
        all_rows = [rows]
        for rank in range(1, num_processes()):
            received = torch.empty(counts[rank], *rows.shape[1:], dtype=rows.dtype, device=device)
            if counts[rank]:
                dist.recv(received, src=rank)
            all_rows.append(received.to(rows.device))
        return all_rows
    if len(rows):
        dist.send(rows.to(device).contiguous(), dst=0)
    return None


def unsharded(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded over processes."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor that may be sharded, detached from autograd's graph."""
    to_local = getattr(tensor, "to_local", None)
    shard: Tensor = tensor.data if to_local is None else to_local().data
    return shard


def unsharded_state(state: dict[str, Any]) -> dict[str, Any]:
    """Gather an optimizer's state of one parameter."""
    return {key: unsharded(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def collective_device() -> torch.device:
    """Return the device of tensors that collectives are given."""
    backend = dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


def _is_single() -> bool:
    return _is_alone or num_processes() == 1
