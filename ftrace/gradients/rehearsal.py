"""Finding out whose rows are whose in any training step, by trial.

The step is run a few times on a batch in which some examples' inputs are exchanged for others': a layer's output
changes for these examples, and stays the same for all others. So rows side by side, blocks, layers whose leading axis
is time, and dataloaders whose batches run in another order are told apart by what happens, and not by an assumption
that the reading of gradients shares. Layers that no input reaches (positions, prompts) are told apart by their
gradients: those of all other examples are cut off at the layers that are known by then.

Then the step is run once more and differentiated, to compare what is read off the layers with autograd's gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ftrace.gradients.arriving import Reduce, reduced_gradients
from ftrace.gradients.capture import GradientCapture
from ftrace.gradients.evidence import (
    INSIDE,
    Choice,
    Evidence,
    Prints,
    agrees,
    choose,
    common_scale,
    cut,
    scaled_movement,
)
from ftrace.gradients.finding import member_sets, padded, refuse_crossing, unreadable, write_choices
from ftrace.gradients.freed_memory import give_back_once_grown
from ftrace.gradients.layout_book import Key, LayoutBook
from ftrace.gradients.layouts import Examples, Layout, candidates
from ftrace.gradients.node_prints import NodePrints
from ftrace.gradients.observation import Observation
from ftrace.gradients.outputs import Output
from ftrace.gradients.passes import (
    Backward,
    choices_by_gradients,
    has_any,
    movement_of,
    sum_of,
    write_conclusions,
)
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.recording import Recording
from ftrace.gradients.steps import ExchangeError, Step, sources_of

MOST_SETS = 6


@dataclass
class Rehearsal:
    """Trial runs of a training step on one batch.

    Args:
        capture: Records the module.
        step: Runs the step.
        examples: Of the batch.
        book: The book that findings are written into.
        has_loose_inputs: Whether there are inputs in which no examples can be found, although their size is a multiple
            of the batch's.
        again: Outputs that are examined although they were seen: they are used in a way that was not.
        forwards: Number of passes that were run without a backward pass.
        backwards: Number of passes that were run with one.
        changed: Outputs whose rows are not where an earlier batch had them.
        is_complete: Whether it is known whose rows are whose wherever there was a gradient.
        reads: The gradients that were read after each backward pass of the step.
        undecided: Outputs whose gradient changes with no example's inputs.
        has_moved: Whether anything changes with examples' inputs.
        lost_regular: Whether some output has no layout, although its shape, the same in all passes, allows one.
    """

    capture: GradientCapture
    step: Step
    examples: Examples
    book: LayoutBook
    has_loose_inputs: bool = False
    again: Collection[Key] = ()
    forwards: int = 0
    backwards: int = 0
    changed: list[Key] = field(default_factory=list)
    is_complete: bool = True
    reads: list[PerExampleGradients] = field(default_factory=list)
    undecided: list[Output] = field(default_factory=list)
    has_moved: bool = False
    lost_regular: bool = False
    _plain: dict[bool, Observation] = field(default_factory=dict)

    # Whose rows are whose

    def find_rows(self) -> None:
        """Write into the book whose rows are whose.

        Raises:
            UnreadableError: If it can't be found out for layers that have a gradient.
            ExchangeError: If the step fails with other inputs than its own.
        """
        irregular: set[Key] = set()  # rows as many as the inputs of a batch have
        evidence: dict[Key, list[Evidence]] = {}
        choices: dict[Key, Choice] = {}
        recorded = self._observed(False)
        for index, members in enumerate(self._sets):
            plain = self._observed(index % 2 == 1)
            moved = self._forward(sources=sources_of(members, self.examples), fresh=index % 2 == 1)
            for key, output in recorded.outputs.items():
                if key in plain.outputs:
                    if key not in moved.values or moved.values[key][1].shape != plain.values[key][1].shape:
                        irregular.add(key)
                    of_output = movement_of(plain, moved, key, output.row_shape, members)
                    evidence.setdefault(key, []).append(of_output)
            if index:
                choices = {
                    key: choose(recorded.outputs[key].example_axes, of_output, self.examples)
                    for key, of_output in evidence.items()
                }
                if not any(choice.others for choice in choices.values()):
                    break
        self.changed = [key for key, choice in choices.items() if self._differs(recorded.outputs[key], choice)]
        self.lost_regular = any(
            choices[key].known
            and choices[key].layout is None
            and key not in irregular
            and any(candidates(recorded.outputs[key].example_axes, self.examples))
            for key in choices
        )
        self.has_moved = any(choice.known for choice in choices.values())
        if self.examples.documents is not None:
            refuse_crossing(recorded.outputs, choices, irregular)
        lost = write_choices(recorded.recorded, choices)
        unseen = {key for key, output in recorded.outputs.items() if key in self.again or not output.is_seen}
        unknown = [key for key, choice in choices.items() if not choice.known and key in unseen]
        unclear = [key for key, choice in choices.items() if choice.others and key in unseen]
        if lost or unknown or unclear:
            self._learn_from_gradients([*unknown, *unclear], lost, {key: evidence[key] for key in unclear})

    def can_exchange(self) -> bool:
        """Whether the step runs with some examples' inputs exchanged for others'."""
        try:
            for members in member_sets(self.examples)[:MOST_SETS]:
                self._forward(sources=sources_of(members, self.examples))
        except ExchangeError:
            return False
        return True

    def confirm(self, which: int) -> list[Key]:
        """Find outputs whose rows are not where they were seen before, by one exchange.

        Args:
            which: Index that chooses the examples to exchange.
        """
        sets = member_sets(self.examples)
        members = sets[which % len(sets)]
        plain = self._observed(False)
        moved = self._forward(sources=sources_of(members, self.examples))
        moved_away = []
        for key, output in plain.outputs.items():
            rows = self.book.known.get(key)
            has_moved = moved.values.get(key)
            if has_moved is None or has_moved[1].shape != plain.values[key][1].shape:
                continue  # as where texts are padded to the longest
            if isinstance(rows, Layout) and output.is_seen:
                evidence = movement_of(plain, moved, key, output.row_shape, members)
                if not agrees(rows, output.example_axes, evidence, self.examples):
                    moved_away.append(key)
        return moved_away

    def _differs(self, output: Output, choice: Choice) -> bool:
        """Whether an output's rows are not where they were seen before."""
        known = self.book.known.get(output.key)
        if choice.layout is None or not isinstance(known, Layout) or not output.is_seen:
            return False
        layouts = (choice.layout, *choice.others)
        return not any(known.says_the_same(layout, output.example_axes, self.examples) for layout in layouts)

    @property
    def recorded_keys(self) -> set[Key]:
        """Keys of the outputs that were recorded."""
        return set(self._observed(False).outputs)

    def _observed(self, fresh: bool) -> Observation:
        if fresh not in self._plain:
            self._plain[fresh] = self._forward(fresh=fresh)
        return self._plain[fresh]

    def _forward(
        self, *, sources: Sequence[int] | None = None, fresh: bool = False, stirred: bool = False
    ) -> Observation:
        self.forwards += 1
        observation = self._start(observes=True)
        assert isinstance(observation, Observation)
        with self._recording(observation):
            self.step(None, sources=sources, fresh=fresh, stirred=stirred)
        observation.edges.clear()  # releases the graph
        return observation

    @contextmanager
    def _recording(self, recording: Recording) -> Iterator[None]:
        """Let no other capture record meanwhile."""
        try:
            with self.capture.exclusively():
                yield
        finally:
            self.capture.stop()
            recording.close()

    def _refuse_loose(self, lost: Sequence[Key]) -> None:
        """Raise an error if outputs depend on inputs in which no examples can be found."""
        plain = self._observed(False)
        try:
            stirred = self._forward(stirred=True)
        except ExchangeError:
            return
        members = torch.ones(self.examples.total, dtype=torch.bool)
        loose = [
            plain.outputs[key]
            for key in lost
            if key in plain.outputs
            and any(
                bool((owners == INSIDE).any())
                for owners in movement_of(plain, stirred, key, plain.outputs[key].row_shape, members).along.values()
            )
        ]
        if loose:
            raise unreadable(
                loose,
                "which depends on tensors of the batch that have no axis of that many: give them one, [examples, n, "
                "...], and put examples side by side in the step; or keep what all examples share out of the batch",
            )

    @property
    def _sets(self) -> list[Tensor]:
        """Sets of examples to try, at most: half of all sets tell any two examples apart."""
        sets = member_sets(self.examples)
        return sets[: max(MOST_SETS, len(sets) // 2)]

    def _learn_from_gradients(
        self, still: Sequence[Key], lost: Sequence[Key], evidence: Mapping[Key, Sequence[Evidence]]
    ) -> None:
        """Find the rows of outputs that inputs don't reach, or not clearly, by gradients and the given evidence."""
        plain = self._backward(still)
        with_gradient = [key for key, prints in plain.prints.items() if has_any(prints)]
        mixed = [plain.recorded.outputs[key] for key in lost if key in with_gradient]
        if mixed:
            raise unreadable(mixed)
        wanted = [key for key in still if key in with_gradient]
        if not wanted:
            return
        passes: list[tuple[Tensor, Backward]] = []
        choices: dict[Key, Choice] = {}
        for index, members in enumerate(self._sets):
            passes.append((members, self._backward(still, chosen=members)))
            choices = choices_by_gradients(plain, passes, wanted, cut, evidence)
            if index and not any(choice.others for choice in choices.values()):
                break
        unknown, lost = write_conclusions(plain, passes, choices, cut)
        if unknown or lost:  # no known output lies between them and the loss: see which change with the inputs
            passes = [(m, self._backward(still, sources=sources_of(m, self.examples))) for m in self._sets[:2]]
            scales = {id(members): common_scale(plain.pairs(exchanged)) for members, exchanged in passes}

            def compare(first: Prints, second: Prints, members: Tensor) -> Evidence:
                return scaled_movement(first, second, members, scales[id(members)])

            choices = choices_by_gradients(plain, passes, [*unknown, *lost], compare, evidence)
            # Where examples are all alike, nothing changes, and another batch has to tell.
            unknown, lost = write_conclusions(plain, passes, choices, compare)
        if self.has_loose_inputs and (unknown or lost):
            self._refuse_loose([*unknown, *lost])
        if lost:
            raise unreadable([plain.recorded.outputs[key] for key in lost])
        self.undecided = [plain.recorded.outputs[key] for key in unknown]

    def refuse_undecided(self, batches: int) -> None:
        """Refuse gradients that belong to no example.

        Args:
            batches: The number of batches in which they have not changed with any example's inputs.

        Raises:
            UnreadableError: Always.
        """
        raise unreadable(
            self.undecided,
            f"and in {batches} batches its gradient has changed with no example's inputs, so nobody can tell whose it "
            "is: it may be that of a term of the loss that is no example's (if that is a penalty on weights, use "
            "weight_decay)",
        )

    def _backward(
        self, behind: Sequence[Key], *, chosen: Tensor | None = None, sources: Sequence[int] | None = None
    ) -> Backward:
        """Run the step with its backward passes, and take prints of gradients: of outputs, and of nodes behind some."""
        self.backwards += 1
        observation = self._start(observes=True)
        backward = Backward(observation.recorded, {}, [])

        def on_loss(loss: Tensor, keeps: bool) -> None:
            edges = {key: observation.edges[key] for key in behind if key in observation.edges}
            known = observation.recorded.known_edges()
            starts = [] if loss.grad_fn is None else [loss.grad_fn]
            nodes = NodePrints(edges, starts, known, self.examples.documents)
            observation.notice(starts)
            observation.of_pass.chosen = chosen
            observation.of_pass.prints = {}
            try:
                observation.differentiate(loss, retain=keeps)
                for key, prints in observation.of_pass.prints.items():
                    backward.prints[key] = sum_of(backward.prints.get(key), prints)
            finally:
                observation.of_pass.chosen = observation.of_pass.prints = None
                nodes.close()
            backward.nodes.append(nodes)

        with self._recording(observation):
            self.step(on_loss, sources=sources)
        return backward

    # What is read, and what is right

    def read(self, *, unprojected: bool, reduce: Reduce | None = None) -> tuple[PerExampleGradients, dict[str, Tensor]]:
        """Read the examples' gradients off the layers; and by name, get autograd's gradients of all together.

        Args:
            unprojected: Read unprojected gradients, although the capture projects.
            reduce: What autograd's gradients are reduced to, as they arrive; default: they stay as they are.
        """
        self.backwards += 1
        recording = self._start(unprojected=unprojected)
        recording.of_pass.open = set()
        documents = self.examples.documents
        if documents is not None and documents.has_padding:
            recording.of_pass.padded = set()
        read: list[PerExampleGradients] = []
        totals = self._differentiate(recording, None, read, reduce)
        if recording.of_pass.padded:
            raise padded([recording.outputs[key] for key in recording.of_pass.padded])
        self.is_complete = not recording.of_pass.open
        self.reads = read
        return PerExampleGradients.sum(read or [recording.gradients()]), totals

    def alone(self, example: int, reduce: Reduce | None = None) -> dict[str, Tensor]:
        """Get autograd's gradients of one example, by name: all others' are cut off at the layers' outputs.

        Args:
            example: Its index in the batch.
            reduce: As :meth:`read` takes it.
        """
        self.backwards += 1
        recording = self._start(observes=True)
        return self._differentiate(recording, torch.arange(self.examples.total) == example, [], reduce)

    def _differentiate(
        self, recording: Recording, chosen: Tensor | None, read: list[PerExampleGradients], reduce: Reduce | None
    ) -> dict[str, Tensor]:
        """Add up autograd's gradients of the step's losses, by name; append what is read off layers to ``read``."""
        named = dict(self.capture.module.named_parameters())
        totals: dict[str, Tensor] = {}

        def on_loss(loss: Tensor, keeps: bool) -> None:
            recording.prepare([] if loss.grad_fn is None else [loss.grad_fn])
            wanted = {name: named[name] for name in self.capture.coverage.covered if named[name].requires_grad}
            recording.of_pass.chosen = chosen
            try:
                with reduced_gradients(wanted, reduce) as reduced:
                    grads = recording.differentiate(loss, list(wanted.values()), retain=keeps)
            finally:
                recording.of_pass.chosen = None
            recording.of_pass.unread.clear()  # which leaves the rehearsal incomplete
            if chosen is None:  # now, while modules that are switched off for this loss still are
                read.append(recording.gradients())
                recording.forget_gradients()
            of_loss = zip(wanted, grads, strict=True) if reduce is None else reduced.items()
            for name, grad in of_loss:
                if grad is not None:
                    totals[name] = totals[name] + grad if name in totals else grad

        with self._recording(recording):
            self.step(on_loss)
        return totals

    def _start(self, *, observes: bool = False, unprojected: bool = False) -> Recording:
        give_back_once_grown()
        recording = self.capture.start(
            self.examples.total,
            unprojected=unprojected,
            loaders=self.examples.loaders,
            book=self.book,
            observes=observes,
            documents=self.examples.documents,
        )
        recording.of_pass.trusts = False
        return recording
