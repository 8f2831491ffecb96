"""The tolerance of results that a model gives in two ways, such as in batches of different sizes."""

from __future__ import annotations

import torch
from torch import nn


def tolerance_of(model: nn.Module) -> float:
    """Compute how far results may be apart by rounding, relative to their size: half of the digits of the dtype.

    That is the root of eps, of the coarsest dtype among the model's weights: 1e-8 in float64, 3e-4 in float32, .03 in
    float16, .09 in bfloat16. It allows as many roundings as one over the root.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    eps: float = max((torch.finfo(dtype).eps for dtype in dtypes), default=torch.finfo(torch.float32).eps)
    return eps**0.5
