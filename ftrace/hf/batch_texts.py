"""The texts of batches, decoded from their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_IGNORED = -100


class BatchTexts:
    """A function of a batch that decodes its rows, for ``describe``.

    Args:
        processing_class: A trainer's tokenizer, or a processor that has one.
    """

    def __init__(self, processing_class: Any) -> None:
        self._tokenizer = getattr(processing_class, "tokenizer", processing_class)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return each row's text, and its answer if labels or masks tell it."""
        if "completion_ids" in batch:  # GRPO
            prompts = self._decoded(batch["prompt_ids"], batch["prompt_mask"])
            answers = self._decoded(batch["completion_ids"], batch["completion_mask"])
            return {"text": [f"{one} {other}" for one, other in zip(prompts, answers, strict=True)], "answer": answers}
        tokens, mask = batch["input_ids"], batch.get("attention_mask")
        described = {"text": self._decoded(tokens, mask)}
        if "labels" in batch and batch["labels"].shape == tokens.shape:
            described["answer"] = self._decoded(tokens, batch["labels"] != _IGNORED)
        elif "completion_mask" in batch and batch["completion_mask"].shape == tokens.shape:
            described["answer"] = self._decoded(tokens, batch["completion_mask"])
        return described

    def _decoded(self, tokens: Tensor, mask: Tensor | None) -> list[str]:
        rows = (
            [row.tolist() for row in tokens]
            if mask is None
            else [row[kept.bool()].tolist() for row, kept in zip(tokens, mask, strict=True)]
        )
        return [text.strip() for text in self._tokenizer.batch_decode(rows, skip_special_tokens=True)]
