"""Runs a process and measures its whole tree: seconds, processor seconds, peak resident memory.

Processor time is what the kernel counted for the process and all its descendants, also for those that outlive it: a
small process of ours adopts them (`PR_SET_CHILD_SUBREAPER`, Linux; elsewhere they are not counted) and waits for each.
Memory is the sum over all living ones of what is resident, a page that several of them share divided among them (PSS),
sampled every 50 ms.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.05
_ADOPTING = """
import ctypes, json, os, resource, subprocess, sys, time
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)
began = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
status = child.wait()
seconds = time.perf_counter() - began
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([status, seconds, used.ru_utime + used.ru_stime], file)
"""


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
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
        tempfile.NamedTemporaryFile() as figures,
    ):
        child = subprocess.Popen(
            [sys.executable, "-ISc", _ADOPTING, figures.name, *command],
            env=dict(environment) if environment is not None else None,
            stdout=subprocess.DEVNULL if discard else out,
            stderr=errors,
            stdin=subprocess.DEVNULL,
        )
        peak = [0]
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(child.pid, peak, over))
        watcher.start()
        child.wait()
        over.set()
        watcher.join()
        # Nothing is written if there is no such program.
        status, seconds, processor = json.loads(Path(figures.name).read_bytes() or b"[1, 0, 0]")
        out.seek(0)
        errors.seek(0)
        text = out.read().decode(errors="replace")
        if status:
            said = (text + errors.read().decode(errors="replace"))[-3000:]
            raise RuntimeError(f"{Path(command[0]).name}: exit {status}\n{said}")
    return Run(seconds, processor, peak[0] / 1e6, text)


def _watch(pid: int, peak: list[int], over: threading.Event) -> None:
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    while not over.wait(SAMPLE_SECONDS):
        try:
            family = root.children(recursive=True)
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
