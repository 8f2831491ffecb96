"""Messages of the option parser, in one line: which option, what was expected, what was found."""

from __future__ import annotations

import re

from ftrace.shown_text import one_line

_LONGEST = 1000  # characters of a message
_LONGEST_VALUE = 200
_REWORDED = (
    (r"Unable to load config '(?P<found>[^\n]*)'\n.*", "expected its options, or a file of them, found {found!r}"),
    (r"unrecognized arguments: (?P<names>.*)", "expected known options, found {names}. See --help"),
    (r"Option '(?P<names>.*)' is not accepted.*", "expected a known option, found {names!r}. See --help"),
    (r"Subcommand '.*' does not accept option '(?P<names>.*)'", "expected a known option, found {names!r}. See --help"),
    (r"Group '(?P<group>.*)' does not accept option '(?P<names>.*)'",
     "expected a known option of {group}, found {names!r}. See --help"),
    (r"Import path (?P<names>\S+) does not correspond to a subclass of (?P<kind>\S+)",
     "expected the class path of a {kind}, found {names!r}"),
    (r"argument --?(?P<names>\S+): ignored explicit argument (?P<found>.*)",
     "{names}: expected nothing after this option, found {found}"),
    (r"argument (?:-\w/)?--?(?P<names>[^\s:]+): (?P<rest>.*)", "{names}: {rest}"),
)  # fmt: skip
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "Sequence": "a list",
    "Iterable": "a list",
    "dict": "a mapping",
    "Mapping": "a mapping",
}
_KEY = re.compile(r"Parser key \"(?P<name>[^\"]*)\"(?: element \d+)?:\s*")
_CLASS = re.compile(r"-?\s*Problem with given class_path '(?P<path>[^']*)':\s*")
_UNION = re.compile(
    r"(?:- Expected a path but .* either not accessible or invalid\s*- )?"
    r"Does not validate against any of the Union subtypes\s*Subtypes: .*?\n\s*Errors:\n(?P<errors>.*)\n"
    r"\s*Given value type: [^\n]*\n\s*Given value: ?(?P<found>.*)",
    re.DOTALL,
)
_EXPECTED = re.compile(r"Expected an? (?P<kind>.*?)(?:\. Got value: ?(?P<found>.*))?", re.DOTALL)


def readable(error: BaseException) -> str:
    r"""Return an error's message in one line; one of the option parser begins with the option's name.

    Args:
        error: Of the parser, or any other.

    Example:
        >>> readable(ValueError('Parser key "k":\n  Expected a <class \'int\'>. Got value: many'))
        "k: expected a whole number, found 'many'"
    """
    is_key_error = type(error) is KeyError and len(error.args) == 1  # its str is the repr of the message
    text = str(error.args[0]) if is_key_error else str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    text = re.sub(r"\[Errno \d+\] ", "", text)
    shown = one_line(_reworded(text.lstrip()))
    if len(shown) > _LONGEST:
        shown = f"{shown[: _LONGEST // 2]} ... {shown[-_LONGEST // 2 :]}"
    return shown or type(error).__name__


def _reworded(text: str) -> str:
    names: list[str] = []
    while True:
        if key := _KEY.match(text):
            names.append(key["name"])
            text = text[key.end() :].lstrip()
        elif of_class := _CLASS.match(text):
            text = text[of_class.end() :].lstrip()
        elif union := _UNION.fullmatch(text):
            text = _of_union(union["errors"], union["found"])
        else:
            break
    message = _message(text)
    return f"{'.'.join(names)}: {message}" if names else message


def _of_union(errors: str, found: str) -> str:
    """Return the message of the alternative that was meant, or one of all alternatives.

    Args:
        errors: A list in which each alternative begins with a dash.
        found: The value, as a text.
    """
    lines = errors.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    alternatives = re.split(rf"^ {{{indent}}}- ", errors, flags=re.MULTILINE)[1:]
    alternatives = [re.sub(r"dot import path string: .*", "class path", each) for each in alternatives]
    for alternative in alternatives:
        if not _EXPECTED.fullmatch(alternative.strip()):
            return alternative.strip()  # it says more than a type
    kinds = [match["kind"] for each in alternatives if (match := _EXPECTED.fullmatch(each.strip()))]
    return f"Expected a {' | '.join(kinds)}. Got value: {found}"


def _message(text: str) -> str:
    expected = _EXPECTED.fullmatch(text)
    if expected and expected["found"] is not None:
        return f"expected {_kinds_in_words(expected['kind'])}, found {_value(expected['found'])}"
    if required := re.fullmatch(r"the following arguments are required: (.*)", text):
        names = [re.sub(r"^[\w-]+\.", "", name) for name in required[1].split(", ")]  # without the command
        return f"expected {' and '.join(names)}, found none"
    for pattern, words in _REWORDED:
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return words.format(**match.groupdict())
    return text


def _kinds_in_words(kinds: str) -> str:
    words = list(dict.fromkeys(_in_words(kind.strip()) for kind in kinds.split(" | ")))
    return " or ".join(words)


def _in_words(kind: str) -> str:
    if literal := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind, re.DOTALL):
        return literal[1] if "," not in literal[1] else f"one of {literal[1]}"
    of_class = re.fullmatch(r"<class '(.*)'>", kind)
    name = (of_class[1] if of_class else kind).partition("[")[0].rpartition(".")[2]
    return _WORDS.get(name, f"a {name}" if of_class or kind == "class path" else kind)


def _value(found: str) -> str:
    nested = re.fullmatch(r"NestedArg\(key='(.*)', val=(.*)\)", found)
    if nested:
        return f"{nested[1]}={nested[2]}"
    is_number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|None|True|False|[\[{].*", found, re.DOTALL)
    shown = {"None": "null", "True": "true", "False": "false"}.get(found, found) if is_number else repr(found)
    return shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]} ..."
