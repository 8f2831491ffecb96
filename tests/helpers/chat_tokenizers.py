"""Tiny tokenizers with chat templates, and folders of tiny pretrained models that have them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers import tiny

_BODY = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = f"{_BODY}{{{{ message['content'] + '<|im_end|>\n' }}}}{{% endfor %}}{_PROMPT}"
# With marks around what the assistant says, once with the end of its turn and once without.
_TOLD = "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] INSIDE }}{% endgeneration %}"
_MARKED = f"{_BODY}{_TOLD}{{{{ OUTSIDE }}}}{{% else %}}{{{{ message['content'] + '<|im_end|>\n' }}}}{{% endif %}}"
MARKED = f"{_MARKED}{{% endfor %}}{_PROMPT}".replace("INSIDE", "+ '<|im_end|>'").replace("OUTSIDE", "'\n'")
MARKED_WITHOUT_END = f"{_MARKED}{{% endfor %}}{_PROMPT}".replace("INSIDE", "").replace("OUTSIDE", "'<|im_end|>\n'")
# With a token at the beginning, and nothing that ends a turn.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Closes a chat with a token of its own, after the token that ends each turn, as Phi-3 does.
CLOSED_TWICE = CHATML.replace(_PROMPT, "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}" + _PROMPT)
# Writes an empty thought before the last answer, as Qwen 3 does.
THINKING = CHATML.replace(
    _BODY, _BODY + "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
# Leaves out what all but the last message of the assistant thought, as templates of reasoning models do.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ (message['content'] if loop.last else message['content'].split('|')[-1]) + '<|im_end|>\n' }}"
    f"{{% endfor %}}{_PROMPT}"
)


def make(template: str | None = CHATML, *, size: int = 320, limit: int | None = None) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer, as GPT-2's and those of today's chat models are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    texts = ["Where does Marrow lie? Marrow lies in Velland.", "user assistant system", "Be brief."] * 5
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False, **({} if limit is None else {"model_max_length": limit}),
    )  # fmt: skip
    made.chat_template = template
    return made


def save_model(folder: Path, template: str | None = CHATML, *, limit: int | None = None, positions: int = 128) -> str:
    """Save a tiny Llama with its tokenizer, as a pretrained model's folder is."""
    tokenizer = make(template, limit=limit)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tiny.llama(vocab_size=len(tokenizer), max_position_embeddings=positions, **ends).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
