"""Tombstones come into the lake's `_archive`: all of them, once, in order, whatever died or was restored in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import sql

from catalog.errors import OwnershipError
from lakehouse.archive import export
from lakehouse.archive.archive_table import ARCHIVE, open_archive, read_standing, tombstone
from lakehouse.archive.export import export_all, export_batches, recover_batches
from lakehouse.archive.installation import ArchiveError, table
from lakehouse.archive.mirror import read_holds, write_holds
from lakehouse.archive.records import Hold, chain_after
from lakehouse.duck import connect, lake_relation
from lakehouse.maintenance.archive import keep_archive
from lakehouse.maintenance.garbage import list_files
from lakehouse.maintenance.records import MOST_FILES
from lakehouse.maintenance.references import References
from lakehouse.maintenance.run import KEPT_ARCHIVE, KEPT_HOLDS, maintain_table, maintained
from tests.archiver import archive_rows, enable, tombstones
from tests.support import Lakehouse, host_tables, insert_events, local_variables

NOTHING: tuple[dict[str, int], list[Any]] = ({"holds_mirrored": 0, "batches_exported": 0, "tombstones_pruned": 0}, [])


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a", "org-b"))
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    with lakehouse.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 20)
    lakehouse.backfill("events")
    lakehouse.sync_ok("events")
    enable(lakehouse)
    yield lakehouse
    lakehouse.close()


def archive_table(house: Lakehouse, organization: str = "org-a") -> Any:
    return open_archive(house.app.lake(organization))


def exported(house: Lakehouse, organization: str = "org-a") -> list[dict[str, Any]]:
    """The rows of `_archive`, in the order of `_sequence`."""
    opened = archive_table(house, organization)
    with connect([house.app.address_of(organization)]) as duck:
        query = f"SELECT * FROM {lake_relation(opened.metadata_location)} ORDER BY _sequence"
        return duck.execute(query).to_arrow_table().to_pylist()


def keys(*numbers: int, organization: str = "org-a") -> list[str]:
    return [f"{organization}-e{n}" for n in numbers]


def waiting(house: Lakehouse) -> list[tuple[str, int]]:
    with house.hot() as hot:
        return hot.execute(
            "SELECT organization_id, number FROM lakehouse_archive.batches WHERE exported_at IS NULL ORDER BY 1, 2"
        ).fetchall()


def test_every_tombstone_comes_once_with_its_receipt(house: Lakehouse) -> None:
    archive_rows(house, "events", "org-a", keys(3, 1, 2))
    archive_rows(house, "events", "org-a", keys(10, 11))
    archive_rows(house, "events", "org-b", ["org-b-e1"])
    assert export_batches(house.app, "org-a") == 2
    rows = exported(house)
    assert [tombstone(r) for r in rows] == [tombstone(t) for t in tombstones(house, "org-a")]
    assert [r["receipt"] for r in rows] == [
        "receipt of batch 1 of org-a", None, None, "receipt of batch 2 of org-a", None,
    ]  # fmt: skip
    assert [r["_sequence"] for r in rows] == [1, 2, 3, 4, 5]
    chain = chain_after("0" * 64, "receipt of batch 1 of org-a")
    assert rows[0]["chain"] == chain
    standing = read_standing(archive_table(house))
    assert (standing.number, standing.sequence, standing.tables) == (2, 5, ("events",))
    assert standing.chain == rows[3]["chain"] == chain_after(chain, "receipt of batch 2 of org-a")
    assert waiting(house) == [("org-b", 1)]
    assert export_batches(house.app, "org-a") == 0
    assert len(archive_table(house).snapshots()) == 1, "two batches are one commit, and nothing more is none"
    archive_rows(house, "events", "org-a", keys(4))
    assert export_all(house.app) == (2, [])
    assert [r["row_key"] for r in exported(house)] == keys(1, 2, 3, 10, 11, 4)
    assert [r["row_key"] for r in exported(house, "org-b")] == ["org-b-e1"]
    assert waiting(house) == []


def test_nothing_to_do_opens_no_lake(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the lake was opened")

    monkeypatch.setattr(house.app, "lake", refuse)
    assert export_batches(house.app, "org-a") == 0
    with house.hot() as hot:
        hot.execute("DROP SCHEMA lakehouse_archive CASCADE")
    assert (export_batches(house.app, "org-a"), export_all(house.app)) == (0, (0, []))
    assert keep_archive(house.app) == NOTHING


def test_a_lost_reply_is_settled_by_the_table(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    archive_rows(house, "events", "org-a", keys(1))
    real = type(house.app.lake("org-a").catalog).commit_table
    lost = iter([True])

    def commit(self: Any, *arguments: Any, **named: Any) -> Any:
        response = real(self, *arguments, **named)
        if arguments[0].name()[-1] == ARCHIVE.table and next(lost, False):
            raise ConnectionError("the reply is lost")
        return response

    monkeypatch.setattr(type(house.app.lake("org-a").catalog), "commit_table", commit)
    assert export_batches(house.app, "org-a") == 1
    assert len(exported(house)) == 1
    assert waiting(house) == []


def test_another_exporter_is_met_between_reading_and_committing(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    real, others = export.write_stream, iter([True])

    def beside(*arguments: Any, **named: Any) -> Any:
        file = real(*arguments, **named)
        if next(others, False):
            other = Lakehouse(house.hot_url, dict(house.variables))
            try:
                assert export_batches(other.app, "org-a") == 1
            finally:
                other.close()
            archive_rows(house, "events", "org-a", keys(3))
        return file

    monkeypatch.setattr(export, "write_stream", beside)
    assert export_batches(house.app, "org-a") == 1, "the batch that came after the other exporter's"
    assert [r["row_key"] for r in exported(house)] == keys(1, 2, 3)
    assert read_standing(archive_table(house)).sequence == 3


def test_batches_of_many_pages_and_commits(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PAGE_ROWS", 3)
    monkeypatch.setattr(export, "COMMIT_ROWS", 8)
    for first in (1, 5, 9, 13):
        archive_rows(house, "events", "org-a", keys(*range(first, first + 4)))
    assert export_batches(house.app, "org-a") == 4
    rows = exported(house)
    assert [tombstone(r) for r in rows] == [tombstone(t) for t in tombstones(house, "org-a")]
    assert [r["_sequence"] for r in rows] == list(range(1, 17))
    assert [r["batch"] for r in rows if r["receipt"]] == [1, 2, 3, 4]
    assert len(archive_table(house).snapshots()) == 2


def test_a_tombstone_that_somebody_removed_stops_the_export(house: Lakehouse) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    archive_rows(house, "events", "org-a", keys(3, 4))
    with house.hot() as hot:
        (row,) = hot.execute(
            "DELETE FROM lakehouse_archive.cold_storage_archive WHERE row_key = 'org-a-e3' RETURNING batch"
        ).fetchall()
    assert row == (2,)
    with pytest.raises(ArchiveError, match="batch 2 took 2 rows, and has 1 tombstones"):
        export_batches(house.app, "org-a")
    assert waiting(house) == [("org-a", 1), ("org-a", 2)]


def forget(house: Lakehouse, number: int) -> None:
    """As a restore from an older copy does: the batches from a number on never happened here."""
    with house.hot() as hot:
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE batch >= %s", [number])
        hot.execute("DELETE FROM lakehouse_archive.batches WHERE number >= %s", [number])


def test_a_restored_database_gets_back_the_batches_that_it_forgot(house: Lakehouse) -> None:
    for number in (1, 2, 3):
        archive_rows(house, "events", "org-a", keys(number))
    export_batches(house.app, "org-a")
    with house.hot() as hot:
        before = hot.execute(
            "SELECT organization_id, number, id, table_name, row_count, receipt, chain, created_at "
            "FROM lakehouse_archive.batches ORDER BY number"
        ).fetchall()
    forget(house, 2)
    assert recover_batches(house.app, "org-a") == 2
    assert recover_batches(house.app, "org-a") == 0
    with house.hot() as hot:
        assert (
            hot.execute(
                "SELECT organization_id, number, id, table_name, row_count, receipt, chain, created_at "
                "FROM lakehouse_archive.batches ORDER BY number"
            ).fetchall()
            == before
        )
    archive_rows(house, "events", "org-a", keys(4))
    assert export_batches(house.app, "org-a") == 1
    assert [(r["batch"], r["row_key"]) for r in exported(house)] == list(enumerate(keys(1, 2, 3, 4), start=1))


@pytest.mark.parametrize("forgotten", [1, 2, 3])
def test_batches_under_numbers_that_the_lake_has_are_for_a_person(house: Lakehouse, forgotten: int) -> None:
    for number in (1, 2, 3):
        archive_rows(house, "events", "org-a", keys(number))
    export_batches(house.app, "org-a")
    forget(house, forgotten)
    archive_rows(house, "events", "org-a", keys(9))
    with house.hot() as hot:
        # Its receipt names another moment, and so the chain is another.
        hot.execute("UPDATE lakehouse_archive.batches SET chain = repeat('f', 64) WHERE number = %s", [forgotten])
    with pytest.raises(ArchiveError, match=f"batch {forgotten} of the hot database is not the one that the lake has"):
        export_batches(house.app, "org-a")
    if forgotten < 3:
        with pytest.raises(ArchiveError, match=f"batch {forgotten} of the hot database"):
            recover_batches(house.app, "org-a")
    assert ("org-a", forgotten) in waiting(house), "nothing is noted as exported that is not"
    assert [r["row_key"] for r in exported(house)] == keys(1, 2, 3)


def test_maintenance_keeps_it_within_bounds_and_loses_nothing(house: Lakehouse) -> None:
    house.reopen(
        MAINTENANCE__KEEP_SNAPSHOTS="2",
        MAINTENANCE__KEEP_DAILY="0",
        MAINTENANCE__SETTLED_HOURS="0",
        MAINTENANCE__GRACE_MINUTES="0",
    )
    for number in range(1, 9):
        archive_rows(house, "events", "org-a", keys(number))
        assert export_batches(house.app, "org-a") == 1
    before = exported(house)
    assert len(archive_table(house).snapshots()) == 8
    result = maintain_table(house.app, KEPT_ARCHIVE, "org-a")
    assert not result.errors
    assert (result.snapshots_expired, result.files_merged, result.files_written) == (6, 8, 1)
    assert exported(house) == before
    standing = read_standing(archive_table(house))
    assert standing.number == 8
    archive_rows(house, "events", "org-a", keys(9))
    assert export_batches(house.app, "org-a") == 1
    assert read_standing(archive_table(house)) == replace(
        standing, number=9, sequence=9, chain=exported(house)[-1]["chain"]
    )
    assert maintain_table(house.app, KEPT_ARCHIVE, "org-b").state == "no table"


def test_records_of_holds_are_kept_within_bounds_too(house: Lakehouse) -> None:
    house.reopen(MAINTENANCE__KEEP_SNAPSHOTS="2", MAINTENANCE__KEEP_DAILY="0", MAINTENANCE__GRACE_MINUTES="0")
    lake = house.app.lake("org-a")
    for number in range(MOST_FILES + 1):
        hold = Hold(
            UUID(int=number + 1), "org-a", "events", (f"org-a-e{number}",), None, None, "tests", "me", house.app.clock()
        )
        assert write_holds(lake, [hold]) == 1
    before = read_holds(lake)
    assert len(before) == MOST_FILES + 1
    result = maintain_table(house.app, KEPT_HOLDS, "org-a")
    assert not result.errors
    assert (result.snapshots_expired, result.files_merged, result.files_written) == (MOST_FILES - 1, MOST_FILES + 1, 1)
    assert read_holds(lake) == before
    for _ in range(2):
        result = maintain_table(house.app, KEPT_HOLDS, "org-a")
    assert not result.errors
    table = KEPT_HOLDS.open(lake)
    assert table is not None
    assert {f.path for f in list_files(table)} == References(table).everything()
    assert len(References(table).live()) == 1
    assert read_holds(lake) == before


def test_who_took_the_lake_over_goes_on_and_the_former_owner_does_not(house: Lakehouse) -> None:
    archive_rows(house, "events", "org-a", keys(1))
    export_batches(house.app, "org-a")
    former = Lakehouse(house.hot_url, dict(house.variables))
    try:
        assert export_batches(former.app, "org-a") == 0, "it runs, and is not asked again whose the control tables are"
        former.sync_ok("events")
        archive_rows(house, "events", "org-a", keys(2))
        house.reopen(INSTALLATION="renamed")
        house.run("lake", "adopt", "--reason", "renamed", "--yes")
        house.reopen()
        with pytest.raises(OwnershipError):
            export_batches(former.app, "org-a")
        assert export_batches(house.app, "org-a") == 1
        assert [r["row_key"] for r in exported(house)] == keys(1, 2)
        assert not maintain_table(house.app, KEPT_ARCHIVE, "org-a").errors
    finally:
        former.close()


def age(house: Lakehouse, number: int, years: int) -> None:
    """A batch of so many years ago."""
    with house.hot() as hot:
        for statement in (
            "UPDATE {t} SET archived_at = archived_at - make_interval(years => %s) WHERE batch = %s",
            "UPDATE {b} SET created_at = created_at - make_interval(years => %s) WHERE number = %s",
        ):
            hot.execute(sql.SQL(statement).format(t=table("cold_storage_archive"), b=table("batches")), [years, number])


def test_tombstones_are_pruned_after_the_audit_window_and_only_once_exported(house: Lakehouse) -> None:
    for number in range(1, 5):
        archive_rows(house, "events", "org-a", keys(number))
    for number in (1, 2, 4):
        age(house, number, 8)
    with house.hot() as hot:
        # Somebody says that they are exported; the lake does not.
        hot.execute("UPDATE lakehouse_archive.batches SET exported_at = now()")
    assert keep_archive(house.app) == NOTHING
    assert len(tombstones(house, "org-a")) == 4
    with house.hot() as hot:
        hot.execute("UPDATE lakehouse_archive.batches SET exported_at = NULL")
    assert keep_archive(house.app) == ({**NOTHING[0], "batches_exported": 4, "tombstones_pruned": 2}, [])
    assert [t["batch"] for t in tombstones(house, "org-a")] == [3, 4], "none before one that stays"
    assert [r["row_key"] for r in exported(house)] == keys(1, 2, 3, 4)
    with house.hot() as hot:
        assert hot.execute("SELECT count(*) FROM lakehouse_archive.batches").fetchone() == (4,)
    house.clock.offset = timedelta(days=8 * 366)
    assert keep_archive(house.app) == ({**NOTHING[0], "tombstones_pruned": 2}, [])


def test_the_program_exports_and_prunes(house: Lakehouse) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    age(house, 1, 8)
    done = house.run_json("maintain", "--table", "_archive")
    assert done["archive"]["batches_exported"] == 1
    assert done["archive"]["tombstones_pruned"] == 2
    # The table was made after it was its turn.
    assert {(t["organization"], t["state"]) for t in done["tables"]} == {("org-a", "no table"), ("org-b", "no table")}
    done = house.run_json("maintain", "--table", "_archive")
    assert {(t["organization"], t["state"]) for t in done["tables"]} == {("org-a", "done"), ("org-b", "no table")}
    assert done["archive"]["batches_exported"] == done["archive"]["tombstones_pruned"] == 0
    assert set(maintained(house.app)) == {*house.app.contracts, "_archive", "_holds"}
