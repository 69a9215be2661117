"""A source that is not what the contract says, or that refuses: its table waits, the others go on, nothing is lost."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from lakehouse.embedded.postgres import EmbeddedPostgres
from schemas.errors import LakehouseError
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def log(hot: psycopg.Connection[Any], organization: str, number: int) -> None:
    """A row of a table that nothing is wrong with."""
    hot.execute(
        "INSERT INTO tenant_audit_logs (id, organization_id, action, target_type, target_id) "
        "VALUES (%s, %s, 'a', 't', 'x')",
        [f"{organization}-{number}", organization],
    )


def both(result: Any) -> LakehouseError:
    """The one error of the whole table."""
    assert set(result.errors) == {""}, result.errors
    error: LakehouseError = result.errors[""]
    return error


@dataclass(frozen=True)
class Broken:
    """What somebody does to the source, what undoes it, and what the error says: fault, and remedy."""

    breaks: str
    mends: str
    says: str
    hint: str
    recaptured: bool = False
    """Mending it sends every row again."""


CONTRACT = "Mend the source, or the contract in a new version; other tables go on."
CASES = {
    "column-missing": Broken(
        "ALTER TABLE ingested_events DROP COLUMN actor",
        "ALTER TABLE ingested_events ADD COLUMN actor varchar(255)",
        "public.ingested_events: column actor is missing",
        CONTRACT,
        recaptured=True,
    ),
    "column-renamed": Broken(
        "ALTER TABLE ingested_events RENAME COLUMN actor TO author",
        "ALTER TABLE ingested_events RENAME COLUMN author TO actor",
        "public.ingested_events: column actor is missing (renamed? not in the contract: author)",
        CONTRACT,
    ),
    "column-of-another-type": Broken(
        "ALTER TABLE ingested_events ALTER COLUMN actor TYPE bytea USING actor::bytea",
        "ALTER TABLE ingested_events ALTER COLUMN actor TYPE varchar(255) USING convert_from(actor, 'utf8')",
        "public.ingested_events: column actor is bytea, the contract says character varying(255)",
        CONTRACT,
    ),
    "several-faults": Broken(
        "ALTER TABLE ingested_events RENAME COLUMN actor TO author; "
        "ALTER TABLE ingested_events RENAME COLUMN source TO origin",
        "ALTER TABLE ingested_events RENAME COLUMN author TO actor; "
        "ALTER TABLE ingested_events RENAME COLUMN origin TO source",
        "public.ingested_events: column source is missing (renamed? not in the contract: author, origin)\n"
        "public.ingested_events: column actor is missing (renamed? not in the contract: author, origin)",
        CONTRACT,
    ),
    "a-view-in-its-place": Broken(
        "ALTER TABLE ingested_events RENAME TO behind; CREATE VIEW ingested_events AS SELECT * FROM behind",
        "DROP VIEW ingested_events; ALTER TABLE behind RENAME TO ingested_events",
        "public.ingested_events: it is a view or a foreign table, which has no xmin: name the table behind it",
        CONTRACT,
    ),
    "renamed-table": Broken(
        "ALTER TABLE ingested_events RENAME TO elsewhere",
        "ALTER TABLE elsewhere RENAME TO ingested_events",
        'relation "public.ingested_events" does not exist',
        "The table is not there: was it renamed? Mend `source` in the contract.",
    ),
    "dropped-table": Broken(
        "CREATE TABLE saved AS SELECT * FROM ingested_events; CREATE TABLE again (LIKE ingested_events INCLUDING ALL); "
        "DROP TABLE ingested_events CASCADE",
        "ALTER TABLE again RENAME TO ingested_events; INSERT INTO ingested_events SELECT * FROM saved",
        'relation "public.ingested_events" does not exist',
        "The table is not there: was it renamed? Mend `source` in the contract.",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_broken_table_waits_and_goes_on(house: Lakehouse, case: Broken) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
            log(hot, organization, 1)
        for table in ("events", "audit_log"):
            assert not house.backfill(table, organizations=("org-a", "org-b")).errors
        insert_events(hot, "org-a", 10, 1)
        hot.execute(case.breaks)
        for _ in range(2):
            error = both(house.sync("events"))
            assert case.says in error.detail and error.hint == case.hint
        # Also for an organization that was not read yet; then `source check`, and another table.
        assert both(house.backfill("events")).hint
        found = house.run_json("source", "check", "--table", "events", check=1)["tables"][0]
        assert not found["ready"] and found["missing"]
        log(hot, "org-b", 2)
        assert house.sync_ok("audit_log").upserts == {"org-b": 1}
        hot.execute(case.mends)
        insert_events(hot, "org-b", 20, 1)
        house.sync_ok("events")
        assert house.backfill("events").rows == {"org-c": 0}
        house.sync_ok("events", reconcile=True)
        assert house.sync_ok("events").upserts == {}
    house.assert_equal("events", repeats=not case.recaptured)
    house.assert_equal("audit_log", "org-a", "org-b")


def test_a_table_that_is_not_there_yet_holds_up_nobody(house: Lakehouse) -> None:
    with house.hot() as hot:
        definition = "CREATE TABLE rule_runs (LIKE later INCLUDING ALL)"
        hot.execute("CREATE TABLE later (LIKE rule_runs INCLUDING ALL); DROP TABLE rule_runs")
        insert_events(hot, "org-a", 1, 2)
        chosen = ("--table", "rule_runs", "--table", "events")
        assert "not there yet" in house.run("source", "check", *chosen).stdout
        house.run("backfill", *chosen)
        insert_events(hot, "org-a", 10, 1)
        listed = {r["table"]: r for r in house.run_json("sync", "--once", *chosen)}
        assert listed["events"]["upserts"] == {"org-a": 1} and not listed["rule_runs"]["errors"]
        house.assert_equal("events")
        hot.execute(definition)
        assert not house.backfill("rule_runs").errors
        house.sync_ok("rule_runs")
    house.assert_equal("rule_runs")


def test_a_table_without_a_primary_key_gets_no_contract(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("CREATE TABLE keyless (organization_id text NOT NULL, made_at timestamp NOT NULL)")
    done = house.run("contract", "draft", "--table", "public.keyless", check=2)
    assert done.stdout == ""
    assert "public.keyless has no primary key: its rows cannot be told apart in the lake" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) > 1, "and a remedy"


@contextmanager
def user(server: EmbeddedPostgres, house: Lakehouse, *grants: str) -> Iterator[str]:
    """A role with nothing but `grants`; the source is read as it, the control tables are not its. Its name."""
    name, password = f"reader_{secrets.token_hex(4)}", secrets.token_hex(8)
    with house.hot() as hot:
        hot.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password)))
        for grant in grants:
            hot.execute(sql.SQL("GRANT {} TO {}").format(sql.SQL(grant), sql.Identifier(name)))
        control = house.variables["LAKEHOUSE_SOURCE__URL"]
        parts = urlsplit(house.hot_url)
        house.reopen(
            SOURCE__URL=urlunsplit(parts._replace(netloc=f"{name}:{password}@{parts.hostname}:{parts.port}")),
            CONTROL__URL=control,
        )
        try:
            yield name
        finally:
            house.close()
            hot.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


READS = "SELECT ON ALL TABLES IN SCHEMA public"


def test_a_role_with_only_select_is_enough(postgres_server: EmbeddedPostgres, house: Lakehouse) -> None:
    with house.hot() as hot, user(postgres_server, house, READS) as name:
        hot.execute("CREATE INDEX ON siem_deliveries (updated_at)")
        insert_events(hot, "org-a", 1, 5)
        house.init()
        house.run("backfill", "--table", "events")
        insert_events(hot, "org-a", 10, 2)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        result = house.sync_ok("events", reconcile=True)
        assert (result.upserts, result.deletes) == ({"org-a": 2}, {"org-a": 1})
        house.assert_equal("events")
        checked = house.run("source", "check", "--table", "siem_deliveries").stdout
        assert f"windows are never pruned: GRANT pg_read_all_stats TO {name}" in checked
        hot.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(name)))
        found = house.run_json("source", "check", "--table", "siem_deliveries")
        assert not found["warnings"] and found["tables"][0]["pruned_by"] == "siem_deliveries_updated_at_idx"


def test_a_right_that_is_revoked(postgres_server: EmbeddedPostgres, house: Lakehouse) -> None:
    with house.hot() as hot, user(postgres_server, house, READS) as name:
        insert_events(hot, "org-a", 1, 2)
        for table in ("events", "audit_log"):
            house.backfill(table)
        hot.execute(sql.SQL("REVOKE SELECT ON ingested_events FROM {}").format(sql.Identifier(name)))
        insert_events(hot, "org-a", 10, 2)
        log(hot, "org-a", 1)
        error = both(house.sync("events"))
        assert "permission denied for table ingested_events" in error.detail
        assert "public.ingested_events" in error.detail
        assert error.hint == "GRANT SELECT ON public.ingested_events to the user of LAKEHOUSE_SOURCE__URL."
        assert house.sync_ok("audit_log").upserts == {"org-a": 1}
        (found,) = house.run_json("source", "check", "--table", "events", check=1)["tables"]
        assert "no right to read it: GRANT SELECT ON public.ingested_events" in found["missing"][0]
        # Columns are not enough: no right to the system column xmin comes with them.
        hot.execute(sql.SQL("GRANT SELECT (id) ON ingested_events TO {}").format(sql.Identifier(name)))
        assert "permission denied" in both(house.sync("events")).detail
        hot.execute(sql.SQL("GRANT SELECT ON ingested_events TO {}").format(sql.Identifier(name)))
        assert house.sync_ok("events").upserts == {"org-a": 2}
        house.assert_equal("events")


def test_rows_that_a_policy_hides_are_not_taken_for_deleted(
    postgres_server: EmbeddedPostgres, house: Lakehouse
) -> None:
    with house.hot() as hot, user(postgres_server, house, READS) as name:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        hot.execute("ALTER TABLE ingested_events ENABLE ROW LEVEL SECURITY")
        insert_events(hot, "org-a", 10, 1)
        error = both(house.sync("events", reconcile=True))
        assert "public.ingested_events: row-level security hides rows from this user" in error.detail
        assert "grant BYPASSRLS" in error.detail
        hot.execute(sql.SQL("ALTER ROLE {} BYPASSRLS").format(sql.Identifier(name)))
        assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 0}
        house.assert_equal("events")


def test_a_password_that_was_changed(postgres_server: EmbeddedPostgres, house: Lakehouse) -> None:
    with house.hot() as hot, user(postgres_server, house, READS) as name:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        password = urlsplit(house.variables["LAKEHOUSE_SOURCE__URL"]).password or ""
        change = sql.SQL("ALTER ROLE {} PASSWORD {}")
        hot.execute(change.format(sql.Identifier(name), sql.Literal("another")))
        insert_events(hot, "org-a", 10, 1)
        error = both(house.sync("events"))
        assert f'password authentication failed for user "{name}"' in error.detail
        assert f"source {house.app.settings.source.address} does not answer" in error.detail
        assert "LAKEHOUSE_SOURCE__URL" in error.hint
        # The control database answers: a round is done, and its table is in error.
        for arguments, status in ((("source", "check"), 2), (("sync", "--once", "--table", "events"), 1)):
            done = house.run(*arguments, check=status)
            assert "password authentication failed" in done.stderr and "Traceback" not in done.stderr
            assert password not in done.stdout + done.stderr
        hot.execute(change.format(sql.Identifier(name), sql.Literal(password)))
        assert house.sync_ok("events").upserts == {"org-a": 1}
        house.assert_equal("events")


def test_a_list_of_organizations_that_cannot_be_read(postgres_server: EmbeddedPostgres, house: Lakehouse) -> None:
    with house.hot() as hot, user(postgres_server, house, READS) as name:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        hot.execute(sql.SQL("REVOKE SELECT ON organizations FROM {}").format(sql.Identifier(name)))
        insert_events(hot, "org-a", 10, 1)
        assert "permission denied for table organizations" in house.run("sync", "--once", "--table", "events").stderr
        house.assert_equal("events")


@pytest.mark.parametrize("broken", ["lakehouse capture", "lakehouse control"])
def test_a_connection_that_breaks_in_the_middle(house: Lakehouse, tmp_path: Path, broken: str) -> None:
    insert = (
        "INSERT INTO siem_deliveries (id, organization_id, stream, payload, updated_at) "
        "VALUES ('d-1', 'org-a', 'EVENTS', '{}', now())"
    )
    with house.hot() as hot:
        for table in ("siem_deliveries", "audit_log"):
            assert not house.backfill(table).errors
        hot.execute(insert)
        log(hot, "org-a", 1)
        chosen = ("--table", "siem_deliveries", "--table", "audit_log")
        marker = tmp_path / "window is open"
        # The first snapshot is the quick look's; what breaks there is the round's to meet again.
        program = house.start("sync", "--once", *chosen, failpoints=f"capture.before_read=hold:{marker}@2")
        while not marker.exists():
            assert program.poll() is None
            time.sleep(0.02)
        hot.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = %s AND datname = current_database()",
            [broken],
        )
        marker.unlink()
        _, stderr = program.communicate(timeout=60)
        house.sync_ok("siem_deliveries")
    house.assert_equal("siem_deliveries")
    house.assert_equal("audit_log")
    if broken == "lakehouse control":
        # Nothing rests on that one's session: its lease is a row, and the next statement connects again.
        assert program.returncode == 0, stderr
    else:
        assert program.returncode == 1 and "error: siem_deliveries: " in stderr and "Traceback" not in stderr
