"""Maintenance keeps every bound, changes no row, and removes nothing that anything names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from catalog.errors import StorageError
from lakehouse.control.models import FreedFile, TableStatistics
from lakehouse.landing.commit import COMPACTION_SUMMARY, WINDOW_SUMMARY
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.parquet import StagedFile, check_staged
from lakehouse.maintenance.garbage import list_files
from lakehouse.maintenance.outbox import prune_outbox
from lakehouse.maintenance.references import References
from lakehouse.maintenance.run import MaintenanceResult, maintain_all, maintain_table
from tests.support import Lakehouse, host_tables, insert_events, local_variables, s3_variables

WINDOWS = int(os.environ.get("BOUNDS_WINDOWS", "80"))
ALL_COLUMNS = "* EXCLUDE (_sequence), _sequence"


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def s3_house(hot_url: str, s3: Any, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def maintain(house: Lakehouse, table: str = "events", organization: str = "org-a") -> MaintenanceResult:
    result = maintain_table(house.app, house.app.contract(table), organization)
    assert not result.errors, [str(e) for e in result.errors]
    return result


def windows(house: Lakehouse, count: int, *, first: int = 400, day: str = "2026-01-01") -> None:
    with house.hot() as hot:
        for number in range(first, first + count):
            insert_events(hot, "org-a", number, 1, day=day)
            house.sync_ok("events", reconcile=False)


def live(house: Lakehouse, table: str = "events") -> list[str]:
    return sorted(f.path for f in References(house.lake_table(table, "org-a")).live())


def assert_whole(house: Lakehouse, table: str = "events", organization: str = "org-a") -> None:
    """Everything that the table refers to is there."""
    lake_table = house.lake_table(table, organization)
    named = References(lake_table).everything()
    assert named <= {f.path for f in list_files(lake_table)}


def test_snapshots_expire_and_their_files_go_after_the_grace_period(house: Lakehouse) -> None:
    house.reopen(MAINTENANCE__KEEP_SNAPSHOTS="3", MAINTENANCE__KEEP_DAILY="0", MAINTENANCE__BUSY_FILES="2")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
    house.backfill("events")
    windows(house, 2)
    tagged = house.lake_table("events", "org-a").current_snapshot().snapshot_id
    house.lake_table("events", "org-a").manage_snapshots().create_tag(tagged, "audit").commit()
    before = live(house)
    windows(house, 5, first=500)
    at_hand = live(house)

    merged = maintain(house)
    assert merged.snapshots_expired == 8 - 3 - 1
    assert merged.files_merged == 8 and merged.files_written == 1
    windows(house, 4, first=600)
    result = maintain(house)
    assert result.snapshots_expired > 0
    kept = house.lake_table("events", "org-a")
    assert tagged in {s.snapshot_id for s in kept.snapshots()}, "a tagged snapshot is kept"
    # A reader that opened the table before still has every file.
    assert all(kept.io.new_input(path).exists() for path in at_hand)

    house.clock.offset = timedelta(minutes=16)
    removed = maintain(house).files_removed
    assert removed > 0
    io = house.lake_table("events", "org-a").io
    assert not any(io.new_input(path).exists() for path in set(at_hand) - set(before))
    assert all(io.new_input(path).exists() for path in before), "the tag still reads its files"
    with house.app.engine.connect() as connection:
        left = connection.scalar(select(func.count()).select_from(FreedFile))
    house.clock.offset = timedelta(minutes=32)
    assert maintain(house).files_removed == left
    assert_whole(house)
    house.assert_equal("events")


def test_the_last_snapshot_of_a_day_is_kept(house: Lakehouse) -> None:
    from lakehouse.maintenance.expiry import kept_snapshots

    class At:
        summary = None

        def __init__(self, number: int, moment: datetime) -> None:
            self.snapshot_id = self.sequence_number = number
            self.timestamp_ms = int(moment.timestamp() * 1000)

    class Metadata:
        refs: dict[str, Any] = {}  # noqa: RUF012
        snapshots = [At(n, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=6 * n)) for n in range(40)]  # noqa: RUF012

    now = datetime(2026, 1, 10, 23, tzinfo=UTC)
    assert kept_snapshots(Metadata(), 2, 3, now) == {31, 35, 38, 39}  # type: ignore[arg-type]
    assert kept_snapshots(Metadata(), 1, 0, now) == {39}  # type: ignore[arg-type]


def test_a_compaction_changes_no_row_and_no_cursor(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-a", 100, 3, day="2026-02-01")
        house.backfill("events")
        for number in range(6):
            hot.execute("UPDATE ingested_events SET severity = %s WHERE id = 'org-a-e1'", [["LOW", "HIGH"][number % 2]])
            insert_events(hot, "org-a", 200 + 2 * number, 2)
            house.sync_ok("events", reconcile=False)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
    before = house.versions("events", "org-a", ALL_COLUMNS)
    cursor = read_cursor(house.lake_table("events", "org-a"))
    assert maintain(house).files_merged == 0, "days that are still written are left alone"

    house.clock.offset = timedelta(hours=25)
    result = maintain(house)
    assert (result.files_merged, result.files_written) == (8, 1), "one file of February is nothing to merge"
    assert house.versions("events", "org-a", ALL_COLUMNS) == before
    table = house.lake_table("events", "org-a")
    properties = table.current_snapshot().summary.additional_properties
    assert properties[COMPACTION_SUMMARY] == "8 files into 1"
    assert WINDOW_SUMMARY not in properties
    assert read_cursor(table) == cursor
    with house.hot() as hot:
        insert_events(hot, "org-a", 300, 2)
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e3', 'org-a-e200')")
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events")
    assert len(house.versions("events", "org-a")) == len(before) + 4


def test_a_tiny_late_file_does_not_have_a_big_one_rewritten(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 300)
        hot.execute(
            "UPDATE ingested_events SET payload = jsonb_build_object('x', (SELECT string_agg(md5(id || n), '') "
            "FROM generate_series(1, 50) n))"
        )
    house.backfill("events")
    (big,) = [f for f in References(house.lake_table("events", "org-a")).live() if f.rows == 300][:1]
    windows(house, 1)
    house.clock.offset = timedelta(hours=25)
    assert maintain(house).files_merged == 0
    windows(house, 3, first=500)
    assert maintain(house).files_merged == 0, "the day is written again"
    house.clock.offset = timedelta(hours=50)
    assert maintain(house).files_merged == 4, "the tiny ones become one"
    assert big.path in live(house)
    house.clock.offset = timedelta(hours=51)
    assert maintain(house).files_merged == 0
    house.assert_equal("events")


def test_a_landing_beside_a_compaction_loses_nothing(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    import lakehouse.maintenance.compaction as compaction

    windows_made = []

    def land_between(name: str) -> None:
        if name == "maintain.before_commit" and not windows_made:
            windows_made.append(name)
            windows(house, 1, first=700)

    house.backfill("events")
    windows(house, 4)
    house.clock.offset = timedelta(hours=25)
    commits = []
    original = compaction.References.data_files

    def commit_late(self: References, paths: set[str]) -> Any:
        # Between the compaction's last look at the table and its commit.
        found = original(self, paths)
        if not commits:
            commits.append(paths)
            windows(house, 1, first=800)
        return found

    monkeypatch.setattr(compaction, "failpoint", land_between)
    monkeypatch.setattr(compaction.References, "data_files", commit_late)
    result = maintain(house)
    assert windows_made and commits
    assert (result.files_merged, result.files_written) == (4, 1)
    assert len(live(house)) == 3
    house.assert_equal("events")
    windows(house, 1, first=900)
    house.assert_equal("events")
    assert_whole(house)


@pytest.mark.parametrize("damaged", [0, -1], ids=["oldest", "newest"])
def test_a_file_that_is_not_what_its_manifest_says_is_not_merged(house: Lakehouse, damaged: int) -> None:
    import pyarrow.parquet as pq

    house.backfill("events")
    windows(house, 3)
    files = References(house.lake_table("events", "org-a")).live()
    path = sorted(files, key=lambda f: f.first_sequence)[damaged].path.removeprefix("file://")
    pq.write_table(pq.read_table(path, partitioning=None).slice(0, 0), path)
    house.clock.offset = timedelta(hours=25)
    result = maintain_table(house.app, house.app.contract("events"), "org-a")
    assert "nothing was committed" in result.errors[0].detail
    assert len(live(house)) == 3
    assert result.measured is not None, "one step's fault is its own"


def test_orphans_go_after_the_safety_age_and_named_files_never(house: Lakehouse) -> None:
    house.reopen(MAINTENANCE__GRACE_MINUTES="0", MAINTENANCE__KEEP_SNAPSHOTS="1", MAINTENANCE__KEEP_DAILY="0")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        insert_events(hot, "org-a", 50, 3)
        # Staged and recorded, and killed before the commit.
        done = house.run("sync", "--once", "--table", "events", failpoints="landing.recorded=kill", check=None)
        assert done.returncode < 0
        house.sync_ok("findings", reconcile=False)
    table = house.lake_table("events", "org-a")
    stray = Path(table.location().removeprefix("file://")) / "data" / "stray.parquet"
    stray.write_bytes(b"nobody names me")
    leftover = Path(table.location().removeprefix("file://")) / "metadata" / "00000-lost.metadata.json"
    leftover.write_text("{}")
    with house.app.engine.connect() as connection:
        staged = connection.scalars(text("SELECT f->>'path' FROM landings, jsonb_array_elements(files) f")).all()
    assert staged
    maintain(house)
    assert stray.exists(), "younger than the safety age"
    assert not leftover.exists(), "a metadata file that lost its commit is of no use to anybody"

    house.clock.offset = timedelta(hours=73)
    result = maintain(house)
    assert result.orphans >= 1
    assert not stray.exists()
    assert all(table.io.new_input(path).exists() for path in staged), "a staged share is named"
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events")
    with house.app.engine.begin() as connection:
        statuses = connection.scalars(text("SELECT status FROM landings ORDER BY created_at")).all()
    assert "abandoned" in statuses or statuses == ["landed"]
    if "abandoned" in statuses:
        house.clock.offset = timedelta(hours=150)
        maintain(house)
        assert not any(table.io.new_input(path).exists() for path in staged)
    assert_whole(house)
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events")


def test_old_inventories_go_and_the_cursors_stays(house: Lakehouse) -> None:
    house.reopen(MAINTENANCE__GRACE_MINUTES="0")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        for number in range(3):
            insert_events(hot, "org-a", 50 + number, 1)
            house.sync_ok("events", reconcile=True)
        table = house.lake_table("events", "org-a")
        assert len(list_files(table, "inventory")) == 3
        maintain(house)
        cursor = read_cursor(table)
        assert cursor is not None and cursor.inventory is not None
        assert [f.path for f in list_files(table, "inventory")] == [cursor.inventory.file]
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events")


def test_a_staged_file_is_checked_before_another_process_commits_it(house: Lakehouse) -> None:
    house.backfill("events")
    windows(house, 1)
    with house.app.engine.connect() as connection:
        (raw,) = connection.scalars(text("SELECT f FROM landings, jsonb_array_elements(files) f")).all()
    file = StagedFile(**raw)
    io = house.lake_table("events", "org-a").io
    assert file.sha256 is not None
    check_staged(io, file)
    path = Path(file.path.removeprefix("file://"))
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(StorageError, match=r"\.parquet: has .* staged were"):
        check_staged(io, file)
    path.write_bytes(content[:-1])
    with pytest.raises(StorageError, match=r"\.parquet: has"):
        check_staged(io, file)
    path.unlink()
    with pytest.raises(StorageError, match="is gone"):
        check_staged(io, file)


def test_one_organizations_fault_is_its_own_and_a_stop_is_obeyed(house: Lakehouse) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
    house.backfill("events")
    location = house.lake_table("events", "org-a").metadata_location.removeprefix("file://")
    Path(location).write_text("{")
    results = {r.organization: r for r in maintain_all(house.app, house.app.contract("events"))}
    assert results["org-a"].errors and results["org-a"].state == "error"
    assert results["org-b"].state == "done" and results["org-b"].measured is not None
    assert results["org-c"].state == "done"
    assert maintain_all(house.app, house.app.contract("events"), should_stop=lambda: True) == []


@pytest.mark.timeout(900)
def test_bounds_hold_over_many_windows_and_the_cursor_survives(s3_house: Lakehouse) -> None:
    """What grows, and that nothing of it does: each bound is below what that many windows would leave."""
    house = s3_house
    house.reopen(
        MAINTENANCE__KEEP_SNAPSHOTS="10",
        MAINTENANCE__KEEP_METADATA="10",
        MAINTENANCE__BUSY_FILES="30",
        MAINTENANCE__GRACE_MINUTES="0",
    )
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 20)
        house.backfill("events")
        middle = None
        for number in range(WINDOWS):
            hot.execute("UPDATE ingested_events SET severity = %s WHERE id = 'org-a-e1'", [["LOW", "HIGH"][number % 2]])
            insert_events(hot, "org-a", 300 + 2 * number, 2)
            if number == WINDOWS * 9 // 20:
                hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e5'")
            house.sync_ok("events", reconcile=number % 50 == 40)
            if number == WINDOWS // 2:
                middle = (house.app.clock(), sorted(r["id"] for r in house.versions("events", "org-a", "id")))
            if number % 20 == 19:
                result = maintain(house)
                found = result.measured
                assert found is not None
                assert found.snapshots <= 10 + 1 + 1, "the newest, the day's last, a compaction"
                assert found.manifests <= 34
                assert found.detail["metadata_json_files"] <= 10 + 2
                assert found.metadata_bytes < 1_500_000
                assert found.detail["small_files"] <= 30 + 20
        objects = len(list_files(house.lake_table("events", "org-a")))
        assert objects <= 10 + 12 + 34 + 60 + 20, "metadata, lists, manifests, data files, inventories"

        # Every landing's snapshot expires; a compaction is the newest.
        for number in range(3):
            insert_events(hot, "org-a", 800 + number, 1)
            house.sync_ok("events", reconcile=False)
        house.clock.offset = timedelta(hours=25)
        house.reopen(MAINTENANCE__KEEP_SNAPSHOTS="1", MAINTENANCE__KEEP_DAILY="0")
        cursor = read_cursor(house.lake_table("events", "org-a"))
        assert maintain(house).files_merged > 1
        maintain(house)
        table = house.lake_table("events", "org-a")
        (last,) = table.snapshots()
        assert COMPACTION_SUMMARY in last.summary.additional_properties
        assert read_cursor(table) == cursor
        assert_whole(house)
        house.assert_equal("events")
        insert_events(hot, "org-a", 900, 2)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e7'")
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events")

    from lakehouse.query import run_query

    assert middle is not None
    moment, ids = middle
    history = run_query(house.app, "SELECT id FROM events_history", organization="org-a", as_of=moment).to_pylist()
    assert sorted(r["id"] for r in history) == ids
    latest = run_query(house.app, "SELECT id FROM events", organization="org-a", as_of=moment).to_pylist()
    assert len(latest) == 20 - 1 + 2 * (WINDOWS // 2 + 1)
    with house.app.engine.connect() as connection:
        row = connection.execute(select(TableStatistics.__table__)).one()
    assert row.recent_versions >= 3 * WINDOWS - 1
    assert row.recent_keys <= row.recent_versions - (WINDOWS - 1), "one row changed at every window"


def test_the_outbox_is_pruned_by_age_and_keeps_what_is_needed(house: Lakehouse) -> None:
    house.backfill("events")
    windows(house, 4)

    def counts() -> dict[str, int]:
        with house.app.engine.connect() as connection:
            return {
                t: connection.scalar(text(f"SELECT count(*) FROM {t}")) or 0
                for t in ("warehouse_deliveries", "landings", "windows", "backfills")
            }

    before = counts()
    assert before == {"warehouse_deliveries": 4, "landings": 4, "windows": 4, "backfills": 1}
    with house.app.engine.begin() as connection:
        # An older unfinished range: all from it on stay.
        connection.execute(
            text(
                "INSERT INTO warehouse_deliveries (id, organization_id, destination_id, table_name, sequence_after, "
                "sequence_upto, status) SELECT gen_random_uuid(), 'org-x', destination_id, table_name, 0, 1, 'FAILED' "
                "FROM warehouse_deliveries LIMIT 1"
            )
        )
        connection.execute(text("INSERT INTO workers (id, role) VALUES ('gone', 'worker')"))
    assert sum(prune_outbox(house.app).values()) == 0, "nothing is old"
    house.clock.offset = timedelta(days=31)
    assert prune_outbox(house.app) == {
        "warehouse_deliveries": 2,
        "landings": 3,
        "windows": 0,
        "backfills": 1,
        "workers": 1,
    }
    assert sum(prune_outbox(house.app).values()) == 0
    with house.app.engine.connect() as connection:
        left = connection.execute(
            text("SELECT sequence_after, status FROM warehouse_deliveries ORDER BY sequence_after, status")
        ).all()
    assert [tuple(r) for r in left] == [(0, "DELIVERED"), (0, "FAILED"), (3, "DELIVERED")]
    with house.app.engine.begin() as connection:
        # It names no window: only this test writes such a row, and nobody could land it.
        connection.execute(text("DELETE FROM warehouse_deliveries WHERE organization_id = 'org-x'"))
    windows(house, 2, first=950)
    house.assert_equal("events")


def test_the_command_and_status_show_the_bounds(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
    house.backfill("events")
    windows(house, 3)
    tried = house.run_json("maintain", "--table", "events", "--organization", "org-a-slug", "--dry-run")
    assert tried["dry_run"] is True and tried["pruned"] == {}
    assert len(house.lake_table("events", "org-a").snapshots()) == 4
    done = house.run_json("maintain", "--table", "events")
    assert [t["state"] for t in done["tables"]] == ["done", "done", "done"]
    shown = house.run_json("status")
    bounds = {(b["organization"], b["table"]): b for b in shown["bounds"]["tables"]}
    assert bounds["org-a", "events"]["snapshots"] == 4
    assert bounds["org-a", "events"]["recent_versions"] == 3
    assert shown["bounds"]["limits"]["keep_snapshots"] == 20
    assert "bounds" in house.run("status").stdout
    assert "no organization 'nobody'" in house.run("maintain", "--organization", "nobody", check=2).stderr
    assert json.dumps(done)
