"""The form in which a data set asks: how a question that a person types becomes the input that a model was trained on.

Four things are read off the training rows themselves, so that nothing has to be configured: whether a mask stands for
the answer, with which mark sentences end, whether rows are messages, or texts in the tokenizer's chat template, and
what is between a prompt and its completion.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ftrace.data.fact_data import FactData
from ftrace.data.text import SENTINEL, fill_in, split_sentinel
from ftrace.data.turns import ASSISTANT, Turn, is_chat, readable, seam

_SAMPLE = 1000  # training rows that are looked at
_MASK = "<extra_id_0>"
_BLANK = re.compile(r"(?<!\S)(?:_{2,}|\.{3,}|…|\?)(?=[.,;:!]?(?:\s|$))|(?:\.{3,}|…)$")
_MASKS = re.compile(rf"^\s*(?:{SENTINEL.pattern}\s*)+")
_MARKS = ".!?"
_SUGGESTIONS = 3
_LARGE_VOCABULARY = 100_000
_SYSTEM, _USER, _ASSISTANT = "\ue000system\ue000", "\ue000user\ue000", "\ue000assistant\ue000"  # of private use


@dataclass(frozen=True)
class QuestionForm:
    """The form of a data set's rows.

    Args:
        has_masks: Whether a mask such as ``<extra_id_0>`` stands for the answer. Otherwise the answer goes on from the
            question.
        closing: What ends nearly every row, such as " .", and so a question that ends with its mask; empty if nothing.
        before: What a chat's rows have before the user's words; empty if rows are no chat.
        after: What they have between the user's words and the answer.
        after_answer: What they have after the answer.
        answers_end: Whether an answer ends with the end of the sequence. In rows that are texts as a whole, it doesn't.
        system: What the system says first in rows that are messages; empty if nothing; None if rows are no messages.
        seam: The space between a prompt and its completion; None if rows are none.
    """

    has_masks: bool = False
    closing: str = ""
    before: str = ""
    after: str = ""
    after_answer: str = ""
    answers_end: bool = True
    system: str | None = None
    seam: str | None = None

    @staticmethod
    def of(data: FactData) -> QuestionForm:
        """Read the form off a data set's training rows.

        Args:
            data: The data set, set up.
        """
        assert data.tokenizer is not None
        sample = data.train_rows[:_SAMPLE]
        of_turns = _turns_form([turns for turns in sample.get("turns", []) if turns is not None])
        if of_turns is not None and _most(turns is not None for turns in sample["turns"]):
            return of_turns
        pairs = list(zip(sample["inputs_pretokenized"], sample["targets_pretokenized"], strict=True))
        chat = _chat_form(data.tokenizer, [fill_in(*pair) for pair in pairs])
        if chat is not None:
            return chat
        has_masks = _most(bool(split_sentinel(targets)[0]) for _, targets in pairs)
        answers_end = _most(bool(inputs.strip()) for inputs, _ in pairs)
        closings = Counter(_closing(inputs) for inputs, _ in pairs)
        closing, count = closings.most_common(1)[0]
        is_rule = has_masks and count >= 0.9 * len(pairs)
        return QuestionForm(has_masks, closing if is_rule else "", answers_end=answers_end)

    @property
    def is_chat(self) -> bool:
        """Whether rows are turns of a chat."""
        return bool(self.before or self.after)

    def inputs(self, question: str) -> str:
        """Write a question as the data's rows have it.

        A blank, "___", "..." or a "?" by itself, stands for the answer, and so does a mask. Without one, the answer is
        at the end.

        Args:
            question: As a person typed it.

        Raises:
            ValueError: If it is empty, or has a blank where the model can't fill one in.

        Example:
            >>> QuestionForm(has_masks=True).inputs("the painter of ___ was Ada")
            'the painter of <extra_id_0> was Ada'
            >>> QuestionForm(has_masks=True, closing=" .").inputs("Oslo lies in")
            'Oslo lies in <extra_id_0> .'
            >>> QuestionForm().inputs("Oslo lies in ...")
            'Oslo lies in'
        """
        text = question.strip()
        if not SENTINEL.sub("", _BLANK.sub("", text)).strip():
            raise ValueError(f"question: expected words, found {question!r}")
        if self.system is not None:
            return readable(self._turns(text, "answer"))[0]
        if self.is_chat:
            return text if self.after.strip() and self.after.strip() in text else f"{self.before}{text}{self.after}"
        blanks = [match.span() for match in _BLANK.finditer(text)]
        count = len(blanks) + bool(SENTINEL.search(text))
        if count > 1:
            raise ValueError(f"question: expected one blank, found {count} in {question!r:.200}. Ask for one at a time")
        return self._with_mask(text, blanks) if self.has_masks else self._begun(text, blanks)

    def turns(self, question: str, answer: str) -> list[Turn] | None:
        """Write a question and its answer as turns; None where rows have none.

        Args:
            question: As a person typed it.
            answer: The answer alone.
        """
        if self.system is None and self.seam is None:
            return None
        return self._turns(question.strip() if self.system is not None else self.inputs(question), answer)

    def _turns(self, text: str, answer: str) -> list[Turn]:
        role, of_answer = (None, None) if self.system is None else ("user", ASSISTANT)
        asked = [Turn(role=role, content=text, counts=False)]
        if self.system:
            asked.insert(0, Turn(role="system", content=self.system, counts=False))
        return [*asked, Turn(role=of_answer, content=f"{self.seam or ''}{answer}", counts=True)]

    def _with_mask(self, text: str, blanks: Sequence[tuple[int, int]]) -> str:
        if SENTINEL.search(text):
            return text
        if not blanks:
            return f"{text} {_MASK}{self.closing}"
        begin, end = blanks[0]
        space = "" if not begin or text[begin - 1].isspace() else " "
        return f"{text[:begin]}{space}{_MASK}{text[end:] or self.closing}"

    def _begun(self, text: str, blanks: Sequence[tuple[int, int]]) -> str:
        mask = SENTINEL.search(text)
        begin, end = mask.span() if mask else blanks[0] if blanks else (len(text), len(text))
        if text[end:].strip(_MARKS + " "):
            raise ValueError(
                f"question: expected the blank at the end, since this model goes on from a text, found {text!r}. Word "
                "it so that the answer comes last"
            )
        return text[:begin].rstrip()

    def targets(self, inputs: str, answer: str) -> str:
        """Write an answer as the data's rows have it.

        Args:
            inputs: The question, as :meth:`inputs` writes it.
            answer: The answer alone, or as it is in a row.

        Raises:
            ValueError: If it is empty.

        Example:
            >>> QuestionForm(has_masks=True).targets("Oslo lies in <extra_id_0>", "Norway")
            '<extra_id_0> Norway'
        """
        text = self.bare(answer)
        if not text:
            raise ValueError(f"answer: expected words, found {answer!r}")
        if self.has_masks:
            mask = SENTINEL.search(inputs)
            assert mask is not None
            return f"{mask.group()} {text}"
        return f"{text}{self.after_answer}"

    def bare(self, answer: str) -> str:
        """Return an answer without what rows have around it.

        Example:
            >>> QuestionForm(has_masks=True).bare("<extra_id_0> Norway")
            'Norway'
        """
        text = _MASKS.sub("", answer) if self.has_masks else answer
        ending = self.after_answer.strip()
        return (text.strip().removesuffix(ending) if ending else text).strip()


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, list[str]]:
    """Find the words of a text that a tokenizer doesn't know, and the words that it knows most like each.

    Args:
        tokenizer: Any; one that spells words it doesn't know, as most pretrained ones do, knows all.
        text: Masks in it are no words.
    """
    if tokenizer.unk_token_id is None:
        return {}
    words = dict.fromkeys(SENTINEL.sub(" ", text).split())
    tokens = tokenizer(list(words), add_special_tokens=False)["input_ids"] if words else []
    unknown = [word for word, ids in zip(words, tokens, strict=True) if tokenizer.unk_token_id in ids]
    vocabulary = tokenizer.get_vocab() if unknown and len(tokenizer) <= _LARGE_VOCABULARY else {}
    known = [word for word in vocabulary if word not in tokenizer.all_special_tokens and not SENTINEL.match(word)]
    return {word: _nearest(word, known) for word in unknown}


def _nearest(word: str, known: Sequence[str]) -> list[str]:
    same = [other for other in known if other.casefold() == word.casefold()]
    return same[:_SUGGESTIONS] or difflib.get_close_matches(word, known, _SUGGESTIONS)


def _turns_form(rows: Sequence[Sequence[Turn]]) -> QuestionForm | None:
    """Return the form of most rows that have turns."""
    if not rows:
        return None
    if not _most(is_chat(turns) for turns in rows):
        seams = Counter(seam(turns) for turns in rows if not is_chat(turns))
        return QuestionForm(seam=seams.most_common(1)[0][0])
    first = Counter(turns[0]["content"] if turns[0]["role"] == "system" else "" for turns in rows)
    return QuestionForm(system=first.most_common(1)[0][0])


def _closing(inputs: str) -> str:
    """Return the mark that ends a text, with the space before it."""
    text = inputs.rstrip()
    before = text.rstrip(_MARKS)
    return text[len(before.rstrip()) :] if before != text else ""


def _most(facts: Any) -> bool:
    values = list(facts)
    return 2 * sum(values) > len(values)


def _chat_form(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> QuestionForm | None:
    """Return the form of chats in the tokenizer's template; None if most texts aren't in it."""
    alone = _rendered(tokenizer, {"user": _USER})
    if alone is None:
        return None
    before, _, after = alone.partition(_USER)
    chats = [text for text in texts if after.strip() and after.strip() in text]
    if 2 * len(chats) <= len(texts):
        return None
    with_system = _rendered(tokenizer, {"system": _SYSTEM, "user": _USER}) or ""
    opening = with_system.partition(_SYSTEM)[2].partition(_USER)[0] or before
    heads = Counter(_head(text, before, opening, tokenizer) for text in chats)
    answered = _rendered(tokenizer, {"user": _USER, "assistant": _ASSISTANT}, is_whole=True) or ""
    after_answer = answered.partition(_ASSISTANT)[2]
    ended = [text for text in chats if after_answer.strip() and text.rstrip().endswith(after_answer.strip())]
    kept = "" if 2 * len(ended) <= len(chats) else after_answer
    if kept and not _most(text.endswith(kept) for text in ended):
        kept = kept.strip()
    if not _most(after in text for text in chats):
        after = after.rstrip()
    return QuestionForm(before=heads.most_common(1)[0][0], after=after, after_answer=kept)


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Mapping[str, str], *, is_whole: bool = False) -> str | None:
    """Render a chat in the tokenizer's template, up to where the model answers; None if it can't be."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    try:
        text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not is_whole)
    except TemplateError:  # some templates know no system, or no answer without another question
        return None
    return str(text) if all(str(text).count(content) == 1 for content in turns.values()) else None


def _head(text: str, before: str, opening: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a chat has before the user's first words."""
    begin = str(tokenizer.bos_token or "")
    for head in (before, before.removeprefix(begin)):
        if head and text.startswith(head):
            return head
    place = text.find(opening) if opening.strip() else -1
    return text[: place + len(opening)] if place >= 0 else ""
