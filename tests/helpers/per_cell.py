"""Slow and exact: causal tracing from its definitions, a plain forward of one row for every cell and noise sample.

Shape letters: L layers, T places that may be restored, N noise samples, s tokens of the subject, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Answer = tuple[int, ...]
States = dict[str, Tensor]  # by module, what it gave: [places, D]


@dataclass(frozen=True)
class Modules:
    """Where things are in a model: paths from its root, the last three from a layer.

    Of an encoder-decoder, ``embedding`` is the encoder's, and the rest is of the stack that is traced.
    """

    embedding: str
    layer: str  # with "{layer}" in it
    attention: str
    mlp: str
    cross_attention: str | None = None


class PerCell:
    """The outcomes of one prompt: probability, its logarithm and the logit difference, in this order."""

    def __init__(
        self,
        model: Any,
        modules: Modules,
        input_ids: Sequence[int],
        subject: tuple[int, int],
        noise: Tensor,
        answers: Sequence[Answer],
        foil: int,
        decoder_ids: Sequence[int] | None = None,
        stack: str = "decoder",
    ) -> None:
        assert noise.shape[1] == subject[1] - subject[0]
        assert stack in ("encoder", "decoder")
        self.model = model.eval()
        self.modules = modules
        self.input_ids = list(input_ids)
        self.subject = slice(*subject)
        self.noise = noise
        self.answers = list(answers)
        self.foil = foil
        self.decoder_ids = None if decoder_ids is None else list(decoder_ids)
        self.layers = len(model.get_submodule(modules.layer.removesuffix(".{layer}")))
        self.places = len(self.input_ids if stack == "encoder" or self.decoder_ids is None else self.decoder_ids)
        self.clean_states = {answer: self._states(answer, None) for answer in self.answers}
        self.corrupted_states = {
            (answer, sample): self._states(answer, sample) for answer in self.answers for sample in range(len(noise))
        }

    def clean(self) -> Tensor:
        """``[3]``."""
        return self._outcomes(lambda answer: self._logits(answer, None, []))

    def corrupted(self) -> Tensor:
        """``[N, 3]``."""
        rows = [self._outcomes(lambda answer, n=n: self._logits(answer, n, [])) for n in range(len(self.noise))]
        return torch.stack(rows)

    def grid(self, mediator: str, window: int = 1) -> Tensor:
        """With one state restored, means over samples: ``[3, L, T]``."""
        return self.samples(mediator, window).mean(0)

    def samples(self, mediator: str, window: int = 1) -> Tensor:
        """With one state restored: ``[N, 3, L, T]``."""
        found = torch.empty(len(self.noise), 3, self.layers, self.places, dtype=torch.float64)
        for sample in range(len(self.noise)):
            for layer in range(self.layers):
                for place in range(self.places):
                    found[sample, :, layer, place] = self.restored(mediator, layer, place, sample, window)
        return found

    def restored(self, mediator: str, layer: int, place: int, sample: int, window: int = 1) -> Tensor:
        """The outcomes of one cell and sample, ``[3]``."""

        def logits(answer: Answer) -> Tensor:
            clean, corrupted = self.clean_states[answer], self.corrupted_states[answer, sample]
            edits = []
            if mediator == "hidden" or mediator.endswith("_severed"):
                edits.append((self._path(layer), place, clean[self._path(layer)][place]))
            if mediator.endswith("_severed"):
                for above in range(layer + 1, self.layers):
                    path = self._path(above, mediator.removesuffix("_severed"))
                    edits.append((path, place, corrupted[path][place]))
            if mediator in ("mlp", "attention", "cross_attention"):
                for near in range(max(0, layer - window // 2), min(self.layers, layer - (-window // 2))):
                    path = self._path(near, mediator)
                    edits.append((path, place, clean[path][place]))
            return self._logits(answer, sample, edits)

        return self._outcomes(logits)

    def _path(self, layer: int, kind: str | None = None) -> str:
        path = self.modules.layer.format(layer=layer)
        return path if kind is None else f"{path}.{getattr(self.modules, kind)}"

    def _outcomes(self, logits: Callable[[Answer], Tensor]) -> Tensor:
        """From the logits at the places that predict an answer's tokens, for each answer."""
        probability = torch.zeros((), dtype=torch.float64)
        for answer in self.answers:
            steps = logits(answer).double().log_softmax(-1)
            probability = probability + sum(steps[i, token] for i, token in enumerate(answer)).exp()
        first = logits(self.answers[0])[0].double()
        return torch.stack([probability, probability.log(), first[self.answers[0][0]] - first[self.foil]])

    def _states(self, answer: Answer, sample: int | None) -> States:
        """What all traced modules give in the clean run (None), or in a corrupted one."""
        paths = [self._path(layer) for layer in range(self.layers)]
        for kind in ("attention", "mlp", "cross_attention"):
            if getattr(self.modules, kind) is not None:
                paths += [self._path(layer, kind) for layer in range(self.layers)]
        found: States = {}
        with ExitStack() as hooks:
            for path in paths:

                def keep(output: Tensor, path: str = path) -> Tensor:
                    assert path not in found, f"{path} ran twice"
                    found[path] = output[0].clone()
                    return output

                hooks.enter_context(_hook(self.model.get_submodule(path), keep))
            self._logits(answer, sample, [])
        assert list(found.keys() ^ set(paths)) == []
        return found

    @torch.no_grad()
    def _logits(self, answer: Answer, sample: int | None, edits: list[tuple[str, int, Tensor]]) -> Tensor:
        """A forward with (module, place, value) set: logits where the answer's tokens are predicted, ``[len, V]``."""
        given = self.input_ids if self.decoder_ids is None else self.decoder_ids
        ids = torch.tensor([given + list(answer[:-1])])

        def add_noise(output: Tensor) -> Tensor:
            output = output.clone()
            if sample is not None:
                output[0, self.subject] += self.noise[sample]
            return output

        with ExitStack() as hooks:
            for path, place, value in edits:

                def put(output: Tensor, place: int = place, value: Tensor = value) -> Tensor:
                    output = output.clone()
                    output[0, place] = value
                    return output

                hooks.enter_context(_hook(self.model.get_submodule(path), put))
            with _hook(self.model.get_submodule(self.modules.embedding), add_noise):
                if self.decoder_ids is None:
                    output = self.model(input_ids=ids, use_cache=False)
                else:
                    encoded = self.model.get_encoder()(input_ids=torch.tensor([self.input_ids]))
            if self.decoder_ids is not None:
                output = self.model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False)
        return output.logits[0, len(given) - 1 :]


def _hook(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Any:
    """A hook that changes a module's states, be they its output or the first of several."""

    def changed(module: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return module.register_forward_hook(changed)
