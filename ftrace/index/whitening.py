"""R^(-1/2) of a task: the autocorrelation of the corpus, mixed with that of the task's queries.

``R = lambda R_query + (1 - lambda) R_train`` makes directions that all of a task's queries share count less (Chang et
al. 2024, arXiv 2410.17413, section 3). R is not in an index, so that any task's can be used: a score is ``phi_z . u_q``
with ``u_q = R^-1 phi_q``, over ``|R^(-1/2) phi_q|`` and ``|R^(-1/2) phi_z|``, and only the last needs a pass over all
rows, once for a task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftrace.gradients import RunningAutocorrelation, whitener
from ftrace.index.settings import RANK_SHARE, WhiteningSettings


@dataclass(frozen=True)
class Whitening:
    """The whitening of a task's rows, block by block.

    Args:
        whiteners: For each block W ``[K * K, K * K]`` with ``W W^T = R^-1``; None: rows stay as they are.
        mix: lambda.
        why: How lambda was chosen, in words.
    """

    whiteners: tuple[Tensor, ...] | None
    mix: float
    why: str

    def white(self, rows: Tensor) -> Tensor:
        """Multiply rows ``[n, D]`` by R^(-1/2), up to a rotation."""
        return rows if self.whiteners is None else self._times(rows, self.whiteners)

    def norms(self, rows: Tensor) -> Tensor:
        """Compute ``|R^(-1/2) phi|`` of rows ``[n, D]``, ``[n]``; a block at a time, which saves memory."""
        if self.whiteners is None:
            return torch.linalg.vector_norm(rows, dim=1)
        squares = rows.new_zeros(len(rows))
        blocks = rows.unflatten(1, (len(self.whiteners), -1)).unbind(1)
        for block, factor in zip(blocks, self.whiteners, strict=True):
            squares += torch.linalg.vector_norm(block @ factor.to(block), dim=1).square()
        return squares.sqrt()

    def solved(self, rows: Tensor) -> Tensor:
        """Multiply rows ``[n, D]`` by R^-1."""
        if self.whiteners is None:
            return rows
        return self._times(self.white(rows), [factor.T for factor in self.whiteners])

    @staticmethod
    def _times(rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
        blocks = rows.unflatten(1, (len(factors), -1)).unbind(1)
        return torch.cat([block @ factor.to(block) for block, factor in zip(blocks, factors, strict=True)], 1)

    @property
    def key(self) -> str:
        """A hash of the whiteners: 16 hexadecimal digits, or "plain"."""
        digest = hashlib.sha256()
        for factor in self.whiteners or ():
            digest.update(factor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16] if self.whiteners is not None else "plain"


def autocorrelation_of(rows: Tensor, blocks: Sequence[str]) -> dict[str, Tensor]:
    """Compute R of rows ``[n, D]``: for each block ``[K * K, K * K]``."""
    running = RunningAutocorrelation(time_constant=1)
    running.add(dict(zip(blocks, rows.unflatten(1, (len(blocks), -1)).unbind(1), strict=True)))
    return {block: running.mean(block) for block in blocks}


def make_whitening(
    train: Mapping[str, Tensor], queries: Mapping[str, Tensor] | None, settings: WhiteningSettings
) -> Whitening:
    """Make the whitening of a task.

    Args:
        train: R of the corpus, block by block.
        queries: R of the task's queries, likewise; None if there are none: then lambda is 0.
        settings: Which R.

    Raises:
        ValueError: If lambda is given and there are no queries.
    """
    if settings.autocorrelation == "none":
        return Whitening(None, 0.0, "not whitened")
    if settings.autocorrelation == "train":
        mix, why = 0.0, "0: of the corpus alone"
    elif queries is None:
        if settings.mix:
            raise ValueError(f"mix: expected queries of the task to mix {settings.mix} of, found none")
        mix, why = 0.0, "0: no queries of a task"
    elif settings.mix is not None:
        mix, why = settings.mix, f"{settings.mix:g}: as given"
    else:
        mix, why = balanced_mix(train, queries, settings.rank_share)
    mixed = {name: R if queries is None or not mix else (1 - mix) * R + mix * queries[name].to(R)
             for name, R in train.items()}  # fmt: skip
    return Whitening(tuple(whitener(R, settings.damping) for R in mixed.values()), mix, why)


def balanced_mix(
    train: Mapping[str, Tensor], queries: Mapping[str, Tensor], rank_share: float = RANK_SHARE
) -> tuple[float, str]:
    """Choose lambda by the spectrum rule: ``lambda sigma_query[k] = (1 - lambda) sigma_train[k]``.

    Args:
        train: R of the corpus, block by block.
        queries: R of the task's queries, likewise.
        rank_share: k, as a share of all dimensions, counted from the largest eigenvalue.

    Returns:
        lambda, and how it was chosen. If the queries span fewer than k dimensions, nothing can be balanced at k: 0.

    Example:
        >>> train = {"a": torch.diag(torch.tensor([9.0, 3.0]))}
        >>> queries = {"a": torch.diag(torch.tensor([4.0, 1.0]))}
        >>> balanced_mix(train, queries, rank_share=1.0)[0]
        0.75
    """
    of_train, of_queries = _spectrum(train), _spectrum(queries)
    rank = max(1, min(len(of_train), round(rank_share * len(of_train)))) - 1
    floor = 1e-9 * float(of_queries[0])
    if float(of_queries[rank]) <= floor:
        span = int((of_queries > floor).sum())
        return 0.0, f"0: the queries span {span} dimensions, and the rule compares the {rank + 1}th"
    mix = float(of_train[rank] / (of_train[rank] + of_queries[rank]))
    return mix, f"{mix:.4g}: equal eigenvalues at {rank + 1} of {len(of_train)}"


def _spectrum(of_blocks: Mapping[str, Tensor]) -> Tensor:
    """Compute all blocks' eigenvalues, from the largest."""
    values = [torch.linalg.eigvalsh(R.double()) for R in of_blocks.values()]
    return torch.cat(values).clamp(min=0).sort(descending=True).values
