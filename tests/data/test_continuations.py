"""Prompt and answer are one text: its tokens are the whole text's, and labels are the answer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from ftrace.data import FtraceSynth, SynthSettings, make_collator
from ftrace.data.continuations import ContinuedText, tokenize_continued
from ftrace.data.text import continuation, split_sentinel
from helpers.awkward_prompts import KINDS, PROMPTS, tokenizer_of

BYTE_LEVEL = ("gpt-2", "gpt-2 untrimmed", "roberta", "byte-level with a space in front, untrimmed", "llama-3")
WORDS = ("words", "words and hyphens")


def row(prompt: str, target: str, *answers: str) -> dict[str, Any]:
    found: dict[str, Any] = {"inputs_pretokenized": prompt, "targets_pretokenized": target}
    return {**found, "query_id": 0, "answers": list(answers)} if answers else {**found, "example_id": 0}


def of_row(batch: Mapping[str, torch.Tensor], name: str = "") -> tuple[list[int], list[int]]:
    """A row's tokens and its labels, without what fills up."""
    ids, mask, labels = (batch[f"{name}{key}"].flatten(0, -2) for key in ("input_ids", "attention_mask", "labels"))
    return ids[0][mask[0] == 1].tolist(), labels[0][labels[0] != -100].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["", " "])
def test_tokens_are_those_of_the_whole_text_and_labels_those_of_the_answer(kind: str, end: str) -> None:
    tokenizer = tokenizer_of(kind)
    collate = make_collator(tokenizer, "decoder-only")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for awkward in PROMPTS:
        whole = tokenizer(f"{awkward.prompt} {awkward.answer}", add_special_tokens=False).input_ids
        batch = collate([row(awkward.prompt + end, awkward.answer, awkward.answer)])
        for name in ("", "answer_"):
            tokens, labels = of_row(batch, name)
            assert tokens == [*begin, *whole, tokenizer.eos_token_id]
            assert tokens[len(tokens) - len(labels) :] == labels
            if "unk" not in str(tokenizer.convert_ids_to_tokens(whole)):
                said = tokenizer.decode(labels[:-1]).strip().removeprefix("##")
                assert said.casefold().replace(" ", "") == awkward.answer.casefold().replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_its_own_tokens_all_of_them_labels(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for awkward in PROMPTS:
        tokens, labels = of_row(make_collator(tokenizer, "decoder-only")([row("", awkward.prompt)]))
        own = tokenizer(awkward.prompt, add_special_tokens=False).input_ids
        assert labels == [*own, tokenizer.eos_token_id]
        assert tokens[len(tokens) - len(labels) :] == labels


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_mask_the_target_is_a_text_of_its_own(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for prompt, target in (("Oslo is in <extra_id_0>", "<extra_id_0> Norway"), ("<extra_id_1> is", "<extra_id_1>Oslo")):
        tokens, labels = of_row(make_collator(tokenizer, "decoder-only")([row(prompt, target)]))
        own, of_target = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, target))
        begin = tokens[: len(tokens) - len(own) - len(of_target) - 1]
        assert tokens == [*begin, *own, *of_target, tokenizer.eos_token_id]
        sentinel = len(tokenizer(split_sentinel(target)[0], add_special_tokens=False).input_ids)
        assert labels == [*of_target[sentinel:], tokenizer.eos_token_id]


def apart(tokenizer: PreTrainedTokenizerFast, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Prompt and answer tokenized apart, and what the loss is on."""
    sentinel, rest = split_sentinel(target)
    pieces = [prompt, sentinel, rest if sentinel else continuation(prompt, rest)]
    *given, answer = (tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces)
    return [token for piece in given for token in piece], answer


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *WORDS])
def test_words_and_bytes_have_the_tokens_that_they_have_apart(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for awkward in PROMPTS:
        for prompt, target in (
            (awkward.prompt, awkward.answer),
            ("", f"{awkward.prompt} {awkward.answer}"),
            (f"{awkward.prompt} <extra_id_0>", f"<extra_id_0> {awkward.answer}"),
            (f"<extra_id_0> {awkward.prompt}", f"<extra_id_0> {awkward.answer} <extra_id_1> a"),
        ):
            tokens, labels = of_row(make_collator(tokenizer, "decoder-only")([row(prompt, target)]))
            given, answer = apart(tokenizer, prompt, target)
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            assert tokens == [*begin, *given, *answer, tokenizer.eos_token_id]
            assert labels == [*answer, tokenizer.eos_token_id]


@pytest.mark.parametrize("split_hyphens", [False, True])
def test_the_demos_rows_have_the_tokens_that_they_have_apart(tmp_path: Path, split_hyphens: bool) -> None:
    settings = SynthSettings(
        num_entities=12, num_relations=4, num_facts=20, num_test_utterances=5, num_facts_per_utterance=2
    )
    data = FtraceSynth(settings, str(tmp_path), architecture="decoder-only", split_hyphens=split_hyphens)
    data.prepare_data()
    data.setup()
    assert data.tokenizer is not None
    end = data.tokenizer.eos_token_id
    for rows in (data.train_rows, data.query_rows):
        for one in rows:
            tokens, labels = of_row(make_collator(data.tokenizer, "decoder-only")([one]))
            given, answer = apart(data.tokenizer, one["inputs_pretokenized"], one["targets_pretokenized"])
            assert (tokens, labels) == ([*given, *answer, end], [*answer, end])


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_decoders_have_texts_apart(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    batch = make_collator(tokenizer, "encoder-decoder")([row("Oslo is in ", "Norway", "Norway", "the U.S.")])
    texts = {"input_ids": "Oslo is in ", "labels": "Norway", "answer_labels": "the U.S."}
    for name, text in texts.items():
        tokens = batch[name].flatten(0, -2)[-1]
        expected = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        assert tokens[: len(expected)].tolist() == expected


def pieces(*known: str) -> PreTrainedTokenizerFast:
    """A tokenizer of given pieces, which may reach over words."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((piece, -1.0) for piece in known)], 0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=known[0], unk_token="<unk>")


def cut(tokenizer: Any, prompt: str, answer: str) -> tuple[list[str], list[str]]:
    (found,) = tokenize_continued(tokenizer, [prompt], [answer])
    given, said = (tokenizer.convert_ids_to_tokens(ids) for ids in (found.given, found.answer))
    return given, said


def test_a_token_of_both_is_the_answers_unless_it_has_nothing_but_its_space() -> None:
    tokenizer = pieces("</s>", "Oslo", " is Nor", "way")
    assert cut(tokenizer, "Oslo is", " Norway") == (["Oslo"], [" is Nor", "way"])
    assert cut(tokenizer, "Oslo is ", "Norway") == (["Oslo"], [" is Nor", "way"])
    tokenizer = pieces("</s>", "Oslo", " is  ", "Norway", " Norway")
    assert cut(tokenizer, "Oslo is ", " Norway") == (["Oslo", " is  "], ["Norway"])
    assert cut(tokenizer, "Oslo is", "  Norway") == (["Oslo", " is  "], ["Norway"])
    assert cut(tokenizer, "Oslo is  ", "Norway") == (["Oslo", " is  "], ["Norway"])
    assert cut(tokenizer, "", " Norway") == ([], [" Norway"])
    assert cut(tokenizer, " ", "Norway") == ([], [" Norway"])
    assert cut(tokenizer, "Oslo", "") == (["Oslo"], [])
    assert tokenize_continued(tokenizer, [], []) == []


def test_a_special_token_that_takes_in_spaces_stays_with_the_prompt() -> None:
    tokenizer = pieces("</s>", "Oslo", "Norway", " Norway", " ")
    tokenizer.add_tokens([AddedToken("<sep>", rstrip=True, special=True)], special_tokens=True)
    assert cut(tokenizer, "Oslo<sep>", " Norway") == (["Oslo", "<sep>"], ["Norway"])


def test_a_slow_tokenizer_s_answer_begins_where_the_prompt_alone_has_other_tokens() -> None:
    tokenizer = ByT5Tokenizer()
    (found,) = tokenize_continued(tokenizer, ["Łódź is "], ["北京"])
    assert found == ContinuedText(
        tokenizer("Łódź is ", add_special_tokens=False).input_ids,
        tokenizer("北京", add_special_tokens=False).input_ids,
        [],
    )
    collate = make_collator(tokenizer, "decoder-only")
    tokens, labels = of_row(collate([row("Oslo is", "Norway", "Norway")]), "answer_")
    assert tokenizer.decode(tokens) == "Oslo is Norway</s>"
    assert tokenizer.decode(labels) == " Norway</s>"


class Slow:
    """As Llama 2's slow tokenizer: a space before each text, and words with the space before them."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        found = []
        for text in texts:
            words = f" {text}".replace(" ", "▁ ").split("▁")[1:] if text else []
            found.append([self.words.setdefault(word, len(self.words)) for word in words])
        return {"input_ids": found}


def test_a_slow_tokenizer_that_puts_a_space_before_texts() -> None:
    tokenizer = Slow()
    for prompt, answer in (("Oslo is", " Norway"), ("Oslo is ", "Norway")):
        (found,) = tokenize_continued(tokenizer, [prompt], [answer])  # type: ignore[arg-type]
        names = list(tokenizer.words)
        assert [names[token] for token in found.given] == [" Oslo", " is"]
        assert [names[token] for token in found.answer] == [" Norway"]
