"""Tail-patch: how an optimizer step on one training example changes the probability of a query's target."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.evaluation.tail_patch.example_kinds import KINDS, ExampleKinds
    from ftrace.evaluation.tail_patch.patching import PatchedPairs, tail_patch
    from ftrace.evaluation.tail_patch.step_rules import Adam, Sgd, StepRule
    from ftrace.evaluation.tail_patch.summaries import (
        TailPatchRow,
        TailPatchTable,
        notes_on_rises,
        random_examples,
        some_proponents,
        summarize_rises,
    )
    from ftrace.evaluation.tail_patch.tables import render_tail_patch, write_tail_patch
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "KINDS",
    "Adam",
    "ExampleKinds",
    "PatchedPairs",
    "Sgd",
    "StepRule",
    "TailPatchRow",
    "TailPatchTable",
    "notes_on_rises",
    "random_examples",
    "render_tail_patch",
    "some_proponents",
    "summarize_rises",
    "tail_patch",
    "write_tail_patch",
]
