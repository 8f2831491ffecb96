"""A tokenizer that needs no network: one token a word, learned from the data itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ftrace.arguments import Name, checked
from ftrace.data.text import SENTINEL
from ftrace.files.digests import DamagedError
from ftrace.files.noted_files import note_files, noted_files
from ftrace.progress import track

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"

NUM_SENTINELS = 16

_MARKS = r"'s$|[.,;:!?]+$"  # at the end of a word: tokens of their own


@checked
def train_word_tokenizer(texts: Iterable[Name], *, split_hyphens: bool = False) -> PreTrainedTokenizerFast:
    """Learn a word-level tokenizer, which splits at spaces and makes possessives and final marks separate tokens.

    Args:
        texts: All texts that a model will read or predict.
        split_hyphens: Whether the parts of a hyphenated word, and the hyphen, are separate tokens.

    Returns:
        An ordinary fast tokenizer with T5's special tokens (``<pad>``, ``</s>``, ``<unk>``, ``<extra_id_0>`` ...),
        which works with ``save_pretrained`` and ``AutoTokenizer.from_pretrained``. It decodes without a space before
        possessives and final marks.
    """
    sentinels = [f"<extra_id_{index}>" for index in range(NUM_SENTINELS)]
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_MARKS), "isolated")]
    if split_hyphens:
        steps.append(pre_tokenizers.Split("-", "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    space_before = decoders.Replace(Regex(f"^(?!({_MARKS}))"), " ")
    tokenizer.decoder = decoders.Sequence([space_before, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.WordLevelTrainer(
        special_tokens=[PAD, END, UNKNOWN, *sentinels], vocab_size=2**31 - 1, show_progress=False
    )
    # The trainer would give a sentinel that it meets in a text a second id.
    tokenizer.train_from_iterator(
        (SENTINEL.sub(" ", text) for text in track(texts, "texts for the tokenizer")), trainer
    )
    end = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=sentinels,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a tokenizer in an empty folder, with size and digest of its files."""
    tokenizer.save_pretrained(str(folder))
    note_files(folder, [file.name for file in folder.iterdir()])


def check_tokenizer(folder: Path) -> None:
    """Make sure that a tokenizer is what :func:`save_tokenizer` has saved; one of an older ftrace has no digests.

    Raises:
        DamagedError: If it isn't.
    """
    try:
        files = noted_files(folder)
        for name in files.files:
            files.check(name)
    except (OSError, DamagedError) as error:
        raise DamagedError(f"{error}. Delete {str(folder)!r}, and the same tokenizer is learned again") from error


def has_tokenizer(name: str) -> bool:
    """Return whether a model comes with a tokenizer; without its files, transformers would make one up.

    Args:
        name: The model's folder, or its name on the hub, where it counts as having one.
    """
    folder = Path(name)
    return not folder.is_dir() or any(any(folder.glob(files)) for files in ("tokenizer*", "vocab*", "*.model"))
