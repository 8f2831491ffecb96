"""Collators from rows of text to batches: encoder-decoder (span targets), decoder-only (loss on the answer only).

Shape letters: B rows, A accepted answers of a query, T and S tokens of inputs and targets, padded on the right.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftrace.data.continuations import tokenize_continued
from ftrace.data.text import continuation, next_sentinel, split_sentinel

Architecture = Literal["encoder-decoder", "decoder-only"]
IGNORED = -100


class Collator(Protocol):
    """Function from rows to a batch."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate rows of one kind, training rows or queries."""


def make_collator(
    tokenizer: PreTrainedTokenizerBase, architecture: Architecture, *, several_answers: bool = False
) -> Collator:
    """Return the collator for an architecture.

    Args:
        tokenizer: Any tokenizer with an end-of-sequence token.
        architecture: The model's.
        several_answers: Whether training rows have several answers, so that a model goes on with the next sentinel
            where it has answered a query.

    Raises:
        ValueError: If the architecture is unknown, or the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("expected a tokenizer with an end-of-sequence token, found none. Set tokenizer.eos_token")
    if architecture == "encoder-decoder":
        return EncoderDecoderCollator(tokenizer, several_answers=several_answers)
    if architecture == "decoder-only":
        return DecoderOnlyCollator(tokenizer, several_answers=several_answers)
    raise ValueError(f'architecture: expected "encoder-decoder" or "decoder-only", found {architecture!r}')


class _TextCollator:
    """Base of both collators.

    Every batch has ``input_ids`` and ``attention_mask`` ``[B, T]`` and ``labels`` (-100 where there is no loss), and
    ``example_id`` ``[B]`` or, for queries, ``query_id`` ``[B]``, the accepted answers (see the subclasses) and
    ``answer_length`` ``[B]``, the number of tokens of the query's own answer without sentinel and end, at least 1.
    Where training rows have several answers, queries also have ``other_end`` ``[B]``: the token that comes after their
    answer where another one follows, which begins with the next sentinel; -100 where there is none.
    ``answer_other_end`` ``[B, A]`` is that of each accepted answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, several_answers: bool = False) -> None:
        self.tokenizer = tokenizer
        self.several_answers = several_answers
        self._has_warned = False
        self.end = int(tokenizer.eos_token_id)
        self.padding = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts, without special tokens."""
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def closed(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts, each closed by the end-of-sequence token."""
        return [[*tokens, self.end] for tokens in self.tokens(texts)]

    def padded(self, sequences: Sequence[Sequence[int]], filler: int) -> Tensor:
        """Stack sequences into one tensor, padded on the right."""
        longest = max(map(len, sequences))
        return torch.tensor([[*sequence, *[filler] * (longest - len(sequence))] for sequence in sequences])

    def ids(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the rows' ids, under their own key."""
        key = "query_id" if "query_id" in rows[0] else "example_id"
        return {key: torch.tensor([row[key] for row in rows], dtype=torch.int64)}

    def other_ends(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the tokens that may follow each query's answers instead of the end-of-sequence token."""
        if not self.several_answers:
            return {}
        of_targets, of_answers = [], []
        for row, targets in zip(rows, self.answer_targets(rows), strict=True):
            inside = {token for tokens in self.tokens(targets) for token in tokens}
            of_targets.append(self._other_end(row["targets_pretokenized"], inside))
            of_answers.append([self._other_end(target, inside) for target in targets])
        return {"other_end": torch.tensor(of_targets), "answer_other_end": self.padded(of_answers, IGNORED)}

    def _other_end(self, target: str, inside: Collection[int]) -> int:
        """Return the token after the targets if another answer follows: the next sentinel, or its first token.

        -100 if that token isn't conclusive: the tokenizer doesn't know the sentinel, or answers contain the token too.
        """
        sentinel = next_sentinel(target)
        if not sentinel:
            return IGNORED
        alone, followed = self.tokens([target, f"{target} {sentinel}"])
        token = followed[len(alone)] if followed[: len(alone)] == alone else IGNORED
        if token not in (IGNORED, self.tokenizer.unk_token_id) and token not in inside:
            return token
        if not self._has_warned:
            rank_zero_warn(
                f"training rows have several answers, but the tokenizer's tokens don't tell that {sentinel} follows "
                f"{target!r}: only the end of the sequence ends such answers, and queries may count as not learned. "
                "Add the sentinels to the tokenizer"
            )
        self._has_warned = True
        return IGNORED

    def answer_targets(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Write each query's accepted answers in the form of its own target, with or without a sentinel."""
        sentinels = [split_sentinel(row["targets_pretokenized"])[0] for row in rows]
        return [
            [f"{sentinel} {answer}" if sentinel else answer for answer in row["answers"]]
            for sentinel, row in zip(sentinels, rows, strict=True)
        ]


class EncoderDecoderCollator(_TextCollator):
    """Collator of masked text as inputs, and sentinels and answers as targets, as T5 is trained.

    Both are closed by the end-of-sequence token.

    For queries also ``answer_labels`` ``[B, A, S]``: the labels of each accepted answer, all -100 where a query has
    fewer than A.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate rows with ``inputs_pretokenized`` and ``targets_pretokenized``; queries also have ``answers``."""
        inputs = self.closed([row["inputs_pretokenized"] for row in rows])
        targets = self.closed([row["targets_pretokenized"] for row in rows])
        batch = {
            "input_ids": self.padded(inputs, self.padding),
            "attention_mask": self.padded([[1] * len(tokens) for tokens in inputs], 0),
            "labels": self.padded(targets, IGNORED),
            **self.ids(rows),
        }
        if "answers" in rows[0]:
            alone = self.tokens([split_sentinel(row["targets_pretokenized"])[1] for row in rows])
            batch["answer_length"] = torch.tensor([max(1, len(tokens)) for tokens in alone])
            answers = [self.closed(texts) for texts in self.answer_targets(rows)]
            most = max(map(len, answers))
            flat = [tokens for of_row in answers for tokens in (*of_row, *[[IGNORED]] * (most - len(of_row)))]
            batch["answer_labels"] = self.padded(flat, IGNORED).view(len(rows), most, -1)
            batch |= self.other_ends(rows)
        return batch


class DecoderOnlyCollator(_TextCollator):
    """Collator of masked text followed by the target; the loss is on the target after its first sentinel.

    A target without a sentinel continues the inputs and is tokenized together with them;
    :func:`ftrace.data.continuations.tokenize_continued` defines which tokens are the target's. Without inputs, it is a
    text by itself, with the loss on all of it. A target with a sentinel is always tokenized by itself. If the tokenizer
    begins texts with a special token, as Llama's does, rows begin with it too.

    For queries also ``answer_input_ids``, ``answer_attention_mask`` and ``answer_labels``, each ``[B, A, T]``: the
    same text followed by each accepted answer, all -100 where a query has fewer than A.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, several_answers: bool = False) -> None:
        super().__init__(tokenizer, several_answers=several_answers)
        begin = tokenizer.bos_token_id
        first = [] if begin is None else tokenizer("a")["input_ids"][:1]
        self.begin: list[int] = first if first == [begin] else []

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate rows with ``inputs_pretokenized`` and ``targets_pretokenized``; queries also have ``answers``."""
        prompts = [row["inputs_pretokenized"] for row in rows]
        batch = {**self._batch(prompts, [row["targets_pretokenized"] for row in rows]), **self.ids(rows)}
        if "answers" in rows[0]:
            labels = batch["labels"][:, 1:] != IGNORED
            batch["answer_length"] = (labels.sum(1) - 1).clamp(min=1)  # without the end
            answers = self.answer_targets(rows)
            most = max(map(len, answers))
            filled = [text for of_row in answers for text in (*of_row, *[None] * (most - len(of_row)))]
            repeated = [prompt for prompt in prompts for _ in range(most)]
            for name, tensor in self._batch(repeated, filled).items():
                batch[f"answer_{name}"] = tensor.view(len(rows), most, -1)
            batch |= self.other_ends(rows)
        return batch

    def _batch(self, prompts: Sequence[str], targets: Sequence[str | None]) -> dict[str, Tensor]:
        split = [split_sentinel(target or "") for target in targets]
        apart = self.tokens([prompt if sentinel else "" for prompt, (sentinel, _) in zip(prompts, split, strict=True)])
        befores = [sentinel or prompt for prompt, (sentinel, _) in zip(prompts, split, strict=True)]
        rests = [
            rest if sentinel else continuation(prompt, rest)
            for prompt, (sentinel, rest) in zip(prompts, split, strict=True)
        ]
        inputs, labels = [], []
        for before, text, target in zip(
            apart, tokenize_continued(self.tokenizer, befores, rests), targets, strict=True
        ):
            given = [*self.begin, *before, *text.given]
            answer = [] if target is None else [*text.answer, self.end]  # None: no answer here
            inputs.append([*given, *answer])
            labels.append([*[IGNORED] * len(given), *answer])
        return {
            "input_ids": self.padded(inputs, self.padding),
            "attention_mask": self.padded([[1] * len(tokens) for tokens in inputs], 0),
            "labels": self.padded(labels, IGNORED),
        }
