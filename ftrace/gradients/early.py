"""Gradients that are read inside the backward pass, as soon as the last use of their parameter has its own.

What a matrix's gradients are made of is multiplied while it is still in the processor's cache, and then forgotten, so
that a batch's factors are never held together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ftrace.gradients.layout_book import Key
from ftrace.gradients.layouts import Examples
from ftrace.gradients.outputs import trained
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.reading import read_gradients
from ftrace.gradients.uses import AnyUse, ProjectedUse, Use

Take = Callable[[PerExampleGradients], None]


class EarlyReading:
    """The parameters of one pass that are read early, and how many uses of each have yet to get their gradient.

    A parameter is read early if each of its uses has a rule, has run before the backward pass, and is known to do so.
    All others are left to the end of the backward pass.

    Args:
        uses: All uses so far, before the backward pass.
        examples: Of the batch, which is one dataloader's.
        take: Called with the gradients of matrices, some parameters at a time.
        late: Names of parameters that are used by layers that run, or may run, during the backward pass.

    Attributes:
        taken: Names of the parameters that were read.
        kept: What was read of vectors, which is small.
    """

    def __init__(self, uses: Sequence[AnyUse], examples: Examples, take: Take, late: Collection[str]) -> None:
        self._examples = examples
        self._take = take
        self._names: dict[Key, dict[str, str]] = {}
        self._uses: dict[str, list[Use]] = {}
        self.taken: set[str] = set()
        self.kept: list[PerExampleGradients] = []
        never = set(late)
        for use in uses:
            if not isinstance(use, Use) or isinstance(use, ProjectedUse) or use.is_parameter:
                never.update(use.layer.names.values())
                continue
            self._names[use.key] = names = trained(use.layer)
            for name in names.values():
                self._uses.setdefault(name, []).append(use)
        self._missing = {name: len(of_name) for name, of_name in self._uses.items() if name not in never}

    def leave(self, names: Collection[str]) -> None:
        """Leave parameters to the end."""
        for name in names:
            self._missing.pop(name, None)

    def gradient_arrived(self, use: Use) -> None:
        """Note that a use has its gradient, and read what is complete by that.

        Raises:
            UnreadableError: If the parameters of the use have been read before.
        """
        names = self._names.get(use.key)
        if names is None:  # it has run in this backward pass
            names = trained(use.layer)
            self.leave(names.values())
        if not self.taken.isdisjoint(names.values()):
            raise use.unreadable(
                "gets a second gradient in a backward pass: it may run again in reentrant activation checkpointing "
                "(set use_reentrant=False), or the pass goes through its graph twice"
            )
        complete = set()
        for name in names.values():
            if name in self._missing:
                self._missing[name] -= 1
                if not self._missing[name]:
                    complete.add(name)
        if complete:
            self._read(complete)

    def _read(self, names: set[str]) -> None:
        uses = list({id(use): use for name in names for use in self._uses[name]}.values())
        (gradients,) = read_gradients(uses, self._examples, None, only=names)  # without what was frozen meanwhile
        parts = gradients.parts
        vectors = [name for name in parts if len(gradients.shapes[name]) < 2]
        if vectors:
            self.kept.append(gradients.only(vectors))
        self.taken |= names
        for use in uses:
            if self.taken.issuperset(self._names[use.key].values()):
                use.release()
        if len(vectors) < len(parts):
            self._take(gradients.only(parts.keys() - set(vectors)) if vectors else gradients)
