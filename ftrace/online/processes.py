"""What several processes have to do together, and what one process does when it is alone.

Every function is a collective: all processes must call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """How many processes train this model."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if num_processes() > 1 else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """A tensor added up over processes; the same tensor where there is one."""
    if num_processes() == 1:
        return tensor
    total = tensor.detach().clone().contiguous()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def any_process(here: Sequence[bool]) -> list[bool]:
    """Which of these hold in some process."""
    if num_processes() == 1:
        return list(here)
    return sum_over_processes(torch.tensor([int(one) for one in here], device=_device())).bool().tolist()


def gather_objects(value: Any) -> list[Any]:
    """What each process has, by rank."""
    if num_processes() == 1:
        return [value]
    found: list[Any] = [None] * num_processes()
    dist.all_gather_object(found, value)
    return found


def gather_rows(rows: Tensor) -> list[Tensor] | None:
    """Each process's ``[n, ...]`` (n its own), on the CPU of process 0; None on the others."""
    if num_processes() == 1:
        return [rows]
    counts = gather_objects(len(rows))
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else rows.device
    if process_rank() == 0:
        found = [rows]
        for rank in range(1, num_processes()):
            room = torch.empty(counts[rank], *rows.shape[1:], dtype=rows.dtype, device=device)
            if counts[rank]:
                dist.recv(room, src=rank)
            found.append(room.to(rows.device))
        return found
    if len(rows):
        dist.send(rows.to(device).contiguous(), dst=0)
    return None


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded over processes, in one piece."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def local(tensor: Tensor) -> Tensor:
    """Of a tensor that may be sharded over processes, what this one holds, out of autograd's sight."""
    to_local = getattr(tensor, "to_local", None)
    found: Tensor = tensor.data if to_local is None else to_local().data
    return found


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state of one parameter, in one piece."""
    return {key: whole(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def _device() -> torch.device:
    backend = dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
