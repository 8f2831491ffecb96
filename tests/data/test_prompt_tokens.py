"""Prompts in tokens: as our collators make them, as pretrained models expect them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ftrace.data import Architecture, FactPrompt, TokenizedPrompt, make_collator, subject_span, tokenize_prompt
from helpers.awkward_prompts import KINDS, PROMPTS, tokenizer_of

START = 0
PRETRAINED_DECODERS = [
    kind for kind in KINDS if kind not in ("t5", "unigram first", "unigram never", "words", "words and hyphens", "bert")
]


def prompt_of(text: str, subject: str, *answers: str, **more: Any) -> FactPrompt:
    return FactPrompt("p", text, subject, answers, **more)


def rows() -> list[dict[str, Any]]:
    """Queries of all forms: one mask or two, anywhere; a beginning and its end, with a space between or none."""
    forms = [
        ("<extra_id_0> is north of Oslo", "<extra_id_0> São Paulo", ["São Paulo", "北京"]),
        ("Oslo is the capital of <extra_id_0> .", "<extra_id_0> Norway", ["Norway"]),
        ("The capital of Oslo is <extra_id_0>", "<extra_id_0> U.S.", ["the U.S.", "U.S.", "Norway"]),
        ("Oslo <extra_id_0> and <extra_id_1>", "<extra_id_0> is <extra_id_1> Norway", ["is <extra_id_1> Norway"]),
        ("Oslo is the capital of", "Norway", ["Norway", "the franc"]),
        ("Oslo is ", "Norway", ["Norway"]),
        ("Oslo is <extra_id_0>", "Norway", ["Norway", "Apple"]),
        ("Oslo is", "<extra_id_2> Norway", ["Norway"]),
    ]
    return [
        {"query_id": number, "inputs_pretokenized": text, "targets_pretokenized": targets, "answers": answers}
        for number, (text, targets, answers) in enumerate(forms)
    ]


def collated(batch: dict[str, Any], row: int, architecture: Architecture) -> tuple[list[int], list[list[int]]]:
    """What a query's model is given, and its labels for each accepted answer."""
    labels = [[one for one in answer if one != -100] for answer in batch["answer_labels"][row].tolist()]
    labels = [one for one in labels if one]
    if architecture == "encoder-decoder":
        length = int(batch["attention_mask"][row].sum())
        return batch["input_ids"][row, :length].tolist(), labels
    length = int(batch["answer_attention_mask"][row, 0].sum())
    whole = batch["answer_input_ids"][row, 0, :length].tolist()
    return whole[: length - len(labels[0])], labels


@pytest.mark.filterwarnings("ignore:training rows have several answers")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_tokens_are_those_that_the_model_was_trained_on(kind: str, architecture: Architecture) -> None:
    tokenizer = tokenizer_of(kind)
    batch = make_collator(tokenizer, architecture, several_answers=True)(rows())
    start = START if architecture == "encoder-decoder" else None
    for place, row in enumerate(rows()):
        text, targets = row["inputs_pretokenized"], row["targets_pretokenized"]
        prompt = prompt_of(text, "Oslo", *row["answers"], foil="a park", targets=targets)
        found = tokenize_prompt(prompt, tokenizer, decoder_start=start, as_trained=True)
        given, labels = collated(batch, place, architecture)
        assert list(found.input_ids) == given
        decoder = list(found.decoder_ids[1:])
        assert found.decoder_ids[:1] == (() if start is None else (START,))
        assert [[*decoder, *answer, tokenizer.eos_token_id] for answer in found.answers] == labels
        foil = {**row, "answers": ["a park"]}
        assert [[*decoder, *(found.foil or ()), tokenizer.eos_token_id]] == collated(
            make_collator(tokenizer, architecture)([foil]), 0, architecture
        )[1]
        subject = tokenizer.decode(found.input_ids[slice(*found.subject)])
        assert subject.strip(" #").casefold() == "oslo"
        assert "".join(found.tokens[slice(*found.subject)]) == "Oslo"


@pytest.mark.parametrize("kind", PRETRAINED_DECODERS)
def test_a_pretrained_decoder_goes_on_with_the_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for awkward in PROMPTS:
        texts = awkward.answer, f"the {awkward.answer}", f"not {awkward.answer}"
        found = tokenize_prompt(prompt_of(*awkward, texts[1], foil=texts[2]), tokenizer)
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        for tokens, text in zip((*found.answers, found.foil), texts, strict=True):
            joint = tokenizer(f"{awkward.prompt} {text}", add_special_tokens=False).input_ids
            assert [*found.input_ids, *(tokens or ())] == [*begin, *joint]
        assert list(found.input_ids) == tokenizer(awkward.prompt).input_ids
        assert found.subject == subject_span(tokenizer, awkward.prompt, awkward.subject)
        assert (found.decoder_ids, found.decoder_tokens) == ((), ())
        assert tokenizer.decode(found.answers[0]).strip() == awkward.answer


def test_a_pretrained_encoder_decoder_fills_in_a_mask() -> None:
    tokenizer = tokenizer_of("t5")
    mask = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    for awkward in PROMPTS:
        found = tokenize_prompt(prompt_of(*awkward), tokenizer, decoder_start=START)
        assert list(found.input_ids) == tokenizer(f"{awkward.prompt} <extra_id_0>").input_ids
        assert found.input_ids[-2:] == (mask, tokenizer.eos_token_id)
        assert found.decoder_ids == (START, mask)
        assert found.decoder_tokens == ("<pad>", "<extra_id_0>")
        assert found.tokens[-2:] == ("<extra_id_0>", "</s>")
        joint = tokenizer(f"<extra_id_0> {awkward.answer}").input_ids
        assert [mask, *found.answers[0], tokenizer.eos_token_id] == joint
        # The mask may stand elsewhere, and then in the prompt itself.
        within = replace(prompt_of(*awkward), prompt=f"<extra_id_1>, says {awkward.prompt}")
        moved = tokenize_prompt(within, tokenizer, decoder_start=START)
        assert list(moved.input_ids) == tokenizer(within.prompt).input_ids
        assert moved.decoder_tokens == ("<pad>", "<extra_id_1>")


def test_as_trained_a_prompt_that_is_no_query_has_the_form_that_its_mask_tells() -> None:
    tokenizer = tokenizer_of("words")
    masked, bare = prompt_of("Oslo is in <extra_id_1>", "Oslo", "Norway"), prompt_of("Oslo is in", "Oslo", "Norway")
    found = [
        tokenize_prompt(prompt, tokenizer, decoder_start=start, as_trained=True)
        for prompt, start in product((masked, bare), (START, None))
    ]
    assert [" ".join(one.tokens) for one in found] == [
        "Oslo is in <extra_id_1> </s>",
        "Oslo is in <extra_id_1> <extra_id_1>",
        "Oslo is in <extra_id_0> </s>",
        "Oslo is in",
    ]
    assert [one.decoder_tokens for one in found] == [("<pad>", "<extra_id_1>"), (), ("<pad>", "<extra_id_0>"), ()]
    assert {tokenizer.decode(one.answers[0]) for one in found} == {"Norway"}


def test_a_mask_stands_again_before_the_answer_of_a_pretrained_decoder() -> None:
    for kind in ("llama-3", "gpt-2", "words"):
        tokenizer = tokenizer_of(kind)
        prompt = prompt_of("<extra_id_0> is north of Oslo", "Oslo", "São Paulo")
        assert tokenize_prompt(prompt, tokenizer) == tokenize_prompt(prompt, tokenizer, as_trained=True)


def test_an_end_that_the_tokenizer_adds_by_itself_is_dropped() -> None:
    tokenizer = tokenizer_of("bert")
    found = tokenize_prompt(prompt_of("Oslo is the capital of", "Oslo", "Norway"), tokenizer)
    assert found.tokens[0] == "[CLS]"
    assert list(found.input_ids) == tokenizer("Oslo is the capital of").input_ids[:-1]
    assert tokenizer.decode(found.answers[0]) == "norway"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_trained", [False, True])
def test_readable_tokens(kind: str, as_trained: bool) -> None:
    tokenizer = tokenizer_of(kind)
    for awkward in PROMPTS:
        found = tokenize_prompt(prompt_of(*awkward), tokenizer, as_trained=as_trained)
        assert len(found.tokens) == len(found.input_ids)
        assert all(token == token.strip() != "" for token in found.tokens)
        assert not {"▁", "Ġ", "�", "##"} & set("".join(found.tokens))
        in_front = found.tokens[0] in ("<s>", "[CLS]")
        if awkward.prompt.isascii():  # elsewhere tokens may hold parts of characters
            said = "".join(found.tokens[in_front:]).replace("␣", "")
            assert said == awkward.prompt.replace(" ", "")
            of_subject = "".join(found.tokens[slice(*found.subject)]).replace("␣", "")
            assert awkward.subject.replace(" ", "") in of_subject


def test_readable_tokens_by_hand() -> None:
    def tokens(kind: str, text: str, subject: str) -> str:
        return " ".join(tokenize_prompt(prompt_of(text, subject, "Norway"), tokenizer_of(kind)).tokens)

    assert tokens("gpt-2", "東  is", "東") == "東 東 東 ␣ is"
    assert tokens("llama-2", "北京", "北京") == "<s> ␣ 北 北 北 京 京 京"
    assert tokens("words", "Oslo's unheard of", "Oslo") == "Oslo 's unheard of"
    assert tokens("bert", "Oslo is", "Oslo") == "[CLS] Oslo is"


def test_accepted_answers_are_kept_once_and_only_where_they_are_known() -> None:
    tokenizer = tokenizer_of("bert")
    prompt = prompt_of("Oslo is the capital of", "Oslo", "Norway", "NORWAY", "the franc", "☃", "norway", foil="Apple")
    for as_trained in (False, True):
        found = tokenize_prompt(prompt, tokenizer, as_trained=as_trained)
        assert [tokenizer.decode(answer) for answer in found.answers] == ["norway", "the franc"]
        assert tokenizer.decode(found.foil) == "apple"


def test_words_that_the_tokenizer_does_not_know_are_no_trouble_beside_others() -> None:
    tokenizer = tokenizer_of("words")
    found = tokenize_prompt(prompt_of("Oslo unheardof is", "Oslo", "unheardof Norway"), tokenizer)
    assert tokenizer.decode(found.answers[0]) == "<unk> Norway"
    assert found.tokens[1] == "unheardof"


BARE = prompt_of("Oslo is in", "Oslo", "Norway")


@pytest.mark.parametrize(
    ("prompt", "kind", "settings", "message"),
    [
        (replace(BARE, answers=()), "gpt-2", {}, "no answer: expected the words that the prompt asks for, found none"),
        (replace(BARE, answers=("",)), "gpt-2", {}, "no answer"),
        (replace(BARE, answers=(" ", "Norway")), "gpt-2", {"as_trained": True}, "no answer"),
        (replace(BARE, answers=("Norway", "")), "gpt-2", {}, "answers and foil: expected text in each, found"),
        (replace(BARE, foil=" "), "gpt-2", {}, "answers and foil: expected text in each"),
        (replace(BARE, subject=""), "gpt-2", {}, "no subject: expected the words of the prompt that its fact"),
        (replace(BARE, subject="Bergen"), "t5", {"decoder_start": 0}, "subject 'Bergen': expected it in the prompt"),
        (replace(BARE, prompt=""), "gpt-2", {}, "subject 'Oslo': expected it in the prompt, found ''"),
        (replace(BARE, prompt=""), "words", {"as_trained": True}, "'Oslo': expected it in the prompt, found ''"),
        (replace(BARE, prompt="Oslo is Oslo"), "words", {"as_trained": True}, "found it 2 times"),
        (replace(BARE, subject_start=3), "words", {"as_trained": True}, "subject_start: expected the place of 'Oslo'"),
        (replace(BARE, answers=("unheardof",)), "words", {}, "answer 'unheardof': expected .*found \\['<unk>'\\]"),
        (replace(BARE, answers=("unheardof",)), "words", {"as_trained": True}, "answer 'unheardof': expected tokens"),
        (replace(BARE, answers=("unheardof",)), "words", {"decoder_start": 0}, "answer 'unheardof': expected tokens"),
        (replace(BARE, answers=("☃",)), "t5", {"decoder_start": 0}, r"expected tokens .*found \['␣', '<unk>'\]"),
        (replace(BARE, foil="unheardof"), "words", {}, "foil 'unheardof': expected tokens that the tokenizer knows"),
        (replace(BARE, foil="NORWAY"), "bert", {}, "foil 'NORWAY': expected another answer, .* of the answer 'Norway'"),
        (BARE, "gpt-2", {"decoder_start": 0}, "a tokenizer with <extra_id_0> as one token, as T5's, found"),
        (BARE, "bert", {"decoder_start": 0}, "a tokenizer with <extra_id_0> as one token"),
        (replace(BARE, prompt="Oslo <extra_id_99>"), "words", {"decoder_start": 0}, "found \\['<unk>'\\]. Take"),
    ],
    ids=str,
)  # fmt: skip
def test_prompts_that_are_refused(prompt: FactPrompt, kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize_prompt(prompt, tokenizer_of(kind), **settings)


@pytest.mark.parametrize("kind", ["gpt-2", "roberta", "llama-3", "llama-2", "llama-2 newer", "gemma", "t5", "words"])
@pytest.mark.parametrize("as_trained", [False, True])
def test_a_space_that_ends_a_prompt_is_the_answers(kind: str, as_trained: bool) -> None:
    tokenizer = tokenizer_of(kind)
    answers = ("Norway",) if kind == "t5" else ("Norway", "the U.S.")
    found, expected = (
        tokenize_prompt(prompt_of(text, "Oslo", *answers), tokenizer, as_trained=as_trained)
        for text in ("Oslo is ", "Oslo is")
    )
    assert replace(found, prompt=expected.prompt) == expected


def test_a_space_that_is_a_token_before_one_answer_and_not_before_another() -> None:
    prompt = prompt_of("Oslo is ", "Oslo", "Norway", "the U.S.")
    message = "answer 'the U.S.': .* that stand before 'Norway', found others: .*End the prompt without a space, or"
    with pytest.raises(ValueError, match=message):
        tokenize_prompt(prompt, tokenizer_of("t5"))
    tokenize_prompt(replace(prompt, prompt="Oslo is"), tokenizer_of("t5"))


def across_words() -> PreTrainedTokenizerFast:
    """Of a tokenizer that knows no words, so that a token may hold parts of several."""
    pieces = ["Oslo", " is", " in", " Norway", " Bergen", " is Norway", " in Bergen", "lo is Norway", " Os", "Os"]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((piece, -1.0) for piece in pieces)], 0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("as_trained", [False, True])
def test_a_token_of_prompt_and_answer_is_the_answers(as_trained: bool) -> None:
    tokenizer = across_words()
    found = tokenize_prompt(prompt_of("Oslo is", "Oslo", "Bergen"), tokenizer, as_trained=as_trained)
    assert (found.tokens, found.subject) == (("Oslo", "is"), (0, 1))
    found = tokenize_prompt(prompt_of("Oslo in", "Oslo", "Bergen"), tokenizer, as_trained=as_trained)
    assert (found.tokens, found.subject) == (("Oslo",), (0, 1))
    assert tokenizer.convert_ids_to_tokens(found.answers[0]) == [" in Bergen"]
    with pytest.raises(ValueError, match=r"answer 'Norway': expected the tokens before it that stand before 'Bergen'"):
        tokenize_prompt(prompt_of("Oslo in", "Oslo", "Bergen", "Norway"), tokenizer, as_trained=as_trained)
    with pytest.raises(ValueError, match=r"subject 'Oslo': expected tokens of its own, found one that it shares with"):
        tokenize_prompt(prompt_of("Oslo is", "Oslo", "Norway"), tokenizer, as_trained=as_trained)


class Odd:
    """A tokenizer that changes a text's own tokens where it adds its own."""

    is_fast = True

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1, 2, 3] if add_special_tokens else [1, 3]}


def test_tokenizers_that_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a tokenizer that puts its special tokens before and after"):
        tokenize_prompt(BARE, Odd())  # type: ignore[arg-type]


def test_the_prompt_is_kept() -> None:
    found = tokenize_prompt(BARE, tokenizer_of("gpt-2"))
    assert isinstance(found, TokenizedPrompt)
    assert found.prompt is BARE
    assert all(isinstance(value, tuple) for value in (found.input_ids, found.tokens, found.answers, found.answers[0]))
