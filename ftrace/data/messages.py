"""Messages of data, from the first of several processes alone, with Lightning and without it."""

from __future__ import annotations

import logging
import sys
import warnings

from ftrace.launched_processes import is_first_process


def warn(message: str) -> None:
    """Warn, in the first process."""
    if is_first_process():
        warnings.warn(message, stacklevel=3)


def tell(message: str) -> None:
    """Say something in the log of Lightning; where nobody has imported Lightning, on stderr, as its log does."""
    if not is_first_process():
        return
    if "lightning.pytorch" in sys.modules:
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info(message)
    else:
        print(message, file=sys.stderr, flush=True)
