"""What a Python prompt, a notebook and pandas show of a gradient index; rows of gradients are not read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftrace.index.plan_words import readable
from ftrace.index.segment import Segment
from ftrace.scores.html import facts_and_tables, table
from ftrace.scores.names import Names
from ftrace.scores.plain_text import counted, plain

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 20_000_000
_SEGMENTS = 20
