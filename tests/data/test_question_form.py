"""How typed questions become inputs in the form of a data set's rows: masks, closing marks, blanks, chats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ftrace.data import FactCorpus, FtraceTrex, QuestionForm, train_word_tokenizer, unknown_words
from helpers import small_run

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<s>be kind</s>{% endif %}{% for message in messages %}"
    "<{{ message['role'][0] }}>{{ message['content'] }}</{{ message['role'][0] }}>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def chat_data(tmp_path: Path, rows: Sequence[dict[str, str]], template: str | None = TEMPLATE) -> FactCorpus:
    """A corpus whose tokenizer has a chat template."""
    import json

    for name in ("train", "queries"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = FactCorpus(
        str(tmp_path / "train.jsonl"), str(tmp_path / "queries.jsonl"), data_dir=str(tmp_path / "cache"),
        architecture="decoder-only",
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    assert data.tokenizer is not None
    data.tokenizer.chat_template = template
    return data


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_masks_of_synthetic_facts(architecture: str, tmp_path: Path) -> None:
    run = small_run.make(architecture, tmp_path)
    form = QuestionForm.of(run.data)
    assert form == QuestionForm(has_masks=True)
    row = run.data.query_rows[0]
    assert form.inputs(row["inputs_pretokenized"]) == row["inputs_pretokenized"]
    right = row["targets_pretokenized"]
    assert form.targets(row["inputs_pretokenized"], form.bare(right)) == right


def test_sentences_that_all_end_with_a_mark(tmp_path: Path) -> None:
    data = FtraceTrex("sample", str(tmp_path))
    data.prepare_data()
    data.setup()
    form = QuestionForm.of(data)
    assert (form.has_masks, form.closing, form.answers_end) == (True, " .", True)
    assert form.inputs("Yarrowby is located in") == "Yarrowby is located in <extra_id_0> ."


@pytest.mark.parametrize(
    ("form", "question", "inputs"),
    [
        (QuestionForm(has_masks=True), "  the painter of X was ", "the painter of X was <extra_id_0>"),
        (QuestionForm(has_masks=True, closing="."), "X was ...", "X was <extra_id_0>."),
        (QuestionForm(has_masks=True, closing="."), "X was ... .", "X was <extra_id_0> ."),
        (QuestionForm(has_masks=True), "X was...", "X was <extra_id_0>"),
        (QuestionForm(has_masks=True), "? was painted by X", "<extra_id_0> was painted by X"),
        (QuestionForm(has_masks=True), "who painted X?", "who painted X? <extra_id_0>"),
        (QuestionForm(has_masks=True), "___ was painted by X", "<extra_id_0> was painted by X"),
        (QuestionForm(has_masks=True), "<extra_id_3> painted X", "<extra_id_3> painted X"),
        (QuestionForm(has_masks=True), "a_b...c d__e was", "a_b...c d__e was <extra_id_0>"),
        (QuestionForm(), "the painter of X was ", "the painter of X was"),
        (QuestionForm(), "the painter of X was ___.", "the painter of X was"),
        (QuestionForm(), "the painter of X was <extra_id_0>", "the painter of X was"),
        (QuestionForm(before="<u>", after="</u><a>"), "who painted ...", "<u>who painted ...</u><a>"),
        (QuestionForm(before="<u>", after="</u><a>"), "<s>x</s><u>who?</u><a>", "<s>x</s><u>who?</u><a>"),
    ],
)  # fmt: skip
def test_questions(form: QuestionForm, question: str, inputs: str) -> None:
    assert form.inputs(question) == inputs


@pytest.mark.parametrize("question", ["", "  ", "___", "...", "<extra_id_0>", "?"])
@pytest.mark.parametrize("has_masks", [True, False])
def test_no_question(question: str, has_masks: bool) -> None:
    with pytest.raises(ValueError, match="question: expected words"):
        QuestionForm(has_masks).inputs(question)


def test_blanks_that_can_not_be_filled() -> None:
    with pytest.raises(ValueError, match="expected one blank, found 2"):
        QuestionForm(has_masks=True).inputs("___ painted ___")
    with pytest.raises(ValueError, match="expected one blank, found 2"):
        QuestionForm(has_masks=True).inputs("___ painted <extra_id_0>")
    with pytest.raises(ValueError, match="expected the blank at the end"):
        QuestionForm().inputs("___ painted X")
    with pytest.raises(ValueError, match="answer: expected words"):
        QuestionForm(has_masks=True).targets("<extra_id_0> painted X", " <extra_id_0> ")


@pytest.mark.parametrize("answer", ["Ada", "<extra_id_0> Ada", " <extra_id_0> <extra_id_1>  Ada "])
def test_an_answer_without_its_masks(answer: str) -> None:
    assert QuestionForm(has_masks=True).bare(answer) == "Ada"


def test_chats_are_asked_as_their_rows_are_written(tmp_path: Path) -> None:
    head = "<s>be kind</s><u>"
    rows = [{"inputs": f"{head}where is {name} ?</u><a>", "targets": f"{place}</a>"}
            for name, place in (("Oslo", "Norway"), ("Bonn", "Germany"), ("Graz", "Austria"))]  # fmt: skip
    (tmp_path / "a").mkdir()
    form = QuestionForm.of(chat_data(tmp_path / "a", rows))
    assert (form.before, form.after, form.after_answer) == (head, "</u><a>", "</a>")
    assert form.inputs("where is Bonn ?") == rows[1]["inputs"]
    assert form.targets(form.inputs("where is Bonn ?"), "Germany") == rows[1]["targets"]
    assert form.bare("Germany</a>") == form.bare("Germany ") == "Germany"
    # with a system's words of the rows' own
    others = [{**row, "inputs": row["inputs"].replace("be kind", "answer in one word")} for row in rows]
    (tmp_path / "b").mkdir()
    assert QuestionForm.of(chat_data(tmp_path / "b", others)).before == "<s>answer in one word</s><u>"
    # whole dialogues as texts
    texts = [{"text": row["inputs"] + row["targets"]} for row in rows]
    (tmp_path / "c").mkdir()
    assert QuestionForm.of(chat_data(tmp_path / "c", texts)).inputs("where is Bonn ?") == rows[1]["inputs"]


def test_a_template_that_the_rows_do_not_use_is_not_used(tmp_path: Path) -> None:
    rows = [{"inputs": "Oslo is in", "targets": "Norway"}, {"inputs": "Bonn is in", "targets": "Germany"}]
    form = QuestionForm.of(chat_data(tmp_path, rows))
    assert form == QuestionForm()
    assert form.inputs("Graz is in") == "Graz is in"


def test_texts_have_no_end_of_an_answer(tmp_path: Path) -> None:
    form = QuestionForm.of(chat_data(tmp_path, [{"text": "Oslo is in Norway"}, {"text": "Bonn is in Germany"}], None))
    assert form == QuestionForm(answers_end=False)


def test_unknown_words_and_what_is_like_them() -> None:
    tokenizer: PreTrainedTokenizerBase = train_word_tokenizer(["the painter of Oslo"])
    assert unknown_words(tokenizer, "the painter of Oslo <extra_id_0>") == {}
    unknown: dict[str, Any] = unknown_words(tokenizer, "The paintr of xyzzy xyzzy")
    assert unknown == {"The": ["the"], "paintr": ["painter"], "xyzzy": []}
    assert unknown_words(tokenizer, "") == {}
