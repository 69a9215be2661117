"""What lets a row leave the hot database, and what keeps it: on the host's own tables and keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from lakehouse.archive import batch, holds
from lakehouse.archive.age import RetentionRefused
from lakehouse.archive.batch import HELD
from lakehouse.archive.gate import TableRefused
from lakehouse.archive.installation import ArchiveError, lock_organization
from lakehouse.archive.plan import make_plan
from lakehouse.archive.policy import PolicyOff
from lakehouse.archive.records import FIRST_CHAIN, chain_after, content_digest, tombstones_digest
from lakehouse.archive.run import archive_all
from lakehouse.archive.seal import PublicKey, read_signing_key, unseal
from schemas.errors import LakehouseError
from tests.cold import (
    allow,
    archive_once,
    hot_ids,
    old_events,
    old_findings,
    open_house,
    tombstones,
)
from tests.support import Lakehouse


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    lakehouse = open_house(hot_url, tmp_path)
    yield lakehouse
    lakehouse.close()


def test_old_rows_go_and_leave_a_tombstone_and_a_receipt_that_verifies(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 50)
        old_events(hot, "org-b", 1, 5)
        # It happened long ago and came today; it lies in the future; it was processed yesterday.
        old_events(hot, "org-a", 100, 3)
        hot.execute("UPDATE ingested_events SET created_at = now() WHERE id = 'org-a-e100'")
        hot.execute("UPDATE ingested_events SET occurred_at = '2999-01-01' WHERE id = 'org-a-e101'")
        hot.execute("UPDATE ingested_events SET processed_at = now() - interval '1 day' WHERE id = 'org-a-e102'")
        old_findings(hot, "org-a", 1, 3, event=10)
    house.backfill("events")
    done = archive_once(house, "events", "org-a", batch_rows=20)
    assert done.rows == 47
    assert not done.kept, "rows that another table's rows refer to are not even read"
    assert hot_ids(house) == {"e10", "e11", "e12", "e100", "e101", "e102"}
    with house.hot() as hot:
        assert hot.execute("SELECT count(*) FROM ingested_events WHERE organization_id = 'org-b'").fetchone() == (5,)
        assert hot.execute("SELECT count(*) FROM security_findings WHERE event_id IS NULL").fetchone() == (0,)
        batches = hot.execute(
            "SELECT number, id, row_count, receipt, chain FROM lakehouse_archive.batches ORDER BY number"
        ).fetchall()
    assert [row[2] for row in batches] == [20, 20, 7]
    key = PublicKey(read_signing_key(house.app.settings.archive.signing_key_file).public_key())
    found = tombstones(house)
    versions = {row["id"]: row for row in house.versions("events", "org-a")}
    hashes = dict(lake_hashes(house, "events", "org-a"))
    chain = FIRST_CHAIN
    for number, identifier, rows, receipt, link in batches:
        sealed = unseal(receipt, {key.thumbprint: key})
        mine = [t for t in found if t.batch == number]
        assert (sealed.number, sealed.batch, sealed.rows, sealed.previous) == (number, identifier, rows, chain)
        assert sealed.content_sha256 == content_digest((t.row_key, hashes[t.row_key]) for t in mine)
        assert sealed.tombstones_sha256 == tombstones_digest(mine)
        assert sealed.snapshot_id == house.lake_table("events", "org-a").current_snapshot().snapshot_id
        assert sealed.files
        assert all(Path(f).is_file() for f in sealed.files)
        assert sealed.destinations[0]["kind"] == "ICEBERG_S3"
        assert all(t.sequence == versions[t.row_key]["_sequence"] for t in mine)
        assert {t.delivered_to for t in mine} == {("ICEBERG_S3 lake",)}
        chain = chain_after(chain, receipt)
        assert link == chain


@pytest.mark.parametrize("lost", ["the holds", "the archive"])
def test_plan_and_dry_run_know_the_holds_that_a_restore_forgot(house: Lakehouse, lost: str) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 9)
        old_findings(hot, "org-a", 1, 1, event=9)
        hot.execute("UPDATE ingested_events SET id = '100%' WHERE id = 'org-a-e1'")
        for table in ("events", "findings"):
            house.backfill(table)
        holds.place(house.app, "org-a", reason="x", table_name="events", row_keys=["100%", "org-a-e2"])
        holds.place(house.app, "org-a", reason="x", table_name="findings")
        ended = holds.place(house.app, "org-a", reason="x", table_name="events")
        holds.release(house.app, ended.id, reason="over")
        moment = datetime(2020, 1, 1, 0, 3, tzinfo=UTC)
        holds.place(house.app, "org-a", reason="x", event_from=moment, event_upto=moment + timedelta(minutes=1))
        hot.execute("DELETE FROM lakehouse_archive.holds")
        if lost == "the archive":
            hot.execute("DROP SCHEMA lakehouse_archive CASCADE")
    events, findings = (make_plan(house.app, ["org-a"], [table]).tables[0] for table in ("events", "findings"))
    assert (findings.rows, findings.kept) == (0, {HELD: 1})
    # Two by their ids, one by its time; and the event of the finding that stays.
    assert (events.rows, events.kept) == (5, {HELD: 3, "referred to by public.security_findings (event_id)": 1})
    assert any(note.startswith("2 holds are in the lake alone") for note in events.notes), events.notes
    (dry,) = archive_all(house.app, ["org-a"], ["events"], dry_run=True).tables
    assert (dry.state, dry.candidates, dry.proven) == ("done", 5, 5), dry.detail
    if lost == "the holds":
        # What runs puts them back, and comes to the same.
        done = archive_all(house.app, ["org-a"], ["events"])
        assert (done.holds_restored, [t.rows for t in done.tables]) == (4, [5])
        assert make_plan(house.app, ["org-a"], ["events"]).tables[0].notes == []


def test_a_state_that_the_contract_does_not_know_is_in_use(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_findings(hot, "org-a", 1, 3)
        hot.execute("ALTER TYPE \"FindingStatus\" ADD VALUE 'INVESTIGATING'")
        hot.execute("UPDATE security_findings SET status = 'INVESTIGATING' WHERE id = 'org-a-f2'")
    house.backfill("findings")
    (plan,) = make_plan(house.app, ["org-a"], ["findings"]).tables
    assert plan.rows == 2
    assert plan.kept == {"in use: status is none of OPEN, RESOLVED, MUTED, which the contract knows": 1}
    assert any("status may be INVESTIGATING, which the contract does not know" in note for note in plan.notes)
    assert archive_once(house, "findings", "org-a").rows == 2
    assert hot_ids(house, "security_findings") == {"f2"}


def lake_hashes(house: Lakehouse, table: str, organization: str) -> list[tuple[str, str]]:
    from lakehouse.duck import connect, lake_relation
    from schemas.canonical import duckdb_hash
    from schemas.keys import duckdb_key

    contract = house.app.contract(table)
    with connect([house.app.address_of(organization)]) as duck:
        relation = lake_relation(house.lake_table(table, organization).metadata_location)
        return duck.execute(f"SELECT {duckdb_key(contract)}, {duckdb_hash(contract)} FROM {relation}").fetchall()


def test_what_happens_between_the_proof_and_the_lock_keeps_the_row(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 20)
    house.backfill("events")
    other = psycopg.connect(house.hot_url)

    def meanwhile() -> None:
        with house.hot() as hot:
            hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
            # The same again as it was: the row is another version, and the one between may be on its way to the lake.
            hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e2'")
            hot.execute("UPDATE ingested_events SET severity = 'INFO' WHERE id = 'org-a-e2'")
            hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e4'")
            # Processed again: its content moved, and its age.
            hot.execute("UPDATE ingested_events SET processed_at = now() WHERE id = 'org-a-e5'")
            old_findings(hot, "org-a", 1, 1, event=6, status="OPEN")
            # Moved to another organization.
            hot.execute(
                "UPDATE ingested_events SET organization_id = 'org-b', integration_id = 'int-org-b' "
                "WHERE id = 'org-a-e7'"
            )
        holds.place(house.app, "org-a", reason="a case", table_name="events", row_keys=["org-a-e8"])
        other.execute("SELECT FROM ingested_events WHERE id = 'org-a-e3' FOR UPDATE")
        # A finding for e9 that is not committed yet holds a key share lock on its event.
        old_findings(other, "org-a", 2, 1, event=9, status="OPEN")

    done = archive_once(house, "events", "org-a", between=meanwhile)
    other.rollback()
    other.close()
    assert done.rows == 11
    assert done.kept == {
        "changed since it was proven": 3,
        "gone meanwhile": 2,
        "referred to by public.security_findings (event_id)": 1,
        "held": 1,
        "locked by another": 2,
    }
    assert hot_ids(house) == {"e1", "e2", "e3", "e5", "e6", "e8", "e9"}
    assert {t.row_key for t in tombstones(house)} == {f"org-a-e{n}" for n in range(10, 21)}
    # What was rolled back goes next time; what was held, changed or is referred to does not.
    house.sync_ok("events")
    assert archive_once(house, "events", "org-a").rows == 4
    assert hot_ids(house) == {"e5", "e6", "e8"}


def test_a_hold_that_is_placed_while_the_batch_waits_for_it_is_seen(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot, psycopg.connect(house.hot_url) as other:
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        # The look after the lock must not be of a moment before it, whatever the database's default is.
        default = f"ALTER DATABASE {hot.info.dbname} SET default_transaction_isolation = 'repeatable read'"
        hot.execute(default.encode())
        lock_organization(other, "org-a")
        other.execute(
            "INSERT INTO lakehouse_archive.holds (id, organization_id, table_name, row_keys, reason, placed_by) "
            "VALUES (gen_random_uuid(), 'org-a', 'events', '{org-a-e2}', 'a case', 'counsel')"
        )

        def place() -> None:
            waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while hot.execute(waiting).rowcount == 0:
                hot.execute("SELECT pg_sleep(0.02)")
            other.commit()

        thread = threading.Thread(target=place)
        done = archive_once(house, "events", "org-a", between=thread.start)
        thread.join()
        assert (done.rows, done.kept) == (4, {"held": 1})
    assert hot_ids(house) == {"e2"}


STOPS: dict[str, tuple[str, str, type[LakehouseError], str]] = {
    "no retention": (
        "UPDATE organizations SET data_retention_days = NULL WHERE id = 'org-a'",
        "UPDATE organizations SET data_retention_days = 90",
        RetentionRefused,
        "data_retention_days is null",
    ),
    "a retention of nothing": (
        "UPDATE organizations SET data_retention_days = 0 WHERE id = 'org-a'",
        "UPDATE organizations SET data_retention_days = 90",
        RetentionRefused,
        "data_retention_days is 0",
    ),
    "disabled": (
        "UPDATE lakehouse_archive.policies SET enabled = false",
        "UPDATE lakehouse_archive.policies SET enabled = true",
        PolicyOff,
        "not enabled",
    ),
    "a new column": (
        "ALTER TABLE ingested_events ADD COLUMN new_thing text DEFAULT 'kept nowhere else'",
        "ALTER TABLE ingested_events DROP COLUMN new_thing",
        TableRefused,
        "new_thing",
    ),
    "a column gone": (
        "ALTER TABLE ingested_events RENAME COLUMN source TO source_was",
        "ALTER TABLE ingested_events RENAME COLUMN source_was TO source",
        TableRefused,
        "source",
    ),
    "an index gone": (
        "DROP INDEX rule_runs_event_id_idx",
        "CREATE INDEX ON rule_runs (event_id)",
        TableRefused,
        'CREATE INDEX CONCURRENTLY ON "public"."rule_runs" ("event_id")',
    ),
    "a new key without an index": (
        "CREATE TABLE later (event_id text REFERENCES ingested_events)",
        "DROP TABLE later",
        TableRefused,
        'CREATE INDEX CONCURRENTLY ON "public"."later" ("event_id")',
    ),
    "a trigger that keeps rows": (
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        "CREATE TRIGGER no BEFORE DELETE ON ingested_events FOR EACH ROW EXECUTE FUNCTION no()",
        "DROP FUNCTION no CASCADE",
        ArchiveError,
        "0 rows would have been deleted",
    ),
    "a trigger that raises": (
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not this one''; END'; "
        "CREATE TRIGGER no BEFORE DELETE ON ingested_events FOR EACH ROW EXECUTE FUNCTION no()",
        "DROP FUNCTION no CASCADE",
        ArchiveError,
        "the database refused: not this one",
    ),
    "a rule that keeps rows": (
        "CREATE RULE no AS ON DELETE TO ingested_events DO INSTEAD NOTHING",
        "DROP RULE no ON ingested_events",
        ArchiveError,
        "0 rows would have been deleted",
    ),
    "a locked tombstone table": (
        "",
        "",
        ArchiveError,
        "nothing was deleted",
    ),
}


def test_what_changes_between_the_proof_and_the_lock_stops_the_batch(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(house, "org-a")
    monkeypatch.setattr(batch, "LOCK_TIMEOUT", "100ms")
    with house.hot() as hot, psycopg.connect(house.hot_url) as other:
        hot.execute("ALTER TABLE organizations ALTER data_retention_days DROP NOT NULL")
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        for name, (change, undo, error, text) in STOPS.items():

            def meanwhile(change: str = change) -> None:
                if change:
                    hot.execute(change.encode())
                else:
                    other.execute("LOCK TABLE lakehouse_archive.cold_storage_archive")

            with pytest.raises(error) as caught:
                archive_once(house, "events", "org-a", between=meanwhile)
            other.rollback()
            assert text in str(caught.value), name
            assert hot.execute("SELECT count(*) FROM ingested_events").fetchone() == (5,), name
            assert hot.execute("SELECT count(*) FROM lakehouse_archive.cold_storage_archive").fetchone() == (0,)
            assert hot.execute("SELECT count(*) FROM lakehouse_archive.batches").fetchone() == (0,)
            if undo:
                hot.execute(undo.encode())
        # After all that it goes, so nothing else has stopped it.
        assert archive_once(house, "events", "org-a").rows == 5


def test_a_longer_retention_is_read_again_under_the_lock(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        done = archive_once(
            house,
            "events",
            "org-a",
            between=lambda: hot.execute("UPDATE organizations SET data_retention_days = 100000"),
        )
        assert (done.rows, done.kept) == (0, {"not old any more": 5})
        assert hot.execute("SELECT count(*) FROM lakehouse_archive.batches").fetchone() == (0,)


def test_content_that_changes_without_a_row_being_touched_is_found_under_the_lock(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        done = archive_once(
            house,
            "events",
            "org-a",
            between=lambda: hot.execute("ALTER TYPE \"SaaSProvider\" RENAME VALUE 'GITHUB' TO 'OCTO'"),
        )
        assert (done.rows, done.kept) == (0, {"changed since it was proven": 5})


def test_findings_in_use_stay_and_a_muted_one_is_as_old_as_its_muting(house: Lakehouse) -> None:
    allow(house, "org-a")
    clock = house.clock
    with house.hot() as hot:
        old_findings(hot, "org-a", 1, 3)
        old_findings(hot, "org-a", 10, 3, status="OPEN")
        old_findings(hot, "org-a", 20, 3, status="MUTED")
    # Landed 200 days ago …
    clock.offset = -timedelta(days=200)
    house.backfill("findings")
    # … one of the muted ones was open in between, and muted again 30 days ago.
    with house.hot() as hot:
        clock.offset = -timedelta(days=60)
        hot.execute("UPDATE security_findings SET status = 'OPEN' WHERE id = 'org-a-f20'")
        house.sync_ok("findings")
        clock.offset = -timedelta(days=30)
        hot.execute("UPDATE security_findings SET status = 'MUTED' WHERE id = 'org-a-f20'")
        # One that stays muted has a new version: its run goes on.
        hot.execute("UPDATE security_findings SET risk_score = 6 WHERE id = 'org-a-f21'")
        house.sync_ok("findings")
    clock.offset = timedelta()
    done = archive_once(house, "findings", "org-a")
    assert hot_ids(house, "security_findings") == {"f10", "f11", "f12", "f20"}
    assert (done.rows, done.kept) == (5, {"not old: its state landed lately": 1})
    with house.hot() as hot:
        hot.execute("UPDATE organizations SET data_retention_days = 20")
    # Its landing is compared again under the lock, with the retention as it is then.
    done = archive_once(
        house,
        "findings",
        "org-a",
        between=lambda: execute(house, "UPDATE organizations SET data_retention_days = 90"),
    )
    assert (done.rows, done.kept) == (0, {"not old any more": 1})


def execute(house: Lakehouse, statement: str) -> None:
    with house.hot() as hot:
        hot.execute(statement.encode())


def test_a_finding_that_is_reopened_or_resolved_during_the_batch_stays(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_findings(hot, "org-a", 1, 4)
        house.backfill("findings")

        def meanwhile() -> None:
            hot.execute("UPDATE security_findings SET status = 'OPEN', resolved_at = NULL WHERE id = 'org-a-f1'")
            hot.execute("UPDATE security_findings SET resolved_at = now() WHERE id = 'org-a-f2'")

        done = archive_once(house, "findings", "org-a", between=meanwhile)
        assert (done.rows, done.kept) == (2, {"changed since it was proven": 2})
        # What the window brings then is in use, or not old.
        house.sync_ok("findings")
        done = archive_once(house, "findings", "org-a")
        assert done.rows == 0
    assert hot_ids(house, "security_findings") == {"f1", "f2"}


def test_what_the_lake_does_not_hold_as_it_is_stays_and_is_named(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 10)
        house.backfill("events")
        # Not landed yet: changed, and new.
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        old_events(hot, "org-a", 11, 1)
        # Changed where no window sees it: a column that the lake does not compare by time.
        alter_in_the_lake(house, "events", "org-a", "org-a-e3", "event_type", "pull")
        done = archive_once(house, "events", "org-a")
        assert done.rows == 8
        assert done.kept == {"not landed yet": 2, "differs from the lake": 1}
        assert [(u.row_key, u.reason, u.columns) for u in done.unproven] == [
            ("org-a-e3", "differs from the lake", ("event_type",))
        ]
        # The lake cannot hold it as it is now: its last good version is no proof.
        hot.execute("UPDATE ingested_events SET processed_at = '-infinity' WHERE id = 'org-a-e1'")
        house.sync("events")
        done = archive_once(house, "events", "org-a")
        assert done.kept["quarantined"] == 1
    assert hot_ids(house) == {"e1", "e3"}


def alter_in_the_lake(house: Lakehouse, table: str, organization: str, key: str, column: str, value: Any) -> None:
    """Change one value of one row in the data file that holds it."""
    import pyarrow as pa

    for path in house.lake_table(table, organization).inspect.files()["file_path"].to_pylist():
        file = path.removeprefix("file://")
        rows = pq.ParquetFile(file).read()
        if key not in rows["id"].to_pylist():
            continue
        at = rows.schema.get_field_index(column)
        changed = [
            value if k == key else v for k, v in zip(rows["id"].to_pylist(), rows[column].to_pylist(), strict=True)
        ]
        pq.write_table(rows.set_column(at, rows.schema.field(at), pa.array(changed, rows.schema.field(at).type)), file)


def test_a_file_that_is_gone_stops_the_proof(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        for path in house.lake_table("events", "org-a").inspect.files()["file_path"].to_pylist():
            Path(path.removeprefix("file://")).unlink()
        with pytest.raises(LakehouseError, match="cannot be read"):
            archive_once(house, "events", "org-a")
        assert hot.execute("SELECT count(*) FROM ingested_events").fetchone() == (5,)


def test_only_a_version_that_the_cursor_has_passed_is_proof(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        house.sync_ok("events")
        # As it was when it landed, and another version: one between may be on its way.
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        hot.execute("UPDATE ingested_events SET severity = 'INFO' WHERE id = 'org-a-e1'")
        done = archive_once(house, "events", "org-a")
        assert (done.rows, done.kept) == (4, {"not landed yet": 1})
        house.sync_ok("events")
        assert archive_once(house, "events", "org-a").rows == 1


def test_another_kind_of_destination_can_be_asked_for(house: Lakehouse) -> None:
    allow(house, "org-a")
    house.reopen(ARCHIVE__RECEIPT_KINDS=json.dumps(["POSTGRES_REPLICA"]))
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 5)
        house.backfill("events")
        assert archive_once(house, "events", "org-a").kept == {"no destination holds it": 5}
        with house.app.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO warehouse_destinations (id, organization_id, kind, name, target) VALUES "
                "('00000000-0000-0000-0000-000000000001', 'org-a', 'POSTGRES_REPLICA', 'replica', 'there')"
            )
            # Up to 3 it is there; what is after that was given up.
            connection.exec_driver_sql(
                "INSERT INTO warehouse_deliveries (id, organization_id, destination_id, table_name, sequence_after, "
                "sequence_upto, status) SELECT gen_random_uuid(), 'org-a', '00000000-0000-0000-0000-000000000001', "
                "'events', a, b, s FROM (VALUES (0, 3, 'DELIVERED'), (3, 4, 'DEAD_LETTER'), (4, 9, 'DELIVERED')) "
                "v (a, b, s)"
            )
        done = archive_once(house, "events", "org-a")
        assert (done.rows, done.kept) == (3, {"no destination holds it": 2})
    assert {t.delivered_to for t in tombstones(house)} == {("ICEBERG_S3 lake", "POSTGRES_REPLICA replica")}
