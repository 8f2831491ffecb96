"""Beam search against scoring every sequence there is, and the rules of what counts as learned."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from ftrace.data import make_collator, train_word_tokenizer
from ftrace.evaluation import find_learned_queries
from ftrace.evaluation.beam_search import Answer, beam_answers, is_right
from ftrace.models import FactLM

CONFIGS: dict[str, dict[str, Any]] = {
    "encoder-decoder": {
        "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
    },
    "decoder-only": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip
TOKENIZER = train_word_tokenizer(["Ann likes Oslo Bob tea"])
PROMPTS = ["<extra_id_0> likes Oslo", "<extra_id_0> likes Bob tea tea", "tea <extra_id_0>", "Bob Bob <extra_id_0>"]
LONGEST = 3


def model(architecture: str, seed: int = 0) -> FactLM:
    torch.manual_seed(seed)
    special = {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return FactLM(config={**CONFIGS[architecture], **special}, embedding_std=1.0).double().eval()


def rows(answers: list[list[str]]) -> list[dict[str, Any]]:
    return [
        {"query_id": i, "inputs_pretokenized": prompt, "targets_pretokenized": f"<extra_id_0> {accepted[0]}",
         "answers": accepted}
        for i, (prompt, accepted) in enumerate(zip(PROMPTS, answers, strict=True))
    ]  # fmt: skip


def batch(architecture: str, prompts: slice = slice(None)) -> dict[str, Tensor]:
    return make_collator(TOKENIZER, architecture)(rows([["Ann"]] * 4)[prompts])


@torch.no_grad()
def every_answer(module: FactLM, prompt: str) -> list[tuple[float, str | None]]:
    """Log probability and text of every sequence that ends, or is as long as allowed; None for what has not ended."""
    end, vocabulary = TOKENIZER.eos_token_id, range(len(TOKENIZER))
    given = TOKENIZER(prompt, add_special_tokens=False).input_ids
    sequences = [list(some) for some in itertools.product(vocabulary, repeat=LONGEST)]
    tokens = torch.tensor(sequences)
    if module.architecture == "encoder-decoder":
        inputs = torch.tensor([[*given, end]]).expand(len(tokens), -1)
        start = torch.zeros(len(tokens), 1, dtype=torch.long)
        logits = module.model(input_ids=inputs, decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1)).logits
    else:
        sentinel = TOKENIZER.convert_tokens_to_ids("<extra_id_0>")
        prefix = torch.tensor([[*given, sentinel]]).expand(len(tokens), -1)
        logits = module.model(input_ids=torch.cat([prefix, tokens], 1)).logits[:, -LONGEST - 1 : -1]
    each = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    found: dict[tuple[int, ...], float] = {}
    for sequence, scores in zip(sequences, each.tolist(), strict=True):
        length = sequence.index(end) + 1 if end in sequence else LONGEST
        found[tuple(sequence[:length])] = sum(scores[:length])
    ended = [
        (score, TOKENIZER.decode(sequence[:-1]) if sequence[-1] == end else None) for sequence, score in found.items()
    ]
    return sorted(ended, key=lambda one: -one[0])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_wide_beams_find_the_likeliest_of_all_sequences(architecture: str) -> None:
    module = model(architecture)
    # As many beams as there are sequences one token short of the longest: then nothing is ever dropped.
    found = beam_answers(module, batch(architecture, slice(0, 2)), TOKENIZER, len(TOKENIZER) ** (LONGEST - 1), LONGEST)
    for prompt, answers in zip(PROMPTS[:2], found, strict=True):
        expected = every_answer(module, prompt)[:40]
        assert [answer.text for answer in answers[:40]] == [text for _, text in expected]
        log_probabilities = [answer.log_probability for answer in answers[:40]]
        assert log_probabilities == pytest.approx([log_probability for log_probability, _ in expected], abs=1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_query_is_answered_alike_alone_and_in_any_company(architecture: str) -> None:
    module = model(architecture)
    together = beam_answers(module, batch(architecture), TOKENIZER, 3, 4)
    assert all(len(texts) == 3 for texts in together)
    for index, of_query in enumerate(together):
        (alone,) = beam_answers(module, batch(architecture, slice(index, index + 1)), TOKENIZER, 3, 4)
        assert_equal(alone, of_query)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_single_beam_has_a_probability_too(architecture: str) -> None:
    for answers in beam_answers(model(architecture), batch(architecture), TOKENIZER, 1, 4):
        (answer,) = answers
        assert answer.log_probability < 0


def assert_equal(answers: list[Answer], others: list[Answer]) -> None:
    """Equal texts, and probabilities up to rounding."""
    assert [answer.text for answer in answers] == [answer.text for answer in others]
    log_probabilities = [answer.log_probability for answer in others]
    assert [answer.log_probability for answer in answers] == pytest.approx(log_probabilities, abs=1e-5)


def taught(architecture: Any, answers: list[str]) -> FactLM:
    """A model that answers the prompts so."""
    return fitted(architecture, rows([[answer] for answer in answers]))


def fitted(architecture: Any, lines: list[dict[str, Any]]) -> FactLM:
    """A model that has learned rows by heart."""
    return learn(model(architecture), make_collator(TOKENIZER, architecture), lines)


def learn(module: FactLM, collate: Any, lines: list[dict[str, Any]], rate: float = 0.03, steps: int = 80) -> FactLM:
    names = ("inputs_pretokenized", "targets_pretokenized")
    lessons = collate([{"example_id": i, **{name: row[name] for name in names}} for i, row in enumerate(lines)])
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        module.training_step(lessons, 0).backward()
        optimizer.step()
    return module.eval()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_that_always_goes_on_with_another_answer_has_learned_the_first(architecture: Any) -> None:
    """It was trained on rows of two facts, and is asked for one."""
    right = ["Ann", "Oslo", "Bob tea", "tea"]
    last = taught(architecture, [f"{answer} <extra_id_1> Bob" for answer in right])
    accepted = [["Ann"], ["Ann", "Oslo"], ["Bob tea"], ["Bob"]]  # the last one is wrong
    several = DataLoader(
        rows(accepted), batch_size=3, collate_fn=make_collator(TOKENIZER, architecture, several_answers=True)
    )
    for rule in ("paper", "last"):
        found = find_learned_queries(
            last, lambda: model(architecture), several, dict(enumerate(accepted)), TOKENIZER, rule
        )
        assert found.query_ids == [0, 1, 2]
    batches = [make_collator(TOKENIZER, architecture, several_answers=one)(rows(accepted)) for one in (True, False)]
    assert [last.learned(one).tolist() for one in batches] == [[True, True, True, False]] * 2
    last.hparams["end_of_sequence"] = True
    assert [last.learned(one).tolist() for one in batches] == [[True, True, True, False], [False] * 4]
    losses = [last.example_losses(one)[:3] for one in batches]
    assert losses[0].max() < 0.1
    assert losses[1].min() > 2  # the end of the sequence is what it did not expect
    answers = beam_answers(last, batches[0], TOKENIZER, 3, 4)
    assert [is_right(of_query[0].text, [answer]) for of_query, answer in zip(answers, right, strict=True)] == [True] * 4
    # either end counts, but an unlikely one need not be among the beams
    loss = last.example_losses(batches[0])[0].item()
    assert -answers[0][0].log_probability == pytest.approx(loss, abs=0.01)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_several_masks_in_a_query_are_answered_together(architecture: Any) -> None:
    """Of queries in one batch, one asks for two masks, and one's mask has another number."""
    prompts = ["<extra_id_0> likes <extra_id_1>", "Bob <extra_id_0>", "tea <extra_id_1>"]
    targets = ["<extra_id_0> Ann <extra_id_1> Oslo", "<extra_id_0> tea", "<extra_id_1> Bob"]
    asked = [
        {"query_id": i, "inputs_pretokenized": prompt, "targets_pretokenized": target, "answers": [target[13:]]}
        for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
    ]
    last = fitted(architecture, asked)
    collate = make_collator(TOKENIZER, architecture, several_answers=True)
    answers = {row["query_id"]: row["answers"] for row in asked}
    for rule in ("paper", "last"):
        for size in (1, 3):
            loader = DataLoader(asked, batch_size=size, collate_fn=collate)
            found = find_learned_queries(last, lambda: model(architecture, 1), loader, answers, TOKENIZER, rule)
            assert found.query_ids == [0, 1, 2]
    assert last.example_losses(collate(asked)).max() < 0.1
    together = beam_answers(last, collate(asked), TOKENIZER, 3, 6)
    for row, of_query in zip(asked, together, strict=True):
        assert_equal(beam_answers(last, collate([row]), TOKENIZER, 3, 6)[0], of_query)


def test_sentinels_that_were_added_to_a_tokenizer_follow_a_space() -> None:
    """A byte-level tokenizer as GPT-2's: an answer is followed by the token of a space, then by the sentinel."""
    parts = Tokenizer(BPE())
    parts.pre_tokenizer, parts.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=letters, special_tokens=["<|endoftext|>"])
    parts.train_from_iterator(["likes Ann Oslo Bob tea", " Ann likes"] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=parts, eos_token="<|endoftext|>")
    with pytest.warns(UserWarning, match="Add the sentinels to the tokenizer"):  # a space is a token of the answer, too
        make_collator(tokenizer, "decoder-only", several_answers=True)([{**rows([["x"]] * 4)[0], "answers": ["Ann x"]}])
    tokenizer.add_tokens(["<extra_id_0>", "<extra_id_1>"])
    collate = make_collator(tokenizer, "decoder-only", several_answers=True)
    torch.manual_seed(0)
    config = {**CONFIGS["decoder-only"], "vocab_size": len(tokenizer), "n_positions": 80, "eos_token_id": 0}
    last = FactLM(config=config, embedding_std=0.3).double()
    asked = rows([["Ann"], ["tea"], ["Bob"], ["Oslo"]])
    lessons = [{**row, "targets_pretokenized": f"{row['targets_pretokenized']} <extra_id_1> Oslo"} for row in asked]
    learn(last, collate, lessons, rate=0.02, steps=200)
    batch = collate(asked)
    assert last.learned(batch).all()
    assert last.example_losses(batch).max() < 0.1
    texts = [of_query[0].text for of_query in beam_answers(last, batch, tokenizer, 3, 8)]
    assert all(is_right(text, row["answers"]) for text, row in zip(texts, asked, strict=True))


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.filterwarnings("ignore:You are trying to")
def test_the_rules(architecture: str) -> None:
    first = taught(architecture, ["Oslo", "tea", "Bob", "Oslo"])
    last = taught(architecture, ["Ann", "Oslo", "Bob", "tea"])
    at_first = beam_answers(first, batch(architecture), TOKENIZER, 3, 4)
    at_last = beam_answers(last, batch(architecture), TOKENIZER, 3, 4)
    for prompt, answers in zip(PROMPTS, at_last, strict=True):
        best = [text for _, text in every_answer(last, prompt) if text is not None]
        assert answers[0].text == best[0]
    texts = [answer.text for answer in at_first[1][1:] if answer.text is not None]
    second_at_first = texts[0].replace("<extra_id_0>", "")
    accepted = [
        ["likes", "Ann"],  # learned: right at last, in another surface, and not among the three at first
        ["Oslo", second_at_first.strip()],  # known from the start, if only as the second of three
        ["bob."],  # known from the start
        ["likes likes", "Ann"],  # wrong at last
    ]
    assert not any(is_right(answer.text, accepted[0]) for answer in at_first[0])
    loader = DataLoader(rows(accepted), batch_size=3, collate_fn=make_collator(TOKENIZER, architecture))
    answers = dict(enumerate(accepted))
    asked = []

    def at_start() -> FactLM:
        asked.append("first")
        return first

    found = find_learned_queries(last, at_start, loader, answers, TOKENIZER, "paper", ["a", "b"])
    assert found.query_ids == [0]
    assert (found.asked, found.right_at_last, found.known_at_first, found.snapshots) == (4, 3, 2, ["a", "b"])
    assert str(found) == "learned, of 4; 2 known at the first snapshot"
    named = [replace(found, snapshots=[f"step-{step:08d}", "step-00000020"]) for step in (0, 10)]
    assert [str(learned).split("; ")[1] for learned in named] == [
        "2 known at step 0, before training", "2 known at step 10, the first snapshot",
    ]  # fmt: skip
    assert asked == ["first"]
    greedy = find_learned_queries(last, at_start, loader, answers, TOKENIZER, "last")
    assert greedy.query_ids == [0, 1]  # token by token, "bob." is not "Bob"
    assert asked == ["first"]  # the first snapshot is not even loaded
    with pytest.raises(ValueError, match='rule: expected "paper" or "last", found \'best\''):
        find_learned_queries(last, at_start, loader, answers, TOKENIZER, "best")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("<extra_id_0> entity-4", True), ("Entity-4.", True), ("entity - 4", True), ("<extra_id_0> 4-ENTITY .", True),
        ("<extra_id_0> entity-4 <extra_id_1>", True), ("entity-5", False), ("entity-4 entity-4", False),
        ("entity-4..", False), ("", False), (None, False), ("<unk> entity-4", False),
    ],
)  # fmt: skip
def test_what_is_right(answer: str | None, right: bool) -> None:
    assert is_right(answer, ["entity-4", "4-entity"]) == right


def test_hyphens_of_a_tokenizer_that_splits_them_count_as_they_should() -> None:
    tokenizer = train_word_tokenizer(["entity-4 4-entity entity-44"], split_hyphens=True)
    for text in ("entity-4", "4-entity"):
        decoded = tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)
        assert decoded != text
        assert is_right(decoded, [text])
    assert not is_right(tokenizer.decode(tokenizer("entity-44", add_special_tokens=False).input_ids), ["entity-4"])
