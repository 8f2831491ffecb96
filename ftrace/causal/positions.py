"""Groups of a prompt's positions, relative to its subject.

The six groups are those of Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262,
section 2.2): three in the subject and three after it. An encoder reads in both directions, so it has a seventh, the
positions before the subject. In a decoder-only model a corrupted subject can't change these, and nothing can be
restored there.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ftrace.arguments import Count, checked
from ftrace.causal.prompt_trace import PromptTrace, Stack

BEFORE = "before the subject"
FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT = "first subject token", "middle subject tokens", "last subject token"
FIRST_AFTER, FURTHER, LAST = "first token after", "further tokens", "last token"
GIVEN = "given tokens"
Reading = Literal["one way", "both ways"]


@checked
def position_groups(num_tokens: Count, subject: tuple[int, int], reading: Reading = "one way") -> dict[str, np.ndarray]:
    """Sort the positions of a stack into groups. A group may be empty.

    - The token of a one-token subject is both its first and its last.
    - The prompt's last token is only in "last token", even if it is also the first one after the subject. If the
      subject ends the prompt, a stack that reads one way still has its last token there, because the answer is read off
      it and restoring it in the last layer restores everything; "last subject token" is then empty. In a stack that
      reads both ways it is a token of the subject like any other, and "last token" is empty.
    - Without a subject, as in an encoder-decoder's decoder, the only groups are "given tokens" and "last token".

    Args:
        num_tokens: How many tokens the stack reads.
        subject: Half-open range of the subject's positions.
        reading: "one way" in decoders, "both ways" in encoders, which also have the group "before the subject".

    Returns:
        The positions in each group, int64, in the order of the text.

    Raises:
        ValueError: If the subject is not within the tokens.

    Example:
        >>> groups = position_groups(7, (1, 4))  # "The | Space | Need | le | is | in | downtown"
        >>> {name: positions.tolist() for name, positions in groups.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'first subject token': [1], 'middle subject tokens': [2], 'last subject token': [3], 'first token after': [4],
         'further tokens': [5], 'last token': [6]}
    """
    start, end = subject
    if not 0 <= start <= end <= num_tokens or not num_tokens:
        raise ValueError(
            f"expected a subject within a prompt of at least one token, found positions {start} to {end} of "
            f"{num_tokens}"
        )
    last = num_tokens - 1
    if start == end:
        return {GIVEN: np.arange(last), LAST: np.array([last])}
    ends = np.array([last]) if reading == "one way" else np.arange(max(last, end), num_tokens)
    inside = np.arange(start, end)
    of_subject = {FIRST_SUBJECT: inside[:1], MIDDLE_SUBJECT: inside[1:-1], LAST_SUBJECT: inside[-1:]}
    groups = {name: np.setdiff1d(positions, ends) for name, positions in of_subject.items()}
    after = np.arange(end, last)
    groups |= {FIRST_AFTER: after[:1], FURTHER: after[1:], LAST: ends}
    return {BEFORE: np.arange(start), **groups} if reading == "both ways" else groups


def groups_of(trace: PromptTrace, stack: Stack) -> dict[str, np.ndarray]:
    """Sort the positions of a traced prompt's stack into groups; see :func:`position_groups`.

    Raises:
        ValueError: If an encoder has no subject.
    """
    traced = trace.stacks[stack]
    if stack == "encoder" and traced.subject[0] == traced.subject[1]:
        raise ValueError(f"expected a subject in the encoder of prompt {trace.name!r}, found none: trace it again")
    return position_groups(len(traced.tokens), traced.subject, "both ways" if stack == "encoder" else "one way")
