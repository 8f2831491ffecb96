"""Prompts for causal tracing in a model's tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ftrace.data.fact_prompts import FactPrompt


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt in tokens.

    Args:
        prompt: The prompt.
        input_ids: What the model is given: an encoder's input, or a decoder-only model's text up to the answer.
        tokens: The same, readable.
        subject: Half-open range of the subject's places in ``input_ids``.
        decoder_ids: What an encoder-decoder's decoder is given before the answer; empty for a decoder-only model.
        decoder_tokens: The same, readable.
        answers: Tokens of each accepted answer, without the end of the sequence, the prompt's own first.
        foil: Tokens of the foil.
    """

    prompt: FactPrompt
    input_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    decoder_ids: tuple[int, ...]
    decoder_tokens: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]
    foil: tuple[int, ...] | None = None
