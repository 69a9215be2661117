"""Failovers, restores, clones and whatever else makes a source another one, played on real servers.

The lake lies in local files, its catalog in SQLite, the control tables in a database of another server: what
happens to the source does not happen to them, unless a test says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.adopt import adopt_tables, archiving_allowed, find_differences
from lakehouse.archive.export import export_batches, recover_batches
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.history import read_history
from tests.archiver import archive_rows, enable
from tests.servers import caught_up, clone, cold_copy, program, promote, restore, standby
from tests.support import Lakehouse, host_tables, insert_events, local_variables

REASON = "the outage of 3 March"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A copy of a server whose database `app` has the host's tables."""
    with EmbeddedPostgres(settings={"autovacuum": "off"}) as server:
        host_tables(server.create_database("app"))
        yield cold_copy(server, "template")


@pytest.fixture
def source(cluster: Path) -> Iterator[EmbeddedPostgres]:
    """A source of the test's own: it is stopped, copied, promoted. Nobody but the test takes transaction ids."""
    with clone(cluster) as server:
        yield server


@pytest.fixture
def house(source: EmbeddedPostgres, postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    url = source.url("app")
    variables = local_variables(url, tmp_path) | {"LAKEHOUSE_CONTROL__URL": postgres_url}
    lakehouse = Lakehouse(url, variables)
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def fill(house: Lakehouse) -> None:
    """Twenty events each of two organizations, backfilled, and a first window."""
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 20)
        house.backfill("events")
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
    assert house.sync_ok("events").upserts == {"org-a": 1}


def snapshots(house: Lakehouse) -> dict[str, int]:
    return {o: len(house.lake_table("events", o).snapshots()) for o in ("org-a", "org-b")}


def refused(house: Lakehouse, *words: str) -> None:
    """Nothing is captured from this source, `sync` and `status` say why, and the lake is as it was."""
    before = snapshots(house)
    (row,) = house.run_json("sync", "--once", "--table", "events", check=1)
    detail = row["errors"][""]["detail"]
    assert all(word in detail for word in words), detail
    assert "lake adopt" in row["errors"][""]["hint"]
    assert snapshots(house) == before
    status = house.run_json("status", check=1)
    errors = [t["error"] for t in status["tables"] if t["table"] == "events" and t["organization"] == "org-a"]
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors
    assert not archiving_allowed(house.app, "org-a", "events")


def adopted(house: Lakehouse, *more: str) -> Any:
    """Adopt by the program, then reconcile; equality, history as it was, the record in lake and control tables."""
    before = {o: house.versions("events", o, "id, _op, _sequence, _captured_at, _window") for o in ("org-a", "org-b")}
    told = house.run_json("lake", "adopt", "--reason", REASON, "--yes", *more)
    house.reopen()
    assert told["adopted"] and {t["organization"] for t in told["tables"]} >= {"org-a", "org-b"}
    assert not archiving_allowed(house.app, "org-a", "events")
    (record,) = [c for c in read_history(house.lake_table("events", "org-a")).changes if c["kind"] == "adoption"]
    assert (record["reason"], "@" in record["by"]) == (REASON, True)
    summary = house.lake_table("events", "org-a").current_snapshot().summary.additional_properties
    assert summary["lakehouse.adoption"] == REASON
    result = house.sync_ok("events", reconcile=False)
    assert result.reconciled, "keys are compared whatever the command says"
    house.assert_equal("events")
    for organization, versions in before.items():
        now = house.versions("events", organization, "id, _op, _sequence, _captured_at, _window")
        assert now[: len(versions)] == versions, "nothing is removed from history"
        assert [v["_sequence"] for v in now] == list(range(1, len(now) + 1))
    rows = adoptions(house)
    assert [(r["reason"], r["reconciled"]) for r in rows if r["organization_id"] == "org-a"] == [(REASON, True)]
    assert archiving_allowed(house.app, "org-a", "events")
    assert house.run("lake", "adopt", "--reason", "again", "--yes").stdout.startswith("nothing to adopt")
    return result


def adoptions(house: Lakehouse) -> list[dict[str, Any]]:
    from sqlalchemy import text

    with house.app.engine.connect() as control:
        rows = control.execute(
            text(
                "SELECT organization_id, reason, adopted_by, before, after, reconciled_at IS NOT NULL AS reconciled "
                "FROM adoptions WHERE table_name = 'events' ORDER BY created_at"
            )
        )
        return [dict(r._mapping) for r in rows]


def goes_on(house: Lakehouse) -> None:
    """Windows after a reconciliation are ordinary ones, also where old ids come again."""
    with house.hot() as hot:
        for n in range(3):
            hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-b-e3'")
            insert_events(hot, "org-a", 500 + n, 1)
            result = house.sync_ok("events", reconcile=n == 2)
            assert result.notes == []
            assert result.upserts == {"org-a": 1, "org-b": 1}
    house.assert_equal("events")


def test_a_failover_whose_lake_is_not_ahead_reconciles_by_itself(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    follower = standby(source)
    try:
        house.sync_ok("events")
        caught_up(source, follower)
        follower.stop(keep=True)
        # What the standby never receives, and the lake has: a change, an insert, a delete.
        with house.hot() as hot:
            hot.execute("UPDATE ingested_events SET severity = 'CRITICAL' WHERE id = 'org-a-e2'")
            insert_events(hot, "org-a", 100, 1)
            hot.execute("DELETE FROM ingested_events WHERE id = 'org-b-e1'")
        house.sync_ok("events", reconcile=True)
        port = source.port
        source.stop(keep=True)
        follower.start()
        promote(follower, port)
        # The promoted server uses the same ids again, for other transactions, and goes further.
        with house.hot() as hot:
            hot.execute("UPDATE ingested_events SET severity = 'MEDIUM' WHERE id = 'org-a-e2'")
            insert_events(hot, "org-a", 200, 1)
            insert_events(hot, "org-b", 100, 1)
            for n in range(300, 320):
                insert_events(hot, "org-b", n, 1)
        result = house.sync_ok("events", reconcile=False)
        assert len(result.notes) == 1 and "failover" in result.notes[0]
        assert (result.upserts, result.deletes) == ({"org-a": 2, "org-b": 22}, {"org-a": 1, "org-b": 0})
        house.assert_equal("events")
        (change,) = read_history(house.lake_table("events", "org-a")).changes
        assert (change["kind"], change["before"]["timeline"], change["after"]["timeline"]) == ("failover", "1", "2")
        goes_on(house)
        assert adoptions(house) == []
        # The old primary comes back at the old address.
        follower.stop(keep=True)
        source.start()
        refused(house, "timeline")
    finally:
        follower.stop("immediate")


def test_a_failover_that_lost_what_the_lake_holds_is_refused(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    follower = standby(source)
    try:
        caught_up(source, follower)
        follower.stop(keep=True)
        with house.hot() as hot:
            for n in range(100, 120):
                insert_events(hot, "org-a", n, 1)
        house.sync_ok("events")
        port = source.port
        source.stop(keep=True)
        follower.start()
        promote(follower, port)
        refused(house, "behind the lake", "timeline")
        result = adopted(house)
        assert result.deletes == {"org-a": 20}
        goes_on(house)
    finally:
        follower.stop("immediate")


def test_a_restore_from_an_older_copy(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    copy = cold_copy(source, "backup")
    with house.hot() as hot:
        insert_events(hot, "org-a", 100, 5)
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id IN ('org-a-e3', 'org-b-e3')")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-b-e9'")
    house.sync_ok("events", reconcile=True)
    restore(source, copy)
    refused(house, "behind the lake", "restored")
    result = adopted(house)
    # What was lost becomes deletes, what is old again new versions, what was deleted is back.
    assert (result.upserts, result.deletes) == ({"org-a": 1, "org-b": 2}, {"org-a": 5, "org-b": 0})
    goes_on(house)


def test_a_restore_that_has_caught_up_with_the_lake_is_compared(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    copy = cold_copy(source, "backup")
    house.sync_ok("events")
    with house.hot() as hot:
        insert_events(hot, "org-a", 100, 1)
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e3'")
    house.sync_ok("events")
    restore(source, copy)
    with house.hot() as hot:
        for n in range(40):
            insert_events(hot, "org-b", 100 + n, 1)
    result = house.sync_ok("events", reconcile=False)
    assert "older copy" in result.notes[0]
    assert (result.upserts, result.deletes) == ({"org-a": 1, "org-b": 40}, {"org-a": 1, "org-b": 0})
    house.assert_equal("events")


@pytest.mark.parametrize("max_seen", [0, 10_000])
def test_an_id_that_names_another_transaction_now_hides_nothing(
    source: EmbeddedPostgres, house: Lakehouse, max_seen: int
) -> None:
    update = "UPDATE ingested_events SET severity = %s WHERE id = 'org-a-e5' RETURNING pg_current_xact_id()::text::int"
    house.reopen(CAPTURE__MAX_SEEN=str(max_seen))
    fill(house)
    copy = cold_copy(source, "backup")
    house.sync_ok("events")
    with psycopg.connect(house.hot_url) as open_one, house.hot() as hot:
        open_one.execute("SELECT pg_current_xact_id()")
        (old,) = hot.execute(update, ["LOW"]).fetchone() or (0,)
        assert house.sync_ok("events").upserts == {"org-a": 1}
        # Either the position names the id, or the lake is asked.
        position = (read_cursor(house.lake_table("events", "org-a")) or pytest.fail("no cursor")).position
        assert (position.seen, position.repeats) == (((), True) if max_seen == 0 else ((old,), False))
    restore(source, copy)
    with psycopg.connect(house.hot_url) as open_one, psycopg.connect(house.hot_url) as late, house.hot() as hot:
        (first,) = open_one.execute("SELECT pg_current_xact_id()::text::int").fetchone() or (0,)
        assert first < old
        while first < old - 1:
            (first,) = hot.execute("SELECT pg_current_xact_id()::text::int").fetchone() or (old,)
        assert late.execute(update, ["HIGH"]).fetchone() == (old,)
        # A row of a later id: with no list of seen ids allowed, the next window has to ask the lake.
        insert_events(hot, "org-a", 600, 1)
        assert not house.sync("events").errors, "it has caught up: compared, not refused"
        late.commit()
        assert house.sync_ok("events", reconcile=False).upserts == {"org-a": 1}
    house.assert_equal("events")


def test_a_cloned_staging_copy(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    other = clone(cold_copy(source, "backup"))
    try:
        house.sync_ok("events")
        with house.hot() as hot:
            insert_events(hot, "org-a", 100, 1)
        production = house.hot_url
        house.hot_url = other.url("app")
        house.reopen(SOURCE__URL=house.hot_url)
        with house.hot() as staging:
            for n in range(50):
                insert_events(staging, "org-b", 200 + n, 1)
        refused(house, "address", "staging")
        # Production is as it was: nothing that staging has is in the lake.
        house.reopen(SOURCE__URL=production)
        house.hot_url = production
        assert house.sync_ok("events").upserts == {"org-a": 1}
        house.assert_equal("events")
        assert "org-b-e200" not in {v["id"] for v in house.versions("events", "org-b", "id")}
    finally:
        other.stop("immediate")


def test_a_database_made_from_another_or_loaded_from_a_dump(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    source.create_database("copy", template="app")
    with house.hot() as hot:
        insert_events(hot, "org-a", 100, 2)
    house.sync_ok("events")
    house.app.close()
    # Under the same name, too: the address says nothing then.
    with EmbeddedPostgresSession(source) as admin:
        admin.execute("ALTER DATABASE app RENAME TO original")
        admin.execute("ALTER DATABASE copy RENAME TO app")
    refused(house, "database oid")
    with EmbeddedPostgresSession(source) as admin:
        admin.execute("ALTER DATABASE app RENAME TO copy")
        admin.execute("ALTER DATABASE original RENAME TO app")
    house.sync_ok("events")
    with EmbeddedPostgres() as other:
        other.create_database("app")
        dump = source._data / "app.dump"
        common = ("-h", "127.0.0.1", "-U", "postgres", "-d", "app")
        program(source, "pg_dump", *common, "-p", str(source.port), "-Fc", "-f", str(dump))
        program_in = other._data / "app.dump"
        program_in.write_bytes(dump.read_bytes())
        program_in.chmod(0o644)
        program(other, "pg_restore", *common, "-p", str(other.port), str(program_in))
        house.hot_url = other.url("app")
        house.reopen(SOURCE__URL=house.hot_url)
        refused(house, "system identifier")
        with house.hot() as hot:
            hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e5'")
            hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-b-e5'")
        result = adopted(house)
        assert (result.upserts, result.deletes) == ({"org-a": 0, "org-b": 1}, {"org-a": 1, "org-b": 0})
        goes_on(house)
        house.close()


class EmbeddedPostgresSession:
    """A superuser's connection to the server's own database."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.connection = psycopg.connect(server.url(), autocommit=True)

    def __enter__(self) -> Any:
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def test_an_adoption_of_one_organization_leaves_the_others_refused(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    copy = cold_copy(source, "backup")
    with house.hot() as hot:
        for n in range(5):
            insert_events(hot, "org-a", 100 + n, 1)
            insert_events(hot, "org-b", 100 + n, 1)
    house.sync_ok("events")
    restore(source, copy)
    assert "Add --yes" in house.run("lake", "adopt", "--reason", REASON, check=2).stderr
    assert "needs a reason" in house.run("lake", "adopt", "--yes", check=2).stderr
    assert "needs a reason" in house.run("lake", "adopt", "--reason", "  ", "--yes", check=2).stderr
    assert "org-x" in house.run("lake", "adopt", "--reason", REASON, "--organization", "org-x", check=2).stderr
    assert adoptions(house) == []
    command = ("lake", "adopt", "--organization", "org-a", "--table", "events", "--yes")
    shown = house.run(*command, "--reason", REASON).stdout
    assert "next transaction" in shown and "restored" in shown
    result = house.sync("events")
    assert set(result.errors) == {"org-b", "org-c"} and "behind the lake" in str(result.errors["org-b"])
    assert result.deletes == {"org-a": 5}
    house.assert_equal("events", "org-a")
    assert archiving_allowed(house.app, "org-a", "events")
    assert not archiving_allowed(house.app, "org-b", "events")


def test_an_adoption_that_died_before_the_control_tables_knew(source: EmbeddedPostgres, house: Lakehouse) -> None:
    from sqlalchemy import text

    fill(house)
    copy = cold_copy(source, "backup")
    with house.hot() as hot:
        for n in range(5):
            insert_events(hot, "org-a", 100 + n, 1)
    house.sync_ok("events")
    restore(source, copy)
    with house.app.engine.begin() as control:
        kept = [dict(r._mapping) for r in control.execute(text("SELECT * FROM cursors")).all()]
    assert not adopt_tables(house.app, find_differences(house.app), REASON)
    with house.app.engine.begin() as control:
        control.execute(text("TRUNCATE adoptions"))
        for row in kept:
            control.execute(
                text("UPDATE cursors SET position = CAST(:p AS jsonb), fence = :f WHERE organization_id = :o"),
                {"p": json.dumps(row["position"]), "f": row["fence"], "o": row["organization_id"]},
            )
    found = find_differences(house.app)
    assert [d.unfinished is not None for d in found.tables if d.organization == "org-a"] == [True]
    assert not adopt_tables(house.app, found, "another reason")
    assert {r["reason"] for r in adoptions(house) if r["organization_id"] == "org-a"} == {REASON}
    assert len(read_history(house.lake_table("events", "org-a")).changes) == 1
    assert house.sync_ok("events").deletes == {"org-a": 5}
    house.assert_equal("events")


def test_a_source_that_changes_again_after_its_adoption_is_refused(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    oldest = cold_copy(source, "oldest")
    with house.hot() as hot:
        for n in range(10):
            insert_events(hot, "org-a", 100 + n, 1)
    copy = cold_copy(source, "backup")
    with house.hot() as hot:
        for n in range(10):
            insert_events(hot, "org-a", 200 + n, 1)
    house.sync_ok("events")
    restore(source, copy)
    assert not adopt_tables(house.app, find_differences(house.app), REASON)
    restore(source, oldest)
    assert "behind the lake" in str(house.sync("events").errors[""])
    assert not adopt_tables(house.app, find_differences(house.app), "the older one, then")
    house.sync_ok("events")
    house.assert_equal("events")
    assert [r["reconciled"] for r in adoptions(house) if r["organization_id"] == "org-a"] == [True, True]
    assert len(read_history(house.lake_table("events", "org-a")).changes) == 2


def test_a_renamed_installation_fences_its_former_self_out(source: EmbeddedPostgres, house: Lakehouse) -> None:
    fill(house)
    former = Lakehouse(house.hot_url, dict(house.variables))
    try:
        former.sync_ok("events")
        house.reopen(INSTALLATION="renamed")
        assert "lake adopt" in house.run("sync", "--once", check=2).stderr
        told = house.run_json("lake", "adopt", "--reason", REASON, "--yes")
        assert (told["control_owner"], set(told["namespaces"].values())) == ("tests", {"tests"})
        house.reopen()
        with house.hot() as hot:
            insert_events(hot, "org-a", 100, 1)
        before = snapshots(house)
        result = former.sync("events")
        assert "its lakehouse.installation is 'renamed'" in str(result.errors["org-a"])
        assert snapshots(house) == before
        assert house.sync_ok("events").upserts == {"org-a": 1}
        house.assert_equal("events")
        assert archiving_allowed(house.app, "org-a", "events")
    finally:
        former.close()


@pytest.mark.parametrize("recovered", ["before the window", "after it"])
def test_a_restore_brings_archived_rows_back_to_life(
    source: EmbeddedPostgres, house: Lakehouse, recovered: str
) -> None:
    fill(house)
    enable(house)
    archive_rows(house, "events", "org-a", ["org-a-e2"])
    house.sync_ok("events", reconcile=True)
    export_batches(house.app, "org-a")
    copy = cold_copy(source, "before")
    with house.hot() as hot:
        insert_events(hot, "org-a", 50, 1)
    house.sync_ok("events")
    archive_rows(house, "events", "org-a", ["org-a-e3", "org-a-e4", "org-a-e5", "org-a-e50"])
    house.sync_ok("events", reconcile=True)
    export_batches(house.app, "org-a")
    restore(source, copy)
    house.run("lake", "adopt", "--reason", REASON, "--yes")
    if recovered == "before the window":
        assert recover_batches(house.app, "org-a") == 1
    # Three that were archived are here again, to the letter as they were; their tombstones are in the lake alone. One
    # was written after the copy: it is in the lake alone, and archived as before.
    result = house.sync_ok("events")
    assert (result.upserts, result.deletes) == ({"org-a": 3}, {"org-a": 0})
    (comparison,) = house.compare("events", "org-a")
    assert comparison.equal and comparison.archived == 2, (comparison, comparison.differences)
    if recovered == "after it":
        assert recover_batches(house.app, "org-a") == 1
    with house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e3'")
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}, "what the host deletes now is deleted"
    assert archive_rows(house, "events", "org-a", ["org-a-e4"]) == ["org-a-e4"]
    house.sync_ok("events", reconcile=True)
    assert export_batches(house.app, "org-a") == 1
    (comparison,) = house.compare("events", "org-a")
    assert comparison.equal and comparison.archived == 3, (comparison, comparison.differences)


def test_two_installations_with_one_lake(source: EmbeddedPostgres, house: Lakehouse, tmp_path: Path) -> None:
    fill(house)
    other = Lakehouse(
        house.hot_url, house.variables | {"LAKEHOUSE_INSTALLATION": "other", "LAKEHOUSE_CONTROL__SCHEMA": "other"}
    )
    try:
        before = snapshots(house)
        done = other.run("init", check=1)
        assert "its lakehouse.installation is 'tests'" in done.stderr
        assert snapshots(house) == before
        # It takes the lake over, with control tables of its own that know nothing.
        told = other.run_json("lake", "adopt", "--reason", REASON, "--yes")
        assert {t["organization"] for t in told["tables"]} == {"org-a", "org-b"}
        with house.hot() as hot:
            insert_events(hot, "org-a", 100, 1)
            hot.execute("DELETE FROM ingested_events WHERE id = 'org-b-e1'")
        assert "is 'other'" in str(house.sync("events").errors["org-a"])
        result = other.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 1, "org-b": 0}, {"org-a": 0, "org-b": 1})
        other.assert_equal("events", "org-a", "org-b")
    finally:
        other.close()


def test_a_stale_program_of_the_former_owner_commits_nothing(house: Lakehouse) -> None:
    from lakehouse.landing.commit import FencedError, land

    fill(house)
    table = house.lake_table("events", "org-a")
    cursor = read_cursor(table)
    house.reopen(INSTALLATION="renamed")
    from lakehouse.control.database import connect

    house.app.engine = connect(house.app.settings, any_owner=True)
    assert not adopt_tables(house.app, find_differences(house.app), REASON)
    assert cursor is not None
    with pytest.raises(FencedError):
        land(table, "0b9d7c0e-0000-4000-8000-000000000000", [], cursor, cursor, most_partitions=10)


def test_control_tables_restored_to_an_older_copy(source: EmbeddedPostgres, house: Lakehouse) -> None:
    from sqlalchemy import text

    fill(house)
    with house.app.engine.begin() as control:
        kept = [dict(r._mapping) for r in control.execute(text("SELECT * FROM cursors")).all()]
    with house.hot() as hot:
        insert_events(hot, "org-a", 100, 2)
        house.sync_ok("events")
        insert_events(hot, "org-a", 200, 2)
        house.sync_ok("events")
        with house.app.engine.begin() as control:
            control.execute(text("DELETE FROM windows WHERE created_at > (SELECT min(created_at) FROM windows)"))
            for row in kept:
                control.execute(
                    text(
                        "UPDATE cursors SET position = CAST(:p AS jsonb), fence = :f, sequence = :s, "
                        "inventory = CAST(:i AS jsonb) WHERE organization_id = :o"
                    ),
                    {
                        "p": json.dumps(row["position"]),
                        "f": row["fence"],
                        "s": row["sequence"],
                        "i": json.dumps(row["inventory"]) if row["inventory"] else None,
                        "o": row["organization_id"],
                    },
                )
        insert_events(hot, "org-a", 300, 1)
        before = snapshots(house)
        assert "another program landed" in str(house.sync("events").errors["org-a"])
        assert snapshots(house) == before
        assert house.sync_ok("events").upserts == {"org-a": 1}
    house.assert_equal("events")


def test_control_tables_of_a_newer_program(house: Lakehouse) -> None:
    from sqlalchemy import text

    with house.app.engine.begin() as control:
        control.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for command in (("init",), ("sync", "--once"), ("status",), ("lake", "adopt", "--reason", "x", "--yes")):
        done = house.run(*command, check=2)
        assert "9999" in done.stderr and "program" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
