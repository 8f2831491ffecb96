"""Which parameters a score has seen, and for each that it hasn't, why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from ftrace.gradients.relative_position_bias import find_tables
from ftrace.gradients.rules import Rule, find_rule

Status = Literal["covered", "frozen", "not optimized", "excluded", "unsupported"]


@dataclass(frozen=True)
class CoverageLine:
    """What became of one parameter.

    Args:
        parameter: Its name in ``module.named_parameters()``.
        elements: Its number of elements.
        status: Whether scores see it. "excluded" is the user's choice, "unsupported" is a gap.
        rules: Names of the rules of the layers that use it (several for a tied weight).
        reason: Why it is unsupported.
        aliases: Other names of the same (tied) parameter.
    """

    parameter: str
    elements: int
    status: Status
    rules: tuple[str, ...] = ()
    reason: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A layer to listen to: where it is, its rule, and the names of its parameters that are covered."""

    path: str
    module: nn.Module
    rule: Rule
    names: dict[str, str]


@dataclass
class Coverage:
    """The report: a line for each parameter, and the layers that the covered ones live in."""

    lines: list[CoverageLine] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    @property
    def covered(self) -> tuple[str, ...]:
        """Names of the covered parameters."""
        return tuple(line.parameter for line in self.lines if line.status == "covered")

    @property
    def gaps(self) -> list[CoverageLine]:
        """Parameters that training changes and scores don't see, though nobody asked for that."""
        return [line for line in self.lines if line.status == "unsupported"]

    def as_json(self) -> list[dict[str, Any]]:
        """The lines as plain dictionaries."""
        return [asdict(line) for line in self.lines]

    def summary(self) -> str:
        """One line, and one more for each gap."""
        elements = {
            status: sum(line.elements for line in self.lines if line.status == status)
            for status in dict.fromkeys(line.status for line in self.lines)
        }
        text = ", ".join(f"{count:,} {status}" for status, count in elements.items())
        gaps = "".join(f"\n  {gap.parameter}: {gap.reason}" for gap in self.gaps)
        return f"parameter elements: {text}{gaps}"


def find_coverage(
    module: nn.Module, patterns: Sequence[str] = ("*",), optimized: Collection[nn.Parameter] | None = None
) -> Coverage:
    """Find a rule for each trainable parameter, or say why there is none.

    Args:
        module: Any module.
        patterns: Globs over parameter names, taken in order; one that begins with "!" takes away. If the first one
            takes away, it does so from all parameters. A tied parameter goes by any of its names.
        optimized: Parameters that the optimizer changes; default: all that require a gradient.

    Raises:
        ValueError: If a glob matches no parameter.
    """
    aliases: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
        parameters[id(parameter)] = parameter
    chosen = _match(patterns, aliases)
    optimized_ids = None if optimized is None else {id(parameter) for parameter in optimized}
    tables = find_tables(module)

    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, layer in module.named_modules():
        for local, own in layer.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(own), []).append((path, layer, local))

    coverage = Coverage()
    covered: dict[int, str] = {}
    for key, names in aliases.items():
        rules = [tables[layer] if layer in tables else find_rule(layer) for _, layer, _ in owners[key]]
        reason = ""
        status: Status = "covered"
        if not parameters[key].requires_grad:
            status = "frozen"
        elif optimized_ids is not None and key not in optimized_ids:
            status = "not optimized"
        elif key not in chosen:
            status = "excluded"
        else:
            reasons = [_refusal(*owner, rule) for owner, rule in zip(owners[key], rules, strict=True)]
            reason = "; ".join(dict.fromkeys(text for text in reasons if text))
            status = "unsupported" if reason else "covered"
        if status == "covered":
            covered[key] = names[0]
        rule_names = tuple(rule.name for rule in rules if rule is not None)
        line = CoverageLine(names[0], parameters[key].numel(), status, rule_names, reason, tuple(names[1:]))
        coverage.lines.append(line)

    for path, layer in module.named_modules():
        own_parameters = layer.named_parameters(recurse=False, remove_duplicate=False)
        names_here = {local: covered[id(own)] for local, own in own_parameters if id(own) in covered}
        rule = tables[layer] if layer in tables else find_rule(layer)
        if names_here and rule is not None:
            coverage.layers.append(Layer(path, layer, rule, names_here))
    return coverage


def _refusal(path: str, layer: nn.Module, local: str, rule: Rule | None) -> str | None:
    kind = f"{type(layer).__name__} at {path!r}" if path else type(layer).__name__
    if rule is None or local not in rule.parameters:
        return f"no rule for the {local!r} of a {kind}"
    refused = rule.refuse(layer)
    return f"{kind}: {refused}" if refused else None


def _match(patterns: Sequence[str], aliases: dict[int, list[str]]) -> set[int]:
    chosen: set[int] = set()
    for index, pattern in enumerate(patterns):
        takes_away = pattern.startswith("!")
        glob = pattern.removeprefix("!")
        matched = {key for key, names in aliases.items() if any(fnmatchcase(name, glob) for name in names)}
        if not matched:
            known = ", ".join(names[0] for names in list(aliases.values())[:5])
            raise ValueError(f"parameters: the glob {pattern!r} matches no parameter. There are: {known}, ...")
        if takes_away:
            chosen = (set(aliases) if index == 0 else chosen) - matched
        else:
            chosen |= matched
    return chosen
