"""Tokenizer, collators, ids and datamodule: what a batch holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tokenizers import processors
from torch.utils.data import IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ftrace.data import Architecture, FtraceSynth, SynthSettings, WithExampleIds, make_collator, train_word_tokenizer
from ftrace.data.text import answers_in, continuation
from ftrace.data.tokenizer import NUM_SENTINELS
from helpers import warm_python

ROWS = [
    {"example_id": 4, "inputs_pretokenized": "<extra_id_0> likes Oslo", "targets_pretokenized": "<extra_id_0> Ann"},
    {
        "example_id": 9,
        "inputs_pretokenized": "Ann likes <extra_id_0> Bob <extra_id_1> tea",
        "targets_pretokenized": "<extra_id_0> Oslo <extra_id_1> likes",
    },
]
QUERIES = [
    {**ROWS[0], "query_id": 1, "answers": ["Ann", "Bob tea"]},
    {**ROWS[0], "query_id": 0, "answers": ["Bob"]},
]
TEXTS = [row[name] for row in ROWS for name in ("inputs_pretokenized", "targets_pretokenized")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_word_tokenizer(TEXTS)


def words(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor) -> str:
    return tokenizer.decode(ids[(ids != -100) & (ids != tokenizer.pad_token_id)])


def test_tokenizer_has_one_id_a_word_and_saves_as_a_normal_one(tmp_path: Path) -> None:
    tokenizer = train_word_tokenizer([*TEXTS, "Ann's tea."])
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.tokenize("Ann's <extra_id_1> tea. unheard") == ["Ann", "'s", "<extra_id_1>", "tea", ".", "<unk>"]
    tokenizer.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    assert loaded("Ann likes <extra_id_0>").input_ids == tokenizer("Ann likes <extra_id_0>").input_ids
    assert loaded("Ann").input_ids[-1] == loaded.eos_token_id
    assert loaded.pad_token == "<pad>"


def test_encoder_decoder_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = make_collator(tokenizer, "encoder-decoder")(ROWS)
    assert batch["example_id"].tolist() == [4, 9]
    assert batch["example_id"].dtype == torch.int64
    assert words(tokenizer, batch["input_ids"][0]) == "<extra_id_0> likes Oslo </s>"
    assert batch["attention_mask"].sum(1).tolist() == [4, 7]
    assert words(tokenizer, batch["labels"][1]) == "<extra_id_0> Oslo <extra_id_1> likes </s>"
    assert (batch["labels"][0] == -100).sum() == 2


def test_decoder_only_batch_has_its_loss_on_the_answer_only(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = make_collator(tokenizer, "decoder-only")(ROWS)
    assert words(tokenizer, batch["input_ids"][0]) == "<extra_id_0> likes Oslo <extra_id_0> Ann </s>"
    assert words(tokenizer, batch["labels"][0]) == "Ann </s>"
    assert words(tokenizer, batch["labels"][1]) == "Oslo <extra_id_1> likes </s>"
    supervised = batch["labels"] != -100
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])


def test_query_batches_bring_all_accepted_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = make_collator(tokenizer, "encoder-decoder")(QUERIES)
    assert batch["query_id"].tolist() == [1, 0]
    assert "example_id" not in batch
    answers = batch["answer_labels"]
    assert answers.shape == (2, 2, 4)
    assert words(tokenizer, answers[0, 1]) == "<extra_id_0> Bob tea </s>"
    assert (answers[1, 1] == -100).all()  # there is no second answer
    batch = make_collator(tokenizer, "decoder-only")(QUERIES)
    assert words(tokenizer, batch["answer_input_ids"][0, 1]) == "<extra_id_0> likes Oslo <extra_id_0> Bob tea </s>"
    assert words(tokenizer, batch["answer_labels"][0, 1]) == "Bob tea </s>"
    assert (batch["answer_labels"][1, 1] == -100).all()


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_queries_say_how_long_their_answers_are(architecture: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Without sentinel and end, at least 1; with and without a sentinel."""
    rows = [
        {"query_id": i, "inputs_pretokenized": inputs, "targets_pretokenized": target, "answers": ["tea"]}
        for i, (inputs, target) in enumerate(
            [("<extra_id_0> likes tea", "<extra_id_0> Ann Bob Oslo"), ("Ann likes", "Oslo tea"), ("Ann likes", "")]
        )
    ]
    assert make_collator(tokenizer, architecture)(rows)["answer_length"].tolist() == [3, 2, 1]


def test_queries_say_what_may_follow_their_answer_where_rows_have_several(tokenizer: PreTrainedTokenizerFast) -> None:
    for architecture in get_args(Architecture):
        collate = make_collator(tokenizer, architecture, several_answers=True)
        batch = collate(QUERIES)
        assert words(tokenizer, batch["other_end"]) == "<extra_id_1> <extra_id_1>"
        assert words(tokenizer, batch["answer_other_end"].flatten()) == "<extra_id_1> <extra_id_1> <extra_id_1>"
        assert batch["answer_other_end"][1, 1] == -100  # there is no second answer
        assert not {"other_end", "answer_other_end"} & make_collator(tokenizer, architecture)(QUERIES).keys()
        assert "other_end" not in collate(ROWS)
        both = {**QUERIES[0], "targets_pretokenized": "<extra_id_0> Ann <extra_id_1> tea"}
        batch = collate([{**both, "answers": ["Ann <extra_id_1> tea"]}])
        assert words(tokenizer, batch["answer_other_end"][0]) == words(tokenizer, batch["other_end"]) == "<extra_id_2>"
        bare = [{**row, "targets_pretokenized": "Ann"} for row in QUERIES]
        assert collate(bare)["other_end"].tolist() == [-100, -100]
        last = [{**row, "targets_pretokenized": f"<extra_id_{NUM_SENTINELS - 1}> Ann"} for row in QUERIES]
        with pytest.warns(UserWarning, match="tokens don't tell that <extra_id_16> follows '<extra_id_15> Ann'"):
            batch = collate(last)
        assert batch["other_end"].tolist() == [-100, -100]


@pytest.mark.parametrize("facts_a_row", [1, 2])
def test_data_know_whether_rows_have_several_answers(tmp_path: Path, facts_a_row: int) -> None:
    settings = SynthSettings(
        num_entities=6, num_relations=2, num_facts=6, num_test_utterances=3, num_facts_per_utterance=facts_a_row
    )
    data = FtraceSynth(settings, str(tmp_path), "encoder-decoder")
    data.prepare_data()
    data.setup()
    assert data.has_several_answers == (facts_a_row == 2)
    assert ("other_end" in next(iter(data.query_dataloader()))) == data.has_several_answers


def test_unknown_architectures_and_endless_tokenizers_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="found 'mamba'"):
        make_collator(tokenizer, "mamba")  # type: ignore[arg-type]
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="expected a tokenizer with an end-of-sequence token"):
        make_collator(endless, "decoder-only")


def test_ids_are_added_to_any_map_style_dataset() -> None:
    dataset = WithExampleIds(torch.utils.data.TensorDataset(torch.ones(3, 2), torch.arange(3)), names=("x", "y"))
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))
    assert batch["example_id"].tolist() == batch["y"].tolist() == [0, 1, 2]
    assert WithExampleIds([{"x": 1}], key="row")[-1] == {"x": 1, "row": 0}
    with pytest.raises(IndexError):
        WithExampleIds([{"x": 1}])[1]


def test_ids_begin_where_they_are_told(tmp_path: Path) -> None:
    dataset = WithExampleIds([{"x": 1}, {"x": 2}], first=5)
    assert [row["example_id"] for row in (dataset[0], dataset[1], dataset[-1])] == [5, 6, 6]
    assert dataset.ids == range(5, 7)
    assert WithExampleIds([{"x": 1}], first=-(2**63))[0]["example_id"] == -(2**63)
    assert WithExampleIds([{"x": 1}], first=2**63 - 2).ids[-1] == 2**63 - 2
    for first in (2**63 - 1, -(2**63) - 1, 1.0, True, "7"):
        with pytest.raises(ValueError, match="first: expected a whole number"):
            WithExampleIds([{"x": 1}], first=first)  # type: ignore[arg-type]


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WithExampleIds(Stream()), TypeError, "expected a map-style dataset, found Stream"),
        (lambda: WithExampleIds([(1, 2)])[0], TypeError, r'found tuple. Name its fields: names=\("x", "y"\)'),
        (lambda: WithExampleIds([(1, 2)], names=("x",))[0], ValueError, "expected samples of 1 fields"),
        (lambda: WithExampleIds([{"example_id": 1}])[0], ValueError, 'samples already have "example_id"'),
    ],
)
def test_samples_that_cannot_carry_ids(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


SYNTH = SynthSettings(num_entities=12, num_relations=4, num_facts=20, num_test_utterances=5, num_facts_per_utterance=1)


def ready(tmp_path: Path, **settings: Any) -> FtraceSynth:
    data = FtraceSynth(SYNTH, data_dir=str(tmp_path / "cache"), batch_size=8, **settings)
    data.prepare_data()
    data.setup()
    return data


def test_datamodule_generates_once_by_the_hash_of_its_settings(tmp_path: Path) -> None:
    data = ready(tmp_path)
    stamp = (data.data_path / "train.parquet").stat().st_mtime_ns
    again = ready(tmp_path, architecture="decoder-only")
    assert again.data_path == data.data_path
    assert (again.data_path / "train.parquet").stat().st_mtime_ns == stamp
    other = FtraceSynth(SynthSettings(seed=1), data_dir=str(tmp_path / "cache"))
    assert other.data_path != data.data_path


def test_datamodule_hash_is_of_the_vocabulary_and_not_of_its_path(tmp_path: Path) -> None:
    paths = []
    for name, text in (("a", "{0} likes {1}"), ("b", "{0} likes {1}"), ("c", "{0} hates {1}")):
        (tmp_path / name).write_text(text)
        settings = SynthSettings(relation_vocabulary=str(tmp_path / name), num_relations=1)
        paths.append(FtraceSynth(settings, data_dir=str(tmp_path)).data_path)
    assert paths[0] == paths[1] != paths[2]


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_every_batch_carries_ids(architecture: Any, tmp_path: Path) -> None:
    data = ready(tmp_path, architecture=architecture)
    seen = torch.cat([batch["example_id"] for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(len(data.train_rows)))
    assert seen.tolist() != sorted(seen.tolist())
    in_order = torch.cat([batch["example_id"] for batch in data.example_dataloader()])
    assert in_order.tolist() == list(range(len(data.train_rows)))
    for loader in (data.query_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert torch.cat([batch["query_id"] for batch in loader]).tolist() == list(range(10))


def test_datamodule_takes_a_tokenizer_by_folder(tmp_path: Path) -> None:
    train_word_tokenizer(["one two"]).save_pretrained(str(tmp_path / "tokenizer"))
    data = ready(tmp_path, tokenizer=str(tmp_path / "tokenizer"))
    assert len(data.tokenizer) == 2 + 3 + 16
    assert not (data.data_path / "tokenizer").exists()


def test_loaders_before_setup_say_so(tmp_path: Path) -> None:
    data = FtraceSynth(SYNTH, data_dir=str(tmp_path))
    data.train_rows = []
    with pytest.raises(RuntimeError, match=r"expected prepare_data\(\) and setup\(\) to have run"):
        data.train_dataloader()


def test_a_learned_tokenizer_splits_hyphens_on_request(tmp_path: Path) -> None:
    whole, split = ready(tmp_path), ready(tmp_path, split_hyphens=True)
    tokens = [
        [text for text, _ in data.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("entity-3's")]
        for data in (whole, split)
    ]
    assert tokens == [["entity-3", "'s"], ["entity", "-", "3", "'s"]]
    assert len(split.tokenizer) < len(whole.tokenizer)
    assert whole.data_path == split.data_path


def test_proponents_and_sentences_of_a_data_set(tmp_path: Path) -> None:
    data = ready(tmp_path)
    for query in data.query_rows:
        stating = [row["example_id"] for row in data.train_rows if query["fact"] in row["facts"]]
        assert data.proponents[query["query_id"]].tolist() == stating
    assert data.sentence_ids is None


@pytest.mark.parametrize("adds", [True, False])
def test_rows_begin_as_the_tokenizers_own_texts_do(adds: bool) -> None:
    """A tokenizer may know a token to begin texts with, and not use it, as GPT-2's."""
    tokenizer = train_word_tokenizer(["a b c"])
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    if adds:
        own = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        )
        tokenizer.backend_tokenizer.post_processor = own
    row = {"example_id": 0, "inputs_pretokenized": "a b", "targets_pretokenized": "c"}
    ids = make_collator(tokenizer, "decoder-only")([row])["input_ids"][0].tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == [*(["<s>"] if adds else []), "a", "b", "c", "</s>"]


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_an_answer_that_has_the_next_sentinel_in_it_ends_with_the_text_alone(architecture: Any) -> None:
    tokenizer = train_word_tokenizer(["a b c"])
    row = {"query_id": 0, "inputs_pretokenized": "a <extra_id_0>", "targets_pretokenized": "<extra_id_0> b"}
    collate = make_collator(tokenizer, architecture, several_answers=True)
    assert collate([{**row, "answers": ["b"]}])["other_end"].tolist() == [
        tokenizer.convert_tokens_to_ids("<extra_id_1>")
    ]
    with pytest.warns(UserWarning, match="tokens don't tell that <extra_id_1> follows"):
        assert collate([{**row, "answers": ["b", "c <extra_id_1>"]}])["other_end"].tolist() == [-100]


def test_texts_are_joined_by_one_space_and_answers_are_told_once() -> None:
    assert [continuation(*both) for both in (("a", "b"), ("a ", "b"), ("a", " b"), ("", "b"), ("a", ""))] == [
        " b", "b", " b", "b", "",
    ]  # fmt: skip
    assert answers_in("<extra_id_0> Oslo <extra_id_1> a fjord <extra_id_2> Oslo ") == ["Oslo", "a fjord"]


def test_runs_that_begin_at_once_make_their_data_once(tmp_path: Path) -> None:
    code = (
        "from ftrace.data import FtraceSynth, SynthSettings\n"
        f"data = FtraceSynth({SYNTH!r}, data_dir={str(tmp_path)!r})\n"
        "data.prepare_data(); data.setup(); print(len(data.train_rows), len(data.tokenizer))"
    )
    done = warm_python.run_together([["-c", code]] * 3, timeout=120)
    assert [one.returncode for one in done] == [0, 0, 0], done
    assert len({one.stdout.splitlines()[-1] for one in done}) == 1
