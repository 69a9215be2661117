"""`make mutants`: plant each defect in a copy of the code and run the tests that should notice.

A test that already fails without a defect proves nothing, so all of them are run on the untouched copy first. Then
each defect alone: caught means that pytest ran and a test failed (exit 1); a copy that cannot be imported or
collected is no catch. Exit 0 only if all were caught. `--only NAME` (repeatable) runs some, `--jobs` several at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.planted import MUTANTS

COPIED = ("lakehouse", "federation", "catalog", "schemas", "tests", "docs", "notebooks")
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Outcome:
    """What became of one defect. `why`: the first line that says so."""

    mutant: Mutant
    caught: bool
    why: str
    seconds: float


def copy_tree(target: Path) -> None:
    """The code and its tests, without what was built from them."""
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "ARCHITECTURE.md", "Makefile"):
        shutil.copy(ROOT / name, target / name)


def run_tests(
    root: Path, tests: list[str], *options: str, timeout: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run these tests of the copy below `root` against the code there."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *options]
    try:
        return subprocess.run(
            [*command, *(f"tests/{t}" for t in tests)],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        # A defect that makes the program wait for ever was noticed, but by the clock: it does not count.
        return subprocess.CompletedProcess(command, 124, "", f"did not end in {timeout:g} s")


def attack(mutant: Mutant) -> Outcome:
    """Plant one defect in a copy of its own and run its tests."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder)
        copy_tree(root)
        mutant.plant(root)
        done = run_tests(root, list(mutant.tests), "-x")
    seconds = time.monotonic() - began
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode == 1:
        failed = [line for line in lines if line.startswith("FAILED")]
        return Outcome(mutant, True, failed[0].removeprefix("FAILED tests/") if failed else "", seconds)
    return Outcome(mutant, False, f"pytest exit {done.returncode}: {lines[-1] if lines else ''}", seconds)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this mutant (repeatable)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a defect first")
    parser.add_argument("--list", action="store_true", help="only list them")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if not arguments.only or m.name in arguments.only]
    if unknown := set(arguments.only) - {m.name for m in MUTANTS}:
        parser.error(f"no mutant is named {', '.join(sorted(unknown))}; --list lists them")
    if arguments.list:
        for mutant in chosen:
            say(f"{mutant.name:32s} {', '.join(mutant.tests)}")
        return 0
    if faults := [fault for m in chosen for fault in m.faults()]:
        say("\n".join(faults))
        return 1
    if not arguments.no_baseline:
        tests = sorted({t for m in chosen for t in m.tests})
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            copy_tree(Path(folder))
            done = run_tests(Path(folder), tests, "-n", str(arguments.jobs), timeout=6 * TIMEOUT_SECONDS)
        if done.returncode:
            say((done.stdout + done.stderr)[-3000:])
            say("The tests fail without a defect: nothing can be proven.")
            return 1
        say(f"{len(tests)} tests pass without a defect")
    missed = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(attack, chosen):
            word = "caught" if outcome.caught else "MISSED"
            say(f"{word}  {outcome.mutant.name:34s} {outcome.seconds:5.0f} s  {outcome.why[:150]}")
            if not outcome.caught:
                missed.append(outcome.mutant.name)
    say(f"{len(chosen) - len(missed)} of {len(chosen)} mutants caught")
    if missed:
        say(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
