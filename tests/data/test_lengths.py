"""Rows that are too long: what is kept of them, and what is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from ftrace.data import FactCorpus, FactDataSettings, make_collator, row_files, train_word_tokenizer
from ftrace.data.lengths import kept
from ftrace.models import FactLM
from helpers import chat_tokenizers

LOG = "lightning.pytorch.utilities.rank_zero"
LONG = " ".join(f"word{number}" for number in range(40))


def corpus(folder: Path, rows: list[dict[str, Any]], queries: list[dict[str, Any]], **settings: Any) -> FactCorpus:
    import json

    for name, lines in (("train", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"architecture": "decoder-only", "data_dir": str(folder / "cache"), **settings}
    return FactCorpus(str(folder / "train.jsonl"), str(folder / "queries.jsonl"), **settings)


@pytest.mark.parametrize("longest", [2, 3, 5, 8, 13])
@pytest.mark.parametrize("begin", [0, 1])
def test_the_answer_is_kept_and_what_is_right_before_it(longest: int, begin: int) -> None:
    rng = np.random.default_rng(longest)
    for _ in range(200):
        given, answer = rng.integers(0, 8), rng.integers(1, 8)
        counts = [False] * (begin + given) + [True] * answer
        places = kept(counts, begin, longest)
        assert places == sorted(set(places))
        assert len(places) == min(longest, len(counts))
        assert places[:begin] == list(range(begin))
        assert any(counts[place] for place in places)
        rest = places[begin:]
        assert rest == list(range(rest[0], rest[-1] + 1))
        if begin + bool(given) + answer <= longest:
            assert sum(counts[place] for place in places) == answer
        first = next(place for place in places if counts[place])
        assert first == begin + given or not given  # an answer keeps its beginning
        if given and longest - begin > 1:
            assert first - 1 in places


def test_rows_of_each_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": LONG}, {"inputs": LONG, "targets": "the end"}, {"inputs": "a", "targets": LONG}, {"text": "short"}]
    data = corpus(tmp_path, rows, [{"inputs": LONG, "targets": "word3", "answers": ["word3", "word4"]}], max_length=6)
    data.prepare_data()
    with caplog.at_level(logging.INFO, logger=LOG):
        data.setup()
        data.setup()
    assert caplog.text.count("Rows keep 6 tokens") == 1
    assert (
        "Rows keep 6 tokens (max_length): 3 of 4 training rows are longer and cut, the longest of 43 tokens"
        in caplog.text
    )
    assert "1 of 1 queries are longer and cut, the longest of 42 tokens" in caplog.text
    batch = next(iter(data.example_dataloader()))
    words = data.tokenizer.convert_ids_to_tokens  # type: ignore[union-attr]
    assert [words(row[mask.bool()]) for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)] == [
        [f"word{number}" for number in range(6)],
        ["word37", "word38", "word39", "the", "end", "</s>"],
        ["a", *[f"word{number}" for number in range(5)]],
        ["short", "</s>"],
    ]
    query = next(iter(data.query_dataloader()))
    assert words(query["answer_input_ids"][0, 1]) == ["word36", "word37", "word38", "word39", "word4", "</s>"]


def test_inputs_of_an_encoder_decoder_keep_their_masks() -> None:
    tokenizer = train_word_tokenizer([LONG])
    collate = make_collator(tokenizer, "encoder-decoder", max_length=6)
    texts = [(f"<extra_id_0> {LONG}", f"<extra_id_0> {LONG}"), (f"{LONG} <extra_id_0>", "<extra_id_0> word1")]
    rows = [
        {"example_id": 0, "inputs_pretokenized": inputs, "targets_pretokenized": targets} for inputs, targets in texts
    ]
    batch = collate(rows)
    words = tokenizer.convert_ids_to_tokens
    assert words(batch["input_ids"][0]) == ["<extra_id_0>", "word0", "word1", "word2", "word3", "</s>"]
    assert words(batch["input_ids"][1]) == ["word36", "word37", "word38", "word39", "<extra_id_0>", "</s>"]
    assert words(batch["labels"][0]) == ["<extra_id_0>", *[f"word{number}" for number in range(5)]]
    apart = {**rows[0], "inputs_pretokenized": f"<extra_id_0> {LONG} <extra_id_1>",
             "targets_pretokenized": "<extra_id_0> a <extra_id_1> b"}  # fmt: skip
    with pytest.raises(
        ValueError, match="max_length: expected room for all masks of a row, found them 42 tokens apart"
    ):
        collate([apart])


@pytest.mark.parametrize(("limit", "positions", "longest", "who"), [
    (None, 24, 24, "max_position_embeddings of the model's config"), (16, 24, 16, "model_max_length of the tokenizer"),
])  # fmt: skip
def test_the_models_own_limit(
    limit: int | None, positions: int, longest: int, who: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model", limit=limit, positions=positions)
    rows = [{"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "yes"}]}, {"text": "a"}]
    data = corpus(tmp_path, rows, rows[1:], tokenizer=model)
    data.prepare_data()
    with caplog.at_level(logging.INFO, logger=LOG):
        data.setup()
    assert f"Rows keep {longest} tokens ({who}): 1 of 2 training rows are longer and cut" in caplog.text
    assert "0 of 1 queries are longer and cut" in caplog.text
    batch = next(iter(data.example_dataloader()))
    assert batch["input_ids"].shape[1] == longest
    assert data.tokenizer.decode(batch["input_ids"][0]).endswith("<|im_start|>assistant\nyes<|im_end|>")  # type: ignore[union-attr]


def test_rows_that_are_too_long_for_a_model_from_scratch(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 8}
    trainer = {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
               "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}  # fmt: skip
    data = corpus(tmp_path, [{"text": LONG}], [{"text": "a"}])
    with pytest.raises(
        ValueError, match="training rows of at most 8 tokens, for which the model has positions, found 1"
    ):
        Trainer(**trainer).fit(FactLM(config=config), data)
    Trainer(**trainer).fit(FactLM(config=config), corpus(tmp_path, [{"text": LONG}], [{"text": "a"}], max_length=8))


def test_a_model_gives_data_its_tokenizer(tmp_path: Path) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model")
    data = corpus(tmp_path, [{"text": "Marrow lies in Velland."}], [{"text": "Marrow"}])
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(FactLM(model_name_or_path=model), data)
    assert data.tokenizer_source == model
    assert "<|im_end|>" in data.tokenizer.get_vocab()  # type: ignore[union-attr]
    other = chat_tokenizers.make(size=262)
    other.save_pretrained(tmp_path / "other")
    stranger = corpus(tmp_path, [{"text": "a"}], [{"text": "a"}], tokenizer=str(tmp_path / "other"))
    with pytest.raises(
        ValueError, match=f"expected data in the tokens of the model '{model}', found a tokenizer with ano"
    ):
        trainer.fit(FactLM(model_name_or_path=model), stranger)


def test_a_limit_has_room_for_an_answer() -> None:
    with pytest.raises(ValueError, match=r"max_length: expected .*2.*found 1"):
        FactDataSettings(max_length=1)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FactDataSettings, "data")
    assert parser.parse_args(["--data.max_length=7"]).data.max_length == 7


def test_a_column_that_comes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "ROWS_PER_CHUNK", 2)
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = [{"text": f"text {number}"} for number in range(5)]
    data = corpus(tmp_path, [*rows, chat, rows[0]], rows[:1], tokenizer=chat_tokenizers.save_model(tmp_path / "model"))
    data.prepare_data()
    data.setup()
    assert data.train_rows["targets_pretokenized"][:] == [*[row["text"] for row in rows], "b", "text 0"]
    assert [turns is None for turns in data.train_rows["turns"][:]] == [True] * 5 + [False, True]
    assert "turns" not in data.query_rows.column_names
