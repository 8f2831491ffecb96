"""A grid some of whose cells are exact: estimates of the others, and runs that confirm the largest.

Once some of a token's cells have run, its estimates get what they lack there in log-odds, interpolated over layers.
Costs are in tokens that pass through a layer.

Shape letters: N noise samples, L layers, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ftrace.scores.correlation import rank_correlation

Places = Iterable[tuple[int, int]]


class ScreenedGrid:
    """A mediator's grid, of the tokens from the subject on.

    Args:
        exact_LTN: The exact log-odds, which are looked at where a cell has run.
        first_N: The corrupted runs' log-odds.
        clean: The clean run's.
        estimates_LTN: Estimated changes of the corrupted runs' log-odds. Beyond the total effect they are bent, so that
            it is twice as far at most.
        run_LT: The cells whose outcome is not known without a run.
        counted_LT: Those among which the largest is looked for.
        costs_LT: What each cell's run costs.
    """

    def __init__(
        self,
        exact_LTN: np.ndarray,
        first_N: np.ndarray,
        clean: float,
        estimates_LTN: np.ndarray,
        run_LT: np.ndarray,
        counted_LT: np.ndarray,
        costs_LT: np.ndarray,
    ) -> None:
        self._exact, self._run, self._counted, self._costs = exact_LTN, run_LT, counted_LT, costs_LT
        total = np.abs(clean - first_N) + 1e-9
        self._changes = total * np.tanh(estimates_LTN / total)
        self._first = first_N
        self.truth_LT = _probability(exact_LTN).mean(-1)
        self.known_LT = ~run_LT
        self.spent = 0.0

    @property
    def corrupted(self) -> float:
        """The corrupted runs' mean probability."""
        return float(_probability(self._first).mean())

    @property
    def share(self) -> float:
        """What the runs so far cost, of the runs of all cells."""
        return self.spent / float(self._costs[self._run].sum())

    def confirm(self, places: Places) -> None:
        """Run cells."""
        for place in places:
            if not self.known_LT[place]:
                self.known_LT[place] = True
                self.spent += self._costs[place]

    def values(self, trust: float = 1.0) -> np.ndarray:
        """Return all cells' mean probabilities, ``[L, T]``, exact where they are known.

        Args:
            trust: The factor of the estimates.
        """
        estimates = self._first + trust * self._changes
        layers = np.arange(len(estimates))
        for token in range(estimates.shape[1]):
            at = np.flatnonzero(self.known_LT[:, token])
            for sample in range(estimates.shape[2]) if (self.known_LT & self._run)[:, token].any() else ():
                lacked = (self._exact - estimates)[at, token, sample]
                estimates[:, token, sample] += np.interp(layers, at, lacked)
        return np.where(self.known_LT, self.truth_LT, _probability(estimates).mean(-1))

    def correlation(self, trust: float = 1.0) -> float:
        """Correlate the ranks of estimated and exact cells, of those whose outcome is not known without a run."""
        return rank_correlation(self.values(trust)[self._run], self.truth_LT[self._run])

    def place_of_largest(self, trust: float = 1.0) -> int:
        """Return how many cells are estimated to be larger than the largest, of those that count."""
        largest = np.where(self._counted, self.truth_LT, -np.inf).argmax()
        values = np.where(self._counted, self.values(trust), -np.inf).ravel()
        return int((values > values[largest]).sum())

    @property
    def is_largest_found(self) -> bool:
        """Whether the largest of the cells that count has run."""
        largest = np.where(self._counted, self.truth_LT, -np.inf).max()
        return bool((self.known_LT & self._counted & (self.truth_LT == largest)).any())

    def confirm_largest(self, at_once: int, errors: float, trust: float = 1.0) -> None:
        """Run the cells that may be the largest, until by the errors seen none of the others is.

        A cell's error grows with the root of the layers between it and the next exact one, and with its effect.

        Args:
            at_once: How many cells run at once, no two of them neighbours.
            errors: How many standard errors a cell is thought to be wrong by at most.
            trust: The factor of the estimates.
        """
        seen: list[float] = [0.05] * 4  # before anything is seen
        while True:
            values = self.values(trust)
            known = self.known_LT & self._counted
            best = values[known].max() if known.any() else -np.inf
            effects = np.abs(values - self.corrupted) + 0.02 * max(0.0, best - self.corrupted)
            scales = np.sqrt(self._distances()) * effects
            bounds = np.where(
                self._counted & ~self.known_LT, values + errors * np.sqrt(np.mean(np.square(seen))) * scales, -np.inf
            )
            chosen: list[tuple[int, int]] = []
            while len(chosen) < at_once and bounds.max() > best:
                layer, token = map(int, np.unravel_index(bounds.argmax(), bounds.shape))
                chosen.append((layer, token))
                bounds[max(0, layer - 1) : layer + 2, token] = -np.inf
            if not chosen:
                return
            self.confirm(chosen)
            seen += [float((self.truth_LT[place] - values[place]) / max(scales[place], 1e-12)) for place in chosen]

    def _distances(self) -> np.ndarray:
        """Return how many layers are between each cell and its token's next exact one, ``[L, T]``."""
        layers = np.arange(len(self.known_LT))
        distances = np.full(self.known_LT.shape, float(len(layers)))
        for token in range(self.known_LT.shape[1]):
            at = np.flatnonzero(self.known_LT[:, token])
            if len(at):
                distances[:, token] = np.abs(layers[:, None] - at).min(1)
        return distances


def costs_of_cells(births_L: np.ndarray, tokens: int, head: float) -> np.ndarray:
    """Return the costs of cells' runs with the suffix path, ``[L, T]``: tokens from each on, times layers above.

    Args:
        births_L: The layer at whose input each layer's runs begin.
        tokens: The tokens from the subject on.
        head: What the head costs, in tokens that pass through a layer.
    """
    above = len(births_L) - births_L
    return above[:, None] * (tokens - np.arange(tokens)) + head


def _probability(log_odds: np.ndarray) -> np.ndarray:
    probability: np.ndarray = 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
    return probability
