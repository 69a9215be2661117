"""What tests of capture and landing stand on: a small lakehouse over real servers, with a clock that tests move."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from catalog.lake import encode_organization
from lakehouse.app import App
from lakehouse.backfill.run import BackfillResult, backfill_table
from lakehouse.capture.prepare import reader_of, run, work_for
from lakehouse.control import store
from lakehouse.control.database import migrate
from lakehouse.demo.environment import create_hot_tables, settings_values
from lakehouse.duck import connect, lake_relation
from lakehouse.result import TableResult
from lakehouse.settings import ExplicitSettings
from lakehouse.sync import sync_table
from lakehouse.verify.compare import Comparison, verify_table
from tests.programs import Program

ORGANIZATIONS = ("org-a", "org-b", "org-c")
ROOT = Path(__file__).parent.parent


class Inline:
    """An executor that does the work at once, in this process."""

    workers = 1

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(task))
        except Exception as error:
            future.set_exception(error)
        return future


class MovedClock:
    """The machine's clock plus what a test adds; or a fixed time, if the test sets one."""

    def __init__(self) -> None:
        self.offset = timedelta()
        self.fixed: datetime | None = None

    def __call__(self) -> datetime:
        return self.fixed if self.fixed is not None else datetime.now(UTC) + self.offset


@dataclass
class Lakehouse:
    """One installation over one database and one warehouse."""

    hot_url: str
    variables: dict[str, str]
    clock: MovedClock = field(default_factory=MovedClock)

    def __post_init__(self) -> None:
        self.reopen()

    def close(self) -> None:
        if hasattr(self, "app"):
            self.app.close()

    def reopen(self, **more: str) -> App:
        """A new application object, as a new process would have it; `more` are further variables."""
        self.close()
        self.variables |= {f"LAKEHOUSE_{k}": v for k, v in more.items()}
        self.app = App(ExplicitSettings(**settings_values(self.variables)), self.clock)
        return self.app

    def init(self, *organizations: str) -> None:
        """Control tables, and a lake for each organization (default: those of the organizations table)."""
        self.app.close()
        self.app.engine = migrate(self.app.settings)
        for organization in organizations or self.app.source.organizations():
            self.app.enrol(organization)

    def backfill(self, table: str, **options: Any) -> BackfillResult:
        """Backfill one table in this process; crash tests run the program and its workers."""
        return backfill_table(self.app, self.app.contract(table), Inline(), **options)

    def sync(self, table: str, *, reconcile: bool | None = None) -> TableResult:
        """One window."""
        return sync_table(self.app, self.app.contract(table), reconcile=reconcile)

    def sync_ok(self, table: str, *, reconcile: bool | None = None) -> TableResult:
        """One window that must not meet any error."""
        result = self.sync(table, reconcile=reconcile)
        assert not result.errors, {o: str(e) for o, e in result.errors.items()}
        return result

    def prepare(self, *tables: str) -> None:
        """As `lakehouse source prepare --apply` does, in this process."""
        with self.app.source.catalog() as connection:
            for table in tables:
                contract = self.app.contract(table)
                work = work_for(connection, contract, reader_of(self.app.source))
                run(connection, contract, work, lock_seconds=2, attempts=5)

    def compare(self, table: str, *organizations: str, repeats: bool = True) -> list[Comparison]:
        """Hot against lake."""
        wanted = organizations or tuple(lake.organization_id for lake in store.lakes(self.app.engine))
        return verify_table(self.app, self.app.contract(table), wanted, repeats=repeats)

    def assert_equal(self, table: str, *organizations: str, repeats: bool = True) -> None:
        """Hot and lake hold the same, and no version landed twice."""
        for comparison in self.compare(table, *organizations, repeats=repeats):
            assert comparison.equal, (comparison, comparison.differences, str(comparison.error))

    def versions(self, table: str, organization: str, columns: str = "*") -> list[dict[str, Any]]:
        """Every version in the lake, in the order of `_sequence`; read by DuckDB from the files."""
        contract = self.app.contract(table)
        lake_table = self.app.lake(organization).catalog.load_table((encode_organization(organization), contract.table))
        if lake_table.current_snapshot() is None:
            return []
        with connect([self.app.address_of(organization)]) as duck:
            query = f"SELECT {columns} FROM {lake_relation(lake_table.metadata_location)} ORDER BY _sequence"
            return duck.execute(query).to_arrow_table().to_pylist()

    def lake_table(self, table: str, organization: str) -> Any:
        """The pyiceberg table."""
        return self.app.lake(organization).catalog.load_table((encode_organization(organization), table))

    @contextmanager
    def hot(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection to the hot database, in autocommit mode."""
        with psycopg.connect(self.hot_url, autocommit=True) as connection:
            yield connection

    def run(self, *arguments: str, failpoints: str = "", check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run the `lakehouse` program as a process of its own; `check` is the exit status that it must have."""
        with self.start(*arguments, failpoints=failpoints) as program:
            try:
                out, err = program.communicate(timeout=120)
            finally:
                program.kill()
        done = subprocess.CompletedProcess(program.args, program.wait(), out, err)
        assert check is None or done.returncode == check, (done.returncode, done.stdout, done.stderr)
        return done

    def run_json(self, *arguments: str, check: int | None = 0) -> Any:
        """Run the program with `--json` and decode what it prints."""
        done = self.run(*arguments, "--json", check=check)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str, failpoints: str = "") -> Program:
        """Start the program and do not wait."""
        return Program(arguments, self.environment(failpoints))

    def command(self, *arguments: str) -> list[str]:
        """The program as an interpreter of its own, for `environment()`."""
        return [sys.executable, "-c", "from lakehouse.cli import main; main()", *arguments]

    def environment(self, failpoints: str = "") -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LAKEHOUSE_") or k == "LAKEHOUSE_FAILPOINT_LOG"}
        return kept | self.variables | ({"LAKEHOUSE_FAILPOINTS": failpoints} if failpoints else {})


def local_variables(hot_url: str, folder: Path) -> dict[str, str]:
    """A lake in local files with its catalog in SQLite."""
    return {
        "LAKEHOUSE_INSTALLATION": "tests",
        "LAKEHOUSE_SOURCE__URL": hot_url,
        "LAKEHOUSE_LAKE__WAREHOUSE": f"file://{folder}/warehouse",
        "LAKEHOUSE_LAKE__CATALOG__URI": f"sqlite:///{folder}/catalog.db",
        "LAKEHOUSE_BACKFILL__WORKERS": "1",
        "LAKEHOUSE_WORK__LEASE_SECONDS": "4",
        "LAKEHOUSE_LANDING__THREADS": "2",
    }


def s3_variables(hot_url: str, s3: Any, bucket: str) -> dict[str, str]:
    """A lake in a bucket with its catalog in PostgreSQL."""
    return {
        "LAKEHOUSE_INSTALLATION": "tests",
        "LAKEHOUSE_SOURCE__URL": hot_url,
        "LAKEHOUSE_LAKE__WAREHOUSE": f"s3://{bucket}/warehouse",
        "LAKEHOUSE_LAKE__S3__ENDPOINT": s3.endpoint,
        "LAKEHOUSE_LAKE__S3__REGION": s3.region,
        "LAKEHOUSE_LAKE__S3__ACCESS_KEY_ID": s3.access_key,
        "LAKEHOUSE_LAKE__S3__SECRET_ACCESS_KEY": s3.secret_key,
        "LAKEHOUSE_BACKFILL__WORKERS": "1",
        "LAKEHOUSE_WORK__LEASE_SECONDS": "4",
        "LAKEHOUSE_LANDING__THREADS": "2",
    }


def host_tables(url: str, organizations: tuple[str, ...] = ORGANIZATIONS) -> None:
    """The host's schema with some organizations, each with one integration."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('organizations')").fetchone() == (None,):
            create_hot_tables(url)
        for name in organizations:
            connection.execute(
                "INSERT INTO organizations (id, name, slug, updated_at) VALUES (%s, %s, %s, now())",
                [name, name.title()[:100], f"{name[:100]}-slug"],
            )
            connection.execute(
                "INSERT INTO integration_connections (id, organization_id, provider, display_name, "
                "external_account_id, encrypted_access_token, updated_at) "
                "VALUES (%s, %s, 'GITHUB', 'x', 'x', 'secret', now())",
                [f"int-{name}", name],
            )


def insert_events(
    connection: psycopg.Connection[Any], organization: str, first: int, count: int, *, day: str = "2026-01-01"
) -> None:
    """Insert `count` events with ids `<organization>-e<number>`, a minute apart from `day` on."""
    connection.execute(
        """
        INSERT INTO ingested_events
            (id, organization_id, integration_id, provider, event_type, source, payload, occurred_at)
        SELECT %(o)s || '-e' || n, %(o)s, 'int-' || %(o)s, 'GITHUB', 'push', 'audit', jsonb_build_object('n', n),
               %(day)s::timestamp + n * interval '1 minute'
        FROM generate_series(%(first)s::int, %(first)s::int + %(count)s::int - 1) n
        """,
        {"o": organization, "first": first, "count": count, "day": day},
    )
