"""Products of the gradients of examples and a query, divided over the tokens of the examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ftrace.attribution.gradient_check import check_against_autograd
from ftrace.attribution.token_sequences import Batch, positions_of, sequences_of, with_lengths_apart
from ftrace.data.token_texts import token_texts
from ftrace.gradients import (
    Dense,
    GradientCapture,
    PerExampleGradients,
    QueryGradients,
    Recording,
    inner_products,
    inner_products_by_token,
)
from ftrace.models import FactLM
from ftrace.scores import ExampleTokenScores, SequenceScores

PADDING = "padding"


@dataclass(frozen=True)
class BatchProducts:
    """Products of B examples' gradients with a query's.

    Args:
        sequences: By sequence, ids, mask and products, each ``[B, T]``; products are 0 outside of the mask.
        left_out: Products ``[B]`` that can't be divided over tokens, by the layer or parameter that they are of.
    """

    sequences: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    left_out: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def totals(self) -> Tensor:
        """The products of the whole gradients, ``[B]``."""
        parts = [products.sum(1) for _, _, products in self.sequences.values()]
        return torch.stack([*parts, *self.left_out.values()]).sum(0)


class TokenProductReader:
    """Reader of products token by token, at the model's current weights.

    Args:
        model: In the mode in which it is to be differentiated.

    Raises:
        ValueError: If a trained parameter can't be covered.
    """

    def __init__(self, model: FactLM) -> None:
        self.model = model
        self.capture = GradientCapture(model, strict=True)
        self.capture.attach()
        self._is_checked = False
        self._device = next(model.parameters()).device

    def query(self, batch: Mapping[str, Tensor]) -> PerExampleGradients:
        """Compute the gradient of a query's loss.

        Args:
            batch: A collator's batch of one query.

        Raises:
            ValueError: If it isn't what autograd gives.
        """
        on_device = self._moved(batch)
        gradients = self._record(on_device).gradients()
        if not self._is_checked:
            losses = self.model.example_losses(on_device)
            names = self.capture.coverage.covered
            check_against_autograd(self.model, losses, gradients, names, "Products by token")
            self._is_checked = True
        return gradients

    def products(self, batch: Mapping[str, Tensor], query: PerExampleGradients) -> BatchProducts:
        """Multiply the gradients of a batch of training rows with a query's.

        Args:
            batch: A collator's batch, with padding on any side.
            query: As :meth:`query` gives it.
        """
        architecture = self.model.architecture
        widened = self._moved(with_lengths_apart(batch, architecture))
        recording = self._record(widened)
        sequences = sequences_of(widened, architecture)
        products = {sequence.name: query.zeros(*sequence.ids.shape) for sequence in sequences}
        whole = _without_positions(recording)
        left_out: dict[str, Tensor] = {}
        # Which way is the fastest depends on measured rates; equal input shall give equal numbers.
        prepared = QueryGradients(query, way="gram")
        for run in inner_products_by_token(recording, prepared, set(query.parts) - whole):
            belonging = positions_of(run, sequences)
            if belonging is None:
                _add(left_out, run.layer, run.products.sum((1, 2)))
            else:
                products[belonging[0].name] += belonging[1].squeeze(2)
        wanted = [name for name in query.parts if name in whole]
        if wanted:
            gradients, rest = recording.gradients(), QueryGradients(query.only(wanted))
            left_out |= {name: inner_products(gradients, rest, [name]).squeeze(1) for name in wanted}
        for sequence in sequences:
            of_padding = products[sequence.name].masked_fill(sequence.mask, 0).sum(1)
            if of_padding.any():
                _add(left_out, PADDING, of_padding)
            products[sequence.name].masked_fill_(~sequence.mask, 0)
        return BatchProducts({s.name: (s.ids, s.mask, products[s.name]) for s in sequences}, left_out)

    def _record(self, batch: Batch) -> Recording:
        with torch.enable_grad(), self.capture.recording(len(batch["labels"])) as recording:
            recording.backward(self.model.example_losses(batch))
        return recording

    def _moved(self, batch: Mapping[str, Tensor]) -> Batch:
        return {name: tensor.to(self._device) for name, tensor in batch.items()}


def _without_positions(recording: Recording) -> set[str]:
    """Find the parameters of which some layer doesn't keep positions apart."""
    return {name for _, parts in recording.runs() for name, part in parts if isinstance(part, Dense)}


def _add(sums: dict[str, Tensor], key: str, values: Tensor) -> None:
    sums[key] = sums[key] + values if key in sums else values


def read_examples(
    example_ids: Sequence[int], products: BatchProducts, tokenizer: PreTrainedTokenizerBase
) -> Iterator[ExampleTokenScores]:
    """Yield the scores of the tokens of each example of a batch, without padding.

    Tokens that share a text, such as the pieces of one character, are one, with the sum of their values.
    """
    for row, (example, total) in enumerate(zip(example_ids, products.totals.tolist(), strict=True)):
        sequences = []
        for name, (ids, mask, values) in products.sequences.items():
            texts = token_texts(tokenizer, ids[row][mask[row]].tolist())
            pieces = values[row][mask[row]].split([count for count, _ in texts])
            sums = [float(piece.sum()) for piece in pieces]
            sequences.append(SequenceScores(name, [text for _, text in texts], sums))
        yield ExampleTokenScores(example, total, sequences)
