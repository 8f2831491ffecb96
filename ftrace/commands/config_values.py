"""Values of options, and config files: YAML in which no key comes twice and no value is lost as a comment."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 100  # of nested lists and mappings; thousands of them would end the process without a message
_load_yaml = get_loader("yaml")


def load(text: str) -> Any:
    """Load YAML as jsonargparse does.

    Args:
        text: A config file, or the value of an option. One that is a comment, such as "#16", is a text.

    Raises:
        yaml.YAMLError: If it is no YAML, is nested too deeply, or a mapping has a key twice, of which one would be
            ignored.

    Example:
        >>> load("a: 1"), load("#16")
        ({'a': 1}, '#16')
    """
    _refuse_deep_nesting(text)
    node = yaml.compose(text, Loader=_Loader)
    if node is None and "\n" not in text:
        return text
    _refuse_repeated_keys(node)
    return _load_yaml(text)


def use_everywhere() -> None:
    """Let all parsers of options load values and config files so."""
    set_loader("yaml", load, (yaml.YAMLError,))


def _refuse_deep_nesting(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):  # one event after another, whatever the depth
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"expected at most {_DEEPEST} lists and mappings in one another, found more")


def _refuse_repeated_keys(root: yaml.Node | None) -> None:
    seen: set[int] = set()  # an alias is the node that it names, and may be in itself
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            repeated = next((key for key in keys if keys.count(key) > 1), None)
            if repeated is not None:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: expected each key once, found {repeated!r} twice. Delete one")
            nodes += [value for _, value in node.value]
