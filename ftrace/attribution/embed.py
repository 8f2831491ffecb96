"""EMBED: cosines of mean hidden states (Akyürek et al. 2022, arXiv 2205.11482, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ftrace.arguments import Count, Name, checked
from ftrace.attribution.method import AttributionMethod, Task
from ftrace.scores import ScoreStore


@checked
@dataclass(frozen=True)
class Embed(AttributionMethod):
    """Cosine of mean hidden states at one snapshot; each layer is a kind of scores, all from one pass.

    ``encoder.L`` is the mean over the input's tokens, ``decoder.L`` over the target's; ``both.L`` is the mean of the
    two cosines, which is the cosine of the two unit vectors side by side. A decoder-only model has ``decoder.L`` alone,
    over all tokens of a row. Layer 0 is the embeddings; states are Hugging Face's ``output_hidden_states``, where the
    last layer's come after the final norm. Padding is never pooled. A position in the decoder of an encoder-decoder
    belongs to the token that it predicts.

    Args:
        snapshot: "last", "first" or a step.
        layers: Which kinds, such as encoder.0 or both.2; default: all.
        end_of_sequence: Whether the end-of-sequence token is pooled.
    """

    name: ClassVar[Name] = "embed"

    snapshot: Literal["last", "first"] | Count = "last"
    layers: Sequence[Name] | None = None
    end_of_sequence: bool = True

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples, in eval mode."""
        from ftrace.attribution.mean_states import score_by_states

        return score_by_states(self, task, self.snapshot, self.layers, self.end_of_sequence)
