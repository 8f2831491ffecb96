"""The content of a report says what stores and texts say, joined by ids, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ftrace.report.explorer as explorer
from ftrace.evaluation import EvaluatedQueries, evaluate
from ftrace.report.explorer import format as report_format
from ftrace.report.explorer.content.additions import Additions
from ftrace.report.explorer.content.content import Content, ContentSettings
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.scores import EXAMPLE_ID, QUERY_ID, AnswerRecord, Ledger, ScoreStore, Sum, Texts, stable_id
from ftrace.scores.ledger import COLUMNS
from ftrace.views import Listed, ListedQuery, ListedSource, Said, Source, StoreSource
from helpers.made_store import EXAMPLES, QUERIES, SCORES, make_ledger, make_store

Chunks = dict[str, Any]


def made(
    sources: Sequence[Source],
    queries: Sequence[int] | None = None,
    k: int = 100,
    opponents: int = 20,
    additions: Additions | None = None,
    **settings: Any,
) -> Chunks:
    """All chunks by name, as they are read back from JSON."""
    ranked = RankedQueries(sources, sources[0].query_ids if queries is None else queries, k, opponents)
    content = Content(ranked, "made", ContentSettings(**settings), lambda: additions or Additions())
    chunks = {name: json.loads(json.dumps(chunk, allow_nan=False)) for name, chunk in content.chunks()}
    assert len(chunks) == content.num_chunks
    return chunks


@pytest.fixture
def stores(tmp_path: Path) -> list[ScoreStore]:
    """Scores of the same examples twice, once without a query and without an example."""
    second = ScoreStore.write(
        tmp_path / "second", np.array([12, 11, 5, 3]), np.array([17]), {"dot": -SCORES[[4, 3, 1, 0], 1:]}
    )
    return [make_store(tmp_path / "first", ledger=make_ledger()), second]


def test_a_query_with_all_that_is_known(stores: list[ScoreStore]) -> None:
    chunks = made([StoreSource(store) for store in stores], k=2, opponents=1)
    first, second = chunks["query-0"], chunks["query-1"]
    assert (first["id"], first["prompt"], first["answer"]) == ("0", "The capital of Norway is", "Oslo")
    assert first["accepted"] == ["Christiania"]
    assert first["properties"] == [["fact", "capital Norway"]]
    assert first["lists"][1] is None
    assert first["warnings"] == ["second dot has no scores for this query."]
    assert [example["id"] for example in first["examples"]] == ["3", "5", "11"]
    assert [example["states_fact"] for example in first["examples"]] == [True, True, False]
    assert [example["alike"] for example in first["examples"]] == [0, 0, 2]
    text, spans = first["examples"][2]["text"], first["examples"][2]["shared"]
    assert [text[begin:end] for begin, end in spans] == ["The", "capital", "of", "is"]
    assert first["lists"][0]["proponents"] == [0, 1]
    assert first["lists"][0]["opponents"] == [2]
    assert [example["places"][1] for example in first["examples"]] == [None] * 3
    by_id = {example["id"]: example["places"] for example in second["examples"]}
    assert by_id["8"][1] is None  # unknown to the second store
    assert by_id["11"][0]["score"] == 1
    assert by_id["11"][1]["score"] == -1
    assert second["examples"][second["lists"][1]["opponents"][0]]["id"] == "11"


def test_the_loss_and_when_it_was_learned(stores: list[ScoreStore]) -> None:
    chunks = made([StoreSource(store) for store in stores])
    assert chunks["query-0"]["loss"] == {"steps": [0, 10, 20, 30], "values": [6.0, 4.0, 1.0, 0.25]}
    assert chunks["query-0"]["answered"] == {
        "state": "learned", "step": 20, "text": "first answered right at step 20",
    }  # fmt: skip
    assert "never answered right" in chunks["query-1"]["warnings"][0]
    queries = chunks["head"]["queries"]
    assert queries["learned_steps"] == [20, -1]
    assert queries["states"] == ["learned", "never"] == queries["facets"]["when learned"]
    assert (queries["first_losses"], queries["last_losses"]) == ([6.0, 5.0], [0.25, 5.0])


def test_a_long_loss_keeps_its_ends_and_the_learned_step(tmp_path: Path) -> None:
    rows = 1001
    columns = {name: np.zeros((rows, 2)) for name in COLUMNS}
    losses = np.linspace(9, 1, rows + 1)[:, None] + np.zeros(2)
    columns["loss"], columns["next_loss"] = losses[:-1], losses[1:].copy()
    columns["next_loss"][500] = np.nan  # which the next interval's beginning knows
    columns["next_loss"][-1, 1] = np.nan
    steps, query_ids = np.arange(rows + 1) * 3, np.array([0, 17])
    answers = AnswerRecord(steps, query_ids, np.repeat(steps[:, None] >= 3 * 334, 2, axis=1))
    ledger = Ledger(steps[:-1], steps[1:], query_ids, columns, answers=answers)
    chunks = made([StoreSource(make_store(tmp_path / "s", ledger=ledger))])
    for name, last in (("query-0", rows), ("query-1", rows - 1)):
        loss = chunks[name]["loss"]
        assert len(loss["steps"]) == len(loss["values"]) <= 200
        assert (np.diff(loss["steps"]) > 0).all()
        assert (loss["steps"][0], loss["steps"][-1]) == (0, 3 * last)
        assert chunks[name]["answered"]["step"] == 3 * 334
        assert 3 * 334 in loss["steps"]
        np.testing.assert_allclose(loss["values"], losses[np.array(loss["steps"]) // 3, 0], rtol=1e-5)


def test_a_loss_that_rose_and_an_answer_that_was_lost_are_warned_of(tmp_path: Path) -> None:
    ledger = make_ledger(answers=AnswerRecord([0, 10, 20, 30], [0, 17], [[0, 0], [0, 0], [1, 0], [0, 0]]))
    ledger.columns["next_loss"][-1] = [8, 5]
    warnings = made([StoreSource(make_store(tmp_path / "s", ledger=ledger))])["query-0"]["warnings"]
    assert warnings == [
        "It was first answered right at step 20, forgotten at step 30: it was no longer answered right at the end.",
        "Its loss rose during training, from 6 to 8 nats: more of training raised it than lowered it.",
    ]


def test_properties_that_group_queries_are_facets(tmp_path: Path) -> None:
    rows = [
        {"query_id": query, "text": "", "fact": f"f{query // 2}", "length": query % 3, "same": "x", "note": f"n{query}",
         "relation": f"r{query}"}
        for query in range(9)
    ]  # fmt: skip
    store = ScoreStore.write(
        tmp_path / "s", np.arange(2), np.arange(9), {"dot": np.ones((2, 9))}, queries=Texts.of(rows, QUERY_ID)
    )
    facets = made([StoreSource(store)])["head"]["queries"]["facets"]
    assert facets == {"length": ["0", "1", "2"] * 3, "relation": [f"r{query}" for query in range(9)]}


def test_the_list_of_queries_and_the_methods(stores: list[ScoreStore]) -> None:
    head = made([StoreSource(store) for store in stores])["head"]
    assert (head["format"], head["version"], head["title"]) == ("ftrace-report", 1, "made")
    assert [method["title"] for method in head["methods"]] == ["first learning", "second dot"]
    assert [method["unit"] for method in head["methods"]] == ["", ""]
    assert [method["num_examples"] for method in head["methods"]] == [5, 4]
    assert head["queries"]["ids"] == ["0", "17"]
    assert head["queries"]["prompts"] == [row["text"] for row in QUERIES]
    assert head["queries"]["disagreements"] == [None, 0.0]
    assert head["example_chunks"] == ["3"]
    for name, column in head["queries"].items():
        lists = column if name == "precisions" else column.values() if name == "facets" else [column]
        assert all(len(values) == 2 for values in lists), name


def test_what_the_model_said(stores: list[ScoreStore]) -> None:
    said = {17: Said("Oslo", 0.5, False, "step-7")}
    chunks = made([StoreSource(stores[0])], additions=Additions(said=said))
    assert chunks["query-0"]["said"] is None
    assert chunks["query-1"]["said"] == {"text": "Oslo", "probability": 0.5, "right": False, "snapshot": "step-7"}
    assert any("wrong" in warning for warning in chunks["query-1"]["warnings"])
    assert chunks["head"]["queries"]["said_right"] == [None, False]


def test_ids_that_are_names_and_larger_than_a_float_holds(tmp_path: Path) -> None:
    ids = [stable_id(name) for name in ("a", "b", "c")]
    query = stable_id("q")
    assert max(ids) > 2**53
    store = ScoreStore.write(
        tmp_path / "s", np.array(ids), np.array([query]), {"dot": np.array([[1.0], [3.0], [2.0]])},
        names={**dict(zip(ids, "abc", strict=True)), query: "q"},
    )  # fmt: skip
    chunks = made([StoreSource(store)])
    assert chunks["query-0"]["name"] == "q"
    assert [example["name"] for example in chunks["query-0"]["examples"]] == ["b", "c", "a"]
    assert [example["id"] for example in chunks["query-0"]["examples"]] == [str(ids[1]), str(ids[2]), str(ids[0])]
    assert [page["id"] for page in chunks["example-0"]["examples"]] == [str(each) for each in sorted(ids)]


def test_numbers_that_are_none_are_left_out_and_said(tmp_path: Path) -> None:
    scores = SCORES.copy()
    scores[0, 0], scores[1, 0] = np.nan, np.inf
    chunk = made([StoreSource(make_store(tmp_path / "s", scores))])["query-0"]
    assert chunk["lists"][0]["candidates"] == 3
    assert chunk["warnings"] == ["s learning: 2 scores left out that are no finite numbers."]


def test_precision_is_that_of_evaluate(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ids = generator.permutation(60)
    proponents = {query: generator.choice(60, 5, replace=False).tolist() for query in range(4)}
    stores = {
        name: ScoreStore.write(tmp_path / name, ids, np.arange(4), {"dot": generator.integers(0, high, (60, 4)) * 1.0})
        for name, high in (("fine", 1000), ("coarse", 4))
    }
    judged = evaluate(stores, EvaluatedQueries.of(proponents)).runs[0]
    rows = [{"query_id": query, "text": "", "proponent_ids": of_query} for query, of_query in proponents.items()]
    sources = [
        StoreSource(store.with_texts(queries=Texts.of(rows, QUERY_ID)), None, name) for name, store in stores.items()
    ]
    head = made(sources, k=3)["head"]
    for precisions, of_kind in zip(head["queries"]["precisions"], judged.rows.values(), strict=True):
        assert precisions == pytest.approx(of_kind["P@10"].tolist())
    assert head["queries"]["best_precisions"] == pytest.approx(judged.ceiling["P@10"].tolist())
    assert set(head["queries"]["best_precisions"]) == {0.5}


def test_precision_by_facts_is_unknown_where_ties_go_on(tmp_path: Path) -> None:
    examples = [{"example_id": example, "text": "", "facts": ["f"] if example % 2 else []} for example in range(40)]
    queries = Texts.of([{"query_id": query, "text": "", "fact": "f"} for query in range(2)], QUERY_ID)
    scores = np.stack([np.arange(40.0), np.minimum(np.arange(40.0), 31)], 1)
    store = ScoreStore.write(
        tmp_path / "s", np.arange(40), np.arange(2), {"dot": scores},
        examples=Texts.of(examples, EXAMPLE_ID), queries=queries,
    )  # fmt: skip
    of = {k: made([StoreSource(store)], k=k)["head"]["queries"]["precisions"][0] for k in (9, 10, 20)}
    assert of == {9: [None, None], 10: [0.5, 0.5], 20: [0.5, 0.5]}
    scores[:, 1] = np.minimum(np.arange(40.0), 25)
    store = ScoreStore.write(
        tmp_path / "s", np.arange(40), np.arange(2), {"dot": scores},
        examples=Texts.of(examples, EXAMPLE_ID), queries=queries,
    )  # fmt: skip
    assert made([StoreSource(store)], k=12)["head"]["queries"]["precisions"][0] == [0.5, None]
    assert made([StoreSource(store)], k=20)["head"]["queries"]["precisions"][0][1] == pytest.approx(8 / 15)


def test_kinds_by_the_keys_of_facts(tmp_path: Path) -> None:
    facts = [["r1-e1-e2"], ["r2-e1-e9"], ["r2-e8-e2"], ["r1-e5-e6"], ["r3-e7-e7"]]
    examples = [{**row, "facts": keys} for row, keys in zip(EXAMPLES, facts, strict=True)]
    queries = [{**QUERIES[0], "fact": "r1-e1-e2"}, {**QUERIES[1], "fact": "r3-e5-e6"}]
    chunks = made([StoreSource(make_store(tmp_path / "s", examples=examples, queries=queries))])
    kinds = {example["id"]: example["kind"] for example in chunks["query-0"]["examples"]}
    assert kinds == {"3": None, "5": "same subject", "8": "same object", "11": "same relation", "12": "other"}
    assert chunks["head"]["queries"]["facets"]["relation"] == ["r1", "r3"]


def test_parts_are_those_of_the_store(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    parts = {Sum("learning", "epoch", part): generator.normal(size=(5, 2)) for part in ("1", "2")}
    scores = {Sum("learning"): sum(parts.values()), **parts}
    store = make_store(tmp_path / "s", scores)  # type: ignore[arg-type]
    chunks = made([StoreSource(store)])
    assert chunks["head"]["methods"][0]["axes"] == {"epoch": ["1", "2"]}
    for name, query in (("query-0", 0), ("query-1", 17)):
        (of_query,) = chunks[name]["parts"]
        assert (of_query["method"], of_query["axis"]) == (0, "epoch")
        ids = [int(chunks[name]["examples"][place]["id"]) for place in of_query["examples"]]
        assert sorted(ids) == [3, 5, 8, 11, 12]
        known = store.parts(query, "epoch")
        rows = np.searchsorted(store.example_ids, ids)
        expected = np.stack([known["1"][rows], known["2"][rows]], 1)
        np.testing.assert_allclose(of_query["values"], expected, rtol=1e-5)


def test_texts_are_cut_and_that_is_said(tmp_path: Path) -> None:
    examples = [{**EXAMPLES[0], "text": "😀" * 30}, *EXAMPLES[1:]]
    chunks = made([StoreSource(make_store(tmp_path / "s", examples=examples))], k=2, longest_text=20)
    example = chunks["query-0"]["examples"][0]
    assert (example["text"], example["cut"]) == ("😀" * 20, 10)
    assert (chunks["query-0"]["prompt"], chunks["query-0"]["cut"]) == ("The capital of Norwa", 4)
    assert chunks["head"]["limits"] == [
        "Of each query, each method's 2 strongest proponents and 20 strongest opponents are listed.",
        "4 texts were cut at 20 characters.",
    ]


def test_long_answers_are_cut_too(tmp_path: Path) -> None:
    examples = [{**EXAMPLES[0], "answer": "a" * 1300}, *EXAMPLES[1:]]
    queries = [{**QUERIES[0], "answer": "b" * 1030, "said": "c" * 350}, QUERIES[1]]
    chunks = made([StoreSource(make_store(tmp_path / "s", SCORES, examples, queries))], longest_text=300)
    first = chunks["query-0"]
    assert first["examples"][0]["answer"] == "a" * 300 + "… +1,000"
    assert (first["answer"], first["said"]["text"]) == ("b" * 300 + "… +730", "c" * 300 + "… +50")
    queries = chunks["head"]["queries"]
    assert (queries["answers"][0], queries["said"][0]) == ("b" * 300, "c" * 300)


def test_spans_are_counted_as_javascript_does(tmp_path: Path) -> None:
    examples = [{**EXAMPLES[0], "text": "😀 in 😀 Oslo, Norway"}, *EXAMPLES[1:]]
    example = made([StoreSource(make_store(tmp_path / "s", examples=examples))])["query-0"]["examples"][0]
    units = example["text"].encode("utf-16-le")
    assert [units[2 * begin : 2 * end].decode("utf-16-le") for begin, end in example["shared"]] == ["Oslo", "Norway"]


def test_without_texts_ids_stand_alone(tmp_path: Path) -> None:
    chunk = made([StoreSource(make_store(tmp_path / "s", examples=None, queries=None))])["query-0"]
    assert chunk["prompt"] is None
    assert {example["text"] for example in chunk["examples"]} == {None}
    assert {example["states_fact"] for example in chunk["examples"]} == {None}
    assert [example["alike"] for example in chunk["examples"]] == [0, 1, 2, 3, 4]


def test_results_of_a_search_have_lists_labels_and_properties() -> None:
    row = {"text": "Paris is in", "answer": "France", "relation": "P17", "c4_frequency": 12, "has_trex_sentence": True}
    proponents = Listed(["a", "b"], [2.0, 1.0], ["Paris, France", "Rome"], [True, False])
    opponents = Listed(["c"], [-3.0], ["Oslo"])
    queries = [ListedQuery("q1", row, proponents, opponents), ListedQuery("q2", {**row, "relation": "P1"}, proponents)]
    chunks = made([ListedSource("found", queries)])
    first = chunks["query-0"]
    assert first["properties"] == [["relation", "P17"], ["c4_frequency", "12"], ["has_trex_sentence", "yes"]]
    assert [example["states_fact"] for example in first["examples"]] == [True, False, None]
    assert (first["lists"][0]["opponents"], chunks["query-1"]["lists"][0]["opponents"]) == ([2], None)
    assert first["examples"][2]["places"][0]["share"] == -1
    assert first["lists"][0]["candidates"] is None
    head = chunks["head"]
    assert head["methods"][0]["is_complete"] is False
    assert head["methods"][0]["has_opponents"]
    assert head["queries"]["facets"] == {"relation": ["P17", "P1"]}
    assert any("ranks are those among them" in limit for limit in head["limits"])
    pages = {page["name"]: page["methods"][0] for page in chunks["example-0"]["examples"]}
    assert pages["a"]["most_helped"] == [[0, 2.0], [1, 2.0]]
    assert pages["c"]["most_hurt"] == [[0, -3.0]]
    assert pages["a"]["helped"] is None


def test_redacted_content_has_no_text(tmp_path: Path) -> None:
    planted = "Zebra"
    examples = [{**row, "text": f"{planted} {row['text']}", "answer": planted, "facts": [planted]} for row in EXAMPLES]
    queries = [
        {**row, "text": f"{planted} {row['query_id']}", "answer": planted, "answers": [f"{planted}s", planted],
         "fact": planted, "remark": f"{planted} 7", "relation": f"{planted}{row['query_id']}", "year": 1999,
         "said": planted}
        for row in QUERIES
    ]  # fmt: skip
    source = StoreSource(make_store(tmp_path / "s", examples=examples, queries=queries, ledger=make_ledger()))
    stack = {"name": "encoder", "tokens": [planted, "is"], "subject": [0, 1], "mediators": []}
    causal = {"status": "wrong", "reason": planted, "clean": 0.5, "corrupted": 0.1, "stacks": [stack], "profile": None}
    tokens = {"method": 0, "snapshot": "", "note": "", "examples": []}
    additions = Additions(
        {17: Said(f"{planted}!", 0.25, False, "step-1")},
        lambda _: tokens,  # type: ignore[arg-type,return-value]
        lambda _: causal,  # type: ignore[arg-type,return-value]
    )
    assert planted in json.dumps(made([source], additions=additions))
    chunks = made([source], additions=additions, is_redacted=True)
    assert planted.casefold() not in json.dumps(chunks).casefold()
    query = chunks["query-1"]
    assert query["said"] == {"text": None, "probability": 0.25, "right": False, "snapshot": "step-1"}
    assert query["properties"] == [["year", "1999"]]
    assert query["causal"]["stacks"][0]["tokens"] == ["1", "2"]
    assert query["tokens"] is None
    assert query["examples"][0]["states_fact"] is True
    assert {tuple(example["shared"]) for example in query["examples"]} == {()}
    assert chunks["head"]["is_redacted"]
    assert any("left out" in limit for limit in chunks["head"]["limits"])


def test_names_are_redacted(tmp_path: Path) -> None:
    ids = [stable_id("Zebra one"), stable_id("Zebra two")]
    store = ScoreStore.write(
        tmp_path / "s", np.array(ids), np.array([stable_id("Zebra?")]), {"dot": np.ones((2, 1))},
        names={**{known: f"Zebra {known}" for known in ids}, stable_id("Zebra?"): "Zebra?"},
    )  # fmt: skip
    chunks = made([StoreSource(store)], is_redacted=True)
    assert "Zebra" not in json.dumps(chunks)


def test_tokens_and_traces_are_made_of_the_finished_chunk(stores: list[ScoreStore]) -> None:
    tokens = {"method": 0, "snapshot": "", "note": "", "examples": []}

    def tokens_of(chunk: Mapping[str, Any]) -> Any:
        strongest = [chunk["examples"][place]["id"] for place in chunk["lists"][0]["proponents"][:10]]
        return {**tokens, "note": " ".join(strongest)} if chunk["id"] == "17" else None

    chunks = made([StoreSource(stores[0])], k=2, additions=Additions(tokens=tokens_of))
    assert chunks["query-0"]["tokens"] is None
    assert chunks["query-1"]["tokens"] == {**tokens, "note": "11 3"}
    assert RankedQueries([StoreSource(stores[0])], [17], 3).strongest(0, 2) == {17: [11, 3]}


def test_equal_input_gives_equal_content(stores: list[ScoreStore]) -> None:
    texts = [json.dumps(made([StoreSource(ScoreStore.open(store.path)) for store in stores])) for _ in range(2)]
    assert texts[0] == texts[1]
    fewer = made([StoreSource(store) for store in stores], k=1)["head"]["fingerprint"]
    assert fewer != json.loads(texts[0])["head"]["fingerprint"]


def test_scores_of_different_data_are_not_joined(tmp_path: Path) -> None:
    other = make_store(tmp_path / "b", queries=[{**QUERIES[0], "text": "Something else"}, QUERIES[1]])
    with pytest.raises(ValueError, match="expected scores of the same data"):
        made([StoreSource(make_store(tmp_path / "a")), StoreSource(other)])


def test_the_estimated_size_is_about_the_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = Texts.of([{"example_id": example, "text": "word " * 20} for example in range(500)], EXAMPLE_ID)
    scores = {"dot": generator.normal(size=(500, 40))}
    store = ScoreStore.write(tmp_path / "s", np.arange(500), np.arange(40), scores, examples=texts)
    content = Content(RankedQueries([StoreSource(store)], range(40), 10, 5), "made", ContentSettings())
    estimated = content.estimated_size(lambda _, chunk: len(json.dumps(chunk)))
    size = sum(len(json.dumps(chunk)) for _, chunk in content.chunks())
    assert estimated == pytest.approx(size, rel=0.05)


def fields_in_typescript() -> dict[str, list[str]]:
    text = (Path(explorer.__file__).parent / "app" / "format.d.ts").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    fields: dict[str, list[str]] = {}
    for name, body in re.findall(r"interface (\w+) \{(.*?)\n\}", text, flags=re.DOTALL):
        depth, flat = 0, ""
        for character in body:
            depth += (character == "{") - (character == "}")
            flat += character if depth == 0 else ""
        fields[name] = re.findall(r"^\s*(\w+):", flat, flags=re.MULTILINE)
    return fields


def test_python_and_typescript_have_the_same_fields() -> None:
    typed = {
        name: list(of.__annotations__)
        for name, of in vars(report_format).items()
        if isinstance(of, type) and hasattr(of, "__total__")
    }
    written = fields_in_typescript()
    assert len(written) > 10
    assert {name: typed.get(name) for name in written} == written
