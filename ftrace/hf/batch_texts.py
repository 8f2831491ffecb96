"""The texts of batches, decoded from their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ftrace.online.rehearsal.exchange import IGNORED
from ftrace.online.rehearsal.packed_rows import find_documents


class BatchTexts:
    """A function of a batch that decodes its rows, for ``describe``.

    Args:
        processing_class: A trainer's tokenizer, or a processor that has one.
        id_key: The key of the examples' ids in a batch.
    """

    def __init__(self, processing_class: Any, id_key: str) -> None:
        self._id_key = id_key
        self._tokenizer = getattr(processing_class, "tokenizer", processing_class)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return each row's text, and its answer if labels or masks tell it."""
        if "completion_ids" in batch:  # GRPO
            prompts = self._decoded(batch["prompt_ids"], batch["prompt_mask"])
            answers = self._decoded(batch["completion_ids"], batch["completion_mask"])
            return {"text": [f"{one} {other}" for one, other in zip(prompts, answers, strict=True)], "answer": answers}
        tokens, mask = batch["input_ids"], batch.get("attention_mask")
        count = len(batch.get(self._id_key, tokens))
        documents = find_documents(batch, count, self._id_key, "describe") if count != len(tokens) else None
        if documents is not None:  # several in a row
            labels, flat = batch.get("labels", tokens).flatten(), tokens.flatten()
            places = [documents.flat == number for number in range(count)]
            return {
                "text": self._texts([flat[of_document] for of_document in places]),
                "answer": self._texts([flat[of_document & (labels != IGNORED).cpu()] for of_document in places]),
            }
        described = {"text": self._decoded(tokens, mask)}
        if "labels" in batch and batch["labels"].shape == tokens.shape:
            is_answer = batch["labels"] != IGNORED
            described["answer"] = self._decoded(tokens, is_answer)
            if self._id_key not in batch:  # of queries, which are shown without their answers
                given = ~is_answer if mask is None else ~is_answer & mask.bool()
                prompts = self._decoded(tokens, given)
                described["text"] = [asked or whole for asked, whole in zip(prompts, described["text"], strict=True)]
        elif "completion_mask" in batch and batch["completion_mask"].shape == tokens.shape:
            described["answer"] = self._decoded(tokens, batch["completion_mask"])
        return described

    def _decoded(self, tokens: Tensor, mask: Tensor | None) -> list[str]:
        if mask is None:
            return self._texts(list(tokens))
        return self._texts([row[kept.bool()] for row, kept in zip(tokens, mask, strict=True)])

    def _texts(self, rows: Sequence[Tensor]) -> list[str]:
        texts = self._tokenizer.batch_decode([row.tolist() for row in rows], skip_special_tokens=True)
        return [text.strip() for text in texts]
