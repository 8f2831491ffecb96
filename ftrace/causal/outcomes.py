"""Outcomes of a run: the answer's probability, its logarithm, and its logit minus that of another token.

Shape letters: R rows, S tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class AnswerGroup:
    """Accepted answers that differ only in their last token, so that one pass measures them all.

    Args:
        prefix: The answers' tokens without the last.
        finals: The last token of each answer.
    """

    prefix: tuple[int, ...]
    finals: tuple[int, ...]

    @property
    def first_tokens(self) -> tuple[int, ...]:
        """Tokens that the group's answers begin with."""
        return self.prefix[:1] or self.finals


def answer_groups(answers: Sequence[Sequence[int]]) -> list[AnswerGroup]:
    """Group answers by their tokens without the last, in the order in which groups first occur.

    An answer that begins with another one is left out: a text with the longer answer has the shorter one, too.

    Example:
        >>> answer_groups([(1, 2), (5,), (1, 3)])
        [AnswerGroup(prefix=(1,), finals=(2, 3)), AnswerGroup(prefix=(), finals=(5,))]
        >>> answer_groups([(1, 2, 4), (1, 2)])
        [AnswerGroup(prefix=(1,), finals=(2,))]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    distinct = dict.fromkeys(map(tuple, answers))
    for answer in distinct:
        if any(answer[:length] in distinct for length in range(1, len(answer))):
            continue
        groups.setdefault(answer[:-1], []).append(answer[-1])
    return [AnswerGroup(prefix, tuple(finals)) for prefix, finals in groups.items()]


def log_probabilities(logits: Tensor, group: AnswerGroup) -> Tensor:
    """Compute the logarithm of the answers' summed probability, ``[R]``, in float32 or better.

    Args:
        logits: At the positions that predict the answers' tokens, ``[R, S, V]``.
    """
    return torch.cat([_log_probabilities(block, group) for block in _in_blocks(logits)])


def _log_probabilities(logits: Tensor, group: AnswerGroup) -> Tensor:
    logs = logits if logits.dtype == torch.float64 else logits.float()
    norms = logs.logsumexp(-1)  # [R, S]; subtracted from the few tokens that count, not from the whole vocabulary
    finals = torch.tensor(group.finals, device=logits.device)
    total: Tensor = logs[:, -1].index_select(1, finals).logsumexp(1) - norms[:, -1]
    for index, token in enumerate(group.prefix):
        total = total + (logs[:, index, token] - norms[:, index])
    return total


def logit_differences(logits: Tensor, token: int, foil: int) -> Tensor:
    """Compute a token's logit minus its foil's at the start of the answer, ``[R]``; logits are ``[R, S, V]``."""
    both = logits[:, 0, [token, foil]].to(torch.promote_types(logits.dtype, torch.float32))
    return both[:, 0] - both[:, 1]


def is_greedy(logits: Tensor, group: AnswerGroup) -> bool:
    """Return whether greedy decoding gives one of the answers; logits of the clean run are ``[S, V]``."""
    likeliest = logits.argmax(-1).tolist()
    return tuple(likeliest[:-1]) == group.prefix and likeliest[-1] in group.finals


def best_rank(logits: Tensor, tokens: Sequence[int]) -> int:
    """Return the rank of the likeliest of some tokens, from 1; logits are ``[V]``."""
    return int((logits > logits[list(tokens)].max()).sum()) + 1


def likeliest_other(logits: Tensor, tokens: Sequence[int]) -> int:
    """Return the likeliest token except for the given ones; logits are ``[V]``."""
    others = logits.float().clone()
    others[list(tokens)] = -torch.inf
    return int(others.argmax())


def _in_blocks(logits: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        yield logits[start : start + _ROWS_AT_ONCE]
