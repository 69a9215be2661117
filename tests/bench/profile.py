"""Takes the profile of a part that misses a goal: seconds by step, and what the servers beside it spent meanwhile.

Two cores are shared by everything, so a figure can be missed although the program waits for nobody: the profile adds
up what the program's processes, PostgreSQL, the S3 server and others spent, and what was idle.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.bench import measure
from tests.bench.steps import Spent
from tests.bench.world import World, program


@contextmanager
def beside(world: World) -> Iterator[dict[str, float]]:
    """Processor seconds of the servers and of the machine while the body runs; filled when it ends."""
    found: dict[str, float] = {}
    before, began = _servers(world), time.perf_counter()
    yield found
    after = _servers(world)
    found |= {name: round(after[name] - before[name], 2) for name in after if name in before}
    found["seconds"] = round(time.perf_counter() - began, 2)


def _servers(world: World) -> dict[str, float]:
    machine = psutil.cpu_times()
    found = {
        "idle": machine.idle + getattr(machine, "iowait", 0.0),
        "busy": sum(machine[:3]) + sum(getattr(machine, name, 0.0) for name in ("irq", "softirq", "steal")),
    }
    roots = {"PostgreSQL": _postmaster(world.admin_url), "S3": getattr(world.s3, "pid", None)}
    for name, pid in roots.items():
        if pid is not None:
            found[name] = _tree(psutil.Process(pid))
    return found


def _postmaster(url: str) -> int | None:
    """The server's main process; None if it runs on another machine."""
    with psycopg.connect(url, autocommit=True) as connection:
        try:
            backend = psutil.Process(connection.info.backend_pid)
            return backend.ppid() if "postgres" in backend.name() else None
        except psutil.NoSuchProcess:
            return None


def _tree(root: psutil.Process) -> float:
    """What a process, its living children, and those that it waited for have spent."""
    used = root.cpu_times()
    total = used.user + used.system + used.children_user + used.children_system
    for child in root.children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total


def take(world: World, variables: Mapping[str, str], rows: int, *arguments: str) -> dict[str, Any]:
    """Run the `lakehouse` program with its steps watched. `rows`: what processor time is divided by."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-c", "from tests.bench.profiled import main; main()", *arguments]
        with beside(world) as servers:
            done = measure.run(command, program(variables) | {"BENCH_STEPS": scratch})
        found: dict[str, Spent] = {}
        watched = 0.0
        for file in Path(scratch).iterdir():
            told = json.loads(file.read_text())
            watched += sum(s["processor"] for s in told["steps"].values())
            for name, spent in told["steps"].items():
                total = found.setdefault(name, Spent())
                total.calls += spent["calls"]
                total.processor += spent["processor"]
                # Processes that read ranges run beside each other: only this one's clock is the program's.
                total.seconds += spent["seconds"] if file.name == "program.json" else 0.0
    return {
        "command": "lakehouse " + " ".join(arguments),
        "rows": rows,
        "seconds": round(done.seconds, 3),
        "processor": round(done.processor, 3),
        "steps": steps_json(found),
        "unwatched": round(done.processor - watched, 3),
        "machine": machine(servers, done.processor),
    }


def steps_json(spent: Mapping[str, Spent], share: float = 1.0) -> list[dict[str, Any]]:
    """Steps by what they cost, dearest first; `share` divides them (by windows, for one)."""
    found = [
        {
            "step": name,
            "seconds": round(s.seconds / share, 4),
            "processor": round(s.processor / share, 4),
            "calls": round(s.calls / share, 1),
        }
        for name, s in spent.items()
        if s.calls
    ]
    return sorted(found, key=lambda s: -max(s["processor"], s["seconds"]))


def machine(servers: dict[str, float], own: float) -> dict[str, Any]:
    """Core seconds while it ran: of the program, of each server, of others, and idle."""
    known = {"program": round(own, 2)} | {k: v for k, v in servers.items() if k in ("PostgreSQL", "S3")}
    others = max(0.0, servers["busy"] - sum(known.values()))
    return {
        "cores": len(os.sched_getaffinity(0)),
        "seconds": servers["seconds"],
        **known,
        "others": round(others, 2),
        "idle": round(servers["idle"], 2),
    }
