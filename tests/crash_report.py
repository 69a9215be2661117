"""How often each failpoint was passed and acted in the crash suite: shown at the end, over all processes.

Programs append to the file that `CRASH_LOG` names (one in the temporary folder unless it is set). A run of the whole
suite in which some failpoint never killed a process fails: what was not killed there was not tested there.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from lakehouse.failpoints import NAMES

LOG = "CRASH_LOG"
FROM_OUTSIDE = "(at a random moment)"
SUITE = Path(__file__).parent / "crash"
_passed: set[str] = set()
_own: list[str] = []


def note_kill_from_outside() -> None:
    """A test killed a program itself."""
    with Path(os.environ[LOG]).open("a") as log:
        log.write(f"{FROM_OUTSIDE}=kill\n")


def counts(path: Path) -> Counter[tuple[str, str]]:
    """By failpoint and what was done there (`passed`, `kill`, …)."""
    found: Counter[tuple[str, str]] = Counter()
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, what = line.replace("=", " ").rpartition(" ")
        found[name, what] += 1
    return found


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist inherit the variable.
    if LOG not in os.environ:
        handle, path = tempfile.mkstemp(prefix="lakehouse-crash-")
        os.close(handle)
        os.environ[LOG] = path
        _own.append(path)


def pytest_unconfigure(config: pytest.Config) -> None:
    for path in _own:
        Path(path).unlink(missing_ok=True)
        os.environ.pop(LOG, None)
    _own.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "/crash/" in report.nodeid:
        _passed.add(report.nodeid.partition("::")[0].rpartition("/")[2])


def _whole(config: pytest.Config) -> bool:
    """Whether this run was of the whole crash suite, and not of tests that somebody chose from it."""
    chosen = config.option.keyword or config.option.markexpr or any("::" in a for a in config.args)
    return not chosen and _passed == {p.name for p in SUITE.glob("test_*.py")}


def never_killed(found: Counter[tuple[str, str]]) -> list[str]:
    return [name for name in NAMES if not found[name, "kill"]]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or session.exitstatus != 0 or not _whole(session.config):
        return
    if never_killed(counts(Path(os.environ[LOG]))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _passed:
        return
    found = counts(Path(os.environ[LOG]))
    terminalreporter.section("failpoints of the crash suite")
    for name in (*NAMES, FROM_OUTSIDE):
        terminalreporter.write_line(f"{name:26} passed {found[name, 'passed']:6}  killed {found[name, 'kill']:4}")
    missing = never_killed(found)
    if missing and _whole(config):
        terminalreporter.write_line(f"FAILED: no process was killed at {', '.join(missing)}", red=True)
