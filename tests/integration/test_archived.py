"""Archive is not a delete: what the archive took stays the latest state, by every method, and whatever gets lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse import sync
from lakehouse.archive import archived
from lakehouse.archive.export import export_batches
from lakehouse.archive.tombstones import Tombstones
from lakehouse.capture.xmin import XminWindow
from lakehouse.control import store
from lakehouse.maintenance.archive import keep_archive
from lakehouse.result import TableResult
from schemas.views import latest_view_sql
from tests.archiver import archive_rows, enable, tombstones
from tests.support import Lakehouse, host_tables, insert_events, local_variables

METHODS = ("xmin", "trigger")


@pytest.fixture
def bare(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a", "org-b"))
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    enable(lakehouse)
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def house(bare: Lakehouse, request: pytest.FixtureRequest) -> Lakehouse:
    """Ten events each of two organizations, in the lake, and compared once; by the method of the test's name."""
    if "trigger" in request.node.name:
        bare.run("source", "prepare", "--apply", "--table", "events")
        bare.reopen(CAPTURE__METHODS='{"events": "trigger"}')
    with bare.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 10)
    bare.backfill("events")
    bare.sync_ok("events", reconcile=True)
    return bare


def keys(*numbers: int) -> list[str]:
    return [f"org-a-e{n}" for n in numbers]


def delete(house: Lakehouse, *numbers: int) -> None:
    """As the host does."""
    with house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = ANY(%s)", [keys(*numbers)])


def insert(house: Lakehouse, number: int, *, day: str = "2026-01-01") -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", number, 1, day=day)


def window(house: Lakehouse, method: str = "xmin", table: str = "events") -> TableResult:
    """One that sees deletes: by comparing keys, or without, by triggers."""
    return house.sync_ok(table, reconcile=True if method == "xmin" else None)


def latest(house: Lakehouse, table: str = "events", organization: str = "org-a") -> list[tuple[str, str]]:
    """(key, day) of what the lake shows."""
    from lakehouse.duck import connect, lake_relation

    contract = house.app.contract(table)
    relation = lake_relation(house.lake_table(table, organization).metadata_location)
    with connect([house.app.address_of(organization)]) as duck:
        view = latest_view_sql(contract, relation=relation)
        return duck.execute(f"SELECT id, occurred_at::DATE::VARCHAR FROM ({view}) ORDER BY length(id), 1, 2").fetchall()


def ids(house: Lakehouse) -> list[str]:
    return [key for key, _ in latest(house)]


def leave_inventory(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare keys and list them anew: from now on no inventory has what the archive took."""
    with monkeypatch.context() as patch:
        patch.setattr(sync, "MANY_ARCHIVED", -1)
        before = store.cursors(house.app.engine, "events")["org-a"].inventory
        house.sync_ok("events", reconcile=True)
    assert store.cursors(house.app.engine, "events")["org-a"].inventory != before


def lose_inventory(house: Lakehouse) -> None:
    """The file is gone; it can be made again from the lake."""
    cursor = store.cursors(house.app.engine, "events")["org-a"]
    assert cursor.inventory is not None
    Path(cursor.inventory.file.removeprefix("file://")).unlink()


def prune(house: Lakehouse) -> None:
    """Eight years later: the hot database has no tombstones any more."""
    export_batches(house.app, "org-a")
    with house.hot() as hot:
        hot.execute("UPDATE lakehouse_archive.cold_storage_archive SET archived_at = archived_at - interval '8 years'")
    done, errors = keep_archive(house.app)
    assert not errors
    assert done["tombstones_pruned"] > 0
    assert tombstones(house, "org-a") == []


def assert_settled(house: Lakehouse, archived: int, *gone: int, extra: tuple[str, ...] = ()) -> None:
    """The lake shows every row but those; hot and lake are equal beside what was archived."""
    assert sorted(ids(house)) == sorted([*keys(*(n for n in range(1, 11) if n not in gone)), *extra])
    (comparison,) = house.compare("events", "org-a")
    assert comparison.equal, (comparison, comparison.differences, str(comparison.error))
    assert comparison.archived == archived


@pytest.mark.parametrize("method", METHODS)
def test_an_archived_row_stays_the_latest_state(house: Lakehouse, method: str) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2, 3))
    delete(house, 9)
    result = window(house, method)
    assert (result.upserts, result.deletes) == ({"org-a": 0}, {"org-a": 1}), "the host's delete, and no other"
    assert_settled(house, 3, 9)
    for reconcile in (None, True, False, True):
        assert house.sync_ok("events", reconcile=reconcile).snapshots == {}
    assert_settled(house, 3, 9)
    archive_rows(house, "events", "org-a", keys(4))
    delete(house, 8)
    assert window(house, method).deletes == {"org-a": 1}
    assert_settled(house, 4, 8, 9)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_lost_inventory_is_made_again_without_them(house: Lakehouse, method: str, pruned: bool) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    # The first time that they are missed is after what is lost, and after they were pruned.
    if pruned:
        prune(house)
    delete(house, 9)
    house.sync_ok("events", reconcile=True)
    lose_inventory(house)
    delete(house, 8)
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
    assert_settled(house, 2, 8, 9)
    delete(house, 7)
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
    assert_settled(house, 2, 7, 8, 9)


def test_many_are_asked_for_once(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = Tombstones.of

    def of(self: Tombstones, organization: str, wanted: Any) -> Any:
        asked.append(len(wanted))
        return real(self, organization, wanted)

    monkeypatch.setattr(Tombstones, "of", of)
    monkeypatch.setattr(archived, "KEYS", 3)
    monkeypatch.setattr(sync, "MANY_ARCHIVED", 3)
    archive_rows(house, "events", "org-a", keys(1, 2, 3, 4, 5, 6, 7))
    result = window(house)
    assert sorted(asked) == [1, 3, 3]
    assert (result.upserts, result.deletes) == ({"org-a": 0}, {"org-a": 0}), "an inventory without them, and no row"
    asked.clear()
    assert window(house).snapshots == {}
    assert asked == []
    assert_settled(house, 7)


def test_a_database_that_lost_its_archive_asks_the_lake(house: Lakehouse) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    export_batches(house.app, "org-a")
    with house.hot() as hot:
        # Moved to another server, without a schema that nobody there knew.
        hot.execute("DROP SCHEMA lakehouse_archive CASCADE")
    delete(house, 9)
    assert window(house).deletes == {"org-a": 1}
    assert_settled(house, 2, 9)


@pytest.mark.parametrize("batch", ["without tombstones", "forgotten", "another"])
@pytest.mark.parametrize("method", METHODS)
def test_what_only_the_lake_has_of_the_archive_is_no_delete(house: Lakehouse, method: str, batch: str) -> None:
    """A restore forgets batches, `recover_batches` puts them back without tombstones, and anybody may remove some."""
    archive_rows(house, "events", "org-a", keys(1, 2))
    archive_rows(house, "events", "org-a", keys(3, 4))
    archive_rows(house, "events", "org-a", keys(5))
    export_batches(house.app, "org-a")
    number = 2 if batch == "without tombstones" else 3
    with house.hot() as hot:
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE batch = %s", [number])
        if batch != "without tombstones":
            hot.execute("DELETE FROM lakehouse_archive.batches WHERE number = %s", [number])
    if batch == "another":
        archive_rows(house, "events", "org-a", keys(6))
        with house.hot() as hot:
            hot.execute("UPDATE lakehouse_archive.batches SET chain = repeat('f', 64) WHERE number = 3")
    delete(house, 9)
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}, "the host's delete, and no other"
    assert_settled(house, 6 if batch == "another" else 5, 9)


@pytest.mark.parametrize("method", METHODS)
def test_an_id_that_was_inserted_again_and_seen_is_deleted_for_good(house: Lakehouse, method: str) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2, 3))
    window(house, method)
    insert(house, 1)
    assert window(house, method).upserts == {"org-a": 1}
    assert_settled(house, 2)
    delete(house, 1)
    assert window(house, method).deletes == {"org-a": 1}
    assert_settled(house, 2, 1)
    if method == "xmin":
        lose_inventory(house)
    assert house.sync_ok("events", reconcile=True).snapshots == {}
    assert_settled(house, 2, 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_id_that_was_inserted_again_unseen(house: Lakehouse, method: str) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    insert(house, 1)
    delete(house, 1)
    result = window(house, method)
    if method == "trigger":
        assert result.deletes == {"org-a": 1}, "its own log has the host's delete beside the archive's"
        assert_settled(house, 1, 1)
    else:
        assert result.deletes == {}, "nothing tells that it was there: the module says so"
        assert_settled(house, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("compared", [False, True])
def test_an_id_that_came_back_with_another_event_time(
    house: Lakehouse, method: str, compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    if compared:
        leave_inventory(house, monkeypatch)
    insert(house, 1, day="2026-05-05")
    result = window(house, method)
    assert (result.upserts, result.deletes) == ({"org-a": 1}, {"org-a": 1}), "the old identity is gone for good"
    assert ("org-a-e1", "2026-05-05") in latest(house)
    assert_settled(house, 1)
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
    result = window(house, method)
    assert (result.upserts, result.deletes) == ({"org-a": 1}, {"org-a": 0}), "and not again with each change"
    delete(house, 1)
    assert window(house, method).deletes == {"org-a": 1}
    assert_settled(house, 1, 1)


def test_it_came_back_with_another_event_time_after_its_tombstone_was_pruned(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    leave_inventory(house, monkeypatch)
    prune(house)
    insert(house, 1, day="2026-05-05")
    assert house.sync_ok("events", reconcile=False).deletes == {"org-a": 0}
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
    assert_settled(house, 1)


@pytest.mark.parametrize("how", ["deleted", "archived", "seen by triggers"])
def test_it_came_back_with_another_event_time_and_went_before_keys_were_compared(
    house: Lakehouse, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    leave_inventory(house, monkeypatch)
    if how == "seen by triggers":
        # These ask the hot database alone.
        prune(house)
        house.run("source", "prepare", "--apply", "--table", "events")
        house.reopen(CAPTURE__METHODS='{"events": "trigger"}')
        house.sync_ok("events", reconcile=False)
    insert(house, 1, day="2026-05-05")
    assert house.sync_ok("events", reconcile=False).deletes == {"org-a": 0}
    if how == "archived":
        assert archive_rows(house, "events", "org-a", keys(1)) == keys(1)
    else:
        delete(house, 1)
    if how == "seen by triggers":
        assert house.sync_ok("events", reconcile=False).deletes == {"org-a": 1}
    gone = {"deleted": 2, "archived": 1, "seen by triggers": 1}[how]
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": gone}
    assert ("org-a-e1", "2026-01-01") not in latest(house)
    assert_settled(house, *((2,) if how == "archived" else (1, 1)))


def test_it_came_back_as_another_and_then_as_itself(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    leave_inventory(house, monkeypatch)
    for day in ("2026-05-05", "2026-01-01"):
        insert(house, 1, day=day)
        house.sync_ok("events", reconcile=False)
        if day == "2026-05-05":
            delete(house, 1)
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
    assert_settled(house, 1)
    for day in ("2026-05-05", "2026-01-01"):
        delete(house, 1)
        insert(house, 1, day=day)
        house.sync_ok("events", reconcile=False)
    assert archive_rows(house, "events", "org-a", keys(1)) == keys(1)
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
    assert_settled(house, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("day", ["2026-01-01", "2026-05-05"])
def test_archived_a_second_time(house: Lakehouse, method: str, day: str) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    insert(house, 1, day=day)
    house.sync_ok("events", reconcile=False)
    # It has landed, and keys are compared only after it has gone once more.
    assert archive_rows(house, "events", "org-a", keys(1)) == keys(1)
    house.sync_ok("events", reconcile=True)
    assert latest(house).count(("org-a-e1", day)) == 1
    assert_settled(house, 2)
    delete(house, 9)
    assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
    assert_settled(house, 2, 9)


def test_methods_change_with_archived_rows_about(house: Lakehouse) -> None:
    house.run("source", "prepare", "--apply", "--table", "events")
    archive_rows(house, "events", "org-a", keys(1))
    house.reopen(CAPTURE__METHODS='{"events": "trigger"}')
    archive_rows(house, "events", "org-a", keys(2))
    delete(house, 9)
    assert house.sync_ok("events").deletes == {"org-a": 1}
    archive_rows(house, "events", "org-a", keys(3))
    house.reopen(CAPTURE__METHODS="{}")
    archive_rows(house, "events", "org-a", keys(4))
    delete(house, 8)
    assert house.sync_ok("events").deletes == {"org-a": 1}
    assert_settled(house, 4, 8, 9)


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_recapture_brings_again_what_came_back_as_it_was(house: Lakehouse, method: str, exported: bool) -> None:
    with house.hot() as hot:
        hot.execute("CREATE TABLE kept AS SELECT * FROM ingested_events WHERE id = 'org-a-e1'")
    archive_rows(house, "events", "org-a", keys(1, 2))
    if exported:
        export_batches(house.app, "org-a")
    with house.hot() as hot:
        # To the letter as it was: its content alone does not tell that it is here again.
        hot.execute("INSERT INTO ingested_events SELECT * FROM kept")
        hot.execute("ALTER TABLE ingested_events ALTER COLUMN source SET DEFAULT 'x'")
    result = house.sync_ok("events")
    assert result.notes and result.upserts == {"org-a": 1}, "everything was read again, and one row landed"
    assert_settled(house, 1)
    delete(house, 1)
    assert window(house, method).deletes == {"org-a": 1}
    assert_settled(house, 1, 1)


def test_what_is_archived_while_everything_is_read_again_does_not_come_to_life(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ALTER COLUMN source SET DEFAULT 'x'")
    real = XminWindow.rows

    def beside(self: XminWindow, plan: Any) -> Any:
        # The window has its snapshot, in which the rows are; the lake is asked what the archive took after this.
        archive_rows(house, "events", "org-a", keys(1, 2))
        export_batches(house.app, "org-a")
        return real(self, plan)

    with monkeypatch.context() as patch:
        patch.setattr(XminWindow, "rows", beside)
        assert house.sync_ok("events").upserts == {}
    assert window(house).snapshots == {}
    assert_settled(house, 2)


def test_tombstones_are_read_under_the_windows_own_snapshot(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    delete(house, 1)
    real = XminWindow.keys

    def beside(self: XminWindow, plan: Any) -> Any:
        with house.hot() as hot:
            # The delete is older than the snapshot, and this is younger: they have nothing to do with one another.
            hot.execute(
                "INSERT INTO lakehouse_archive.cold_storage_archive (organization_id, table_name, row_key, sequence, "
                "batch, delivered_to, snapshot_id, keyed_hash, hash_key, contract_version, policy, operator, "
                "archived_at) VALUES ('org-a', 'events', 'org-a-e1', 1000, 1, '{}', 1, '', 't1', '1.0', '', '', now())"
            )
        return real(self, plan)

    monkeypatch.setattr(XminWindow, "keys", beside)
    assert window(house).deletes == {"org-a": 1}


@pytest.mark.parametrize("method", METHODS)
def test_nobodys_setting_makes_a_delete_an_archive(house: Lakehouse, method: str) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    insert(house, 1)
    window(house, method)
    with house.hot() as hot, hot.transaction():
        hot.execute("SET LOCAL application_name = 'lakehouse archive'")
        hot.execute("SET LOCAL lakehouse.archive = 'on'")
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e1', 'org-a-e3')")
        # Of another transaction, and of versions that are not the lake's newest.
        hot.execute(
            "INSERT INTO lakehouse_archive.cold_storage_archive SELECT organization_id, table_name, row_key, "
            "event_time, 0, 99, delivered_to, snapshot_id, keyed_hash, hash_key, contract_version, policy, operator, "
            "archived_at, '3' FROM lakehouse_archive.cold_storage_archive WHERE row_key = 'org-a-e1'"
        )
    assert window(house, method).deletes == {"org-a": 2}
    with house.hot() as hot:
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE batch = 99")
    assert_settled(house, 1, 1, 3)


@pytest.mark.parametrize("method", METHODS)
def test_who_may_not_read_the_archive_lands_no_delete(house: Lakehouse, method: str) -> None:
    with house.hot() as hot:
        name = "reader_" + os.urandom(4).hex()
        hot.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD 'x'")
        try:
            closed(house, hot, name, method)
        finally:
            hot.execute(f"DROP OWNED BY {name}")
            hot.execute(f"DROP ROLE {name}")


def closed(house: Lakehouse, hot: psycopg.Connection[Any], name: str, method: str) -> None:
    password = house.hot_url.split("//")[1].split("@")[0]
    # Whoever starts may do all that capture needs; only then is the archive closed to it.
    hot.execute(f"ALTER ROLE {name} NOSUPERUSER BYPASSRLS")
    for schema in ("public", "lakehouse", "lakehouse_capture"):
        if hot.execute("SELECT to_regnamespace(%s)", [schema]).fetchone() != (None,):
            hot.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
            hot.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {name}")
    hot.execute(f"GRANT pg_monitor TO {name}")
    house.reopen(SOURCE__URL=house.hot_url.replace(password, f"{name}:x"), CONTROL__URL=house.hot_url)
    assert window(house, method).snapshots == {}, "nothing is gone or new"
    if method == "xmin":
        insert(house, 50)
        assert house.sync_ok("events", reconcile=False).upserts == {"org-a": 1}
    archive_rows(house, "events", "org-a", keys(1))
    delete(house, 9)
    before = len(house.versions("events", "org-a"))
    result = house.sync("events", reconcile=True if method == "xmin" else None)
    (error,) = set(result.errors.values())
    assert f"{name} may not read in the schema lakehouse_archive" in error.detail
    assert "GRANT SELECT ON ALL TABLES IN SCHEMA lakehouse_archive" in error.hint
    assert len(house.versions("events", "org-a")) == before
    hot.execute(f"GRANT USAGE ON SCHEMA lakehouse_archive TO {name}")
    hot.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA lakehouse_archive TO {name}")
    assert window(house, method).deletes == {"org-a": 1}
    assert_settled(house, 1, 9, extra=("org-a-e50",) if method == "xmin" else ())


def test_without_an_archive_there_is_one_look(bare: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    with bare.hot() as hot:
        hot.execute("DROP SCHEMA lakehouse_archive CASCADE")
        insert_events(hot, "org-a", 1, 10)
        bare.backfill("events")
        bare.sync_ok("events", reconcile=True)
    delete(bare, 1, 2)
    asked: list[str] = []
    from lakehouse.capture.source import Reading

    real = Reading.execute

    def execute(self: Reading, query: Any, params: Any = None, /) -> Any:
        asked.append(query)
        return real(self, query, params)

    monkeypatch.setattr(Reading, "execute", execute)
    assert window(bare).deletes == {"org-a": 2}
    assert sum("has_schema_privilege" in query for query in asked) == 1
    assert not any("lakehouse_archive." in query for query in asked)


def test_verify_tells_what_is_wrong_with_tombstones(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("CREATE TABLE kept AS SELECT * FROM ingested_events WHERE id = 'org-a-e1'")
    archive_rows(house, "events", "org-a", keys(1, 2, 3))
    window(house)
    with house.hot() as hot:
        hot.execute("INSERT INTO ingested_events SELECT * FROM kept")
    (comparison,) = house.compare("events", "org-a")
    assert (comparison.both, comparison.archived, comparison.equal) == (1, 2, False)
    assert [(d.kind, d.key["id"], d.pending) for d in comparison.differences] == [("both", "org-a-e1", True)]
    done = house.run("verify", "--table", "events", "--organization", "org-a", check=1)
    assert "id=org-a-e1: archived, and in the hot table as it was" in " ".join(done.stdout.split())
    # Once it was seen, it is a row like any other.
    house.sync_ok("events", reconcile=False)
    (comparison,) = house.compare("events", "org-a")
    assert (comparison.both, comparison.archived, comparison.equal) == (0, 2, True)
    with house.hot() as hot:
        hot.execute("UPDATE lakehouse_archive.cold_storage_archive SET sequence = 1000 WHERE row_key = 'org-a-e2'")
    (comparison,) = house.compare("events", "org-a")
    assert (comparison.lost, comparison.archived, comparison.equal) == (1, 2, False)
    assert [(d.kind, d.key["id"]) for d in comparison.differences] == [("lost", "org-a-e2")]
    with house.hot() as hot:
        hot.execute("UPDATE lakehouse_archive.cold_storage_archive SET row_key = 'nobody' WHERE row_key = 'org-a-e3'")
    (comparison,) = house.compare("events", "org-a")
    assert (comparison.lost, comparison.extra, comparison.archived) == (2, 1, 1)
    assert ("extra", "org-a-e3") in {(d.kind, d.key["id"]) for d in comparison.differences}


def test_status_counts_them(house: Lakehouse) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2, 3))
    export_batches(house.app, "org-a")
    archive_rows(house, "events", "org-a", keys(4))
    found = {
        (t["organization"], t["table"]): (t["archived"], t["not_exported"])
        for t in house.run_json("status", check=None)["tables"]
    }
    assert found["org-a", "events"] == (4, 1)
    assert found["org-b", "events"] == found["org-a", "findings"] == (0, 0)


ORDERS = """
CREATE TABLE orders (organization_id uuid NOT NULL, placed_at timestamptz NOT NULL, number numeric(9,2) NOT NULL,
                     kind char(4) NOT NULL, note text, PRIMARY KEY (number, kind, placed_at));
INSERT INTO orders
SELECT '00000000-0000-4000-8000-000000000001', timestamptz '2026-01-02' + n * interval '1 hour', n, 'a', 'x'
FROM generate_series(1, 9) n;
CREATE TABLE notes (organization_id uuid NOT NULL, id bigint PRIMARY KEY, note text);
INSERT INTO notes SELECT '00000000-0000-4000-8000-000000000001', n, 'x' FROM generate_series(1, 9) n;
"""
TENANT = "00000000-0000-4000-8000-000000000001"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("table", "gone"), [("orders", "number = 9"), ("notes", "id = 9")])
def test_keys_of_any_shape(bare: Lakehouse, tmp_path: Path, method: str, table: str, gone: str) -> None:
    with bare.hot() as hot:
        hot.execute(ORDERS)
    contracts = tmp_path / "contracts"
    bare.run("contract", "draft", "--table", f"public.{table}", "-o", str(contracts))
    bare.reopen(CONTRACTS=json.dumps([str(contracts)]))
    if method == "trigger":
        bare.run("source", "prepare", "--apply", "--table", table)
        bare.reopen(CAPTURE__METHODS=json.dumps({table: "trigger"}))
    bare.init(TENANT)
    bare.backfill(table, organizations=(TENANT,))
    bare.sync_ok(table, reconcile=True)
    with bare.hot() as hot:
        hot.execute(f"CREATE TABLE kept AS SELECT * FROM {table} WHERE {gone.replace('9', '1')}")
        took = archive_rows(bare, table, TENANT)
        assert len(took) == 9
        hot.execute(f"INSERT INTO {table} SELECT * FROM kept")
        hot.execute(f"INSERT INTO {table} SELECT * FROM kept k WHERE false")
    assert bare.sync_ok(table, reconcile=True).deletes == {TENANT: 0}
    (comparison,) = bare.compare(table, TENANT)
    assert comparison.equal and comparison.archived == 8, comparison
    export_batches(bare.app, TENANT)
    with bare.hot() as hot:
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive")
        hot.execute(f"DELETE FROM {table}")
    assert window(bare, method, table).deletes == {TENANT: 1}
    (comparison,) = bare.compare(table, TENANT)
    assert comparison.equal and comparison.archived == 8, comparison


def test_a_row_that_the_lake_cannot_hold_came_back(house: Lakehouse) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    window(house)
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 1)
        hot.execute("UPDATE ingested_events SET processed_at = 'infinity' WHERE id = 'org-a-e1'")
    result = window(house)
    assert (result.deletes, result.quarantined) == ({"org-a": 0}, {"org-a": 1})
    (comparison,) = house.compare("events", "org-a")
    assert comparison.equal and (comparison.archived, comparison.quarantined) == (1, 1)
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET processed_at = NULL WHERE id = 'org-a-e1'")
    assert window(house).upserts == {"org-a": 1}
    delete(house, 1)
    assert window(house).deletes == {"org-a": 1}
    assert_settled(house, 1, 1)
