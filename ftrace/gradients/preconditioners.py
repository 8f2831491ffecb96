"""Preconditioners: the factors by which optimizers multiply gradients, one over the root of their second moments.

Adam and AdamW store one number for each element, ``P = 1 / (sqrt(v_hat) + eps)``. Adafactor stores one for each row and
one for each column, so ``P`` is an outer product and can be multiplied into the factors of a gradient without forming
it. The same form approximates Adam's, and the error of that is measured (Shazeer and Stern 2018, arXiv 1804.04235,
section 3).

A product in which one gradient is preconditioned is the first-order effect of a step (``G^T P c``); with both, it is
TrackStar's (Chang et al. 2024, arXiv 2410.17413, section 3). Other numbers that multiply an entire update (learning
rate, Adafactor's clipping by RMS and its scale of the parameter) are not part of ``P``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftrace.gradients.names import full_name
from ftrace.gradients.parts import Dense, Lookup, Outer, Part, Positions
from ftrace.gradients.per_example import PerExampleGradients

_CHUNK_NUMBERS = 2**18  # of a matrix that are read at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Elementwise:
    """Preconditioner with a factor for each element.

    Args:
        scale: The factors, in the parameter's shape.
    """

    scale: Tensor

    def dense(self) -> Tensor:
        """Get the factors, in the parameter's shape."""
        return self.scale


@dataclass(frozen=True)
class RankOne:
    """Preconditioner with a factor for each row times one for each column of a matrix.

    Args:
        rows: ``[R]``.
        columns: ``[C]``.
    """

    rows: Tensor
    columns: Tensor

    def dense(self) -> Tensor:
        """Form the factors, ``[R, C]``."""
        return torch.outer(self.rows, self.columns)


Preconditioner = Elementwise | RankOne


def preconditioners_from_optimizer(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Preconditioner]:
    """Read each parameter's preconditioner off a live optimizer, by the parameter's name.

    Args:
        optimizer: Adam, AdamW or Adafactor of ``torch.optim``, or transformers' Adafactor; any of their fused, foreach
            or capturable forms, with any parameter groups.
        named_parameters: ``module.named_parameters()``. Those that the optimizer doesn't have are left out.

    Raises:
        ValueError: If the optimizer is another one, or has not taken a step on a parameter yet.
    """
    kind = full_name(optimizer)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {
        name: preconditioner_from_state(name, kind, group_of[id(p)], optimizer.state.get(p, {}), p.shape, p.dtype)
        for name, p in named_parameters
        if id(p) in group_of and p.requires_grad
    }


def preconditioner_from_state(
    name: str,
    optimizer: str,
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Preconditioner:
    """Read one parameter's preconditioner off the state that an optimizer stores (snapshots have the same).

    Args:
        name: The parameter, for errors.
        optimizer: Full name of the optimizer's class.
        settings: The parameter's group: ``betas``, ``eps``, ``amsgrad``.
        state: The parameter's state.
        shape: Of the parameter.
        dtype: Of the parameter.

    Raises:
        ValueError: If the optimizer is not supported, or the state is missing.
    """
    read = _READERS.get(optimizer)
    if read is None:
        known = ", ".join(_READERS)
        raise ValueError(f"no preconditioner is known for {optimizer}: expected one of {known}")
    try:
        return read(settings, state, len(shape), dtype)
    except KeyError as error:
        raise ValueError(
            f"{optimizer} has no {error} of {name!r}: expected it to have taken a step. Train first, or leave the "
            "parameter out"
        ) from error


def of_touched(preconditioner: Preconditioner, touched: Tensor) -> Preconditioner:
    """Set a preconditioner to 0 where no gradient has ever arrived, and the optimizer would divide by next to nothing.

    Args:
        preconditioner: Of a parameter.
        touched: See :func:`touched_elements`.
    """
    if touched.all():
        return preconditioner
    if isinstance(preconditioner, RankOne):
        rows, columns = touched.any(1), touched.any(0)
        if torch.equal(torch.outer(rows, columns), touched):
            return RankOne(preconditioner.rows * rows, preconditioner.columns * columns)
    return Elementwise(preconditioner.dense().view(touched.shape) * touched)


def touched_elements(optimizer: str, settings: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """Find where an optimizer's second moments have seen a gradient: bool, in the parameter's shape.

    Args:
        optimizer: Full name of the optimizer's class, a supported one.
        settings: The parameter's group.
        state: The parameter's state.
    """
    if optimizer == "torch.optim.Adafactor":
        return (state["row_var"] > 0) & (state["col_var"] > 0) if "row_var" in state else state["variance"] > 0
    if optimizer == "transformers.optimization.Adafactor":
        least = 1.01 * settings["eps"][0]  # the value of a row or column without any gradient
        if "exp_avg_sq" in state:
            return state["exp_avg_sq"] > least
        rows, columns = state["exp_avg_sq_row"] > least, state["exp_avg_sq_col"] > least
        return rows.unsqueeze(-1) & columns.unsqueeze(-2)
    moments = state["max_exp_avg_sq" if settings.get("amsgrad") else "exp_avg_sq"]
    if moments.dtype == torch.float16 and "exp_avg" in state:  # squares of small gradients are 0 there
        return (moments > 0) | (state["exp_avg"] != 0)
    return moments > 0


def rank_one_from_state(
    name: str,
    optimizer: str,
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Preconditioner:
    """Read the preconditioner of a matrix off an optimizer's state, as the closest outer product, see :func:`rank_one`.

    It is 0 where no gradient has ever arrived. Adam's second moments are read some rows at a time, since memory of a
    matrix's own size takes longer to get than to fill. The arguments are those of :func:`preconditioner_from_state`.
    """
    if optimizer not in _ADAMS or "exp_avg_sq" not in state:
        whole = preconditioner_from_state(name, optimizer, settings, state, shape, dtype)
        whole = of_touched(whole, touched_elements(optimizer, settings, state))
        return rank_one(whole)[0] if isinstance(whole, Elementwise) else whole
    tensors = {key: value.flatten(1) for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
    length, width = tensors["exp_avg_sq"].shape
    like = tensors["exp_avg_sq"].new_empty(0, dtype=torch.promote_types(tensors["exp_avg_sq"].dtype, torch.float32))
    rows, columns = like.new_empty(length), like.new_zeros(width)
    size = max(1, _CHUNK_NUMBERS // max(1, width))
    for start in range(0, length, size):
        chunk = {**state, **{key: tensor[start : start + size] for key, tensor in tensors.items()}}
        moments = _adam_root(settings, chunk).square() * touched_elements(optimizer, settings, chunk)
        rows[start : start + size] = moments.mean(1)
        columns += moments.sum(0)
    return _of_means(rows, columns / length)


def touched_from_state(
    name: str,
    optimizer: str,
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    factor: float = 1.0,
) -> Preconditioner:
    """Read one parameter's preconditioner off an optimizer's state, times a number; 0 where no gradient has arrived.

    Adam's second moments are read in blocks that stay in the processor's cache. The arguments are those of
    :func:`preconditioner_from_state`, and ``factor``, the number.
    """
    if optimizer not in _ADAMS or "exp_avg_sq" not in state or "step" not in state:
        whole = preconditioner_from_state(name, optimizer, settings, state, shape, dtype)
        scaled = times(of_touched(whole, touched_elements(optimizer, settings, state)), factor)
        assert not isinstance(scaled, float)
        return scaled
    tensors = {key: value.flatten() for key, value in state.items() if isinstance(value, Tensor) and key != "step"}
    moments = tensors["exp_avg_sq"]
    scale = moments.new_empty(len(moments), dtype=torch.promote_types(moments.dtype, torch.float32))
    for start in range(0, len(moments), _CHUNK_NUMBERS):
        chunk = {**state, **{key: tensor[start : start + _CHUNK_NUMBERS] for key, tensor in tensors.items()}}
        of_chunk = torch.reciprocal(_adam_root(settings, chunk), out=scale[start : start + _CHUNK_NUMBERS])
        of_chunk.mul_(factor).masked_fill_(touched_elements(optimizer, settings, chunk).logical_not(), 0.0)
    return Elementwise(scale.view(state["exp_avg_sq"].shape))


def times(factor: float | Preconditioner, number: float) -> float | Preconditioner:
    """Multiply a gradient's factor by a number."""
    if isinstance(factor, float):
        return factor * number
    if isinstance(factor, RankOne):
        return RankOne(factor.rows * number, factor.columns)
    return Elementwise(factor.scale * number)


def rank_one(preconditioner: Elementwise) -> tuple[RankOne, float]:
    """Approximate an elementwise preconditioner of a matrix by an outer product, and measure the error.

    Second moments are replaced by the product of their row and column means over the overall mean, which is the closest
    outer product in generalised Kullback-Leibler divergence (Shazeer and Stern 2018, lemma 1).

    Args:
        preconditioner: Of a parameter with at least two axes; all but the first count as columns.

    Returns:
        The approximation, and its relative error ``|P - P'| / |P|`` in the Frobenius norm.

    Raises:
        ValueError: If the parameter is a vector.

    Example:
        >>> approximation, error = rank_one(Elementwise(torch.tensor([[1.0, 2.0], [2.0, 4.0]])))
        >>> approximation.dense(), round(error, 6)
        (tensor([[1., 2.],
                [2., 4.]]), 0.0)
    """
    if preconditioner.scale.ndim < 2:
        raise ValueError("rank_one: expected a parameter of at least two axes; a vector's preconditioner is small")
    scale = preconditioner.scale.flatten(1)
    touched = scale > 0
    moments = torch.where(touched, scale.square().reciprocal(), 0.0)
    approximation = _of_means(moments.mean(1), moments.mean(0))
    return approximation, float((approximation.dense() - scale).norm() / scale.norm())


def _of_means(rows: Tensor, columns: Tensor) -> RankOne:
    """Make the outer product that is closest to second moments of these means over columns and over rows."""
    return RankOne(_root_reciprocal(rows / rows.mean()), _root_reciprocal(columns))


def _root_reciprocal(moments: Tensor) -> Tensor:
    """Compute one over the root; 0 where no gradient has been seen."""
    return torch.where(moments > 0, moments.rsqrt(), 0.0)


def precondition(
    gradients: PerExampleGradients, preconditioners: Mapping[str, float | Preconditioner]
) -> PerExampleGradients:
    """Multiply gradients by preconditioners; one of rank one goes into their factors, so that they stay factored.

    Args:
        gradients: Of any parameters.
        preconditioners: By parameter; a number multiplies all elements alike.

    Raises:
        ValueError: If a parameter that has a gradient has no preconditioner.
    """
    missing = sorted(gradients.parts.keys() - preconditioners.keys())
    if missing:
        raise ValueError(f"expected a preconditioner for each parameter, found none for {missing}")
    parts: dict[str, list[Part | Positions]] = {}
    scales = dict(gradients.scales)
    for name, of_name in gradients.parts.items():
        factor = preconditioners[name]
        if isinstance(factor, float):
            parts[name] = [_multiplied(part, factor) for part in of_name]
        elif isinstance(factor, RankOne):
            parts[name] = [_scaled(part, factor) for part in of_name]
        elif len(gradients.shapes[name]) < 2 and name not in scales:  # a vector's gradients are dense and small
            parts[name] = [Dense(part.dense() * factor.scale) for part in of_name]
        else:
            parts[name] = list(of_name)
            scales[name] = factor.scale * scales[name] if name in scales else factor.scale
    return PerExampleGradients(parts, gradients.shapes, len(gradients), scales)


def _multiplied(part: Part, factor: float) -> Part:
    if isinstance(part, Outer):
        return Outer(part.rows * factor, part.columns)
    if isinstance(part, Lookup):
        return Lookup(part.ids, part.columns * factor, part.num_rows)
    return Dense(part.value * factor)


def _scaled(part: Part, factor: RankOne) -> Part:
    rows, columns = factor.rows, factor.columns
    if isinstance(part, Outer):
        return Outer(part.rows * rows, part.columns * columns)
    if isinstance(part, Lookup):
        return Lookup(part.ids, part.columns * rows[part.ids].unsqueeze(-1) * columns, part.num_rows)
    return Dense(part.value * factor.dense().view(part.value.shape[1:]))


def _adam(settings: Mapping[str, Any], state: Mapping[str, Any], axes: int, dtype: torch.dtype) -> Preconditioner:
    return Elementwise(1 / _adam_root(settings, state))


def _adam_root(settings: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """Compute what Adam divides by, in float32 at least."""
    moments = state["max_exp_avg_sq" if settings.get("amsgrad") else "exp_avg_sq"]
    bias = 1 - float(settings["betas"][1]) ** float(state["step"])
    root = moments.sqrt() / math.sqrt(bias) + float(settings["eps"])  # in half precision rounded as the optimizer does
    return root.to(torch.promote_types(root.dtype, torch.float32))


def _torch_adafactor(
    settings: Mapping[str, Any], state: Mapping[str, Any], axes: int, dtype: torch.dtype
) -> Preconditioner:
    epsilon = settings["eps"][0]
    epsilon = torch.finfo(dtype).eps if epsilon is None else epsilon
    if axes < 2:
        return Elementwise(state["variance"].clamp(min=epsilon**2).rsqrt())
    rows, columns = state["row_var"], state["col_var"]
    mean = rows.mean(dim=-2, keepdim=True).clamp(min=epsilon)
    moments = rows @ columns / mean
    if axes > 2 or (moments < epsilon**2).any():  # where it clamps, it is no outer product
        return Elementwise(moments.clamp(min=epsilon**2).rsqrt())
    return RankOne((rows / mean).squeeze(-1).rsqrt(), columns.squeeze(-2).rsqrt())


def _transformers_adafactor(
    settings: Mapping[str, Any], state: Mapping[str, Any], axes: int, dtype: torch.dtype
) -> Preconditioner:
    if axes < 2:
        return Elementwise(state["exp_avg_sq"].rsqrt())
    rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
    of_rows = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt()
    if axes > 2:
        return Elementwise(of_rows.unsqueeze(-1) * columns.rsqrt().unsqueeze(-2))
    return RankOne(of_rows, columns.rsqrt())


_ADAMS = ("torch.optim.adam.Adam", "torch.optim.adamw.AdamW")
_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], int, torch.dtype], Preconditioner]] = {
    **dict.fromkeys(_ADAMS, _adam),
    "torch.optim.Adafactor": _torch_adafactor,
    "transformers.optimization.Adafactor": _transformers_adafactor,
}
