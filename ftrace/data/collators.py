"""Collators from rows of text to batches: encoder-decoder (span targets), decoder-only (loss on the answer only).

Shape letters: B rows, A accepted answers of a query, T and S tokens of inputs and targets, padded on the right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftrace.data.chats import CountedTokens, tokenize_chat
from ftrace.data.continuations import tokenize_continued
from ftrace.data.fact_tables import Architecture
from ftrace.data.lengths import kept
from ftrace.data.messages import warn
from ftrace.data.text import SENTINEL, continuation, next_sentinel, split_sentinel
from ftrace.data.turns import Turn, is_chat, with_answer

IGNORED = -100
Row = Mapping[str, Any]


def make_collator(
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture,
    *,
    several_answers: bool = False,
    max_length: int | None = None,
) -> TextCollator:
    """Return the collator for an architecture.

    Args:
        tokenizer: Any tokenizer with an end-of-sequence token.
        architecture: The model's.
        several_answers: Whether training rows have several answers, so that a model goes on with the next sentinel
            where it has answered a query.
        max_length: How many tokens a row keeps, of each of inputs and targets for an encoder-decoder; default: all.

    Raises:
        ValueError: If the architecture is unknown, or the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("expected a tokenizer with an end-of-sequence token, found none. Set tokenizer.eos_token")
    if architecture == "encoder-decoder":
        return EncoderDecoderCollator(tokenizer, several_answers=several_answers, max_length=max_length)
    if architecture == "decoder-only":
        return DecoderOnlyCollator(tokenizer, several_answers=several_answers, max_length=max_length)
    raise ValueError(f'architecture: expected "encoder-decoder" or "decoder-only", found {architecture!r}')


class TextCollator(ABC):
    """Base of both collators.

    Every batch has ``input_ids`` and ``attention_mask`` ``[B, T]`` and ``labels`` (-100 where there is no loss), and
    ``example_id`` ``[B]`` or, for queries, ``query_id`` ``[B]``, the accepted answers (see the subclasses) and
    ``answer_length`` ``[B]``, the number of tokens of the query's own answer without sentinel and end, at least 1.
    Where training rows have several answers, queries also have ``other_end`` ``[B]``: the token that comes after their
    answer where another one follows, which begins with the next sentinel; -100 where there is none.
    ``answer_other_end`` ``[B, A]`` is that of each accepted answer. Where not all rows and answers end with one token
    that closes them, the batch has ``end_length`` ``[B]`` and ``answer_end_length`` ``[B, A]``: how many of the last
    labels do, 0 where the end was cut off.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, several_answers: bool = False, max_length: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.several_answers = several_answers
        self.max_length = max_length
        self._has_warned = False
        self.end = int(tokenizer.eos_token_id)
        self.padding = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    @abstractmethod
    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows of one kind, training rows or queries."""

    @abstractmethod
    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Return how many tokens rows have before anything is cut; of inputs and targets the longer."""

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

    def ids(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return the rows' ids, under their own key."""
        key = "query_id" if "query_id" in rows[0] else "example_id"
        return {key: torch.tensor([row[key] for row in rows], dtype=torch.int64)}

    def other_ends(self, rows: Sequence[Row]) -> dict[str, Tensor]:
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
            warn(
                f"training rows have several answers, but the tokenizer's tokens don't tell that {sentinel} follows "
                f"{target!r}: only the end of the sequence ends such answers, and queries may count as not learned. "
                "Add the sentinels to the tokenizer"
            )
        self._has_warned = True
        return IGNORED

    def answer_targets(self, rows: Sequence[Row]) -> list[list[str]]:
        """Write each query's accepted answers in the form of its own target, with or without a sentinel."""
        sentinels = [split_sentinel(row["targets_pretokenized"])[0] for row in rows]
        return [
            [f"{sentinel} {answer}" if sentinel else answer for answer in row["answers"]]
            for sentinel, row in zip(sentinels, rows, strict=True)
        ]


class EncoderDecoderCollator(TextCollator):
    """Collator of masked text as inputs, and sentinels and answers as targets, as T5 is trained.

    Both are closed by the end-of-sequence token.

    For queries also ``answer_labels`` ``[B, A, S]``: the labels of each accepted answer, all -100 where a query has
    fewer than A.
    """

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows with ``inputs_pretokenized`` and ``targets_pretokenized``; queries also have ``answers``."""
        texts = [row["targets_pretokenized"] for row in rows]
        both = zip(self.closed([row["inputs_pretokenized"] for row in rows]), texts, strict=True)
        inputs = [self._kept_inputs(tokens, text) for tokens, text in both]
        targets = self._kept_targets(texts)
        batch = {
            "input_ids": self.padded(inputs, self.padding),
            "attention_mask": self.padded([[1] * len(tokens) for tokens in inputs], 0),
            "labels": self.padded(targets, IGNORED),
            **self.ids(rows),
            **_ends({"end_length": self._end_lengths(texts)}),
        }
        if "answers" in rows[0]:
            heads = self.tokens([split_sentinel(text)[0] for text in texts])
            counts = zip(targets, heads, self._end_lengths(texts), strict=True)
            batch["answer_length"] = torch.tensor([max(1, len(all_) - len(head) - end) for all_, head, end in counts])
            of_answers = self.answer_targets(rows)
            answers = [self._kept_targets(accepted) for accepted in of_answers]
            most = max(map(len, answers))
            ends = [[*self._end_lengths(accepted), *[1] * (most - len(accepted))] for accepted in of_answers]
            batch |= _ends({"answer_end_length": ends, "end_length": self._end_lengths(texts)})
            flat = [tokens for of_row in answers for tokens in (*of_row, *[[IGNORED]] * (most - len(of_row)))]
            batch["answer_labels"] = self.padded(flat, IGNORED).view(len(rows), most, -1)
            batch |= self.other_ends(rows)
        return batch

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Return how many tokens the longer of each row's inputs and targets has."""
        columns = [self.closed([row[name] for row in rows]) for name in ("inputs_pretokenized", "targets_pretokenized")]
        return [max(map(len, both)) for both in zip(*columns, strict=True)]

    def _end_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return 0 for each of the targets whose end is cut off, otherwise 1."""
        if self.max_length is None:
            return [1] * len(texts)
        return [int(len(tokens) <= self.max_length) for tokens in self.closed(texts)]

    def _kept_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return [tokens[: self.max_length] for tokens in self.closed(texts)]

    def _kept_inputs(self, tokens: list[int], targets: str) -> list[int]:
        """Keep the beginning of inputs, and their end token; of masks that come later, what is before the last."""
        if self.max_length is None or len(tokens) <= self.max_length:
            return tokens
        room = self.max_length - 1
        sentinels = SENTINEL.findall(targets)
        of_masks = {ids[0] for ids in (self.tokens(sentinels) if sentinels else []) if len(ids) == 1}
        masks = [place for place, token in enumerate(tokens) if token in of_masks - {self.tokenizer.unk_token_id}]
        first = max(0, masks[-1] + 1 - room) if masks else 0
        if masks and masks[0] < first:
            raise ValueError(
                f"max_length: expected room for all masks of a row, found them {masks[-1] + 1 - masks[0]:,} tokens "
                f"apart, more than {room:,}, in the row with the targets {targets!r:.100}. Give more, or split the row"
            )
        return [*tokens[first : first + room], tokens[-1]]


class DecoderOnlyCollator(TextCollator):
    """Collator of masked text followed by the target; the loss is on the target after its first sentinel.

    Chats are tokenized in the tokenizer's template: see :func:`ftrace.data.chats.tokenize_chat`.
    :func:`ftrace.data.lengths.kept` defines what is kept of a row that is too long.

    A target without a sentinel continues the inputs and is tokenized together with them;
    :func:`ftrace.data.continuations.tokenize_continued` defines which tokens are the target's. Without inputs, it is a
    text by itself, with the loss on all of it. A target with a sentinel is always tokenized by itself. If the tokenizer
    begins texts with a special token, as Llama's does, rows begin with it too.

    For queries also ``answer_input_ids``, ``answer_attention_mask`` and ``answer_labels``, each ``[B, A, T]``: the
    same text followed by each accepted answer, all -100 where a query has fewer than A.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, several_answers: bool = False, max_length: int | None = None
    ) -> None:
        super().__init__(tokenizer, several_answers=several_answers, max_length=max_length)
        begin = tokenizer.bos_token_id
        first = [] if begin is None else tokenizer("a")["input_ids"][:1]
        self.begin: list[int] = first if first == [begin] else []

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Collate rows with ``inputs_pretokenized`` and ``targets_pretokenized``; queries also have ``answers``."""
        batch = {**self._batch([_text_of(row) for row in rows]), **self.ids(rows)}
        if "answers" in rows[0]:
            labels = (batch["labels"][:, 1:] != IGNORED).sum(1)
            batch["answer_length"] = (labels - batch.get("end_length", torch.ones_like(labels))).clamp(min=1)
            answers = [
                self._answered(row, targets) for row, targets in zip(rows, self.answer_targets(rows), strict=True)
            ]
            most = max(map(len, answers))
            filled = [
                text for texts in answers for text in (*texts, *[texts[0]._replace(exists=False)] * (most - len(texts)))
            ]
            for name, tensor in self._batch(filled).items():
                batch[f"answer_{name}"] = tensor.view(len(rows), most, *tensor.shape[1:])
            batch |= self.other_ends(rows)
        return batch

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Return how many tokens each row has."""
        return [len(tokens) for tokens, _, _ in self._tokenized([_text_of(row) for row in rows])]

    def _answered(self, row: Row, targets: Sequence[str]) -> list[_Text]:
        """Return a query's text with each of its accepted answers."""
        text = _text_of(row)
        if text.turns is None:
            return [text._replace(targets=target) for target in targets]
        answered = [with_answer(text.turns, answer) for answer in row["answers"]]
        return [text._replace(targets=turns[-1]["content"], turns=turns) for turns in answered]

    def _batch(self, texts: Sequence[_Text]) -> dict[str, Tensor]:
        inputs, labels, end_lengths = [], [], []
        for text, (tokens, counts, closing) in zip(texts, self._tokenized(texts), strict=True):
            begin = bool(counts) and not counts[0] and tokens[0] == self.tokenizer.bos_token_id
            places = kept(counts, int(begin), self.max_length)
            end_lengths.append(sum(place >= len(tokens) - closing for place in places[-closing:]))
            if not text.exists:
                places = [place for place in places if not counts[place]]
            inputs.append([tokens[place] for place in places])
            labels.append([tokens[place] if counts[place] else IGNORED for place in places])
        return {
            "input_ids": self.padded(inputs, self.padding),
            "attention_mask": self.padded([[1] * len(tokens) for tokens in inputs], 0),
            "labels": self.padded(labels, IGNORED),
            **_ends({"end_length": end_lengths}),
        }

    def _tokenized(self, texts: Sequence[_Text]) -> list[CountedTokens]:
        """Return the tokens of texts, and which of them the loss counts."""
        split = [("", text.targets) if text.turns else split_sentinel(text.targets) for text in texts]
        columns = list(zip(texts, split, strict=True))
        apart = self.tokens([text.inputs if sentinel else "" for text, (sentinel, _) in columns])
        befores = [sentinel or text.inputs for text, (sentinel, _) in columns]
        rests = [
            rest if sentinel or text.turns else continuation(text.inputs, rest) for text, (sentinel, rest) in columns
        ]
        joined = tokenize_continued(self.tokenizer, befores, rests)
        tokenized = []
        for text, before, whole in zip(texts, apart, joined, strict=True):
            if is_chat(text.turns):
                tokenized.append(self._of_chat(text))
                continue
            given, answer = [*self.begin, *before, *whole.given], [*whole.answer, self.end]
            tokenized.append(CountedTokens([*given, *answer], [*[False] * len(given), *[True] * len(answer)]))
        return tokenized

    def _of_chat(self, text: _Text) -> CountedTokens:
        assert text.turns is not None
        try:
            return tokenize_chat(self.tokenizer, text.turns, answer_only=text.is_query)
        except ValueError as error:
            raise ValueError(f"{text.name}: {error}") from error


class _Text(NamedTuple):
    """Text of a row with one answer.

    Args:
        name: The row's, for errors.
        inputs: What is given.
        targets: What is learned.
        turns: The row's turns, if it has any.
        is_query: Whether the row is a query, whose loss is on the answer alone.
        exists: Whether there is an answer; otherwise the text ends before it.
    """

    name: str
    inputs: str
    targets: str
    turns: Sequence[Turn] | None
    is_query: bool
    exists: bool = True


def _text_of(row: Row) -> _Text:
    is_query = "query_id" in row
    name = f"query {row['query_id']}" if is_query else f"training row {row.get('example_id')}"
    turns = row.get("turns")
    if turns is not None and not is_chat(turns):  # a prompt and its completion: the texts, as they are
        return _Text(name, turns[0]["content"], turns[1]["content"], turns, is_query)
    return _Text(name, row["inputs_pretokenized"], row["targets_pretokenized"], turns, is_query)


def _ends(lengths: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
    """Return how many labels close each row; nothing if one does everywhere."""
    tensors = {name: torch.tensor(of_rows) for name, of_rows in lengths.items()}
    return tensors if any(bool((tensor != 1).any()) for tensor in tensors.values()) else {}
