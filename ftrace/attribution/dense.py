"""Dense retrieval: cosines of sentence embeddings by any Hugging Face encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ftrace.arguments import Name, Positive, checked
from ftrace.attribution.method import AttributionMethod, Task
from ftrace.scores import ScoreStore


@checked
@dataclass(frozen=True)
class Dense(AttributionMethod):
    """Dense retrieval: cosine of the embeddings of sentences with their answers filled in.

    Args:
        model: Folder or hub name of an encoder with its tokenizer; of an encoder-decoder, the encoder is taken.
        pooling: "mean" over the tokens without padding, or the "first" token's state.
        query_prefix: The prefix of queries that the model was trained with, such as "query: ".
        document_prefix: That of documents, such as "passage: ".
        max_length: Tokens of a sentence that are read, or fewer where the tokenizer knows of a smaller limit; what is
            longer is cut off with a warning.
    """

    name: ClassVar[Name] = "dense"

    model: Name
    pooling: Literal["mean", "first"] = "mean"
    query_prefix: str = ""
    document_prefix: str = ""
    max_length: Positive = 512

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples; the run's own model is not used."""
        from ftrace.attribution.sentence_vectors import SentenceVectors

        vectors = SentenceVectors(self.model, self.pooling, self.query_prefix, self.document_prefix, self.max_length)
        return vectors.score(self, task)
