"""Groups of a prompt's places, by where they stand to its subject.

The six groups are those of Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262,
section 2.2): three of the subject, three of what follows. An encoder reads in both directions and so has a seventh,
what stands before the subject; in a decoder-only model corrupted subjects can't change what came before, and nothing
can be restored there.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ftrace.causal.prompt_trace import PromptTrace, Stack

BEFORE = "before the subject"
FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT = "first subject token", "middle subject tokens", "last subject token"
FIRST_AFTER, FURTHER, LAST = "first token after", "further tokens", "last token"
GIVEN = "given tokens"
Reading = Literal["one way", "both ways"]


def position_groups(num_tokens: int, subject: tuple[int, int], reading: Reading = "one way") -> dict[str, np.ndarray]:
    """Sort the places of a stack into groups; a group that a prompt has nothing of is empty.

    - A subject of one token is its first and its last one.
    - The prompt's last token is in "last token" alone, also where it is the first one after the subject. Where the
      subject ends the prompt, a stack that reads one way still has its last token there, as the answer is read off it
      and restoring it in the last layer restores everything; "last subject token" is then empty. In a stack that reads
      both ways it is a token of the subject like another, and "last token" is empty.
    - Without a subject, as in an encoder-decoder's decoder, there are "given tokens" and the "last token" only.

    Args:
        num_tokens: T, how many tokens the stack reads.
        subject: Half-open range of the subject's places.
        reading: "one way" in decoders, "both ways" in encoders, which have the group "before the subject" too.

    Returns:
        The places in each group, int64, in the order of the text.

    Raises:
        ValueError: If the subject is not within the tokens.

    Example:
        >>> groups = position_groups(7, (1, 4))  # "The | Space | Need | le | is | in | downtown"
        >>> {name: places.tolist() for name, places in groups.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'first subject token': [1], 'middle subject tokens': [2], 'last subject token': [3], 'first token after': [4],
         'further tokens': [5], 'last token': [6]}
    """
    start, end = subject
    if not 0 <= start <= end <= num_tokens or not num_tokens:
        raise ValueError(
            f"expected a subject within a prompt of at least one token, found places {start} to {end} of {num_tokens}"
        )
    last = num_tokens - 1
    if start == end:
        return {GIVEN: np.arange(last), LAST: np.array([last])}
    ends = np.array([last]) if reading == "one way" else np.arange(max(last, end), num_tokens)
    inside = np.arange(start, end)
    of_subject = {FIRST_SUBJECT: inside[:1], MIDDLE_SUBJECT: inside[1:-1], LAST_SUBJECT: inside[-1:]}
    groups = {name: np.setdiff1d(places, ends) for name, places in of_subject.items()}
    after = np.arange(end, last)
    groups |= {FIRST_AFTER: after[:1], FURTHER: after[1:], LAST: ends}
    return {BEFORE: np.arange(start), **groups} if reading == "both ways" else groups


def groups_of(trace: PromptTrace, stack: Stack) -> dict[str, np.ndarray]:
    """The places of a traced prompt's stack in their groups; see :func:`position_groups`.

    Raises:
        ValueError: If an encoder has no subject.
    """
    own = trace.stacks[stack]
    if stack == "encoder" and own.subject[0] == own.subject[1]:
        raise ValueError(f"expected a subject in the encoder of prompt {trace.name!r}, found none: trace it again")
    return position_groups(len(own.tokens), own.subject, "both ways" if stack == "encoder" else "one way")
