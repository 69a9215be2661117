"""The servers that tests share: one PostgreSQL and one S3 server a session, a fresh database or bucket a test."""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from lakehouse.control.database import migrate
from lakehouse.demo.environment import create_hot_tables, settings_values
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.observe import redact
from lakehouse.settings import ExplicitSettings
from tests.support import local_variables

pytest_plugins = ["tests.crash_report"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL; a test that stops or kills a server makes one of its own."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[EmbeddedS3]:
    """The session's S3 server; a test that stops, kills or pauses a server makes one of its own."""
    with EmbeddedS3() as server:
        yield server


@pytest.fixture(autouse=True)
def no_remembered_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test called a secret may be a word of the next one's messages."""
    monkeypatch.setattr(redact, "_known", frozenset())


@pytest.fixture
def postgres_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a fresh database, dropped afterwards with whatever still holds it."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def host_template(postgres_server: EmbeddedPostgres) -> str:
    """A database with the host's empty tables and control tables that are nobody's yet; to be copied."""
    url = postgres_server.create_database("host_template")
    create_hot_tables(url)
    with TemporaryDirectory() as folder:
        migrate(ExplicitSettings(**settings_values(local_variables(url, Path(folder))))).dispose()
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM lakehouse.installation")
    return "host_template"


@pytest.fixture
def hot_url(postgres_server: EmbeddedPostgres, host_template: str) -> Iterator[str]:
    """The URL of a fresh database with the host's empty tables: `host_tables` adds the organizations."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_server.create_database(name, host_template)
    postgres_server.drop_database(name)


@pytest.fixture
def s3(s3_server: EmbeddedS3) -> EmbeddedS3:
    """The session's S3 server, beside a `bucket`."""
    return s3_server


@pytest.fixture
def bucket(s3_server: EmbeddedS3) -> str:
    """The name of a fresh bucket."""
    return s3_server.create_bucket(f"test-{secrets.token_hex(6)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A case of a kind that was skipped is an empty cell, and fails."""
    report = yield
    if report.skipped and item.name.startswith("test_conformance["):
        report.outcome = "failed"
        report.longrepr = f"a case that is skipped proves nothing: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was not tested, also when it is nothing; and which kind of destination met which case."""
    terminalreporter.write_line(f"skipped: {len(terminalreporter.stats.get('skipped', []))}")
    cells: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if found := re.search(r"test_conformance\[([A-Z0-9_]+)-(\w+)\]", report.nodeid):
                # Every place says of itself whether it is real, and the test asks it.
                cells.setdefault(found[2], {})[found[1]] = "real" if outcome == "passed" else outcome
    if cells:
        kinds = sorted({kind for row in cells.values() for kind in row})
        terminalreporter.write_line(f"\n{'destination, case':52}" + "".join(f"{kind:18}" for kind in kinds))
        for case, row in cells.items():
            terminalreporter.write_line(f"{case:52}" + "".join(f"{row.get(kind, '-'):18}" for kind in kinds))
