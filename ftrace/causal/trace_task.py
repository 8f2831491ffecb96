"""What is traced: prompts, a model, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftrace.arguments import Positive, Seed, checked
from ftrace.causal.layouts import find_modules, layouts_of
from ftrace.causal.prompt_trace import Stack
from ftrace.causal.settings import CausalSettings, ModelLayout, NoiseSettings
from ftrace.data import FactPrompt, TokenizedPrompt, tokenize_prompt


@checked
@dataclass(frozen=True)
class TraceTask:
    """Prompts to trace through a model.

    Args:
        model: In eval mode.
        tokenizer: The model's tokenizer.
        prompts: The prompts. Each that can't be traced is left out, and its file says why. The size of noise is
            measured by the subjects of all.
        folder: The folder of the files. Prompts that have one already are not traced again.
        settings: What to trace.
        noise: How to corrupt subjects.
        layouts: The names of the model's modules; default: the preset for its type.
        as_trained: Whether the model was trained by ftrace, on the tokens that its collators make.
        sample: How many of the prompts to trace, in an order drawn at random; default: all.
        seed: The seed of that draw.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[FactPrompt]
    folder: Path
    settings: CausalSettings = field(default_factory=CausalSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    layouts: Mapping[Stack, ModelLayout] | None = None
    as_trained: bool = False
    sample: Positive | None = None
    seed: Seed = 0

    @property
    def layer_names(self) -> dict[Stack, tuple[str, ...]]:
        """The names of each stack's layers within the model."""
        layouts = self.layouts or layouts_of(self.model)
        return {stack: find_modules(self.model, layout).layer_names for stack, layout in layouts.items()}

    def tokenized(self, prompt: FactPrompt) -> TokenizedPrompt:
        """Tokenize a prompt.

        Raises:
            ValueError: If it can't be traced.
        """
        return tokenize_prompt(prompt, self.tokenizer, decoder_start=self.decoder_start, as_trained=self.as_trained)

    @property
    def decoder_start(self) -> int | None:
        """The token that an encoder-decoder's decoder starts with; None for a decoder-only model.

        Raises:
            ValueError: If an encoder-decoder's config doesn't say.
        """
        if not self.model.config.is_encoder_decoder:
            return None
        for config in (self.model.config, getattr(self.model, "generation_config", None)):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        raise ValueError(
            "expected a model whose config has decoder_start_token_id, found none. Set it, such as 0 for T5"
        )
