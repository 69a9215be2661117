"""Runs a process and measures its whole tree: seconds, processor seconds, peak resident memory.

Processor time is what the kernel counted for the process and its reaped descendants. Memory is the sum over all living
ones of what is resident, a page that several of them share divided among them (PSS), sampled every 50 ms.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """One process, from start to end."""

    seconds: float
    processor: float
    megabytes: float
    output: str


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, *, discard: bool = False) -> Run:
    """Run a command to its end and measure it. `discard`: its stdout goes nowhere.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        child = subprocess.Popen(
            list(command),
            env=dict(environment) if environment is not None else None,
            stdout=subprocess.DEVNULL if discard else out,
            stderr=errors,
            stdin=subprocess.DEVNULL,
        )
        peak = [0]
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(child.pid, peak, over))
        watcher.start()
        # wait4 gives the processor time of this child and of whatever it waited for itself.
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        watcher.join()
        out.seek(0)
        errors.seek(0)
        text = out.read().decode(errors="replace")
        if child.returncode:
            said = (text + errors.read().decode(errors="replace"))[-3000:]
            raise RuntimeError(f"{Path(command[0]).name}: exit {child.returncode}\n{said}")
    return Run(seconds, used.ru_utime + used.ru_stime, peak[0] / 1e6, text)


def _watch(pid: int, peak: list[int], over: threading.Event) -> None:
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    while not over.wait(SAMPLE_SECONDS):
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], sum(_resident(one) for one in family))


def _resident(process: psutil.Process) -> int:
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        # It is gone, or this is no Linux: then its resident set has to do.
        try:
            return int(process.memory_info().rss) if not Path("/proc/self/smaps_rollup").exists() else 0
        except psutil.NoSuchProcess:
            return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)
