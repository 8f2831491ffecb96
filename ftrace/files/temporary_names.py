"""Names of temporary files and folders, and the removal of those that processes of this machine have left behind.

A name says what is written, on which machine, by which process: ``.NAME.MACHINE-PROCESS-RANDOM.tmp``. The machine is a
hash of host, boot and namespace of process ids, within which an id means the same process. So the next writer of the
same name can remove what dead processes have left, and only that: never what another machine writes on a shared disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

ASIDE = ".old"  # of an earlier folder, for the moment until the new one is in its place


def temporary_name(target: Path) -> Path:
    """Make a new temporary name beside a file or folder that is to be written."""
    return target.with_name(f".{target.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(target: Path) -> None:
    """Remove what dead processes of this machine have left behind when they wrote the same file or folder.

    If one died between the two renames that replace a folder, and none is there, the earlier one is put back first.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{_machine()}-(\d+)-[0-9a-f]{{8}}\.tmp(?:{re.escape(ASIDE)})?")
    names: list[str] = []
    with suppress(OSError):  # what can't be listed stays, and what isn't there holds none
        names = os.listdir(target.parent)
    for name in names:
        if (match := pattern.fullmatch(name)) and not _is_alive(int(match[1])):
            leftover = target.with_name(name)
            if name.endswith(ASIDE) and not target.exists():
                with suppress(OSError):  # another process may be faster
                    leftover.rename(target)
                continue
            _remove(leftover)


def _remove(leftover: Path) -> None:
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
        return
    with suppress(OSError):
        leftover.unlink()


@cache
def _machine() -> str:
    """Return a name of the machine, within which a process's id is its own: eight hexadecimal digits."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        known = [socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")]
    except OSError:  # it can't be told from others: a name that no other process has
        return secrets.token_hex(4)
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
