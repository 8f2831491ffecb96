"""A question to a model: it is asked as its rows ask, and its answers and their probabilities are the model's own."""

from __future__ import annotations

import pytest
import torch

from ftrace.commands.asking import Question
from ftrace.data.text import split_sentinel
from ftrace.evaluation.beam_search import beam_answers
from ftrace.models import FactLM
from helpers import small_run
from helpers.small_run import SmallRun


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder-only"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make(request.param, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run: SmallRun) -> FactLM:
    return run.load_model(run.snapshots[-1])


def typed(run: SmallRun, query: int) -> str:
    """A query as a person types it."""
    text: str = run.data.query_rows[query]["inputs_pretokenized"]
    return f" {text.replace('<extra_id_0>', '___').capitalize()} ."


def test_a_query_is_recognised_and_asked_in_its_own_words(run: SmallRun) -> None:
    for place, row in enumerate(run.data.query_rows):
        question = Question(run.data, typed(run, place))
        assert question.query == row
        assert question.inputs == row["inputs_pretokenized"]
        assert question.accepted == tuple(row["answers"])
    other = Question(run.data, "nobody has ever thought of")
    assert other.query is None
    assert other.inputs == "nobody has ever thought of <extra_id_0>"
    assert other.accepted == ()
    assert other.is_right("Oslo") is None


@torch.no_grad()
def probability(run: SmallRun, model: FactLM, query: int, *answers: str) -> float:
    """The probability of any of some answers to a query."""
    row = run.data.query_rows[query]
    targets = f"{row['targets_pretokenized'].split()[0]} {answers[0]}"
    asked = {**row, "targets_pretokenized": targets, "answers": list(answers)}
    return torch.exp(-model.example_losses(run.data.query_dataloader().collate_fn([asked]), True)).item()


def test_likely_answers_are_those_of_a_beam_search(run: SmallRun, model: FactLM) -> None:
    """Forms of one answer count as one."""
    assert run.data.tokenizer is not None
    known = [set(forms) for forms in run.data.answer_forms()]
    for place, row in enumerate(run.data.query_rows):
        question = Question(run.data, typed(run, place))
        batch = run.data.query_dataloader().collate_fn([row])
        (expected,) = beam_answers(model, batch, run.data.tokenizer, 12, question.longest())
        texts = [split_sentinel(answer.text)[1].strip() for answer in expected if answer.text is not None]
        firsts: list[str] = []
        for text in filter(None, texts):
            if not any({text, first} <= forms for forms in known for first in firsts) and text not in firsts:
                firsts.append(text)
        likeliest = question.likeliest(model, 3)
        answers = [answer for answer in likeliest if answer.ends]
        assert [answer.text for answer in answers[:1]] == firsts[:1]
        assert {answer.text for answer in answers} == set(firsts[: len(answers)])
        probabilities = [answer.probability for answer in likeliest[1:]]
        assert probabilities == sorted(probabilities, reverse=True)
        for answer in likeliest:
            if answer.ends:
                assert answer.probability == pytest.approx(probability(run, model, place, answer.text, *answer.forms))
                assert answer.right == (answer.text in row["answers"])


def test_an_answer_counts_in_all_forms_that_the_data_know(run: SmallRun, model: FactLM) -> None:
    row = run.data.query_rows[0]
    question = Question(run.data, typed(run, 0))
    for form in row["answers"]:
        given = question.given(model, form)
        assert given.probability == pytest.approx(probability(run, model, 0, *row["answers"]))
        assert (given.text, {given.text, *given.forms}) == (form, set(row["answers"]))
        assert given.right
    other = next(other for other in run.data.query_rows if not set(other["answers"]) & set(row["answers"]))
    given = question.given(model, f"<extra_id_0> {other['answers'][1]}")
    assert (given.text, given.right) == (other["answers"][1], False)
    assert {given.text, *given.forms} == set(other["answers"])
    assert given.probability == pytest.approx(probability(run, model, 0, *other["answers"]))
    unheard = question.given(model, "likes")
    assert (unheard.forms, unheard.right) == ((), False)
    assert unheard.probability == pytest.approx(probability(run, model, 0, "likes"))


def test_each_form_counts_alone_where_the_run_counts_so(run: SmallRun, model: FactLM) -> None:
    question = Question(run.data, typed(run, 0), "one")
    right = run.data.query_rows[0]["answers"]
    assert [question.forms(form) for form in right] == [(form,) for form in right]
    assert question.row(right[2])["targets_pretokenized"].endswith(right[2])


def test_a_question_mark_that_a_tokenizer_of_words_does_not_know(run: SmallRun) -> None:
    assert Question(run.data, "who likes entity-4?").inputs == "who likes entity-4 <extra_id_0>"
    assert Question(run.data, "who likes xyzzy?").inputs == "who likes xyzzy? <extra_id_0>"
    assert Question(run.data, "entity-4 likes ?").inputs == "entity-4 likes <extra_id_0>"


@pytest.mark.parametrize("answer", ["", "  ", "<extra_id_0>"])
def test_no_answer(run: SmallRun, model: FactLM, answer: str) -> None:
    with pytest.raises(ValueError, match="answer: expected words"):
        Question(run.data, typed(run, 0)).given(model, answer)
