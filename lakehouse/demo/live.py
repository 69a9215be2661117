"""The live workload as a process of its own, steered by phase names."""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from schemas.errors import LakehouseError

STOP_SECONDS = 30


class LiveWorkload:
    """Runs `lakehouse.demo.workload`; `phase` names what its counters are for; `finish` returns them."""

    def __init__(self, url: str, *, rate: int, writers: int = 4, seed: int = 1) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "lakehouse.demo.workload", "--url", url, "--rate", str(rate)),
                *("--writers", str(writers), "--seed", str(seed)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        if self._read_line() != "ready":
            raise LakehouseError("the workload did not start", "Its own message stands above.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def phase(self, name: str) -> None:
        """From now on what is done counts for this phase."""
        self._write_line(name)

    def finish(self) -> dict[str, dict[str, int]]:
        """Stop it and return its counters by phase.

        Raises:
            LakehouseError: it failed: its writers met an error that the host would not have met.
        """
        self._write_line("stop")
        output, _ = self._process.communicate(timeout=STOP_SECONDS)
        if self._process.returncode != 0:
            raise LakehouseError("the workload failed", "Its own message stands above.")
        counters: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return counters

    def _write_line(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - opened with a pipe
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LakehouseError("the workload ended by itself", "Its own message stands above.") from error

    def _read_line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - opened with a pipe
        return self._process.stdout.readline().strip()
