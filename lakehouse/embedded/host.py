"""What an embedded server needs of the machine: an account, a folder, a port, and the look of a process in /proc.

Nothing here changes the mode or the owner of a file outside a folder that it made itself.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from schemas.errors import LakehouseError, Retry

_FIRST_PORT, _LAST_PORT = 15_000, 32_767


class PortTakenError(LakehouseError):
    """Another process has the port; on another port, or a little later, the server can start."""

    retry = Retry.TIMED


@dataclass(frozen=True)
class Account:
    """The system user that a server runs as."""

    uid: int
    gid: int

    def may(self, test: str, path: Path) -> bool:
        """Whether a shell of this user finds `test` true, with `path` as ``$1``."""
        probe = subprocess.run(
            ["/bin/sh", "-c", test, "sh", str(path)],
            check=False,
            capture_output=True,
            cwd="/",
            **identity(self),
        )
        return probe.returncode == 0


class Identity(TypedDict):
    """The arguments of `subprocess` that say who runs the program."""

    user: int | None
    group: int | None
    extra_groups: list[str | int] | None


def identity(account: Account | None) -> Identity:
    """How to run a program as `account`; None: as ourselves."""
    if account is None:
        return {"user": None, "group": None, "extra_groups": None}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


@dataclass(frozen=True)
class Stat:
    """What /proc says of a process."""

    state: str
    parent: int
    start: str


def free_port(*, twin: int = 0) -> int:
    """A TCP port of 127.0.0.1 that nobody has now, together with the one `twin` above it.

    It lies below the range from which the system gives ports to outgoing connections (32768 by default), so that
    none of these can take it while a server restarts.
    """
    for _ in range(200):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT - twin)
        if _is_free(port) and (not twin or _is_free(port + twin)):
            return port
    raise PortTakenError(f"found no free port between {_FIRST_PORT} and {_LAST_PORT} on 127.0.0.1")


def until_port_is_free(start: Callable[[], None], attempts: int = 6) -> None:
    """Call `start` again while it loses the race for a port. Raises: PortTakenError of the last attempt."""
    for attempt in range(1, attempts):
        try:
            return start()
        except PortTakenError:
            time.sleep(0.1 * attempt)
    return start()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def temporary_folder(name: str, account: Account | None) -> Path:
    """A new folder which `account` can pass through (None: of this user alone). Raises: LakehouseError."""
    # A TMPDIR such as /root/tmp is closed to the other account; we open nothing, we go elsewhere.
    bases = dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"])  # noqa: S108
    for base in bases:
        if account is None or account.may('cd "$1"', Path(base)):
            folder = Path(tempfile.mkdtemp(prefix=f"lakehouse-{name}-", dir=base))
            if account is not None:
                folder.chmod(0o711)  # ours, and it can be passed through; what is inside has owners of its own
            return folder
    raise LakehouseError(
        f"{name}: user id {account and account.uid} can use none of {', '.join(bases)}",
        "set TMPDIR to a folder that every user can pass through",
    )


def stat(pid: int) -> Stat | None:
    """The process as it is now, or None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Stat(fields[0], int(fields[1]), fields[19])


def same(pid: int, before: Stat) -> bool:
    """Whether `pid` is still the process that was seen, and not a zombie."""
    now = stat(pid)
    return now is not None and now.start == before.start and now.state not in ("Z", "X")


def descendants(pid: int) -> dict[int, Stat]:
    """Children of `pid`, and theirs."""
    everyone = {int(entry.name): stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    family: dict[int, Stat] = {}
    generation = {pid}
    while generation:
        children = {child: stat for child, stat in everyone.items() if stat is not None and stat.parent in generation}
        family |= children
        generation = set(children)
    return family
