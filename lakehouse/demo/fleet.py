"""Several `lakehouse run` as separate processes, which are killed and started again, and what they said."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.errors import LakehouseError


@dataclass
class FleetReport:
    """What a run of several programs met."""

    processes: int = 0
    kills: int = 0
    outage_seconds: float = 0.0
    windows: int = 0
    landings: int = 0
    landings_failed: int = 0
    deliveries: int = 0
    deliveries_retried: int = 0
    takeovers: int = 0
    """Leases that ran out and were taken over, of tasks and of deliveries."""
    lease_losses: int = 0
    """Leases that a living program noticed it had lost."""
    dead_letters: int = 0
    abandoned_shares: int = 0
    files_merged: int = 0
    leaders: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Fleet:
    """Starts and kills programs; their events go to files in `folder`."""

    def __init__(self, variables: Mapping[str, str], folder: Path, size: int, *, seed: int) -> None:
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("LAKEHOUSE_")} | dict(variables)
        self._folder = folder
        self._size = size
        self._random = random.Random(seed)  # noqa: S311 - whom to kill
        self._running: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self.kills = 0

    def __enter__(self) -> Self:
        for _ in range(self._size):
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    def _start(self) -> None:
        self.started += 1
        with (self._folder / f"program-{self.started}.jsonl").open("wb") as log:
            command = [sys.executable, "-c", "from lakehouse.cli import main; main()", "run"]
            self._running.append(
                subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def kill_one(self) -> int:
        """SIGKILL one of them, start another in its place; returns the dead one's process id.

        Raises:
            LakehouseError: one had ended by itself.
        """
        for process in self._running:
            if process.poll() is not None:
                raise LakehouseError(f"a program ended by itself with status {process.returncode}", self.last_words())
        victim = self._running.pop(self._random.randrange(len(self._running)))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        self.kills += 1
        self._start()
        return victim.pid

    def stop(self, seconds: float) -> None:
        """SIGTERM to all; each finishes what it is in.

        Raises:
            LakehouseError: one did not end in time, or not with status 0.
        """
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired as error:
                raise LakehouseError("a program did not stop in time", self.last_words()) from error
            # One that was started a moment ago has not set its handler yet, nor begun anything.
            if status not in (0, -signal.SIGTERM):
                raise LakehouseError(f"a program stopped with status {status}", self.last_words())
        self._running.clear()

    def last_words(self) -> str:
        """The last lines of the newest log."""
        newest = max(self._folder.glob("program-*.jsonl"), key=lambda p: p.stat().st_mtime)
        return "\n".join(newest.read_text("utf-8", "replace").splitlines()[-5:])

    def events(self) -> list[dict[str, Any]]:
        """Every whole event that any of them wrote."""
        found = []
        for file in sorted(self._folder.glob("program-*.jsonl")):
            for line in file.read_text("utf-8", "replace").splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    # A line for people, or one that a kill cut off.
                    continue
                if isinstance(event, dict) and "event" in event:
                    found.append(event)
        return found

    def count(self, report: FleetReport) -> None:
        """Fill in what the programs' own events say."""
        events = self.events()
        outcomes = Counter((e["event"], e.get("outcome", "ok")) for e in events)
        report.processes, report.kills = self.started, self.kills
        report.windows = outcomes["window", "ok"]
        report.landings = outcomes["landing", "ok"]
        report.landings_failed = outcomes["landing", "error"]
        report.lease_losses = sum(n for (kind, _), n in outcomes.items() if kind == "lease_lost")
        report.leaders = outcomes["leading", "ok"]
        report.files_merged = sum(int(e.get("files_merged", 0)) for e in events if e["event"] == "maintenance")
        faults = Counter(
            f"{e['event']}: {str(e.get('error', ''))[:120]}" for e in events if e.get("outcome") == "error"
        )
        report.errors = dict(faults.most_common(10))
