"""FactLM: losses are what they are said to be, and a query counts as learned exactly if generation says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from ftrace.callbacks import OnlineTracIn
from ftrace.data import FtraceSynth, SynthSettings, make_collator, train_word_tokenizer
from ftrace.models import FactLM
from ftrace.scores import ScoreStore

CONFIGS: dict[str, dict[str, Any]] = {
    "encoder-decoder": {
        "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
    },
    "decoder-only": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
QUERIES = [
    {
        "query_id": i, "inputs_pretokenized": f"<extra_id_0> likes {name}", "targets_pretokenized": "<extra_id_0> Ann",
        "answers": answers,
    }
    for i, (name, answers) in enumerate([("Oslo", ["Ann", "Bob tea"]), ("Bob", ["tea"]), ("tea Ann", ["Oslo", "Bob"])])
]  # fmt: skip
TOKENIZER = train_word_tokenizer(["Ann likes Oslo Bob tea"])


def model(architecture: str, **settings: Any) -> FactLM:
    torch.manual_seed(0)
    special = {"vocab_size": len(TOKENIZER), "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = LLAMA if architecture == "llama" else CONFIGS[architecture]
    return FactLM(config={**config, **special}, embedding_std=1.0, **settings).double().eval()


def generated_text(module: FactLM, prompt: str) -> str:
    """What greedy decoding says after the sentinel."""
    given = TOKENIZER(prompt, add_special_tokens=False).input_ids
    sentinel = TOKENIZER.convert_tokens_to_ids("<extra_id_0>")
    inputs = {"input_ids": torch.tensor([[*given, sentinel]])}
    if module.architecture == "encoder-decoder":
        inputs = {"decoder_input_ids": torch.tensor([[0, sentinel]]), "input_ids": torch.tensor([[*given, 1]])}
    out = module.model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]  # type: ignore[operator]
    new = out[2:] if module.architecture == "encoder-decoder" else out[len(given) + 1 :]
    return str(TOKENIZER.decode(new[new != 0], skip_special_tokens=False))


def says_sentinel_first(module: FactLM, prompt: str) -> bool:
    given = torch.tensor([[*TOKENIZER(prompt, add_special_tokens=False).input_ids, 1]])
    logits = module.model(input_ids=given, decoder_input_ids=torch.tensor([[0]])).logits
    return int(logits.argmax()) == TOKENIZER.convert_tokens_to_ids("<extra_id_0>")


def queries(architecture: str, *, several_answers: bool = False) -> dict[str, Tensor]:
    kind: Any = "decoder-only" if architecture == "llama" else architecture
    return make_collator(TOKENIZER, kind, several_answers=several_answers)(QUERIES)


def log_probability(
    module: FactLM, prompt: str, answer: str, end_of_sequence: bool = True, end: str = "</s>"
) -> Tensor:
    """Of one answer, by one forward pass with nothing else in the batch."""
    tokens = [*TOKENIZER(answer, add_special_tokens=False).input_ids, TOKENIZER.convert_tokens_to_ids(end)]
    given = TOKENIZER(prompt, add_special_tokens=False).input_ids
    sentinel = TOKENIZER.convert_tokens_to_ids("<extra_id_0>")
    if module.architecture == "encoder-decoder":
        inputs = torch.tensor([[*given, TOKENIZER.eos_token_id]])
        decoder = torch.tensor([[TOKENIZER.pad_token_id, sentinel, *tokens[:-1]]])
        logits = module.model(input_ids=inputs, decoder_input_ids=decoder).logits[0]
        tokens = [sentinel, *tokens]
    else:
        logits = module.model(input_ids=torch.tensor([[*given, sentinel, *tokens]])).logits[0, :-1][-len(tokens) :]
    each = logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]
    return (each if end_of_sequence else each[:-1]).sum()


@pytest.mark.parametrize("several_answers", [False, True])
@pytest.mark.parametrize("end_of_sequence", [True, False])
@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
def test_a_querys_loss_is_of_one_answer_or_of_any(
    architecture: str, end_of_sequence: bool, several_answers: bool
) -> None:
    """Where rows have several answers, the next sentinel ends one, too."""
    batch = queries(architecture, several_answers=several_answers)
    ends = ["</s>", "<extra_id_1>"] if end_of_sequence and several_answers else ["</s>"]
    for answers in ("one", "any"):
        module = model(architecture, answers=answers)
        expected = []
        for row in QUERIES:
            accepted = row["answers"] if answers == "any" else ["Ann"]
            prompt = row["inputs_pretokenized"]
            each = [log_probability(module, prompt, one, end_of_sequence, end) for one in accepted for end in ends]
            expected.append(-torch.stack(each).logsumexp(0))
        found = module.example_losses(batch, end_of_sequence=end_of_sequence)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)
        found.sum().backward()
        assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in module.parameters())


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("end_of_sequence", [True, False])
def test_gradients_of_any_answer_are_finite_where_queries_have_fewer_answers(
    architecture: str, end_of_sequence: bool
) -> None:
    module = model(architecture)
    module.example_losses(queries(architecture), end_of_sequence).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_without_its_end_an_example_has_the_loss_of_its_other_tokens() -> None:
    """Also for training rows: a text of its own, and rows of different length."""
    rows = [
        {"example_id": 0, "inputs_pretokenized": "", "targets_pretokenized": "Ann likes Bob"},
        {"example_id": 1, "inputs_pretokenized": "Ann likes", "targets_pretokenized": "tea"},
    ]
    module = model("decoder-only")
    batch = make_collator(TOKENIZER, "decoder-only")(rows)
    ids = TOKENIZER("Ann likes Bob", add_special_tokens=False).input_ids
    scores = module.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    found = module.example_losses(batch, end_of_sequence=False)
    torch.testing.assert_close(found[0], -(scores[0, ids[1]] + scores[1, ids[2]]), rtol=1e-9, atol=1e-9)
    end = -scores[2, TOKENIZER.eos_token_id]
    torch.testing.assert_close(module.example_losses(batch)[0], found[0] + end, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_training_loss_is_the_mean_over_answer_tokens(architecture: str) -> None:
    module = model(architecture)
    batch = queries(architecture)
    rows = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = module.model(**rows).loss
    found = module.training_step(rows, 0)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-6, atol=0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_by_default_ends_count_in_training_only(architecture: str) -> None:
    rows = [{**row, "example_id": row["query_id"]} for row in QUERIES]
    examples = make_collator(TOKENIZER, architecture)(  # type: ignore[arg-type]
        [{name: value for name, value in row.items() if name not in ("query_id", "answers")} for row in rows]
    )
    for counts in (False, True):
        module = model(architecture, end_of_sequence=counts)
        asked = queries(architecture)
        torch.testing.assert_close(module.example_losses(asked), module.example_losses(asked, counts))
        torch.testing.assert_close(module.example_losses(examples), module.example_losses(examples, True))
        assert not torch.allclose(module.example_losses(asked), module.example_losses(asked, not counts))


@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
def test_an_answer_that_begins_with_another_adds_nothing(architecture: str) -> None:
    """Without their ends, what begins with "Ann tea" begins with "Ann" too; the same answer twice counts once."""
    module = model(architecture)
    kind: Any = "decoder-only" if architecture == "llama" else architecture

    def loss(*answers: str) -> Tensor:
        return module.example_losses(make_collator(TOKENIZER, kind)([{**QUERIES[0], "answers": list(answers)}]))

    for answers in (("Ann tea", "Ann"), ("Ann", "Ann tea Bob", "Ann"), ("Ann", "Ann tea", "Ann tea")):
        torch.testing.assert_close(loss(*answers), loss("Ann"), rtol=1e-12, atol=1e-12)
    both = -torch.logsumexp(-torch.cat([loss("Ann tea"), loss("Bob Ann")]), 0, keepdim=True)
    torch.testing.assert_close(loss("Ann tea", "Bob Ann", "Bob Ann tea"), both, rtol=1e-12, atol=1e-12)
    assert (loss("Ann tea", "Ann") > 0).all()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_same_answer_twice_counts_once_with_its_end_too(architecture: Any) -> None:
    module = model(architecture, end_of_sequence=True)
    once, twice = (
        module.example_losses(make_collator(TOKENIZER, architecture)([{**QUERIES[0], "answers": answers}]))
        for answers in (["Ann"], ["Ann", "Ann"])
    )
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_answer_whose_end_was_cut_off_keeps_its_last_token(architecture: Any) -> None:
    words, whole = "Ann likes Oslo Bob", 6  # one token before them, and the end
    row = {**QUERIES[0], "targets_pretokenized": f"<extra_id_0> {words}", "answers": [words]}
    module = model(architecture)
    full, cut = (make_collator(TOKENIZER, architecture, max_length=length)([row]) for length in (whole, whole - 1))
    assert "end_length" not in full
    assert cut["end_length"].tolist() == [0]
    assert cut["answer_end_length"].tolist() == [[0]]
    assert cut["answer_length"].tolist() == full["answer_length"].tolist() == [4]
    if architecture == "decoder-only":  # what is before them is the same
        torch.testing.assert_close(module.example_losses(cut), module.example_losses(full), rtol=1e-12, atol=1e-12)
    counted = int((cut["answer_labels"] != -100).sum())
    of_last = module.example_losses(cut) - module.example_losses({**cut, "answer_end_length": torch.tensor([[1]])})
    assert counted >= 4
    assert of_last.item() > 0


@pytest.mark.parametrize("output", ["margin", "logit"])
def test_other_outputs_of_queries_leave_ends_out_too(output: Any) -> None:
    batch = queries("decoder-only")
    without, with_end = (
        model("decoder-only", end_of_sequence=ends).example_outputs(batch, output) for ends in (False, True)
    )
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == TOKENIZER.eos_token_id, -100)
    torch.testing.assert_close(model("decoder-only", end_of_sequence=True).example_outputs(batch, output), without)
    assert not torch.allclose(without, with_end)


def test_an_answer_of_its_end_alone_keeps_it() -> None:
    row = {"query_id": 0, "inputs_pretokenized": "Ann likes", "targets_pretokenized": "", "answers": [""]}
    module = model("decoder-only")
    losses = module.example_losses(make_collator(TOKENIZER, "decoder-only")([row]))
    assert losses.item() > 0
    losses.sum().backward()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_right_is_what_generation_begins_with(architecture: str) -> None:
    """Against generate(): by default it may go on, with ``end_of_sequence`` it must end."""
    goes_on = 0
    for seed in range(10):
        module = model(architecture)
        torch.manual_seed(seed)
        for parameter in module.parameters():
            parameter.data += 0.5 * torch.randn_like(parameter)
        text = generated_text(module, QUERIES[0]["inputs_pretokenized"])
        words = text.split()
        if not words or "<" in words[0]:
            continue
        batch = make_collator(TOKENIZER, architecture)(  # type: ignore[arg-type]
            [{**QUERIES[0], "answers": ["unheard of", words[0]]}, {**QUERIES[0], "answers": ["unheard of"]}]
        )
        says_sentinel = architecture == "decoder-only" or says_sentinel_first(module, QUERIES[0]["inputs_pretokenized"])
        assert module.learned(batch).tolist() == [says_sentinel, False]
        module.hparams["end_of_sequence"] = True
        assert module.learned(batch).tolist() == [says_sentinel and text.startswith(f"{words[0]}</s>"), False]
        goes_on += len(words) > 1
    assert goes_on


@pytest.mark.parametrize("architecture", CONFIGS)
def test_learned_is_what_greedy_generation_says(architecture: str) -> None:
    """Against generate(), on random models and on the model's own generations as accepted answers."""
    found = set()
    for seed in range(6):
        module = model(architecture, end_of_sequence=True)
        torch.manual_seed(seed)
        for parameter in module.parameters():
            parameter.data += 0.5 * torch.randn_like(parameter)
        generated = [generated_text(module, row["inputs_pretokenized"]) for row in QUERIES]
        # The first query accepts what was generated, if it is an answer at all; the others accept something else.
        ended = generated[0].endswith("</s>") and "<" not in generated[0].removesuffix("</s>")
        said = generated[0].removesuffix("</s>").strip()
        rows = [{**row, "answers": ["unheard of"]} for row in QUERIES]
        if ended and said:
            rows[0]["answers"] = ["unheard of", said]
        learned = module.learned(make_collator(TOKENIZER, architecture)(rows)).tolist()
        if architecture == "decoder-only":
            assert learned == [bool(ended and said), False, False]
        else:  # an encoder-decoder must also say the sentinel itself
            assert learned[1:] == [False, False]
            assert not learned[0] or (ended and said)
        found.add(learned[0])
    assert architecture == "encoder-decoder" or False in found


def test_tokens_of_padding_change_nothing() -> None:
    for architecture in CONFIGS:
        module = model(architecture)
        together = module.example_losses(queries(architecture))
        alone = torch.cat([module.example_losses(make_collator(TOKENIZER, architecture)([row])) for row in QUERIES])
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def run(tmp_path: Path, architecture: str, module: FactLM, epochs: int = 1) -> tuple[pl.Trainer, FtraceSynth]:
    synth = SynthSettings(
        num_entities=6, num_relations=2, num_facts=6, num_test_utterances=3, num_facts_per_utterance=1
    )
    data = FtraceSynth(synth, str(tmp_path / "cache"), architecture, batch_size=32)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    pl.seed_everything(0, verbose=False)
    trainer.fit(module, data)
    return trainer, data


@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
def test_trains_on_synth_with_the_datamodules_vocabulary(architecture: str, tmp_path: Path) -> None:
    config = LLAMA if architecture == "llama" else CONFIGS[architecture]
    module = FactLM(config=config, embedding_std=0.1, learning_rate=0.01, warmup_steps=2)
    architecture = "decoder-only" if architecture == "llama" else architecture
    trainer, data = run(tmp_path, architecture, module, epochs=2)
    assert module.model.config.vocab_size == len(data.tokenizer)
    assert {"train/loss", "val/query_loss", "val/queries_learned"} <= trainer.callback_metrics.keys()
    loaded = FactLM.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    batch = next(iter(data.query_dataloader()))
    torch.testing.assert_close(loaded.eval().example_losses(batch), module.eval().example_losses(batch))
    predictions = trainer.predict(module, data)
    assert predictions[0].keys() == {"query_id", "loss", "learned"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adafactor"])
def test_schedule_warms_up_and_falls(optimizer: Any, tmp_path: Path) -> None:
    module = FactLM(
        config=CONFIGS["decoder-only"], optimizer=optimizer, learning_rate=0.5, warmup_steps=4, weight_decay=0.1
    )
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    synth = SynthSettings(
        num_entities=6, num_relations=2, num_facts=6, num_test_utterances=3, num_facts_per_utterance=1
    )
    data = FtraceSynth(synth, str(tmp_path / "cache"), "decoder-only", batch_size=32)
    trainer = pl.Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    trainer.fit(module, data)
    assert type(trainer.optimizers[0]).__name__.lower() == optimizer
    assert rates[:5] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    assert rates[-1] == pytest.approx(0.5 / 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected exactly one of model_name_or_path and config"),
        ({"config": {"d_model": 4}}, r'config: expected a "model_type"'),
        (
            {"config": CONFIGS["decoder-only"], "answers": "all"},
            r"answers: expected one of \['one', 'any'\], found 'all'",
        ),
        ({"config": CONFIGS["decoder-only"], "optimizer": "lion"}, "optimizer: expected one of"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FactLM(**settings)


class WithOneMore(FactLM):
    def __init__(self, temperature: float, **others: Any) -> None:
        super().__init__(**others)
        self.temperature = temperature


def test_a_subclass_saves_its_own_hyperparameters() -> None:
    made = WithOneMore(0.5, config=CONFIGS["decoder-only"])
    assert made.hparams["temperature"] == 0.5


@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
def test_a_pretrained_folder_is_loaded(architecture: str, tmp_path: Path) -> None:
    source = model(architecture).float()
    source.model.save_pretrained(tmp_path / "model")
    loaded = FactLM(str(tmp_path / "model"))
    assert all(module.training for module in loaded.modules())  # dropout is on when it is fine-tuned
    loaded.eval()
    batch = queries(architecture)
    torch.testing.assert_close(loaded.example_losses(batch), source.example_losses(batch))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.float32), ("auto", torch.bfloat16), ("float16", torch.float16), ("float64", torch.float64)],
)
def test_a_pretrained_model_is_trained_in_the_dtype_that_is_named(
    dtype: Any, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model("decoder-only").bfloat16().model.save_pretrained(tmp_path / "model")
    loaded = FactLM(str(tmp_path / "model"), **({} if dtype is None else {"dtype": dtype}))
    assert {weight.dtype for weight in loaded.parameters()} == {expected}
    said: list[str] = []
    monkeypatch.setattr("ftrace.models.fact_lm.rank_zero_info", said.append)
    loaded.on_fit_start()
    name, count = str(expected).removeprefix("torch."), sum(weight.numel() for weight in loaded.parameters())
    assert said[0].startswith(f"FactLM: trains {count:,} weights in {name}")
    assert ("stored in bfloat16" in said[0]) is (expected != torch.bfloat16)
    assert ("are rounded away" in said[0]) is (expected == torch.bfloat16)


def test_a_model_from_scratch_has_the_dtype_that_is_named() -> None:
    torch.manual_seed(0)
    built = FactLM(config={**CONFIGS["decoder-only"], "vocab_size": 32}, dtype="bfloat16")
    assert {weight.dtype for weight in built.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="dtype: expected one of"):
        FactLM(config=CONFIGS["decoder-only"], dtype="int8")  # type: ignore[arg-type]


def test_architecture_and_vocabulary_must_fit_the_datamodule(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="expected a datamodule for decoder-only models, found one for encoder-decoder"
    ):
        run(tmp_path, "encoder-decoder", FactLM(config=CONFIGS["decoder-only"]))
    with pytest.raises(
        ValueError, match=r"expected a tokenizer of at most 4 tokens, as the model has, found one of \d+"
    ):
        run(tmp_path, "decoder-only", FactLM(config={**CONFIGS["decoder-only"], "vocab_size": 4}))
    module = FactLM(config=CONFIGS["decoder-only"])
    with pytest.raises(ValueError, match="expected vocab_size, or a datamodule with a tokenizer"):
        module.configure_model()


@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
def test_online_scores_follow_adafactor_and_llama(architecture: str, tmp_path: Path) -> None:
    """The self-check holds contributions against the gradient and the gradient after each step."""
    config = LLAMA if architecture == "llama" else CONFIGS[architecture]
    module = FactLM(config=config, embedding_std=0.1, optimizer="adafactor", learning_rate=0.05)
    synth = SynthSettings(
        num_entities=6, num_relations=2, num_facts=6, num_test_utterances=3, num_facts_per_utterance=1
    )
    kind: Any = "decoder-only" if architecture == "llama" else architecture
    data = FtraceSynth(synth, str(tmp_path / "cache"), kind, batch_size=32)
    online = OnlineTracIn(output_dir=tmp_path / "online", scores=("update", "cosine"))
    trainer = pl.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[online], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    store = ScoreStore.open(tmp_path / "online")
    assert store.manifest["optimizers"][0]["class"].endswith("Adafactor")
    assert abs(store.matrix("update")).max() > 0


def pretrained(folder: Path, tokenizer: Any | None) -> Path:
    model("encoder-decoder").float().model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def test_data_must_be_in_the_models_own_tokens(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "t5", TOKENIZER)
    datamodule = SimpleNamespace(architecture="encoder-decoder", tokenizer=train_word_tokenizer(["Bob likes Oslo"]))
    module = FactLM(str(folder))
    module._trainer = SimpleNamespace(datamodule=datamodule)  # type: ignore[assignment]
    message = rf"in the tokens of the model '{folder}', found a tokenizer with another.*tokenizer={folder}$"
    with pytest.raises(ValueError, match=message):
        module.configure_model()
    datamodule.tokenizer = TOKENIZER
    module.configure_model()
    module = FactLM(str(pretrained(tmp_path / "without a tokenizer", None)))
    module._trainer = SimpleNamespace(datamodule=datamodule)  # type: ignore[assignment]
    module.configure_model()
