"""Killed and resumed: what a run's scores need to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from ftrace.online.processes import gather_objects, num_processes, process_rank
from ftrace.online.scoring.momentum import MomentumRing
from ftrace.online.scoring.scoring import Scoring
from ftrace.online.state_files import read_state, write_state
from ftrace.online.traced_run import TracedRun
from ftrace.scores import Candidates

VERSION = 2


class RunState:
    """Saves the state of a traced run beside the user's checkpoint, and puts it back.

    Attributes:
        restored: What the checkpoint that training was resumed from has of it.
    """

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None
        self._folder = Path()
        self._ended: dict[str, Any] | None = None

    def save(self, run: TracedRun | None, names: dict[int, str]) -> dict[str, Any]:
        """What goes into the checkpoint: names and hashes of files. All processes must call it."""
        if run is None or run.refreshed_at is None:
            return {}
        if any(one.is_stepping for one in run.parameters.followed):
            rank_zero_warn("OnlineTracIn: a checkpoint was saved within an optimizer step; its scores are of before it")
        state = {"sums": None, **(self._ended or _state_of(run, names))}
        state["sums"] = state["sums"] or run.sums.state()
        step = state["first_step"] + state["taken"]
        entry = write_state(self._folder, step, process_rank(), state)
        return {
            "version": VERSION,
            "run_id": run.run_id,
            "step": step,
            "settings": _settings(run),
            "global_step": run.trainer.global_step,
            "unfrozen": sorted(_unfrozen(run)),
            "query_ids": run.sums.query_ids,
            "files": gather_objects(entry),
        }

    def remember(self, run: TracedRun, names: dict[int, str]) -> None:
        """Training ends, and what is still open is about to be closed: later checkpoints are to be of before that."""
        if run.refreshed_at is not None:
            self._ended = _state_of(run, names)
            if run.scoring.pending or run.scoring.rings:  # closing them adds to the sums
                self._ended["sums"] = run.sums.state()

    def begin(self, run: TracedRun, names: dict[int, str], output_dir: Path, *, strict: bool) -> None:
        """A run begins: go on with the scores of the checkpoint, if there are any.

        Raises:
            ValueError: If they are of other queries, parameters or settings, or their files are missing or damaged.
        """
        self._folder = output_dir.with_name(f"{output_dir.name}-state")
        self._ended = None
        restored, self.restored = self.restored, None
        if not restored:
            return
        problem = _difference(restored, run)
        if problem is not None:
            message = (
                f"OnlineTracIn: the checkpoint's scores are not of this run: {problem}. Resume with the same settings, "
                "or with another output_dir, to which scores go from here on"
            )
            if strict:
                raise ValueError(f"{message}; strict=False starts new scores here")
            rank_zero_warn(f"{message}. Scores start anew")
            return
        device = next(run.pl_module.parameters()).device
        files = restored["files"]
        own = files[process_rank() :: num_processes()]
        states = [read_state(entry, self._folder, device) for entry in own]
        shared = states[0] if states else read_state(files[0], self._folder, device)
        _restore(run, names, restored, states, shared)


def _settings(run: TracedRun) -> dict[str, Any]:
    rules = run.rules
    return {
        "scores": list(rules.kinds),
        "integration": "trapezoid" if rules.trapezoid else "left",
        "momentum": "exact" if rules.exact_momentum else "eventual",
        "breakdown": list(rules.breakdown),
        "projection_side": None if rules.projection is None else rules.projection.side,
        "projection_seed": None if rules.projection is None else rules.projection.seed,
        "refresh_every_n_steps": run.refresh_every_n_steps,
        "whitening": asdict(rules.whitening) if rules.whitens else None,
        "candidates": _digest(run.sums.candidates),
        "ledger": run.ledger is not None,
        "parameters": sorted(run.parameters.covered.by_name.keys() - _unfrozen(run)),
    }


def _digest(candidates: Candidates) -> str:
    """Which candidates, in which order, in few letters."""
    if candidates is None:
        return "all"
    text = repr(
        {q: list(own) for q, own in candidates.items()} if isinstance(candidates, Mapping) else list(candidates)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unfrozen(run: TracedRun) -> set[str]:
    return {name for names in run.unfrozen.values() for name in names}


def _difference(restored: dict[str, Any], run: TracedRun) -> str | None:
    if restored.get("version") != VERSION:
        return f"expected state of version {VERSION}, found {restored.get('version')}"
    now = _settings(run)
    for name, then in restored["settings"].items():
        if now.get(name) != then:
            if name == "parameters":
                other = sorted((set(then) ^ set(now[name])) - set(restored["unfrozen"]))
                if not other:
                    continue
                return f"expected the same covered parameters, found other ones: {other[:3]}"
            return f"expected {name}={then!r}, found {now.get(name)!r}"
    ids = run.sums.query_ids
    added = restored["query_ids"][len(ids) :]
    if added and restored["query_ids"][: len(ids)] == ids:
        return (
            f"it also has queries that were added later, {added[:3]}: expected all of them in queries=..., those that "
            "were added behind the others"
        )
    if restored["query_ids"] != ids:
        other = sorted(set(restored["query_ids"]) ^ set(ids))
        return f"expected the same queries in the same order, found other ids: {other[:3] or 'another order'}"
    if restored["global_step"] != run.trainer.global_step:
        return f"expected step {run.trainer.global_step} as in the checkpoint, found {restored['global_step']}"
    return None


def _state_of(run: TracedRun, names: dict[int, str]) -> dict[str, Any]:
    """Everything but the sums, which are as large as the scores."""
    scoring, staleness = run.scoring, run.staleness
    rings = {
        index: {"held": list(ring.held), "buffers": dict(ring.buffers), "given_buffers": dict(ring.given_buffers)}
        for index, ring in scoring.rings.items()
    }
    return {
        "names": dict(names),
        "first_step": run.first_step,
        "taken": run.taken,
        "refreshed_at": run.refreshed_at,
        "refreshes": list(run.refreshes),
        "steps_left_out": list(run.steps_left_out),
        "steps_skipped": list(run.steps_skipped),
        "steps_taken": [one.steps_taken for one in run.parameters.followed],
        "query_first_steps": dict(run.query_first_steps),
        "unfrozen": dict(run.unfrozen),
        "staleness": dict(staleness.measured),
        "last": run._last,
        "before": scoring._before,
        "pending": list(scoring.pending),
        "rings": rings,
        "learned": scoring.learned,
        "gained": scoring.gained,
        "gained_by_given": scoring.gained_by_given,
        "ledger": None if run.ledger is None else run.ledger.state(),
        "whitened": None if scoring.whitened is None else scoring.whitened.state(),
    }


def _restore(
    run: TracedRun, names: dict[int, str], restored: dict[str, Any], states: list[Any], shared: dict[str, Any]
) -> None:
    scoring: Scoring = run.scoring
    run.run_id = restored["run_id"]
    run.first_step, run.taken = shared["first_step"], shared["taken"]
    run.refreshed_at, run.refreshes = shared["refreshed_at"], shared["refreshes"]
    run.steps_left_out, run.steps_skipped = shared["steps_left_out"], shared["steps_skipped"]
    run.query_first_steps, run.unfrozen = shared["query_first_steps"], shared["unfrozen"]
    run.staleness.measured = shared["staleness"]
    for one, taken in zip(run.parameters.followed, shared["steps_taken"], strict=True):
        one.steps_taken = taken
    last = shared["last"]
    run._last = last
    scoring.learned = shared["learned"]
    if scoring.whitened is not None:
        scoring.whitened.restore([state["whitened"] for state in states], shared["whitened"])
    queries = scoring.restore_queries(last.gradients, last.losses, shared["before"])
    for check in run.parameters.conservation.values():
        check.set_queries(queries, len(run.refreshes) - 1)
    for index, state in enumerate(states):
        names |= state["names"]
        run.sums.add_state(state["sums"])
        scoring._add_gain(state["gained"].cpu())
        if index == 0:
            scoring._add_gain(state["gained_by_given"].cpu(), by_given=True)
            scoring.pending = list(state["pending"])
        else:  # another process's batches of the same steps
            for step, other in zip(scoring.pending, state["pending"], strict=True):
                step.contributions += other.contributions
                step.left += other.left
        for ring_index, held in state["rings"].items():
            ring = scoring.rings.setdefault(ring_index, MomentumRing(run.sums))
            if not ring.held:
                ring.held = list(held["held"])
                ring.buffers, ring.given_buffers = held["buffers"], held["given_buffers"]
                continue
            for held_step, other in zip(ring.held, held["held"], strict=True):
                held_step.contributions += other.contributions
            for name, buffer in held["buffers"].items():
                ring.buffers[name] = ring.buffers.get(name, 0) + buffer
    if not states:  # more processes than there were: this one has nothing of its own, but the steps are the same
        scoring.pending = [_emptied(one) for one in shared["pending"]]
        for ring_index, held in shared["rings"].items():
            ring = scoring.rings.setdefault(ring_index, MomentumRing(run.sums))
            ring.held = [_emptied(one) for one in held["held"]]
            ring.given_buffers = held["given_buffers"]
    if run.ledger is not None and shared["ledger"] is not None:
        run.ledger.load(shared["ledger"], last, run.parameters.all())


def _emptied(step: Any) -> Any:
    step.contributions = []
    if hasattr(step, "left"):
        step.left = []
    return step
