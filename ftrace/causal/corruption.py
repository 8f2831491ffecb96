"""Corrupted subjects: noise on the subject's token embeddings, or another subject in its place.

Shape letters: N noise samples, S tokens of the subject, D width of the embeddings, E tokens of all subjects.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ftrace.causal.settings import NoiseSettings


class Corruption:
    """A source of corrupted embeddings of subjects.

    Args:
        settings: How to corrupt.
        embedding: The model's token embedding.
        subjects: Tokens of all prompts' subjects, each subject tokenized alone. Sigma and the covariance are computed
            from their embeddings.
        replacements: Tokens of all prompts' subjects as they stand in their prompts. "tokens" draws from these.
        answers: The accepted answers of each of these prompts: a subject that shares one is no replacement.

    Raises:
        ValueError: If there are no subjects although the noise depends on them.
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
        inside = [tuple(subject) for subject in replacements]
        self._by_length: dict[int, list[tuple[int, ...]]] = {}
        for subject in sorted(set(inside)):
            self._by_length.setdefault(len(subject), []).append(subject)
        self._answers: dict[tuple[int, ...], set[str]] = {subject: set() for subject in inside}
        for subject, accepted in zip(inside, inside if answers is None else answers, strict=True):
            self._answers[subject] |= set() if answers is None else set(map(str, accepted))
        needs_subjects = settings.kind == "full_covariance" or (settings.kind != "tokens" and settings.sigma is None)
        if needs_subjects and len(self._tokens) < 2:
            raise ValueError(
                f"noise: expected subjects of at least two tokens in all to measure {settings.kind!r} noise by, found "
                f"{len(self._tokens)}. Give noise.sigma"
            )

    @cached_property
    def sigma(self) -> float:
        """The unit of noise: as given, or the standard deviation of all entries of the subjects' token embeddings."""
        if self.settings.sigma is not None:
            return self.settings.sigma
        return float(self._embeddings_ED.std())

    @cached_property
    def _embeddings_ED(self) -> Tensor:
        with torch.no_grad():
            embeddings: Tensor = self._embed(torch.tensor([self._tokens]))[0].double()
        return embeddings

    @torch.no_grad()
    def draw(self, name: str, subject: Sequence[int]) -> Tensor:
        """Draw corrupted embeddings of a subject, ``[N, S, D]``; they are the same each time.

        Args:
            name: The prompt's name.
            subject: The subject's tokens.

        Raises:
            ValueError: If the subject is to be replaced by another one, and none has as many tokens.
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
        embeddings: Tensor = self.embedding(ids.to(device))
        return embeddings

    def _noise(self, name: str, shape: tuple[int, int, int]) -> np.ndarray:
        settings = self.settings
        if settings.draws == "published":
            published = np.random.RandomState(settings.seed)
            drawn = published.randn(*shape) if settings.kind == "gaussian" else published.uniform(-1, 1, shape)
            return settings.scale * self.sigma * drawn
        generator = self._generator(name)
        if settings.kind == "full_covariance":
            # A mixture of centred embeddings with Gaussian weights has their covariance, whatever their number.
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
        """Draw other subjects of as many tokens, each at most once if there are enough."""
        answers = self._answers.get(tokens, set())
        as_long = [subject for subject in self._by_length.get(len(tokens), []) if subject != tokens]
        others = [subject for subject in as_long if not answers & self._answers[subject]]
        if not others:
            raise ValueError(
                f"no other subject has {len(tokens)} tokens and another answer, to replace this one by. Trace it with "
                "noise of another kind, or among more prompts"
            )
        samples = self.settings.samples
        drawn = self._generator(name).choice(len(others), samples, replace=len(others) < samples)
        return [others[index] for index in drawn]

    def _generator(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.settings.seed}/{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))
