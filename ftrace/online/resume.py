"""The state of a run's scores, which is saved beside the user's checkpoints so that killed runs can resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ftrace.online.kept_states import KeptStates
from ftrace.online.messages import warn
from ftrace.online.output_folder import OutputFolder
from ftrace.online.processes import gather_objects, num_processes, process_rank
from ftrace.online.scoring.accumulator import Candidates
from ftrace.online.state_files import read_state, write_state
from ftrace.online.traced_run import TracedRun

VERSION = 4


class RunState:
    """The state of a traced run, saved beside the user's checkpoints and restored from there.

    Args:
        who: Whose messages these are.

    Attributes:
        restored: The entry of the checkpoint from which training resumes; None without one.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.restored: dict[str, Any] | None = None
        self._folder: OutputFolder
        self._ended: dict[str, Any] | None = None

    def save(self, run: TracedRun | None) -> dict[str, Any]:
        """Write the state to files. All processes must call it.

        Returns:
            The checkpoint's entry: names and hashes of the files, and what identifies the run.
        """
        if run is None or run.refresher.last_at is None:
            return {}
        if any(optimizer.is_stepping for optimizer in run.parameters.followed):
            warn(f"{self.who}: a checkpoint was saved within an optimizer step, so its scores don't include this step")
        state = {**(self._ended or run.state()), "sums": run.sums.state()}
        step = state["first_step"] + state["taken"]
        folder = self._folder.beside("state")
        files = gather_objects(write_state(folder, step, process_rank(), state))
        texts = gather_objects(run.descriptions.save(folder))
        if process_rank() == 0 and not run.settings.keep_states:
            given = [entry["file"] for entry in [*files, *(entry for of_process in texts for entry in of_process)]]
            KeptStates(folder).delete_unneeded(run.loop.deletable_checkpoints(), given)
        return {
            "version": VERSION,
            "run_id": self._folder.run_id,
            "step": step,
            "settings": _settings(run),
            "global_step": run.loop.step,
            "unfrozen": sorted(_unfrozen(run)),
            "query_ids": run.sums.query_ids,
            "files": files,
            "texts": texts,
        }

    def delete_unneeded(self, run: TracedRun) -> None:
        """Delete the files of states whose checkpoints are gone, since no other checkpoint will be saved."""
        folder = self._folder.beside("state")
        if process_rank() == 0 and not run.settings.keep_states and folder.exists():
            KeptStates(folder).delete_unneeded(run.loop.deletable_checkpoints())

    def remember(self, run: TracedRun) -> None:
        """Remember the state before the last steps are booked, for checkpoints that are saved after training."""
        if run.refresher.last_at is not None:
            self._ended = run.state()
            if run.scoring.pending or run.scoring.momentum.rings:  # booking these adds to the sums
                run.sums.remember()

    def begin(self, run: TracedRun, folder: OutputFolder, *, strict: bool) -> None:
        """Let a new run continue the scores of the checkpoint, if it has any.

        Args:
            folder: Its output folder, which gets the id of the run that is resumed.
            strict: Whether scores that can't be continued are an error; otherwise they start anew, with a warning.

        Raises:
            ValueError: When strict, if the checkpoint's scores are of other queries, parameters or settings; or if
                their files are missing or damaged.
        """
        self._folder = folder
        self._ended = None
        restored, self.restored = self.restored, None
        if not restored:
            return
        problem = _difference(restored, run)
        if problem is not None:
            message = (
                f"{self.who}: the checkpoint's scores are not of this run: {problem}. Resume with the same settings, "
                "or with another output_dir, which gets the scores from here on"
            )
            if strict:
                raise ValueError(f"{message}; strict=False starts new scores here")
            warn(f"{message}. Scores start anew")
            return
        device = next(run.loop.module.parameters()).device
        files, state_dir = restored["files"], folder.beside("state")
        states = [read_state(entry, state_dir, device, self.who) for entry in files[process_rank() :: num_processes()]]
        shared = states[0] if states else read_state(files[0], state_dir, device, self.who)
        folder.run_id = restored["run_id"]
        run.load(states, shared)
        for entries in restored.get("texts", [])[process_rank() :: num_processes()]:  # older checkpoints have none
            run.descriptions.load(entries, state_dir)


def _settings(run: TracedRun) -> dict[str, Any]:
    rules = run.rules
    return {
        "scores": list(rules.kinds),
        "integration": "trapezoid" if rules.trapezoid else "left",
        "momentum": "exact" if rules.exact_momentum else "eventual",
        "breakdown": list(rules.breakdown),
        "projection_side": None if rules.projection is None else rules.projection.side,
        "projection_seed": None if rules.projection is None else rules.projection.seed,
        "refresh_every_n_steps": run.settings.refresh_every_n_steps,
        "refresh_share": run.settings.refresh_share,
        "moments_tolerance": rules.moments_tolerance,
        "whitening": asdict(rules.whitening) if rules.whitens else None,
        "candidates": _digest(run.sums.candidates),
        "ledger": run.ledger is not None,
        "parameters": sorted(run.parameters.covered.by_name.keys() - _unfrozen(run)),
    }


def _digest(candidates: Candidates) -> str:
    """Compute a short hash of the candidates and their order."""
    if candidates is None:
        return "all"
    text = repr(
        {query: list(of_query) for query, of_query in candidates.items()}
        if isinstance(candidates, Mapping)
        else list(candidates)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unfrozen(run: TracedRun) -> set[str]:
    return {name for names in run.unfrozen.values() for name in names}


def _difference(restored: dict[str, Any], run: TracedRun) -> str | None:
    if restored.get("version") != VERSION:
        return f"expected state of version {VERSION}, found {restored.get('version')}"
    current = _settings(run)
    for name, previous in restored["settings"].items():
        if current.get(name) != previous:
            if name == "parameters":
                was_trained = {*previous, *restored["unfrozen"]}
                frozen = {n for n, p in run.loop.module.named_parameters() if not p.requires_grad}
                other = sorted(
                    (set(previous) ^ set(current[name])) - set(restored["unfrozen"]) - (was_trained & frozen)
                )
                if not other:
                    continue
                return f"expected the same covered parameters, found other ones: {other[:3]}"
            return f"expected {name}={previous!r}, found {current.get(name)!r}"
    ids = run.sums.query_ids
    added = restored["query_ids"][len(ids) :]
    if added and restored["query_ids"][: len(ids)] == ids:
        return (
            f"it also has queries that were added later, {added[:3]}: expected all of them in queries=..., "
            "those that were added after all others"
        )
    if restored["query_ids"] != ids:
        other = sorted(set(restored["query_ids"]) ^ set(ids))
        return f"expected the same queries in the same order, found other ids: {other[:3] or 'another order'}"
    if restored["global_step"] != run.loop.step:
        return f"expected step {run.loop.step} as in the checkpoint, found {restored['global_step']}"
    return None
