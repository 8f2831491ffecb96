"""What is measured of a run: the answer's probability, its logarithm, and the difference to another token's logit.

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
    """Accepted answers that differ in their last token only: one pass serves them all.

    Args:
        prefix: Their tokens but for the last.
        finals: The last token of each.
    """

    prefix: tuple[int, ...]
    finals: tuple[int, ...]

    @property
    def first_tokens(self) -> tuple[int, ...]:
        """Tokens that the group's answers begin with."""
        return self.prefix[:1] or self.finals


def answer_groups(answers: Sequence[Sequence[int]]) -> list[AnswerGroup]:
    """Answers by their tokens but for the last, in the order in which they come.

    An answer that begins with another one is left out: whatever goes on with it has given the shorter one already.

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
    """Logarithm of the answers' summed probability, ``[R]``, in float32 or better.

    Args:
        logits: Where the answers' tokens are predicted, ``[R, S, V]``.
        group: The answers.
    """
    return torch.cat([_log_probabilities(some, group) for some in _in_blocks(logits)])


def _log_probabilities(logits: Tensor, group: AnswerGroup) -> Tensor:
    logs = logits if logits.dtype == torch.float64 else logits.float()
    norms = logs.logsumexp(-1)  # [R, S]; taken off the few tokens that count, not off the whole vocabulary
    finals = torch.tensor(group.finals, device=logits.device)
    found: Tensor = logs[:, -1].index_select(1, finals).logsumexp(1) - norms[:, -1]
    for place, token in enumerate(group.prefix):
        found = found + (logs[:, place, token] - norms[:, place])
    return found


def logit_differences(logits: Tensor, token: int, foil: int) -> Tensor:
    """Logit of a token minus that of its foil where an answer begins, ``[R]``; logits ``[R, S, V]``."""
    both = logits[:, 0, [token, foil]].to(torch.promote_types(logits.dtype, torch.float32))
    return both[:, 0] - both[:, 1]


def is_greedy(logits: Tensor, group: AnswerGroup) -> bool:
    """Whether greedy decoding gives one of the answers; logits of the clean run ``[S, V]``."""
    likeliest = logits.argmax(-1).tolist()
    return tuple(likeliest[:-1]) == group.prefix and likeliest[-1] in group.finals


def best_rank(logits: Tensor, tokens: Sequence[int]) -> int:
    """Rank of the likeliest of some tokens, from 1; logits ``[V]``."""
    return int((logits > logits[list(tokens)].max()).sum()) + 1


def likeliest_other(logits: Tensor, tokens: Sequence[int]) -> int:
    """The likeliest token but for some; logits ``[V]``."""
    others = logits.float().clone()
    others[list(tokens)] = -torch.inf
    return int(others.argmax())


def _in_blocks(logits: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        yield logits[start : start + _ROWS_AT_ONCE]
