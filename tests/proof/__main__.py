"""`make proof`: the property and the crash suite, again and again with a new seed each time, at a size that counts.

A run is both suites beside one another, each a pytest of its own: the three methods of the property suite, together
with at least `TRANSACTIONS` committed transactions and `VERSIONS` row versions (a run below is a failure), and the
whole crash suite, with the kills at random moments. `--runs 10` makes ten, `--minutes 20` one that goes on for so long.
The first failure ends it, and what it printed is kept. After each run docs/proof.json and the summary in
docs/correctness.md are written; `--continue` adds to the series that stands there instead of beginning another.
`PROPERTY_SEED=… pytest tests/property/test_capture_random.py` repeats what the writers of a run did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.crash_report import LOG, counts
from tests.proof import document
from tests.support import ROOT

FIGURES = ROOT / "docs" / "proof.json"
METHODS = 3
TRANSACTIONS = 48_000
VERSIONS = 500_000
SUITES = {"property": "tests/property/test_capture_random.py", "crash": "tests/crash"}


def environment(seed: str, minutes: float | None, log: Path) -> dict[str, str]:
    """What one run is given. By the minute: the methods share the time, and programs are killed for as long."""
    chosen = {
        "PROPERTY_SEED": seed,
        "PROPERTY_TRANSACTIONS": str(-(-TRANSACTIONS // METHODS)),
        "PROPERTY_VERSIONS": str(-(-VERSIONS // METHODS)),
        LOG: str(log),
    }
    if minutes is not None:
        chosen |= {"PROPERTY_SECONDS": f"{minutes * 60 / METHODS:g}", "CRASH_SECONDS": f"{minutes * 60:g}"}
    return {k: v for k, v in os.environ.items() if not k.startswith("LAKEHOUSE_")} | chosen


def figures(output: str) -> dict[str, Any]:
    """The sums of what a suite's tests printed as `figures {…}`, and how many tests passed."""
    found: dict[str, Any] = {"passed": sum(int(n) for n in re.findall(r"(\d+) passed", output))}
    for line in re.findall(r"^.*?figures (\{.*\})$", output, re.M):
        for name, value in json.loads(line).items():
            found[name] = found.get(name, 0) + value
    return found


def shortfall(found: dict[str, Any]) -> str:
    """What a run of the property suite lacks to count; empty if nothing."""
    wanted = {"transactions": TRANSACTIONS, "versions": VERSIONS}
    return ", ".join(f"{found.get(k, 0):,} of {n:,} {k}" for k, n in wanted.items() if found.get(k, 0) < n)


def run(seed: str, minutes: float | None, folder: Path) -> dict[str, Any]:
    """One run of both suites; what they printed is in `folder`."""
    log = folder / "failpoints"
    log.touch()
    began = time.monotonic()
    chosen = environment(seed, minutes, log)
    programs = {}
    for suite, tests in SUITES.items():
        with (folder / f"{suite}.log").open("w") as output:
            command = [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", tests]
            programs[suite] = subprocess.Popen(
                command, cwd=ROOT, env=chosen, stdout=output, stderr=subprocess.STDOUT, text=True
            )
    try:
        failed = [suite for suite, program in programs.items() if program.wait() != 0]
    finally:
        for program in programs.values():
            # As Ctrl-C would, so that it stops the servers that it has started; nothing where it has ended.
            program.send_signal(signal.SIGINT)
            program.wait()
    found = {suite: figures((folder / f"{suite}.log").read_text()) for suite in SUITES}
    why = ", ".join(f"the {suite} suite failed" for suite in failed) or shortfall(found["property"])
    return {
        "seed": seed,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "minutes": minutes,
        "seconds": round(time.monotonic() - began),
        **found,
        "kills": {name: n for (name, what), n in sorted(counts(log).items()) if what == "kill"},
        "outcome": why or "passed",
    }


def commit() -> str:
    """Of which code this is the proof."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def load() -> dict[str, Any]:
    """What docs/proof.json holds."""
    found: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return found


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "gigabytes": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make proof", description=(__doc__ or "").splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--runs", type=int, default=1, help="so many runs in a row")
    length.add_argument("--minutes", type=float, help="one run that goes on for so long")
    parser.add_argument("--continue", action="store_true", dest="more", help="add to the last series of runs")
    parser.add_argument("--no-document", action="store_true", help="print the outcomes and write nothing")
    arguments = parser.parse_args()
    if arguments.runs < 1 or (arguments.minutes is not None and arguments.minutes <= 0):
        parser.error("--runs takes 1 or more, --minutes more than 0")
    kept = load()
    kept["machine"] = machine()
    series = "runs" if arguments.minutes is None else "long"
    if not arguments.more or series not in kept:
        kept[series] = []
    folder = Path(tempfile.mkdtemp(prefix="lakehouse-proof-"))
    for _ in range(arguments.runs):
        seed = secrets.token_hex(4)
        place = folder / seed
        place.mkdir()
        found = run(seed, arguments.minutes, place)
        kept[series].append(found)
        sys.stdout.write(f"{document.line(found)}\n")
        sys.stdout.flush()
        if not arguments.no_document:
            FIGURES.write_text(json.dumps(kept, indent=1) + "\n")
            document.write(kept)
        if found["outcome"] != "passed":
            sys.stdout.write(f"what it printed: {place}\n")
            return 1
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    folder.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
