"""Where engines put what does not fit into memory: one folder a process, which does not outlive it for long.

A process that ends removes its folder. One that is killed cannot, so each folder holds a lock that the kernel frees
with its process, and the next process to need a folder removes those whose lock is free. Only folders of the same
user are looked at, and never through a link.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "lakehouse-duckdb-"
_LOCK = "lock"


@functools.cache
def spill_folder() -> Path:
    """This process's folder, made when first asked for.

    Raises:
        OSError: no folder can be made where the system keeps temporary files.
    """
    root = Path(tempfile.gettempdir())
    remove_left(root)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    making = folder / "making"
    # Held until the process ends, however it does. It gets its name when it is locked: a free lock is a dead process.
    lock = os.open(making, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    making.rename(folder / _LOCK)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_left(root: Path) -> list[Path]:
    """Remove folders that killed processes left below `root`; returns them."""
    removed = []
    for folder in root.glob(f"{PREFIX}*"):
        # Somebody else may remove the same one at the same time.
        with suppress(FileNotFoundError, NotADirectoryError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and _free(folder / _LOCK):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _free(path: Path) -> bool:
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
