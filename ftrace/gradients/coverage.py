"""Coverage: which parameters a score has seen, and for all others, why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.module import _forward_unimplemented
from torch.nn.parameter import UninitializedParameter

from ftrace.gradients.layers import find_rule
from ftrace.gradients.names import match_globs
from ftrace.gradients.relative_position_bias import RELATIVE_POSITION_BIAS, is_relative_table
from ftrace.gradients.rules import EMBEDDING, FALLBACK, GRAPH, FallbackRule, GraphRule, Rule

OFF_GRAPH = "autograd's graph"  # instead of a module's name
Status = Literal["covered", "frozen", "not optimized", "excluded", "unsupported"]


@dataclass(frozen=True)
class CoverageLine:
    """Coverage of one parameter.

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
    """A layer to record: its path and module, its rule, and the names of its covered parameters, local to full."""

    path: str
    module: nn.Module
    rule: Rule | FallbackRule | GraphRule
    names: dict[str, str]

    def parameter(self, local: str) -> nn.Parameter:
        """Get one of the layer's parameters by its local (perhaps dotted) name."""
        parameter = self.module._parameters.get(local)  # get_parameter takes several times as long
        return parameter if parameter is not None else self.module.get_parameter(local)


@dataclass
class Coverage:
    """Report of which parameters are covered, and by which layers.

    Args:
        lines: One for each parameter.
        layers: The layers that covered parameters are read off.
        patterns: The globs that have chosen the parameters.
        reads_graph: Whether parameters whose use no module's hooks see may be read off autograd's graph.
    """

    lines: list[CoverageLine] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    patterns: tuple[str, ...] = ("*",)
    reads_graph: bool = False

    @property
    def covered(self) -> tuple[str, ...]:
        """Names of the covered parameters."""
        return tuple(line.parameter for line in self.lines if line.status == "covered")

    @property
    def gaps(self) -> list[CoverageLine]:
        """Parameters that training changes and scores don't see, although the user didn't exclude them."""
        return [line for line in self.lines if line.status == "unsupported"]

    def leave_out(self, names: Collection[str], reason: str) -> None:
        """Make parameters gaps that turned out not to be readable."""
        self._change(names, status="unsupported", rules=(), reason=reason)
        self._drop(names)

    def widen(
        self, root: nn.Module, names: Collection[str], seen: Collection[str], *, to_graph: bool = True
    ) -> dict[str, str]:
        """Read parameters off modules further out, since something uses them outside of the current ones.

        Parameters of layers inside such a module that have not been seen running (another expert, say) go along.

        Args:
            root: The module that this is the coverage of.
            names: The parameters.
            seen: Names of layers that have been seen running.
            to_graph: Whether autograd's graph may be used where there is no such module, if it may be read.

        Returns:
            By parameter, the name of the module, or :data:`OFF_GRAPH`; without parameters for which there is none.
        """
        modules = dict(root.named_modules(remove_duplicate=False))
        outer = {name: path for name in names if (path := self._outer(name, modules)) is not None}
        left = [name for name in names if name not in outer and not self._is_off_graph(name)]
        left = left if self.reads_graph and to_graph else []
        moved = dict(outer)
        for path in dict.fromkeys(outer.values()):
            inside = f"{path}." if path else ""
            for layer in self.layers:
                if layer.path != path and layer.path.startswith(inside) and layer.path not in seen:
                    moved = dict.fromkeys(layer.names.values(), path) | moved
        for name, path in moved.items():
            self._move(name, path, modules[path], FALLBACK)
        for name in left:
            self._move(name, "", root, GRAPH)
        return moved | dict.fromkeys(left, OFF_GRAPH)

    def _is_off_graph(self, name: str) -> bool:
        return any(layer.rule is GRAPH and name in layer.names.values() for layer in self.layers)

    def _outer(self, name: str, modules: Mapping[str, nn.Module]) -> str | None:
        """Find the next module around all layers that a parameter is read off."""
        if self._is_off_graph(name):
            return None
        readers = [layer.path for layer in self.layers if name in layer.names.values()]
        path = _common(readers)
        if path in readers:
            if not path:
                return None
            path = _parent(path)
        while not _has_forward(modules[path]):
            if not path:
                return None
            path = _parent(path)
        return path

    def _move(self, name: str, path: str, module: nn.Module, rule: FallbackRule | GraphRule) -> None:
        readers = [layer for layer in self.layers if name in layer.names.values()]
        parameter = next(layer.parameter(local) for layer in readers for local, n in layer.names.items() if n == name)
        everywhere = module.named_parameters(remove_duplicate=False)
        names_here = {local: name for local, p in everywhere if p is parameter}
        self._drop([name])
        if rule is GRAPH:
            names_here = dict(list(names_here.items())[:1])  # all names give the same gradient
        existing = next((layer for layer in self.layers if layer.path == path and layer.rule is rule), None)
        if existing is None:
            self.layers.append(Layer(path, module, rule, names_here))
        else:
            existing.names.update(names_here)
        self._change([name], rules=(rule.name if rule is GRAPH else f"{rule.name} at {path!r}",))

    def _drop(self, names: Collection[str]) -> None:
        for layer in self.layers:
            for local in [local for local, name in layer.names.items() if name in names]:
                del layer.names[local]
        self.layers[:] = [layer for layer in self.layers if layer.names]

    def _change(self, names: Collection[str], **changes: Any) -> None:
        self.lines[:] = [replace(line, **changes) if line.parameter in names else line for line in self.lines]

    def as_json(self) -> list[dict[str, Any]]:
        """Convert the lines to plain dictionaries."""
        return [asdict(line) for line in self.lines]

    def summary(self) -> str:
        """Summarise the coverage in one line, and one more for each gap."""
        elements = {
            status: sum(line.elements for line in self.lines if line.status == status)
            for status in dict.fromkeys(line.status for line in self.lines)
        }
        text = ", ".join(f"{count:,} {status}" for status, count in elements.items())
        gaps = "".join(f"\n  {gap.parameter}: {gap.reason}" for gap in self.gaps)
        return f"parameter elements: {text}{gaps}"


def find_coverage(
    module: nn.Module,
    patterns: Sequence[str] = ("*",),
    optimized: Collection[nn.Parameter] | None = None,
    *,
    reads_graph: bool = False,
) -> Coverage:
    """Find a rule for each trainable parameter, or say why there is none.

    Args:
        module: Any module.
        patterns: Globs over parameter names, taken in order; one that begins with "!" takes away. If the first one
            takes away, it does so from all parameters. A tied parameter is matched by any of its names.
        optimized: Parameters that the optimizer changes; default: all that require a gradient.
        reads_graph: Whether parameters whose use no module's hooks see may be read off autograd's graph.

    Raises:
        ValueError: If a glob matches no parameter, or a parameter has no shape yet.
    """
    aliases: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name!r} has no shape yet: expected a lazy module to have been run once")
        aliases.setdefault(id(parameter), []).append(name)
        parameters[id(parameter)] = parameter
    chosen = match_globs(patterns, aliases)
    optimized_ids = None if optimized is None else {id(parameter) for parameter in optimized}
    users = _find_users(module, reads_graph)
    of_parameter: dict[int, list[_User]] = {}
    for user in users:
        for parameter in user.parameters.values():
            of_parameter.setdefault(id(parameter), []).append(user)

    twins = _find_twins(
        [p for key, p in parameters.items() if p.requires_grad and (optimized_ids is None or key in optimized_ids)]
    )
    coverage = Coverage(patterns=tuple(patterns), reads_graph=reads_graph)
    covered: dict[int, str] = {}
    for key, names in aliases.items():
        reason = ""
        status: Status = "covered"
        if not parameters[key].requires_grad:
            status = "frozen"
        elif optimized_ids is not None and key not in optimized_ids:
            status = "not optimized"
        elif key not in chosen:
            status = "excluded"
        else:
            reasons = [user.refusal for user in of_parameter[key] if user.refusal]
            if parameters[key].is_complex():
                reasons.append(
                    "it holds complex numbers. Keep them as pairs of real ones, [..., 2], and call "
                    "torch.view_as_complex in forward"
                )
            if key in twins:
                others = ", ".join(repr(aliases[twin][0]) for twin in twins[key])
                reasons.append(
                    f"it lies in the same memory as {others}, though each is trained as a parameter of its own, so "
                    "that a step on one moves the other. Make them one parameter; in PEFT, ensure_weight_tying=False"
                )
            reason = "; ".join(dict.fromkeys(reasons))
            status = "unsupported" if reason else "covered"
        if status == "covered":
            covered[key] = names[0]
        rule_names = tuple(user.rule.name for user in of_parameter[key] if not user.refusal)
        line = CoverageLine(names[0], parameters[key].numel(), status, rule_names, reason, tuple(names[1:]))
        coverage.lines.append(line)

    for user in users:
        names_here = {local: covered[id(p)] for local, p in user.parameters.items() if id(p) in covered}
        if names_here:
            coverage.layers.append(Layer(user.path, user.module, user.rule, names_here))
    return coverage


@dataclass(frozen=True)
class _User:
    """A module that runs, its rule, the parameters that the rule is for (by local name), or why it has none."""

    path: str
    module: nn.Module
    rule: Rule | FallbackRule | GraphRule
    parameters: dict[str, nn.Parameter]
    refusal: str | None


def _find_users(root: nn.Module, reads_graph: bool) -> list[_User]:
    """Find the modules in which parameters are used, as far as can be told without running them."""
    parameters_of: dict[str, dict[str, nn.Parameter]] = {}
    given_away: set[str] = set()
    modules = dict(root.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        parameters = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        user = _user_of(path, modules)
        if user != path and parameters:
            given_away.add(user)
        prefix = path[len(user) :].lstrip(".")
        for local, parameter in parameters.items():
            parameters_of.setdefault(user, {})[f"{prefix}.{local}".lstrip(".")] = parameter

    users = []
    seen: set[tuple[int, int]] = set()
    for path, parameters in parameters_of.items():
        module = modules[path]
        fresh = {local: p for local, p in parameters.items() if (id(module), id(p)) not in seen}  # not by another path
        seen |= {(id(module), id(p)) for p in fresh.values()}
        rule = find_rule(module)
        if rule is EMBEDDING and path and is_relative_table(modules[_parent(path)], module):
            rule = RELATIVE_POSITION_BIAS
        if rule is None or path in given_away:
            by_rule: dict[str, nn.Parameter] = {}
        else:
            by_rule = {local: p for local, p in fresh.items() if local in rule.parameters}
            if by_rule:
                users.append(_User(path, module, rule, by_rule, _refusal(path, modules, rule)))
        others = {local: p for local, p in fresh.items() if local not in by_rule}
        is_added = rule is not None and path not in given_away  # to a known layer
        if others and reads_graph and (is_added or not _has_forward(module)):
            users.append(_User(path, module, GRAPH, others, None))
        elif others:
            refusal = _refusal(path, modules, None)
            if is_added:
                kind = _kind(path, module)
                refusal = "; ".join(f"no rule for the {local!r} of a {kind}" for local in others)
            users.append(_User(path, module, FALLBACK, others, refusal))
    return users


def _find_twins(trained: Collection[nn.Parameter]) -> dict[int, list[int]]:
    """Find parameters that begin at the same address of memory, by id, with the ids of the others."""
    at: dict[tuple[str, int], list[int]] = {}
    for parameter in trained:
        if parameter.numel() and not parameter.is_meta and type(parameter.data) is Tensor:  # others may have no address
            at.setdefault((str(parameter.device), parameter.data_ptr()), []).append(id(parameter))
    groups = [keys for keys in at.values() if len(keys) > 1]
    return {key: [other for other in keys if other != key] for keys in groups for key in keys}


def _user_of(path: str, modules: Mapping[str, nn.Module]) -> str:
    """Find the nearest module around a module's parameters that runs, or the one that uses its children's weights."""
    user = path
    while user and not _has_forward(modules[user]):
        user = _parent(user)
    around = user
    while around:
        around = _parent(around)
        if _owns_children(modules[around]):
            user = around
    return user


def _common(paths: Sequence[str]) -> str:
    """Find the innermost module around several."""
    parts = [path.split(".") if path else [] for path in paths]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _kind(path: str, module: nn.Module) -> str:
    return f"{type(module).__name__} at {path!r}" if path else type(module).__name__


def _refusal(path: str, modules: Mapping[str, nn.Module], rule: Rule | None) -> str | None:
    """Say why a module's parameters can't be covered; None if they can."""
    module = modules[path]
    kind = _kind(path, module)
    if rule is not None and (refused := rule.refuse(module)):
        return f"{kind}: {refused}"
    if not _has_forward(module):
        return f"{kind} has no forward to hook"
    return None


def _has_forward(module: nn.Module) -> bool:
    """Whether a module can be run at all; containers of parameters can't."""
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return False  # it is run, but what it returns is a weight
    forward = type(module).forward
    # What Lightning's modules inherit only raises; their training_step is no forward of theirs.
    return forward is not _forward_unimplemented and forward.__qualname__ != "LightningModule.forward"


def _owns_children(module: nn.Module) -> bool:
    """Whether a module is known to use weights of the modules inside of it without running these."""
    return isinstance(module, nn.MultiheadAttention)
