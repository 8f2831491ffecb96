"""The options of causal tracing. Parsers of commands read them, so this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftrace.arguments import Name, Positive, PositiveNumber, Seed, checked
from ftrace.causal.mediators import MEDIATORS, Mediator
from ftrace.causal.prompt_trace import Stack

MAX_TOKENS = 4096
NoiseKind = Literal["gaussian", "uniform", "full_covariance", "student_t", "tokens"]


@checked
@dataclass(frozen=True)
class CausalSettings:
    """Settings of causal tracing.

    Args:
        mediators: What to restore; default: all that the model has.
        window: How many layers are restored together for "mlp", "attention" and "cross_attention".
        stacks: For an encoder-decoder: "encoder", "decoder", or both; default: both.
        answer: "joint": the probability of all tokens of an answer; "first": that of its first token.
        only_correct: Whether to leave out prompts that the model doesn't answer correctly.
        suffix: For decoder-only models: compute only tokens from the restored one on, and take earlier ones from the
            corrupted run's cache. This is about half the work.
        max_tokens: The most tokens in a forward pass; halved when memory runs out.
        checked: Whether cells that are known without a run are run anyway for the first prompt, to compare.

    Raises:
        ValueError: If an option is out of range.
    """

    mediators: tuple[Mediator, ...] | None = None
    window: Positive = 10
    stacks: tuple[Stack, ...] | None = None
    answer: Literal["joint", "first"] = "joint"
    only_correct: bool = True
    suffix: bool = False
    max_tokens: Positive = MAX_TOKENS
    checked: bool = True

    def __post_init__(self) -> None:
        if self.mediators is not None and not self.mediators:
            raise ValueError(f"mediators: expected at least one of {MEDIATORS}, found none")
        if self.stacks is not None and not self.stacks:
            raise ValueError("stacks: expected encoder, decoder or both, found none")


@checked
@dataclass(frozen=True)
class NoiseSettings:
    """Settings of the corruption of subjects.

    Args:
        kind: "gaussian": independent Gaussian noise. "uniform": from -1 to 1. "full_covariance": Gaussian noise with
            the covariance of the subjects' embeddings. "student_t": Student's t with 3 degrees of freedom: Gaussian
            noise, divided for each token by the root of a chi-squared variable over its degrees of freedom. "tokens":
            instead of noise, another prompt's subject with as many tokens and other answers; if there are fewer of
            them than samples, some are used several times.
        scale: The factor of the noise, besides sigma; for "full_covariance" the only factor.
        sigma: The unit of noise; default: the standard deviation of all entries of the subjects' token embeddings, as
            in Meng et al. (2022). For fixed noise of .1, give ``scale: 0.1, sigma: 1``.
        samples: How many samples of noise to draw; each is the same in all cells of a prompt's grids.
        seed: The seed of the draws.
        draws: "prompt": each prompt's draws depend on the seed and its name. "published": as the authors' code draws,
            from NumPy's RandomState(seed) started anew for each prompt; theirs has seed 1.

    Raises:
        ValueError: If an option is out of range.
    """

    kind: NoiseKind = "gaussian"
    scale: PositiveNumber = 3.0
    sigma: PositiveNumber | None = None
    samples: Positive = 10
    seed: Seed = 0
    draws: Literal["prompt", "published"] = "prompt"

    def __post_init__(self) -> None:
        if self.draws == "published" and self.kind not in ("gaussian", "uniform"):
            raise ValueError(f'noise.draws: expected "prompt" for noise of the kind {self.kind!r}, found "published"')


@checked
@dataclass(frozen=True)
class ModelLayout:
    """Names of modules, as ``named_modules()`` gives them. ``{layer}`` or ``[LAYER_NUM]`` stands for a layer's number.

    Args:
        layer: A layer of the residual stream, such as ``transformer.h.{layer}``.
        attention: Its self-attention module, whose output is added to the residual stream: ``.attn`` for a name within
            the layer, or a full name.
        mlp: Its feed-forward module, likewise.
        embedding: The token embedding that noise is added to; None for an encoder-decoder's decoder, which reads a
            corrupted encoder.
        cross_attention: Its cross-attention module, likewise.
    """

    layer: Name
    attention: Name
    mlp: Name
    embedding: Name | None = None
    cross_attention: Name | None = None
