"""The residual-stream self-test: whether a model's named modules do what causal tracing assumes.

If the attention, feed-forward and cross-attention outputs at one token are frozen in all layers above, nothing else may
change that token's state: a difference that is put into it must stay as it is, layer by layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ftrace.causal.mediators import Cell, Override
from ftrace.causal.memory import is_out_of_memory
from ftrace.causal.passes import Inputs, Passes, Runs
from ftrace.causal.prompt_trace import Stack
from ftrace.causal.row_plan import RowPlan

_TOKENS, _SUBJECT, _POSITION = 6, (1, 3), 2
_LEAK = 1e-3  # a share of what was put in that changes no picture, whatever the dtype
_NOISE = 4.0  # in standard deviations of the embedding: differences must stand out from rounding errors
_ROUNDING = 3.0  # errors add up as a random walk over layers; the most seen was .65 of a last digit of the state


def check_residual_stream(passes: Passes, model_type: str) -> None:
    """Make sure that a model can be traced.

    Args:
        passes: The model.
        model_type: The model's name in messages.

    Raises:
        ValueError: If it can't be traced; the message says what fails, and in which layer.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = passes.model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, (1, _TOKENS), generator=generator).to(passes.device)
    decoder_ids = ids[:, :3] if passes.is_encoder_decoder else None
    inputs = Inputs(ids, _SUBJECT, decoder_ids, 1)
    try:
        clean = _embedded(passes, ids)[:, slice(*_SUBJECT)]
        noise = torch.randn(clean.shape, generator=generator).to(clean) * clean.float().std() * _NOISE
        runs = passes.runs(inputs, clean + noise)
        _check_embedding(runs.first_states)
        for stack in passes.stacks:
            inside = stack == "decoder" and passes.is_encoder_decoder
            position = decoder_ids.shape[1] - 1 if inside and decoder_ids is not None else _POSITION
            _check_stack(passes, stack, inputs, runs, position)
    except ValueError as error:
        raise ValueError(f"models of the type {model_type!r} with this layout can't be traced: {error}") from error


@torch.inference_mode()
def _embedded(passes: Passes, ids: Tensor) -> Tensor:
    """Embed tokens."""
    embedding = passes.reading.embedding
    if embedding is None:
        raise ValueError(
            "expected the name of its token embedding, which noise is added to, found none. Give embedding"
        )
    asked = "Is `embedding` the module of token embeddings?"
    try:
        states = embedding(ids)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"its embedding, {type(embedding).__name__}, does not take tokens: {error}. {asked}"
        ) from error
    if not isinstance(states, Tensor) or states.dim() != 3 or not states.is_floating_point():
        raise ValueError(f"its embedding, {type(embedding).__name__}, does not give a state for each token. {asked}")
    return states


def _check_embedding(states: Tensor) -> None:
    differs = (states[1] != states[0]).any(-1).nonzero().flatten().tolist()
    expected = list(range(*_SUBJECT))
    if differs != expected:
        raise ValueError(
            f"noise on the embedding of the tokens {expected} must change these tokens' states before the first layer, "
            f"found changes at {differs}. Is `embedding` the module of token embeddings?"
        )


def _check_stack(passes: Passes, stack: Stack, inputs: Inputs, runs: Runs, position: int) -> None:
    modules = passes.stacks[stack]
    num_layers = len(modules.layers)
    cells = [
        Cell(position, birth, True, tuple(Override(kind, birth, num_layers, "corrupted") for kind in modules.modules))
        for birth in range(1, num_layers)
    ]
    plan = RowPlan(cells, 1, device=passes.device)
    seen: dict[int, Tensor] = {}

    def watch(layer: int, states: Tensor) -> None:
        seen[layer] = states[:, position].double()

    try:
        passes.grown(stack, inputs, runs, plan, watch=watch)
    except (RuntimeError, IndexError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        where = f"{stack}, layer {len(seen) - 1}"
        raise ValueError(f"{where}: it does not run with rows that are added: {error}") from error
    eps = passes.tolerance**2
    for birth in range(1, num_layers):
        row = 1 + birth  # after the clean and the corrupted one, in the order of birth
        put = seen[birth][row] - seen[birth][1]
        if not put.any():
            raise ValueError(f"{stack}: corrupted states reach nothing at token {position} of layer {birth - 1}")
        largest = seen[birth][[1, row]].norm(dim=-1).max()
        for layer in range(birth + 1, num_layers + 1):
            kept = seen[layer][row] - seen[layer][1]
            change, largest = (kept - put).norm(), torch.maximum(largest, seen[layer][[1, row]].norm(dim=-1).max())
            rounding = _ROUNDING * eps * math.sqrt(layer - birth) * largest
            if change > _LEAK * put.norm() + rounding:
                frozen = ", ".join(modules.modules)
                raise ValueError(
                    f"{stack}, layer {layer - 1}: with {frozen} frozen at a token, what was put into its state must "
                    f"pass the layer unchanged, found a change by {float(change / put.norm()):.2g} of it. Do these "
                    "modules give what is added to the state, without the state itself?"
                )
