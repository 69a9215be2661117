"""One suite over every catalog and storage: what landing asks of them. Glue and REST come in as further rows."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.errors import CatalogError, OwnershipError
from catalog.lake import Lake, LakeAddress, encode_organization, open_catalog
from catalog.tables import ensure_table, open_table
from lakehouse.capture.position import Position, SourceIdentity
from lakehouse.landing.commit import FencedError, land
from lakehouse.landing.cursor import LakeCursor, read_cursor
from lakehouse.landing.parquet import StagedFile
from lakehouse.landing.staging import Stager, Target
from lakehouse.settings import sqlalchemy_url
from schemas.contract import BUILT_IN, Contract, load_contract
from schemas.lake_columns import iceberg_schema

EVENTS = load_contract(BUILT_IN / "audit_log" / "v1.json")
FINDINGS = load_contract(BUILT_IN / "findings" / "v1.json")


@pytest.fixture(params=["sqlite on files", "postgresql on s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> LakeAddress:
    if request.param == "sqlite on files":
        return LakeAddress("sql", "test", f"sqlite:///{tmp_path}/catalog.db", f"file://{tmp_path}/warehouse")
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    url = sqlalchemy_url(request.getfixturevalue("postgres_url"))
    return LakeAddress("sql", "test", url, f"s3://{bucket}/warehouse", s3.storage_options())


@pytest.fixture
def lake(address: LakeAddress) -> Iterator[Lake]:
    catalog: Any = open_catalog(address)
    opened = Lake(catalog, address, "org-1", "tests")
    opened.ensure()
    yield opened
    catalog.engine.dispose()


def cursor(sequence: int, fence: str | None = None) -> LakeCursor:
    source = SourceIdentity("1", "1", 1, 1)
    position = Position(10 + sequence, 20 + sequence, (), 10, None, False, "columns", (), source)
    return LakeCursor(position, fence, sequence, datetime(2026, 1, 1, tzinfo=UTC), None, None)


def stage(table: Any, contract: Contract, window: str, first: int, count: int, days: int = 1) -> list[StagedFile]:
    """Stage `count` rows with sequences from `first`, spread over `days`."""
    numbers = range(first, first + count)
    arrays: dict[str, pa.Array] = {}
    for column in contract.columns:
        if column.type.name == "timestamptz":
            arrays[column.name] = pa.array(
                [(n % days) * 86_400_000_000 + n for n in numbers], pa.timestamp("us", "UTC")
            )
        elif column.type.is_list:
            arrays[column.name] = pa.array([["a", None] for _ in numbers], pa.list_(pa.string()))
        elif column.type.name == "integer":
            arrays[column.name] = pa.array(list(numbers), pa.int32())
        else:
            arrays[column.name] = pa.array([f"{column.name}-{n}" for n in numbers])
    arrays["organization_id"] = pa.array(["org-1"] * count)
    arrays["_xmin"] = pa.array([7] * count, pa.int64())
    given = iter([first])
    with Stager(
        contract,
        lambda _: Target(table.io, table.location()),
        lambda *_: next(given),
        window=window,
        captured_at=datetime(2026, 1, 1, tzinfo=UTC),
        chunk_bytes=64 * 1024 * 1024,
        threads=2,
    ) as stager:
        stager.add([pa.RecordBatch.from_pydict(arrays)])
        return stager.finish()["org-1"].files


def commit(
    table: Any, window: str, before: LakeCursor | None, count: int = 3, most: int = 100, days: int = 1
) -> LakeCursor:
    first = (before.sequence if before else 0) + 1
    files = stage(table, EVENTS, window, first, count, days)
    return land(table, window, files, before, cursor(first + count - 1), most_partitions=most).cursor


def test_field_ids_and_partition_are_the_contracts(lake: Lake) -> None:
    for contract in (EVENTS, FINDINGS):
        table = ensure_table(lake, contract)
        assert table.schema().as_struct() == iceberg_schema(contract).as_struct()
        (field,) = table.spec().fields
        assert (str(field.transform), table.schema().find_field(field.source_id).name) == ("day", contract.event_time)
        assert table.format_version == 2
        assert ensure_table(lake, contract).metadata.table_uuid == table.metadata.table_uuid


def test_a_landing_is_one_snapshot_with_its_cursor_and_exact_totals(lake: Lake) -> None:
    table = ensure_table(lake, EVENTS)
    versions = len(table.metadata.metadata_log)
    first = commit(table, "w1", None, count=5, days=2)
    table = open_table(lake, EVENTS)
    assert read_cursor(table) == first
    # Rows and cursor came in one commit: between two of them a process could die.
    assert len(table.metadata.metadata_log) == versions + 1
    (snapshot,) = table.snapshots()
    summary = snapshot.summary
    assert (summary["lakehouse.window"], summary["total-records"], summary["total-data-files"]) == ("w1", "5", "2")
    assert table.scan().to_arrow().num_rows == 5
    assert all(f["file_path"].startswith(table.location()) for f in table.inspect.files().to_pylist())


def test_files_carry_statistics_a_bloom_filter_and_iceberg_ids(lake: Lake) -> None:
    import pyarrow.parquet as pq

    table = ensure_table(lake, EVENTS)
    commit(table, "w1", None, count=5)
    (path,) = table.inspect.files()["file_path"].to_pylist()
    (entry,) = table.inspect.files().to_pylist()
    assert entry["record_count"] == 5
    with table.io.new_input(path).open() as stream:
        parquet = pq.ParquetFile(pa.BufferReader(stream.read()))
    group = parquet.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["created_at"].statistics.has_min_max
    assert columns["id"].compression == "ZSTD"
    assert not any("DELTA" in e for c in columns.values() for e in c.encodings)
    ids = [f.metadata[b"PARQUET:field_id"] for f in parquet.schema_arrow]
    assert [int(i) for i in ids] == [f.field_id for f in table.schema().fields]


def test_a_window_lands_once_however_often_it_is_tried(lake: Lake) -> None:
    table = ensure_table(lake, EVENTS)
    files = stage(table, EVENTS, "w1", 1, 3)
    for _ in range(3):
        land(open_table(lake, EVENTS), "w1", files, None, cursor(3), most_partitions=100)
    assert len(open_table(lake, EVENTS).snapshots()) == 1


def test_a_stale_cursor_commits_nothing(lake: Lake) -> None:
    table = ensure_table(lake, EVENTS)
    first = commit(table, "w1", None)
    stale = open_table(lake, EVENTS)
    second = commit(table, "w2", first)
    with pytest.raises(FencedError, match="w2/1"):
        commit(stale, "w2-late", first)
    assert read_cursor(open_table(lake, EVENTS)) == second
    assert len(open_table(lake, EVENTS).snapshots()) == 2


def test_of_racing_landings_exactly_one_wins(lake: Lake) -> None:
    before: LakeCursor | None = None
    table = ensure_table(lake, EVENTS)
    for round_number in range(5):
        handles = [open_table(lake, EVENTS) for _ in range(3)]
        staged = [stage(h, EVENTS, f"r{round_number}-{i}", 1 + 2 * round_number, 2) for i, h in enumerate(handles)]
        gate = threading.Barrier(3)
        won: list[LakeCursor] = []
        lost: list[Exception] = []

        def race(i: int) -> None:
            gate.wait()
            try:
                after = cursor(2 + 2 * round_number)
                landed = land(handles[i], f"r{round_number}-{i}", staged[i], before, after, most_partitions=9)
                won.append(landed.cursor)
            except (FencedError, CatalogError) as error:
                lost.append(error)

        threads = [threading.Thread(target=race, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 2), lost
        before = won[0]
        table = open_table(lake, EVENTS)
        assert read_cursor(table) == before
        assert len(table.snapshots()) == round_number + 1


def test_parts_go_on_where_they_stopped(lake: Lake) -> None:
    table = ensure_table(lake, EVENTS)
    first = commit(table, "w1", None)
    files = stage(table, EVENTS, "w2", 4, 6, days=3)
    after = cursor(9)
    landed = land(table, "w2", files, first, after, most_partitions=1)
    assert landed.cursor.fence == "w2/3"
    assert land(open_table(lake, EVENTS), "w2", files, first, after, most_partitions=1).cursor == landed.cursor
    assert open_table(lake, EVENTS).scan().to_arrow().num_rows == 9
    assert len(open_table(lake, EVENTS).snapshots()) == 4


def test_anothers_namespace_or_table_is_refused(lake: Lake) -> None:
    ensure_table(lake, EVENTS)
    other = Lake(lake.catalog, lake.address, lake.organization_id, "another-installation")
    with pytest.raises(OwnershipError, match=r"another-installation.*nothing was written"):
        other.check()
    with pytest.raises(OwnershipError):
        open_table(other, EVENTS)
    with pytest.raises(OwnershipError):
        other.ensure()


def test_a_contract_that_lacks_a_tables_column_is_refused(lake: Lake) -> None:
    ensure_table(lake, EVENTS)
    without = tuple(c for c in EVENTS.columns if c.name != "ip_address")
    with pytest.raises(CatalogError, match="ip_address"):
        open_table(lake, dataclasses.replace(EVENTS, columns=without))


def test_organization_ids_are_encoded_one_to_one() -> None:
    ids = ["a", "A", "a-b", "a_b", "a b", "ä", "a_2db", "Ä", "a;drop", "'\"", "0", "cm4x9z0aa0000"]
    encoded = [encode_organization(i) for i in ids]
    assert len(set(encoded)) == len(ids)
    assert all(e.isascii() and e == e.lower() and e.replace("_", "").isalnum() for e in encoded)
    assert encode_organization("cm4x9z0aa0000") == "org_cm4x9z0aa0000"
