"""EMBED and dense retrieval against plain Hugging Face, one row at a time; ensembles of their stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from ftrace.attribution import Dense, Embed, Ensemble, Task, TracIn
from ftrace.data import fill_in, train_word_tokenizer
from ftrace.scores import ScoreStore
from helpers import small_run
from helpers.small_run import SmallRun

COUNT = 40
EXAMPLES = np.arange(COUNT)


@pytest.fixture(scope="module", params=list(small_run.CONFIGS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make(request.param, tmp_path_factory.mktemp("run"))


@torch.no_grad()
def means_by_hand(model: Any, tokenizer: Any, row: dict, architecture: str, end: bool) -> dict[str, Tensor]:
    """Of one row, without padding: the mean of its tokens' states, by layer."""
    inputs = tokenizer(row["inputs_pretokenized"], add_special_tokens=False)["input_ids"]
    targets = tokenizer(row["targets_pretokenized"], add_special_tokens=False)["input_ids"]
    stop = tokenizer.eos_token_id
    if architecture == "decoder-only":
        ids = torch.tensor([[*inputs, *targets, stop]])
        states = model(ids, output_hidden_states=True).hidden_states
        return {f"decoder.{n}": s[0, : None if end else -1].mean(0) for n, s in enumerate(states)}
    labels = torch.tensor([[*targets, stop]])
    found = model(torch.tensor([[*inputs, stop]]), labels=labels, output_hidden_states=True)
    means = {}
    for side in ("encoder", "decoder"):
        for layer, states in enumerate(found[f"{side}_hidden_states"]):
            means[f"{side}.{layer}"] = states[0, : None if end else -1].mean(0)
    return means


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("end", [True, False])
def test_embed_is_the_mean_of_hidden_states(end: bool, run: SmallRun, tmp_path: Path) -> None:
    architecture = run.data.architecture
    store = Embed("first", end_of_sequence=end).score(run.task(tmp_path / "s", example_ids=EXAMPLES))
    model = run.load_model(run.snapshots[0]).model
    rows = [[*run.data.train_rows.select(range(COUNT))], [*run.data.query_rows]]
    own, queries = ([means_by_hand(model, run.data.tokenizer, row, architecture, end) for row in side] for side in rows)
    sides = ["decoder"] if architecture == "decoder-only" else ["encoder", "decoder"]
    names = [f"{side}.{layer}" for side in sides for layer in range(3)]
    expected = {name: np.array([[cosine(a[name], b[name]) for b in queries] for a in own]) for name in names}
    if len(sides) > 1:
        for layer in range(3):
            unit = [
                [torch.cat([one[f"{side}.{layer}"] / one[f"{side}.{layer}"].norm() for side in sides]) for one in rows]
                for rows in (own, queries)
            ]
            expected[f"both.{layer}"] = np.array([[cosine(a, b) for b in unit[1]] for a in unit[0]])
    assert set(store.kinds) == expected.keys()
    for kind, scores in expected.items():
        np.testing.assert_allclose(store.matrix(kind), scores, rtol=1e-9, atol=1e-9)
    assert store.manifest["snapshots"] == [run.snapshots[0].name]


def test_chosen_layers_alone(run: SmallRun, tmp_path: Path) -> None:
    whole = Embed().score(run.task(tmp_path / "a", example_ids=EXAMPLES))
    kind = "both.2" if "both.2" in whole.kinds else "decoder.2"
    some = Embed(layers=[kind]).score(run.task(tmp_path / "b", example_ids=EXAMPLES))
    assert some.kinds == (kind,)
    np.testing.assert_allclose(some.matrix(), whole.matrix(kind), rtol=1e-12)
    with pytest.raises(ValueError, match=r"layers: no 'decodr.1'. Did you mean 'decoder.1'"):
        Embed(layers=["decodr.1"]).score(run.task(tmp_path / "c"))


def encoder(folder: Path, run: SmallRun, kind: str) -> Path:
    """An encoder on disk, with a tokenizer that isn't the run's."""
    texts = [fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]) for row in run.data.train_rows]
    tokenizer = train_word_tokenizer([*texts, "query : "], split_hyphens=True)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    words, model = len(tokenizer), None
    if kind == "bert":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = BertModel(BertConfig(vocab_size=words, **sizes))
    else:
        config = T5Config(vocab_size=words, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "t5"])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_dense_is_the_cosine_of_embeddings(kind: str, pooling: str, run: SmallRun, tmp_path: Path) -> None:
    folder = encoder(tmp_path / "encoder", run, kind)
    method = Dense(str(folder), pooling, query_prefix="query : ")
    store = method.score(Task(run.data, tmp_path / "s", accelerator="cpu", example_ids=EXAMPLES))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder) if kind == "bert" else T5ForConditionalGeneration.from_pretrained(folder)
    model = (model if kind == "bert" else model.get_encoder()).eval()

    @torch.no_grad()
    def vector(row: dict, prefix: str) -> Tensor:
        text = prefix + fill_in(row["inputs_pretokenized"], row["targets_pretokenized"])
        states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        return states[0] if pooling == "first" else states.mean(0)

    own = [vector(row, "") for row in run.data.train_rows.select(range(COUNT))]
    queries = [vector(row, "query : ") for row in run.data.query_rows]
    expected = np.array([[cosine(a, b) for b in queries] for a in own])
    np.testing.assert_allclose(store.matrix("dense"), expected, rtol=1e-4, atol=1e-5)


def test_what_dense_cuts_off_is_said(run: SmallRun, tmp_path: Path) -> None:
    folder = encoder(tmp_path / "encoder", run, "bert")
    task = Task(run.data, tmp_path / "s", accelerator="cpu", example_ids=EXAMPLES)
    with pytest.warns(UserWarning, match="more than 4 tokens are cut off"):
        Dense(str(folder), max_length=4).score(task)
    with pytest.raises(ValueError, match="model: can't load"):
        Dense(str(tmp_path / "nothing")).score(task)


@pytest.mark.parametrize("standardize", [False, True])
def test_ensemble_is_the_mean(standardize: bool, run: SmallRun, tmp_path: Path) -> None:
    tracin = TracIn().score(run.task(tmp_path / "tracin", example_ids=EXAMPLES))
    embed = Embed().score(run.task(tmp_path / "embed", example_ids=EXAMPLES))
    method = Ensemble(["tracin:cosine", f"{tmp_path / 'embed'}:decoder.2"], standardize)
    some = EXAMPLES[3:] if standardize else EXAMPLES
    queries = tracin.query_ids[::-1]
    task = run.task(tmp_path / "both", example_ids=some, query_ids=queries, run_dir=tmp_path)
    store = method.score(task)
    members = [np.array(tracin.matrix("cosine")), np.array(embed.matrix("decoder.2"))]
    members = [member[some][:, ::-1] for member in members]
    if standardize:
        members = [(member - member.mean(0)) / member.std(0) for member in members]
    np.testing.assert_allclose(store.matrix("mean"), sum(members) / 2, rtol=1e-9, atol=1e-12)
    assert [member["method"] for member in store.manifest["members"]] == ["tracin", "embed"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a:x"], "expected at least two"),
        (["a:x", "nothing:x"], "no score store at"),
        (["a:x", "a"], "expected a store's folder and a kind"),
        (["a:x", "a:xx"], "has no kind 'xx'. Did you mean 'x'"),
        (["a:x", "fewer:x"], "to cover the same examples, found 40 in 'a:x' and 39 in 'fewer:x', 39 of them the same"),
        (["a:x", "other:x"], "to cover the same queries"),
        (["fewer:x", "fewer:x"], r"expected scores for all 40 examples, found none for \[39\]"),
        (["pairs:x", "pairs:x"], "its own candidates"),
    ],
    ids=str,
)
def test_members_that_dont_fit(members: list[str], message: str, run: SmallRun, tmp_path: Path) -> None:
    queries = run.data.query_rows["query_id"]
    shape = COUNT, len(queries)
    ScoreStore.write(tmp_path / "a", EXAMPLES, np.array(queries), {"x": np.zeros(shape)})
    ScoreStore.write(tmp_path / "fewer", EXAMPLES[:-1], np.array(queries), {"x": np.zeros(shape)[:-1]})
    ScoreStore.write(tmp_path / "other", EXAMPLES, np.array(queries) + 1, {"x": np.zeros(shape)})
    offsets = np.arange(len(queries) + 1)
    pairs = {"x": np.zeros(len(queries))}
    ScoreStore.write(tmp_path / "pairs", np.arange(len(queries)), np.array(queries), pairs, candidate_offsets=offsets)
    with pytest.raises(ValueError, match=message):
        Ensemble(members).score(run.task(tmp_path / "out", example_ids=EXAMPLES, run_dir=tmp_path))
    assert not (tmp_path / "out").exists()


def test_models_that_dont_fit(run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the run has no snapshots"):
        Embed().score(run.task(tmp_path / "s", snapshots=[]))

    def smaller(folder: Path) -> Any:
        model = run.load_model(folder)
        model.model.resize_token_embeddings(10)
        return model

    with pytest.raises(ValueError, match="expected a tokenizer of at most 10 tokens"):
        Embed().score(run.task(tmp_path / "s", load_model=smaller))
    wide = "d_model" if run.data.architecture == "encoder-decoder" else "n_embd"
    config = {**small_run.CONFIGS[run.data.architecture], wide: 16}
    other = SmallRun(run.data, {**run.settings, "config": config}, run.snapshots)
    with pytest.raises(ValueError, match="is of another model"):
        TracIn().score(other.task(tmp_path / "s"))
    assert list(tmp_path.iterdir()) == []
