"""Rows of messages, and prompts with completions: what is read, tokenized, and counted by the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ftrace.data import FactCorpus, QuestionForm, prompts_of_queries, tokenize_prompt
from ftrace.models import FactLM
from helpers import chat_tokenizers
from helpers.chat_tokenizers import CHATML, CLOSED_TWICE, FORGETFUL, MARKED, MARKED_WITHOUT_END, PLAIN, THINKING


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED, TOLD = said("user", "Where does Marrow lie?"), said("assistant", "In Velland.")
DIALOGUE = [said("system", "Be brief."), ASKED, TOLD, said("user", "And Quenby?"), said("assistant", "In Karmora")]


def corpus(folder: Path, rows: list[Any], queries: list[Any] | None = None, **settings: Any) -> FactCorpus:
    for name, lines in (("train", rows), ("queries", rows if queries is None else queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"architecture": "decoder-only", "data_dir": str(folder / "cache"), **settings}
    data = FactCorpus(str(folder / "train.jsonl"), str(folder / "queries.jsonl"), **settings)
    data.prepare_data()
    data.setup()
    return data


def counted(data: FactCorpus, batch: dict[str, torch.Tensor], row: int = 0) -> str:
    labels = batch["labels"][row]
    return str(data.tokenizer.decode(labels[labels != -100]))  # type: ignore[union-attr]


def whole(data: FactCorpus, batch: dict[str, torch.Tensor], row: int = 0) -> str:
    length = int(batch["attention_mask"][row].sum())
    return str(data.tokenizer.decode(batch["input_ids"][row, :length]))  # type: ignore[union-attr]


@pytest.mark.parametrize("template", [CHATML, MARKED, MARKED_WITHOUT_END])
def test_the_loss_is_on_what_the_assistant_says(template: str, tmp_path: Path) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model", template)
    rows = [{"messages": [*DIALOGUE, said("user", "Thanks")]}, {"prompt": DIALOGUE[:4], "completion": DIALOGUE[4:]}]
    data = corpus(tmp_path, rows, tokenizer=model)
    batch = next(iter(data.example_dataloader()))
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere does Marrow lie?<|im_end|>\n"
        "<|im_start|>assistant\nIn Velland.<|im_end|>\n<|im_start|>user\nAnd Quenby?<|im_end|>\n"
        "<|im_start|>assistant\nIn Karmora<|im_end|>"
    )
    assert [whole(data, batch, row) for row in (0, 1)] == [expected, expected]
    assert counted(data, batch, 0) == "In Velland.<|im_end|>In Karmora<|im_end|>"
    assert counted(data, batch, 1) == "In Karmora<|im_end|>"
    labels = batch["labels"]
    assert torch.equal(labels[labels != -100], batch["input_ids"][labels != -100])
    # a query's answer is the last message of the assistant, whatever the row
    query = next(iter(data.query_dataloader()))
    assert [counted(data, query, row) for row in (0, 1)] == ["In Karmora<|im_end|>"] * 2


def test_as_transformers_masks_it(tmp_path: Path) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model", MARKED)
    data = corpus(tmp_path, [{"messages": DIALOGUE}], tokenizer=model)
    batch = next(iter(data.example_dataloader()))
    encoded: Any = data.tokenizer.apply_chat_template(  # type: ignore[union-attr]
        DIALOGUE, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    length = batch["input_ids"].shape[1]
    assert batch["input_ids"][0].tolist() == encoded["input_ids"][:length]
    assert (batch["labels"][0] != -100).int().tolist() == encoded["assistant_masks"][:length]
    assert not any(encoded["assistant_masks"][length:])


def test_a_template_with_a_first_token_and_without_ends(tmp_path: Path) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model", PLAIN)
    data = corpus(tmp_path, [{"messages": DIALOGUE}], tokenizer=model)
    batch = next(iter(data.example_dataloader()))
    assert whole(data, batch).startswith("<|endoftext|>system: Be brief.\n")
    assert batch["input_ids"][0].tolist().count(data.tokenizer.bos_token_id) == 1  # type: ignore[union-attr]
    assert counted(data, batch) == "In Velland.In Karmora<|im_end|>"


@pytest.mark.parametrize(("template", "closing"), [(CHATML, 1), (MARKED, 1), (PLAIN, 1), (CLOSED_TWICE, 3)])
def test_a_query_is_asked_for_its_content_alone(template: str, closing: int, tmp_path: Path) -> None:
    """However many tokens the template closes it with."""
    model = chat_tokenizers.save_model(tmp_path / "model", template)
    data = corpus(tmp_path, [{"messages": [ASKED, TOLD]}], tokenizer=model)
    batch = next(iter(data.query_dataloader()))
    labels = batch["labels"][0][batch["labels"][0] != -100]
    assert batch.get("end_length", torch.tensor([1])).tolist() == [closing]
    assert data.tokenizer.decode(labels[:-closing]).strip() == "In Velland."  # type: ignore[union-attr]
    assert batch["answer_length"].tolist() == [len(labels) - closing]
    module = FactLM(model_name_or_path=model).double().eval()
    logits = module.model(input_ids=batch["input_ids"]).logits[0].log_softmax(-1)
    first = int((batch["labels"][0] != -100).int().argmax())
    expected = -sum(logits[first + place - 1, token] for place, token in enumerate(labels[:-closing]))
    assert module.example_losses(batch).item() == pytest.approx(expected.item(), rel=1e-9)


def test_what_a_template_writes_before_an_answer_is_given(tmp_path: Path) -> None:
    """To queries; a model that is trained learns to write it."""
    model = chat_tokenizers.save_model(tmp_path / "model", THINKING)
    data = corpus(tmp_path, [{"messages": [ASKED, TOLD], "subject": "Marrow"}], tokenizer=model)
    row, query = next(iter(data.example_dataloader())), next(iter(data.query_dataloader()))
    assert counted(data, row) == "<think>\n\n</think>\n\nIn Velland.<|im_end|>"
    assert counted(data, query) == "In Velland.<|im_end|>"
    (prompt,) = prompts_of_queries(data)
    tokenized = tokenize_prompt(prompt, data.tokenizer, as_trained=True)  # type: ignore[arg-type]
    is_answer = query["labels"][0] != -100
    assert list(tokenized.input_ids) == query["input_ids"][0, : int(is_answer.int().argmax())].tolist()
    assert list(tokenized.answers[0]) == query["labels"][0][is_answer][:-1].tolist()


@pytest.mark.parametrize("template", [CHATML, MARKED, PLAIN])
def test_a_chat_that_the_assistant_begins(template: str, tmp_path: Path) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model", template)
    data = corpus(tmp_path, [{"messages": [TOLD]}, {"messages": [TOLD, ASKED, TOLD]}], tokenizer=model)
    batch = next(iter(data.example_dataloader()))
    assert [counted(data, batch, row).count("In Velland.") for row in (0, 1)] == [1, 2]
    assert not any("assistant" in counted(data, batch, row) for row in (0, 1))


def test_a_prompt_and_its_completion_follow_each_other_as_they_are(tmp_path: Path) -> None:
    rows = [{"prompt": "Marrow lies in", "completion": " Velland"}, {"prompt": "Marrow:", "completion": "Velland"},
            {"prompt": "", "completion": "Velland"}]  # fmt: skip
    queries = [{"prompt": "Marrow lies in", "completion": " Velland", "answers": ["Velland", "the land"]}]
    data = corpus(tmp_path, rows, queries, tokenizer=chat_tokenizers.save_model(tmp_path / "model", None))
    batch = next(iter(data.example_dataloader()))
    assert [whole(data, batch, row) for row in range(3)] == [
        "Marrow lies in Velland<|im_end|>", "Marrow:Velland<|im_end|>", "Velland<|im_end|>",
    ]  # fmt: skip
    assert [counted(data, batch, row) for row in range(3)] == [" Velland<|im_end|>"] + ["Velland<|im_end|>"] * 2
    query = next(iter(data.query_dataloader()))
    answers = query["answer_labels"][0]
    assert [data.tokenizer.decode(of_row[of_row != -100]) for of_row in answers] == [  # type: ignore[union-attr]
        " Velland<|im_end|>", " the land<|im_end|>",
    ]  # fmt: skip
    assert QuestionForm.of(data).turns("Quenby lies in ...", "Karmora") == [
        {"role": None, "content": "Quenby lies in", "counts": False},
        {"role": None, "content": "Karmora", "counts": True},  # most completions here begin without a space
    ]


def test_answers_of_a_chat_and_what_a_person_reads(tmp_path: Path) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model")
    query = {"messages": [ASKED, TOLD], "answers": ["In Velland.", "Velland"], "subject": "Marrow", "fact": "f"}
    rows = [{"messages": [ASKED, TOLD], "facts": "f"}, {"messages": DIALOGUE}, {"text": "It rains."}]
    data = corpus(tmp_path, rows, [query], tokenizer=model)
    assert data.proponents[0].tolist() == [0]
    batch = next(iter(data.query_dataloader()))
    second = batch["answer_labels"][0, 1]
    assert data.tokenizer.decode(second[second != -100]) == "Velland<|im_end|>"  # type: ignore[union-attr]
    examples, queries = data.describe()
    assert examples["text"][0].as_py() == "Where does Marrow lie? In Velland."
    assert examples["text"][1].as_py().startswith("system: Be brief.\nuser: Where does Marrow lie?\nassistant: In V")
    assert queries["text"][0].as_py() == "Where does Marrow lie?"
    form = QuestionForm.of(data)
    assert (form.system, form.inputs("Where does Quenby lie?")) == ("", "Where does Quenby lie?")


def test_causal_tracing_reads_the_tokens_that_training_read(tmp_path: Path) -> None:
    model = chat_tokenizers.save_model(tmp_path / "model")
    query = {"messages": [ASKED, TOLD], "answers": ["In Velland.", "Velland"], "subject": "Marrow"}
    completed = {"prompt": "Quenby lies in", "completion": " Karmora", "subject": "Quenby"}
    data = corpus(tmp_path, [query, completed], tokenizer=model)
    batch = next(iter(data.query_dataloader()))
    for row, prompt in enumerate(prompts_of_queries(data)):
        tokenized = tokenize_prompt(prompt, data.tokenizer, as_trained=True)  # type: ignore[arg-type]
        is_answer = batch["labels"][row] != -100
        first = int(is_answer.int().argmax())
        assert list(tokenized.input_ids) == batch["input_ids"][row, :first].tolist()
        assert list(tokenized.answers[0]) == batch["labels"][row][is_answer][:-1].tolist()
        assert "".join(tokenized.tokens[slice(*tokenized.subject)]) == prompt.subject


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": "hello"}], r"row 1: field 'messages': expected a list of messages, each with \"role\""),
        ([{"messages": []}], "row 1: field 'messages': expected a list of messages"),
        ([{"messages": [TOLD]}, {"messages": ["a"]}], "row 2: field 'messages', message 1: expected an object with"),
        ([{"messages": [{"role": "user"}, TOLD]}], "message 1: expected an object with \"role\" and \"content\""),
        ([{"messages": [{**ASKED, "name": "Ann"}, TOLD]}], r"message 1: expected .* alone, found \['name'\]"),
        ([{"messages": [ASKED, said("asistant", "x")]}], "message 2: expected a role of .*'asistant'; nearest: a"),
        ([{"messages": [ASKED, {"role": "assistant", "content": [1]}]}], "message 2: expected text as content, found"),
        ([{"messages": [ASKED, said("assistant", " ")]}], "message 2: expected words of the assistant, found none"),
        ([{"messages": [ASKED]}], r"row 1: field 'messages': expected a message of the assistant, .*the roles"),
        ([{"prompt": [ASKED, TOLD], "completion": [ASKED]}], "field 'completion': expected a message of the assistant"),
        ([{"prompt": "a", "completion": [TOLD]}], "field 'completion': expected text, as the prompt is"),
        ([{"prompt": [ASKED], "completion": "a"}], "field 'completion': expected a list of messages, as the prompt is"),
        ([{"prompt": "a"}], r"row 1: no field 'completion', found the fields \['prompt'\]"),
        ([{"prompt": "a", "completion": " "}], "field 'completion': expected text, found none in it"),
    ],
    ids=str,
)  # fmt: skip
def test_malformed_chats_are_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        corpus(tmp_path, rows)


def test_templates_that_do_not_do(tmp_path: Path) -> None:
    rows = [{"messages": DIALOGUE}]
    with pytest.raises(
        ValueError, match="training row 0: expected a tokenizer with a chat template, since rows are mes"
    ):
        corpus(tmp_path, rows, tokenizer=chat_tokenizers.save_model(tmp_path / "none", None))
    thought = [ASKED, said("assistant", "hm|In Velland."), said("user", "And Quenby?"), said("assistant", "hm|no")]
    message = "expected a chat template that renders the beginning of a chat as within the whole, .*answer of message 2"
    forgetful = chat_tokenizers.save_model(tmp_path / "forgetful", FORGETFUL)
    with pytest.raises(ValueError, match=message):
        corpus(tmp_path, [{"messages": thought}], tokenizer=forgetful)
    last = corpus(tmp_path, [{"prompt": thought[:3], "completion": thought[3:]}], tokenizer=forgetful)
    assert counted(last, next(iter(last.example_dataloader()))) == "hm|no<|im_end|>"
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    with pytest.raises(
        ValueError, match=r"that the tokenizer's template takes, found the roles \['system', .*no system"
    ):
        corpus(tmp_path, rows, tokenizer=chat_tokenizers.save_model(tmp_path / "strict", strict))
    silent = "{% for message in messages %}{{ message['content'] if message['role'] == 'user' else '' }}{% endfor %}"
    with pytest.raises(ValueError, match="expected a chat template that shows what the assistant says, found nothing"):
        corpus(tmp_path, rows, tokenizer=chat_tokenizers.save_model(tmp_path / "silent", silent))
    with pytest.raises(ValueError, match=r"train.jsonl, row 1: expected texts, which an encoder-decoder model needs"):
        corpus(tmp_path, rows, architecture="encoder-decoder")


def test_a_corpus_without_turns_is_as_it_always_was(tmp_path: Path) -> None:
    data = corpus(tmp_path, [{"text": "a"}])
    assert "turns" not in data.train_rows.column_names
    assert "first_row_of_chat" not in json.loads((data.data_path / "manifest.json").read_text())
