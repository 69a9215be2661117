"""The `lakehouse` program as a process of its own that is there at once: a fork of a server that has its imports done.

Loading the libraries is most of what a short run of the program costs, and a suite runs it a thousand times. What is
forked is a process like any other: its own memory, environment and exit status, and SIGKILL ends it and nothing
else. It differs in one thing: it never sees a module missing that another part of the program imports. Tests of what
the program loads, and of how fast, start Python themselves (`Lakehouse.command`).
"""

from __future__ import annotations

import atexit
import functools
import io
import os
import pkgutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerContext
from typing import Any

_LIBRARIES = (
    "alembic.command",
    "boto3",
    "duckdb",
    "psycopg",
    "pyarrow.fs",
    "pyarrow.parquet",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.pyarrow",
    "rich.table",
    "sqlalchemy.dialects.postgresql.psycopg",
)
"""Not adbc: its import brings polars along where that is installed, with its threads."""
_LEFT_OUT = ("lakehouse.control.migrations", "lakehouse.demo", "lakehouse.embedded", "lakehouse.forking")


def _modules() -> list[str]:
    """All of the program's own and the libraries that it loads when it needs them."""
    import catalog
    import federation
    import lakehouse
    import schemas

    own = [
        module.name
        for package in (schemas, catalog, federation, lakehouse)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.startswith(_LEFT_OUT)
    ]
    return [*own, *_LIBRARIES]


def _run(arguments: Sequence[str], environment: Mapping[str, str], out: Any, err: Any) -> None:
    """In the fork: become the program."""
    for source, target in ((out, 1), (err, 2)):
        os.dup2(source.fileno(), target)
        source.close()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.argv = ["lakehouse", *arguments]
    from lakehouse.cli import main

    try:
        main()
    finally:
        # As an interpreter that ends does, and a fork does not: pools' threads are told to end, and are waited for.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


@functools.cache
def _server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(_modules())
    # Before multiprocessing's own, which waits for what still runs.
    atexit.register(lambda: [program.kill() for program in _running])
    return context


_running: weakref.WeakSet[Program] = weakref.WeakSet()


class Program:
    """What tests use of `subprocess.Popen`, with both streams as text."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.args = ["lakehouse", *arguments]
        (out, out_end), (err, err_end) = (connection.Pipe(duplex=False) for _ in range(2))
        self._process = _server().Process(target=_run, args=(list(arguments), dict(environment), out_end, err_end))
        self._process.start()
        _running.add(self)
        for end in (out_end, err_end):
            end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(c.fileno()), encoding="utf-8") for c in (out, err))
        for source in (out, err):
            source.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended. Raises: subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it writes until it ends. Raises: subprocess.TimeoutExpired."""
        texts = ["", ""]

        def read(number: int, stream: Any) -> None:
            texts[number] = stream.read()

        readers = [
            threading.Thread(target=read, args=(n, s), daemon=True) for n, s in enumerate((self.stdout, self.stderr))
        ]
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(1, deadline - time.monotonic()))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            stream.close()
        self.wait()
