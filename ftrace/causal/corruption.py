"""Corrupted subjects: noise on the subject's token embeddings, or another subject in its place.

Shape letters: N noise samples, S tokens of the subject, D width of the embeddings, E tokens of all subjects.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

NoiseKind = Literal["gaussian", "uniform", "full_covariance", "student_t", "tokens"]


@dataclass(frozen=True)
class NoiseSettings:
    """How subjects are corrupted.

    Args:
        kind: "gaussian": independent normal noise. "uniform": from -1 to 1. "full_covariance": normal, with the
            covariance of the subjects' embeddings. "student_t": normal, divided by the root of a chi-squared variable
            over its 3 degrees, one a token. "tokens": instead of noise, another prompt's subject of as many tokens
            and with other answers; where there are fewer such than samples, some are taken several times.
        scale: What noise is multiplied with: of "full_covariance" alone, else together with sigma.
        sigma: The unit of noise; default: the standard deviation of all entries of the subjects' token embeddings, as
            Meng et al. (2022) take it. For fixed noise of .1, give ``scale: 0.1, sigma: 1``.
        samples: How many samples of noise; each is the same in all cells of a prompt's grids.
        seed: Of the draws.
        draws: "prompt": seeded by the seed and the prompt's name. "published": as the authors' code draws, from NumPy's
            RandomState(seed) begun anew for each prompt; theirs has seed 1.

    Raises:
        ValueError: If an option is out of range.
    """

    kind: NoiseKind = "gaussian"
    scale: float = 3.0
    sigma: float | None = None
    samples: int = 10
    seed: int = 0
    draws: Literal["prompt", "published"] = "prompt"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"noise.samples: expected at least 1, found {self.samples}")
        for name, value in (("scale", self.scale), ("sigma", self.sigma)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"noise.{name}: expected a number above 0, found {value}")
        if self.draws == "published" and self.kind not in ("gaussian", "uniform"):
            raise ValueError(f'noise.draws: expected "prompt" for noise of the kind {self.kind!r}, found "published"')


class Corruption:
    """Draws corrupted embeddings of subjects.

    Args:
        settings: How.
        embedding: The model's token embedding.
        subjects: Tokens of all prompts' subjects, each subject tokenized alone: what sigma and the covariance are of.
        replacements: Tokens of all prompts' subjects as they stand in their prompts: what "tokens" draws from.
        answers: The accepted answers of each of these prompts: a subject that shares one is no replacement.

    Raises:
        ValueError: If there is no subject although noise is measured by them.
    """

    def __init__(
        self,
        settings: NoiseSettings,
        embedding: nn.Module,
        subjects: Iterable[Sequence[int]],
        replacements: Iterable[Sequence[int]] = (),
        answers: Iterable[Collection[str]] | None = None,
    ) -> None:
        self.settings = settings
        self.embedding = embedding
        self._tokens = [token for subject in subjects for token in subject]
        inside = [tuple(one) for one in replacements]
        self._by_length: dict[int, list[tuple[int, ...]]] = {}
        for subject in sorted(set(inside)):
            self._by_length.setdefault(len(subject), []).append(subject)
        self._answers: dict[tuple[int, ...], set[str]] = {subject: set() for subject in inside}
        for subject, own in zip(inside, inside if answers is None else answers, strict=True):
            self._answers[subject] |= set() if answers is None else set(map(str, own))
        needs_subjects = settings.kind == "full_covariance" or (settings.kind != "tokens" and settings.sigma is None)
        if needs_subjects and len(self._tokens) < 2:
            raise ValueError(
                f"noise: expected subjects of at least two tokens in all to measure {settings.kind!r} noise by, found "
                f"{len(self._tokens)}. Give noise.sigma"
            )

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of all entries of the subjects' token embeddings, or as given."""
        if self.settings.sigma is not None:
            return self.settings.sigma
        return float(self._embeddings_ED.std())

    @cached_property
    def _embeddings_ED(self) -> Tensor:
        with torch.no_grad():
            found: Tensor = self._embed(torch.tensor([self._tokens]))[0].double()
        return found

    @torch.no_grad()
    def draw(self, name: str, subject: Sequence[int]) -> Tensor:
        """Corrupted embeddings of a subject, ``[N, S, D]``; the same each time.

        Args:
            name: The prompt's name.
            subject: The subject's tokens.

        Raises:
            ValueError: If it is to be replaced and no other subject has as many tokens.
        """
        tokens = tuple(subject)
        if self.settings.kind == "tokens":
            return self._embed(torch.tensor(self._others(name, tokens)))
        clean = self._embed(torch.tensor([tokens]))
        shape = (self.settings.samples, len(tokens), clean.shape[-1])
        noise = torch.from_numpy(self._noise(name, shape)).to(clean.device)
        return (clean.double() + noise).to(clean.dtype)

    def _embed(self, ids: Tensor) -> Tensor:
        device = next(self.embedding.parameters()).device
        found: Tensor = self.embedding(ids.to(device))
        return found

    def _noise(self, name: str, shape: tuple[int, int, int]) -> np.ndarray:
        settings = self.settings
        if settings.draws == "published":
            published = np.random.RandomState(settings.seed)
            drawn = published.randn(*shape) if settings.kind == "gaussian" else published.uniform(-1, 1, shape)
            return settings.scale * self.sigma * drawn
        generator = self._generator(name)
        if settings.kind == "full_covariance":
            # A mixture of centred embeddings with normal weights has their covariance, whatever their number.
            centred = (self._embeddings_ED - self._embeddings_ED.mean(0)).cpu().numpy()
            weights = generator.standard_normal((*shape[:2], len(centred)))
            return settings.scale * weights @ centred / math.sqrt(len(centred) - 1)
        if settings.kind == "uniform":
            return settings.scale * self.sigma * generator.uniform(-1, 1, shape)
        drawn = generator.standard_normal(shape)
        if settings.kind == "student_t":
            drawn /= np.sqrt(generator.chisquare(3, (*shape[:2], 1)) / 3)
        return settings.scale * self.sigma * drawn

    def _others(self, name: str, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Other subjects of as many tokens, each at most once if there are enough."""
        own = self._answers.get(tokens, set())
        alike = [one for one in self._by_length.get(len(tokens), []) if one != tokens]
        others = [one for one in alike if not own & self._answers[one]]
        if not others:
            raise ValueError(
                f"no other subject has {len(tokens)} tokens and another answer, to replace this one by. Trace it with "
                "noise of another kind, or among more prompts"
            )
        samples = self.settings.samples
        drawn = self._generator(name).choice(len(others), samples, replace=len(others) < samples)
        return [others[place] for place in drawn]

    def _generator(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.settings.seed}/{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))
