"""Products of rows with rows, ``first @ second.T``, by the faster of PyTorch's two libraries.

On a CPU, ``torch.mm`` calls MKL for float32, which uses half of an AMD processor's vector width, while oneDNN, which
PyTorch is built with as well, uses all of it (measured on an EPYC: 100 and 220 GFLOP/s). PyTorch has oneDNN's product
for the code that ``torch.compile`` generates. Both compute in float32; sums are rounded in another order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_ROWS, _COLUMNS = 64, 4096  # of the products that are timed
_TIMES = 5
_LARGE = 2**21  # multiplications of a product by itself, from which it is faster than one of a batch
_CLEARLY = 1.2  # times faster, so that timings' noise doesn't decide


def products_of_rows(first_MP: Tensor, second_NP: Tensor) -> Tensor:
    """Compute ``first @ second.T``, ``[M, N]``, of tensors that don't require a gradient."""
    return _by_onednn(first_MP, second_NP) if _suit_onednn(first_MP, second_NP) else first_MP @ second_NP.T


def stacked_products_of_rows(first_SMP: Tensor, second_SNP: Tensor) -> Tensor:
    """Compute ``first[s] @ second[s].T`` for each s, ``[S, M, N]``, of tensors that don't require a gradient."""
    is_large = first_SMP.shape[1:].numel() * second_SNP.shape[1] >= _LARGE
    if not is_large or not _suit_onednn(first_SMP, second_SNP):
        return torch.bmm(first_SMP, second_SNP.transpose(1, 2))
    products = first_SMP.new_empty(len(first_SMP), first_SMP.shape[1], second_SNP.shape[1])
    for product, first_MP, second_NP in zip(products, first_SMP, second_SNP, strict=True):
        product.copy_(_by_onednn(first_MP, second_NP))
    return products


def _suit_onednn(first: Tensor, second: Tensor) -> bool:
    return (
        first.device.type == "cpu"
        and first.dtype == second.dtype == torch.float32
        and first.numel() > 0
        and second.numel() > 0
        and first.is_contiguous()
        and second.is_contiguous()  # strided memory takes oneDNN a thousand times as long
        and not (first.requires_grad or second.requires_grad)
        and onednn_is_faster(torch.get_num_threads())
    )


@cache
def onednn_is_faster(threads: int) -> bool:
    """Whether oneDNN's product is there, computes the same, and is clearly faster with so many threads.

    Measured once in a process, in some 10 ms. No random state is touched.
    """
    first = torch.linspace(-1, 1, _ROWS * _COLUMNS).view(_ROWS, _COLUMNS)
    second = first.flip(0).contiguous()
    expected = first @ second.T
    try:
        found = _by_onednn(first, second)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # another build, or version, of PyTorch
        return False
    if not torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())):
        return False
    return _CLEARLY * _seconds(lambda: _by_onednn(first, second)) < _seconds(lambda: first @ second.T)


def _by_onednn(first_MP: Tensor, second_NP: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(first_MP, second_NP, None, "none", [], "")
    return product


def _seconds(run: Callable[[], object]) -> float:
    """Time a call, at its best."""
    seconds = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
