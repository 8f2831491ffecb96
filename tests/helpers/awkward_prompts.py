"""Tokenizers of all the kinds that language models have, learned here, and prompts that are awkward to tokenize."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ftrace.data import train_word_tokenizer


class Awkward(NamedTuple):
    prompt: str
    subject: str
    answer: str


# As known_1000 has them: the subject once, anywhere, and all that may stand in and around a name.
PROMPTS = [
    Awkward("Mount Erebus is located in the continent of", "Mount Erebus", "Antarctica"),
    Awkward("Mount Erebus's continent is", "Mount Erebus", "Antarctica"),
    Awkward("St. John's, the capital of Newfoundland, lies in", "St. John's", "Canada"),
    Awkward("The headquarter of U.S. Steel is in", "U.S. Steel", "Pittsburgh"),
    Awkward("The largest city of the U.S. is", "U.S.", "New York"),
    Awkward("Oslo is the capital of", "Oslo", "Norway"),
    Awkward("Sibelius, who composed Finlandia, was born in", "Finlandia", "Finland"),
    Awkward("Jean Sibelius, composer, speaks", "Jean Sibelius", "Finnish"),
    Awkward("The mother tongue of Danielle Darrieux", "Danielle Darrieux", "is French"),
    Awkward("Łódź is a city in", "Łódź", "Poland"),
    Awkward("In the centre of Łódź's map is", "Łódź", "a park"),
    Awkward("The twin city of São Paulo is", "São Paulo", "Milan"),
    Awkward("São Paulo, Brazil's largest city, is north of", "São Paulo", "Curitiba"),
    Awkward("北京 is the capital of", "北京", "China"),
    Awkward("The mayor of 北京 works in", "北京", "北京"),
    Awkward("首都北京是", "北京", "中国"),
    Awkward("The 🙂 emoji was drawn by", "🙂", "Nick"),
    Awkward("👩‍🚀 is an emoji of an", "👩‍🚀", "astronaut"),
    Awkward("Stratford-upon-Avon is the birthplace of", "Stratford-upon-Avon", "Shakespeare"),
    Awkward("The author of Catch-22 is", "Catch-22", "Heller"),
    Awkward('The song "Yellow Submarine" is by', "Yellow Submarine", "the Beatles"),
    Awkward('"Heroes" was sung by', '"Heroes"', "Bowie"),
    Awkward("“Nessun dorma” is from the opera", "Nessun dorma", "Turandot"),
    Awkward("The band (Earth, Wind & Fire) plays", "Earth, Wind & Fire", "funk"),
    Awkward("O'Brien's friend O'Neil was born in", "O'Neil", "Cork"),
    Awkward("iPhone 4S was made by", "iPhone 4S", "Apple"),
    Awkward("The Oslofjord is south of Oslo in", "Oslo", "Norway"),
    Awkward("Windows 10 isn't Windows 1 but runs on a", "Windows 1", "computer"),
    Awkward("What does 3M produce? It produces", "3M", "tape"),
    Awkward("AT&T's founder was", "AT&T", "Bell"),
    Awkward("The film Amélie (2001) was shot in", "Amélie", "Paris"),
    Awkward("The Oﬃce was written by", "The Oﬃce", "Gervais"),
    Awkward("Antonín Dvořák—the composer—was born in", "Antonín Dvořák", "Bohemia"),
    Awkward("C++ was designed by", "C++", "Stroustrup"),
    Awkward("Jay-Z, Inc. is owned by", "Jay-Z, Inc.", "Jay-Z"),
    Awkward("The currency of  Côte d'Ivoire  is", "Côte d'Ivoire", "the franc"),
]
TEXTS = [f"{one.prompt} {one.answer} ." for one in PROMPTS]
SENTINELS = [f"<extra_id_{index}>" for index in range(4)]
_ASCII = [text for text in TEXTS if text.isascii()]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# The words of GPT-4's and Llama 3's tokenizers.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _fast(
    tokenizer: Tokenizer, *, begin: str | None = None, end: str = "</s>", closes: bool = False, **names: Any
) -> PreTrainedTokenizerFast:
    """As a model's: with the special tokens that it begins and closes texts with."""
    special = [(token, tokenizer.token_to_id(token)) for token in (begin, end) if token]
    if begin or closes:
        template = f"{f'{begin} ' if begin else ''}$A{f' {end}' if closes else ''}"
        own = processors.TemplateProcessing(single=template, special_tokens=special)
        before = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([before, own]) if before else own
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, clean_up_tokenization_spaces=False, **names
    )


def _byte_level(
    prefix: bool, trim: bool, words: str | None = None, begin: str | None = None
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trim, use_regex=words is None)
    steps = [pre_tokenizers.Split(Regex(words), "isolated"), level] if words else [level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=prefix, trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), [begin or "", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=[one for one in special if one], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _fast(tokenizer, begin=begin)


def _word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    return _fast(tokenizer, begin="[CLS]", end="[SEP]", closes=True, unk_token="[UNK]")


def _unigram(scheme: str) -> PreTrainedTokenizerFast:
    """As T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _fast(tokenizer, closes=True, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=SENTINELS)


def _byte_fallback(kind: str) -> PreTrainedTokenizerFast:
    """As Llama 2's, in the older and the newer form, and Gemma's; only ASCII has tokens that are no bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "llama-2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *_BYTES]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, max_token_length=8, show_progress=False)
    # No token goes over a space, as SentencePiece sees to.
    words = [word for text in _ASCII for word in text.split()]
    tokenizer.train_from_iterator([f" {word}" for word in words] if kind == "gemma" else words, trainer)
    return _fast(tokenizer, begin="<s>", unk_token="<unk>")


_MAKERS = {
    "gpt-2": lambda: _byte_level(False, True),
    "gpt-2 untrimmed": lambda: _byte_level(False, False),
    "roberta": lambda: _byte_level(True, True),
    "byte-level with a space in front, untrimmed": lambda: _byte_level(True, False),
    "llama-3": lambda: _byte_level(False, True, _LLAMA_3, "<s>"),
    "bert": _word_piece,
    "t5": lambda: _unigram("always"),
    "unigram first": lambda: _unigram("first"),
    "unigram never": lambda: _unigram("never"),
    "llama-2": lambda: _byte_fallback("llama-2"),
    "llama-2 newer": lambda: _byte_fallback("newer"),
    "gemma": lambda: _byte_fallback("gemma"),
    "words": lambda: train_word_tokenizer(TEXTS),
    "words and hyphens": lambda: train_word_tokenizer(TEXTS, split_hyphens=True),
}
KINDS = list(_MAKERS)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return _MAKERS[kind]()
