"""One server process that cannot outlive the process which started it.

How that is kept, also when this process gets SIGKILL: a `/bin/sh` of a megabyte, the *keeper*, waits on a pipe
from here. When the last writer of that pipe is gone it ends the server and removes the server's files.
`PR_SET_PDEATHSIG` would be shorter, but it fires when the *thread* that forked ends, it needs a `preexec_fn`
(which may deadlock beside threads) and it leaves the temporary folder behind.

The server starts behind a gate: a shell that waits for a line on a pipe of its own before it becomes the server.
So there is no moment in which a server runs that its keeper has not heard of. The keeper knows the server by
process id *and* start time, so that it never signals a stranger who inherited the number.

A server that nobody stops lives until this process ends. Linux only: it reads /proc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lakehouse.embedded.host import Account, PortTakenError, Stat, descendants, identity, same, stat, temporary_folder
from schemas.errors import LakehouseError

# $1: the signal that ends the server. Lines on the pipe: "PID START" (the server now; empty: none) or "rm PATH".
_KEEPER = r"""
quit=$1; shift; pid=; start=
while read -r first rest; do
    if [ "$first" = rm ]; then set -- "$@" "$rest"; else pid=$first start=$rest; fi
done
alive() {
    stat=$(cut -d' ' -f3,22 "/proc/$pid/stat" 2>/dev/null) || return 1
    [ "${stat#* }" = "$start" ] && [ "${stat% *}" != Z ]
}
if [ -n "$pid" ]; then
    alive && kill -s "$quit" "$pid"
    tries=0
    while alive && [ "$tries" -lt 60 ]; do sleep 0.1; tries=$((tries + 1)); done
    alive && kill -s KILL "$pid"
fi
[ $# -eq 0 ] || rm -rf -- "$@"
"""
_GATE = 'read -r go && exec "$@" </dev/null'
_PORT_TAKEN = ("could not bind", "already in use", "is not available on")


class Server:
    """A server process, its temporary folder and its log; survives neither `close` nor this process."""

    def __init__(self, name: str, *, account: Account | None = None, quit_signal: signal.Signals) -> None:
        """`name` is for messages and the folder; `quit_signal` ends the server when this process has died."""
        self.name = name
        self.account = account
        self.folder = temporary_folder(name, account)
        self.log = self.folder / "server.log"
        self.log.touch(0o600)
        self._process: subprocess.Popen[bytes] | None = None
        self._litter: list[Path] = []
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "keeper", quit_signal.name.removeprefix("SIG")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # Ctrl-C in a terminal is for us: we then stop in order
        )
        _keepers.add(self._keeper)
        self.litter(self.folder)

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def litter(self, path: Path) -> None:
        """Have `path` removed at the end, whoever removes."""
        self._litter.append(path)
        self._tell(f"rm {path}")

    def start(
        self, command: Sequence[str], env: Mapping[str, str], ready: Callable[[int], bool], timeout: float = 60.0
    ) -> None:
        """Start `command` in the folder and return once `ready(pid)`.

        Raises: PortTakenError, or LakehouseError with the last lines of the log; then nothing runs any more.
        """
        offset = self.log.stat().st_size
        deadline = time.monotonic() + timeout
        is_ready = False
        try:
            self._launch(command, env)
            while (pid := self.pid) is not None and time.monotonic() < deadline and not (is_ready := ready(pid)):
                time.sleep(0.01)
        finally:
            if not is_ready:
                self.kill()
        if not is_ready:
            raise self._failure(offset, "ended at its start" if pid is None else f"not ready after {timeout:.0f} s")

    def end(self, *signals: signal.Signals, timeout: float) -> None:
        """Send each of `signals` in turn, `timeout` seconds apart, then SIGKILL; return when the server is gone."""
        for number in signals:
            if self._process is None or self.pid is None:
                break
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the server and its children, and return when all of them are gone. Files stay."""
        if self._process is None:
            return
        family: dict[int, Stat] = {}
        if self.pid is not None:
            self._process.send_signal(signal.SIGSTOP)  # or it forks while we count
            family = descendants(self._process.pid)
            self._process.kill()
        for pid, seen in family.items():
            if same(pid, seen):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        deadline = time.monotonic() + 10
        while any(same(pid, seen) for pid, seen in family.items()) and time.monotonic() < deadline:
            time.sleep(0.002)
        with contextlib.suppress(LakehouseError):
            self._tell("")

    def close(self) -> None:
        """Kill what still runs and remove the files. Safe to call again, and in a fork (where it does nothing)."""
        if self._keeper.stdin is None or self._keeper.stdin.closed:
            return
        self.kill()
        for path in self._litter:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._keeper.stdin.close()
        self._keeper.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last `lines` lines of the log; empty when the server is closed."""
        return _tail(self.log, 0, lines)

    def _launch(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        with self.log.open("ab") as log:
            try:
                process = subprocess.Popen(
                    ["/bin/sh", "-c", _GATE, self.name, *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    bufsize=0,
                    env=dict(env),
                    cwd=self.folder,
                    start_new_session=True,
                    **identity(self.account),
                )
            except OSError as error:
                raise LakehouseError(f"{self.name} could not be started: {error}") from error
        self._process = process
        seen = stat(process.pid)
        self._tell(f"{process.pid} {seen.start if seen else '-'}")
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and the log says why
                process.stdin.write(b"go\n")
            process.stdin.close()

    def _tell(self, line: str) -> None:
        try:
            if self._keeper.stdin is not None:
                self._keeper.stdin.write(f"{line}\n".encode())
        except (OSError, ValueError) as error:
            raise LakehouseError(
                f"{self.name}: its keeper process is gone", "stop this server and start another one"
            ) from error

    def _failure(self, offset: int, what: str) -> LakehouseError:
        log = _tail(self.log, offset, 20)
        error = PortTakenError if any(sign in log for sign in _PORT_TAKEN) else LakehouseError
        return error(f"{self.name} {what}", f"its log ends with:\n{log or '(nothing)'}")


# A fork that never becomes another program would hold the pipes open and keep the keepers waiting.
_keepers: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for keeper in _keepers:
        if keeper.stdin is not None:
            keeper.stdin.close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _tail(path: Path, offset: int, lines: int) -> str:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as log:
        log.seek(max(offset, path.stat().st_size - 100_000))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    return ""
