"""Projected directions for ``update`` that serve several steps, until an optimizer's second moments have moved.

Contributions are multiplied with ``project((P / D) G)``, where G are the query gradients, P the step's scale of each
element, and D the balance. G stays from refresh to refresh, but P moves a little at each step, and to project anew
costs the queries' dense gradients. So directions of parameter p are kept, and ``r_p`` times them are used, as long as

    |P' g - r_p P g| <= tolerance |P' g|

where P' is the current scale, P the one that they were prepared with, and g the gradient that the optimizer was given:
as long as the step itself, momentum aside, would hardly differ. ``r_p``, for which the left side is smallest, follows
whatever changes all elements alike, such as the learning rate. Norms are estimated from a fixed random sample of the
parameter's elements.

In an optimizer's first steps second moments move fast, by about 1.2 / k of the step's norm at step k, so that
directions are prepared at each step; after some hundred steps, once a refresh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ftrace.gradients import Dense, ParameterStep, PerExampleGradients, Preconditioner, RankOne, generator_for
from ftrace.online.scoring.contributions import Contribution

SAMPLED = 4096  # elements of a parameter
FEWEST = 16  # of them that must have a gradient, or too little is known
Prepare = Callable[[Collection[str]], PerExampleGradients]


class PreparedDirections:
    """The directions that were prepared since the last refresh.

    Args:
        tolerance: By how much of its norm a step may differ; 0: directions are prepared at each step.
        seed: Of the samples.

    Attributes:
        used: The number of times so far that the directions of a parameter were used, once a step.
        prepared: For how many of them they were prepared.
    """

    def __init__(self, tolerance: float, seed: int) -> None:
        self.tolerance = tolerance
        self.seed = seed
        self.used = self.prepared = 0
        self._directions: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}
        self._balances: dict[str, int] = {}
        self._samples: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Drop all directions, since the queries' gradients are new."""
        self._directions, self._scales, self._balances = {}, {}, {}

    def sample_given(self, given: Contribution | None) -> dict[str, Tensor]:
        """Sample the gradients that the optimizer was given, by parameter.

        Args:
            given: The gradients as a contribution, unprojected; None if they aren't known.
        """
        if not self.tolerance or given is None or given.unprojected is None:
            return {}
        gradients = given.unprojected
        return {
            name: gradients.dense(name).flatten()[self._sample(name, gradients.shapes[name], gradients.device)]
            for name in gradients.parts
        }

    def directions(
        self, steps: Mapping[str, ParameterStep], balance: int, given: Mapping[str, Tensor], prepare: Prepare
    ) -> PerExampleGradients:
        """Get the directions of a step, and prepare those that are missing or out of date.

        Args:
            steps: By parameter, what the step did with it.
            balance: The key of the balance of the step's contributions.
            given: What :meth:`sample_given` returned.
            prepare: Prepares the directions of some parameters for this step.
        """
        self.used += len(steps)
        if not self.tolerance:
            self.prepared += len(steps)
            return prepare(steps)
        scales = {name: self._sampled_scale(name, steps[name], given[name]) for name in steps if name in given}
        known = [name for name in scales if name in self._scales and self._balances[name] == balance]
        factors = self._factors({name: (scales[name], self._scales[name], given[name]) for name in known})
        missing = [name for name in steps if name not in factors]
        if missing:
            self.prepared += len(missing)
            new = prepare(missing)
            for name in new.parts:
                self._directions[name], self._balances[name] = new.dense(name), balance
                if name in scales:
                    self._scales[name] = scales[name]
                else:  # nothing can be said of a step whose gradient isn't known
                    self._scales.pop(name, None)
        wanted = {name: self._directions[name] for name in steps if name in self._directions}
        parts: dict[str, Any] = {
            name: [Dense(of_name * factors[name] if name in factors else of_name)] for name, of_name in wanted.items()
        }
        shapes = {name: of_name.shape[1:] for name, of_name in wanted.items()}
        return PerExampleGradients(parts, shapes, len(next(iter(wanted.values()), ())))

    def _factors(self, known: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """Compute ``r_p`` of the parameters whose directions still serve.

        Args:
            known: By parameter, samples of the current scale, of the scale when its directions were prepared, and of
                the gradient that the optimizer was given.
        """
        if not known:
            return {}
        lengths = [len(gradient) for _, _, gradient in known.values()]
        current, earlier, gradients = (torch.cat(samples).double() for samples in zip(*known.values(), strict=True))
        owners = torch.repeat_interleave(torch.tensor(lengths, device=gradients.device))
        current, earlier = current * gradients, earlier * gradients

        def total(values: Tensor) -> list[float]:
            sums = values.new_zeros(len(lengths)).index_add_(0, owners, values)
            return [float(number) for number in sums.tolist()]

        products, old, new = total(current * earlier), total(earlier.square()), total(current.square())
        counts = total((gradients != 0).double())
        factors = {}
        for name, length, product, square, square_now, count in zip(
            known, lengths, products, old, new, counts, strict=True
        ):
            if count < min(FEWEST, length) or not square > 0:
                continue
            differing = max(0.0, square_now - product**2 / square)
            if differing <= self.tolerance**2 * square_now and math.isfinite(product):
                factors[name] = product / square
        return factors

    def _sampled_scale(self, name: str, step: ParameterStep, like: Tensor) -> Tensor:
        sample = self._samples[name]
        return step.eventual * sampled(step.scale, sample, like)

    def _sample(self, name: str, shape: torch.Size, device: torch.device) -> Tensor:
        """Get the indices of a parameter's sampled elements, the same in every process."""
        if name not in self._samples:
            count = math.prod(shape)
            drawn = torch.arange(count)
            if count > SAMPLED:
                generator = generator_for(self.seed, "sample", name)
                drawn = torch.randint(count, (SAMPLED,), generator=generator).sort().values
            self._samples[name] = drawn.to(device)
        return self._samples[name]

    def facts(self) -> dict[str, Any]:
        """Describe for the manifest how often directions were prepared."""
        return {"tolerance": self.tolerance, "used": self.used, "prepared": self.prepared}

    def state(self) -> dict[str, Any]:
        """Return all state; it is the same in all processes."""
        return {
            "directions": dict(self._directions),
            "scales": dict(self._scales),
            "balances": dict(self._balances),
            "used": self.used,
            "prepared": self.prepared,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._directions, self._scales = dict(state["directions"]), dict(state["scales"])
        self._balances = dict(state["balances"])
        self.used, self.prepared = state["used"], state["prepared"]


def sampled(scale: float | Preconditioner, indices: Tensor, like: Tensor) -> Tensor:
    """Read some elements of a scale, by their indices in the flattened parameter.

    Args:
        indices: ``[n]``.
        like: A tensor of the wanted dtype and device, ``[n]``.
    """
    if isinstance(scale, float):
        return torch.full_like(like, scale)
    if isinstance(scale, RankOne):
        columns = len(scale.columns)
        return scale.rows[indices // columns] * scale.columns[indices % columns]
    return scale.scale.flatten()[indices]
