"""Classes that a run's config names, and which of them are followed.

A config is data until a class is imported for it: then code runs. A run that somebody else has made names whatever they
like, so only classes of ftrace itself are followed, and the settings of a trainer that name none. The user may trust a
run, and then all of its classes are followed.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ftrace.run_folder import UntrustedError

# The classes that are followed, by section: their modules, since importing them all takes seconds.
_OWN = {
    "model": {"FactLM": "ftrace.models.fact_lm"},
    "data": {
        "FactData": "ftrace.data.fact_data",
        "FactCorpus": "ftrace.data.fact_corpus",
        "FtraceRumours": "ftrace.data.ftrace_rumours",
        "FtraceSynth": "ftrace.data.ftrace_synth",
        "FtraceTrex": "ftrace.data.ftrace_trex",
    },
}
_TABLES = {
    "FactCorpus": "ftrace.data.corpus_tables.CorpusTables",
    "FtraceRumours": "ftrace.data.rumour_tables.RumourTables",
    "FtraceSynth": "ftrace.data.synth_tables.SynthTables",
    "FtraceTrex": "ftrace.data.trex_tables.TrexTables",
}
_PARTS = {"class_path", "init_args", "dict_kwargs"}
_DOTTED = re.compile(r"\s*[^\W\d]\w*(\.[^\W\d]\w*)+\s*")  # what could be the path of a class or a function
_PATHS = ("default_root_dir",)  # settings of a trainer that are paths of folders, and may have dots


def check_classes(config: Mapping[str, Any], section: str, file: Path, *, ignored: Collection[str]) -> None:
    """Refuse to follow a section of a run's config that names classes other than ftrace's own.

    Args:
        config: The run's config.
        section: "model", "data" or "trainer".
        file: Where it comes from, for the message.
        ignored: Settings of the trainer that are never followed.

    Raises:
        UntrustedError: If there are such classes; the message names those of all sections.
    """
    foreign = {name: list(_foreign_in(name, config.get(name))) for name in _OWN}
    trainer = config.get("trainer")
    settings = trainer if isinstance(trainer, Mapping) else {"": trainer}
    followed = {name: value for name, value in settings.items() if name not in (*ignored, *_PATHS)}
    foreign["trainer"] = [f"{path} in {name}" for name, value in followed.items() for path in _named_in(value)]
    if foreign[section]:
        named = [f"{name}: {path}" for name, paths in foreign.items() for path in paths]
        raise UntrustedError(
            f"{str(file)!r} names code that isn't ftrace's own, and would run here: {', '.join(named)}. If you trust "
            "all of it, add --trust, or in Python Run(folder, trust=True)"
        )


def own_classes(section: str) -> set[str]:
    """Return the paths by which configs name ftrace's own classes: the public ones, and those of their modules.

    Args:
        section: "model" or "data".
    """
    return {
        path for name, module in _OWN[section].items() for path in (f"{module}.{name}", f"{_package(module)}.{name}")
    }


def tables_of(class_path: str) -> str | None:
    """Return the path of the class of the tables alone of one of ftrace's own data modules; None of any other."""
    name = class_path.rpartition(".")[2]
    return _TABLES.get(name) if class_path in own_classes("data") else None


def _package(module: str) -> str:
    return module.rpartition(".")[0]


def class_path_of(section: Any) -> str:
    """Return the path of the class that a section of a config names; "" if it names none."""
    path = section.get("class_path") if isinstance(section, Mapping) else section
    return path if isinstance(path, str) else ""


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Resolve relative paths from a folder, but import nothing from it."""
    here = str(Path.cwd())
    before = sys.path
    sys.path = [entry or here for entry in before]  # "" stands for the folder that we are in
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.path = before


def _foreign_in(section: str, settings: Any) -> Iterator[str]:
    """Yield the paths of classes that a section names beside ftrace's own."""
    path = class_path_of(settings)
    if path not in own_classes(section):
        yield path or f"no class, but {type(settings).__name__}"
    if isinstance(settings, Mapping):
        arguments = {name: value for name, value in settings.items() if name != "class_path"}
        strange = arguments.keys() - _PARTS
        strange |= {name for name, value in arguments.items() if not isinstance(value, Mapping | None)}
        yield from (f"the entry {name!r}" for name in sorted(map(str, strange)))
        yield from _classes_in(arguments)


def _classes_in(settings: Any) -> Iterator[str]:
    """Yield the class paths in nested settings. None of our classes takes objects, so there should be none."""
    for value in _all_values(settings):
        if isinstance(value, Mapping) and "class_path" in value:
            yield str(value["class_path"])


def _named_in(setting: Any) -> Iterator[str]:
    """Yield what could be imported for a setting of the trainer: any class, and any dotted path."""
    yield from _classes_in(setting)
    yield from (text for text in _all_values(setting) if isinstance(text, str) and _DOTTED.fullmatch(text))


def _all_values(settings: Any) -> Iterator[Any]:
    """Yield each value in nested settings once, although YAML may repeat it by references."""
    known: set[int] = set()
    waiting = [settings]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping | list | tuple):
            if id(value) in known:
                continue
            known.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)
        yield value
