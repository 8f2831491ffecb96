"""How the prompts of a folder of causal traces were traced: ``settings.json`` in it.

Causal tracing writes it, and reports read it without causal tracing, which imports torch: so this is here.
"""

from __future__ import annotations

from typing import TypedDict

from ftrace.files.manifests import Form

SETTINGS = "settings.json"


class Noise(TypedDict):
    """The noise on the subject."""

    kind: str
    scale: float
    samples: int


class Traced(TypedDict):
    """What was traced, as far as readers rely on it."""

    window: int


class OldFolderSettings(TypedDict):
    """The same before version 2, as far as reports say it."""

    settings: Traced
    noise: Noise


class FolderSettings(OldFolderSettings):
    """How the prompts of a folder were traced, as far as readers rely on it."""

    prompts: str
    model: str


FORM = Form(
    "ftrace-causal-traces", 2, FolderSettings, "a folder of causal traces", schema_without_format=OldFolderSettings
)
