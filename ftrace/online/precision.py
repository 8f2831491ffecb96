"""The precision of a run's weights and passes, which decides what its checks take for rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ftrace.gradients import coarsest_eps
from ftrace.online.loop import TrainingLoop

_TF32_EPS = 2.0**-10
_DTYPES = {
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "transformer-engine": torch.float8_e4m3fn,
    "transformer-engine-float16": torch.float8_e4m3fn,
}


def eps_of_passes(loop: TrainingLoop) -> float:
    """Compute eps of the coarsest dtype that passes go through: of weights, frozen ones included, or of autocast.

    Products of float32 matrices on a GPU may be in TF32 or bfloat16, as PyTorch's settings say.
    """
    parameters = list(loop.module.parameters())
    dtypes = [p.dtype for p in parameters]
    if loop.precision in _DTYPES:
        dtypes.append(_DTYPES[loop.precision])
    eps = coarsest_eps(dtypes)
    if any(p.is_cuda and p.dtype == torch.float32 for p in parameters):
        eps = max(eps, _eps_of_products(loop.module.modules()))
    return eps


def _eps_of_products(modules: Iterable[nn.Module]) -> float:
    if torch.get_float32_matmul_precision() == "medium":
        return coarsest_eps([torch.bfloat16])
    convolves = torch.backends.cudnn.allow_tf32 and any(isinstance(module, _ConvNd) for module in modules)
    return _TF32_EPS if convolves or torch.get_float32_matmul_precision() == "high" else 0.0


def weights_by_dtype(module: nn.Module) -> dict[str, int]:
    """Count a module's weights by dtype, the most frequent first; weights that are used twice count once.

    Example:
        >>> weights_by_dtype(nn.Sequential(nn.Linear(3, 3), nn.Linear(2, 1).bfloat16()))
        {'float32': 12, 'bfloat16': 3}
    """
    counts: Counter[str] = Counter()
    for parameter in module.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(counts.most_common())


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype are too short for sums."""
    return dtype in (torch.float16, torch.bfloat16)


def wide(tensor: Tensor) -> Tensor:
    """Convert numbers in half precision to float32; others stay as they are."""
    return tensor.float() if is_half(tensor.dtype) else tensor
