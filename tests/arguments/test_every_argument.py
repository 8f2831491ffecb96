"""Every argument of every public function and class that takes options: a value of a wrong type is refused by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from ftrace.arguments import Within
from helpers.wrong_values import bases, is_known, plausible, wrong_for

PARTS = (
    "callbacks", "scores", "index", "online", "data", "models", "attribution", "causal", "evaluation", "retraining",
    "studies", "gradients", "evaluation.counterfactual", "evaluation.retrieval", "commands.after_training",
    "commands.ask", "commands.attribute", "commands.causal_trace", "commands.counterfactual", "commands.evaluate",
    "commands.evaluate_results", "commands.index", "commands.joined", "commands.learned_when", "commands.ledger",
    "commands.options", "commands.query_choice", "commands.report", "commands.search", "commands.show",
    "commands.synth", "commands.tail_patch", "studies.command",
)  # fmt: skip
ANY_NUMBER = {"query_id", "first", "subject"}  # ids, and places that may count from the end


def is_checked(made: Any) -> bool:
    """Whether it is a class or function of ftrace that refuses wrong arguments."""
    if not callable(made) or not str(getattr(made, "__module__", "")).startswith("ftrace."):
        return False
    called = made.__init__ if inspect.isclass(made) else made
    return called.__code__.co_name == "checking" if hasattr(called, "__code__") else False


def checked_callables() -> dict[str, Callable[..., Any]]:
    """What users call and ftrace checks, by name."""
    found = {"FactLM": importlib.import_module("ftrace.models").FactLM}  # which checks within
    for part in PARTS:
        module = importlib.import_module(f"ftrace.{part}")
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            if is_checked(getattr(module, name)):
                found[f"{part}.command" if name == "command" else name] = getattr(module, name)
    return found


CALLABLES = checked_callables()


def arguments_of(made: Any) -> dict[str, Any]:
    """The annotations of a callable's arguments, by name."""
    function = inspect.unwrap(made.__init__ if inspect.isclass(made) else made)
    hints = get_type_hints(made if is_dataclass(made) else function, include_extras=True)
    return {name: hints[name] for name in inspect.signature(made).parameters if name in hints}


def test_what_users_call_is_checked() -> None:
    expected = {
        "OnlineTracIn", "CheckpointSnapshots", "GradientIndexWriter", "TraceSettings", "Whitening", "trace",
        "PlainLoop", "ScoreWriter", "CausalTracer", "CausalSettings", "NoiseSettings", "ModelLayout", "TraceTask",
        "FactLM", "FtraceSynth", "FtraceTrex", "FactCorpus", "SynthSettings", "FactDataSettings", "Task", "Bm25",
        "Dense", "Embed", "Ensemble", "RandomTarget", "TracIn", "TrackStar", "IndexSettings", "FeatureSettings",
        "SearchSettings", "WhiteningSettings", "ApproximateSettings", "PoolSettings", "Retrainer", "Study", "Variant",
        "AfterTraining", "JoinSettings", "QuestionSettings", "ProcessSettings", "QueryChoice", "Projection",
        "evaluate", "learned_when", "top_k", "do_study", "do_retrainings", "ask", "attribute", "index", "search",
    }  # fmt: skip
    assert expected <= CALLABLES.keys()


@pytest.mark.parametrize("name", CALLABLES)
def test_wrong_values_are_refused_by_name(name: str) -> None:
    made = CALLABLES[name]
    kinds, parameters = arguments_of(made), inspect.signature(made).parameters
    by_name = {each for each, given in parameters.items() if given.kind is not inspect.Parameter.VAR_POSITIONAL}
    needed = {
        each: plausible(kind)
        for each, kind in kinds.items()
        if parameters[each].default is inspect.Parameter.empty and each in by_name
    }
    for argument in by_name & kinds.keys():
        if not is_known(kinds[argument]):
            continue
        for value in wrong_for(kinds[argument]):
            with pytest.raises(ValueError, match=rf"^{argument}(\[.*\])*: expected ") as raised:
                made(**{**needed, argument: value})
            assert len(str(raised.value).splitlines()) == 1


def numbers(kind: Any) -> Iterator[Any]:
    """Yield the numbers that an annotation is made of, with their limits."""
    if (get_origin(kind) is Annotated and get_args(kind)[0] in (int, float)) or kind in (int, float):
        yield kind
    else:
        for each in get_args(kind):
            yield from numbers(each)


@pytest.mark.parametrize("name", CALLABLES)
def test_every_number_has_a_range(name: str) -> None:
    for argument, kind in arguments_of(CALLABLES[name]).items():
        is_plain = any(base in (int, float) for base in bases(kind))
        if not is_plain or argument in ANY_NUMBER:
            continue
        for number in numbers(kind):
            assert get_origin(number) is Annotated, f"{name}: {argument}"
            assert any(isinstance(limit, Within) for limit in get_args(number)[1:])
