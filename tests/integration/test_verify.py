"""`lakehouse verify` sees one altered value in one Parquet file, and one hot row that changed since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support import Lakehouse, host_tables, insert_events, s3_variables


@pytest.fixture
def house(hot_url: str, s3: Any, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.init()
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 1, 40)
        insert_events(hot, "org-b", 1, 10)
    lakehouse.backfill("events")
    lakehouse.sync_ok("events", reconcile=True)
    yield lakehouse
    lakehouse.close()


def alter_one_value(house: Lakehouse, organization: str, row_id: str, column: str, value: str) -> str:
    """Rewrite the data file that holds the row, with one value changed, in place; returns its path."""
    table = house.lake_table("events", organization)
    for path in table.inspect.files()["file_path"].to_pylist():
        with table.io.new_input(path).open() as stream:
            rows = pq.read_table(pa.BufferReader(stream.read()))
        if row_id not in rows["id"].to_pylist():
            continue
        index = rows.column_names.index(column)
        changed = pc.if_else(pc.equal(rows["id"], row_id), pa.scalar(value), rows[column])
        altered = rows.set_column(index, rows.schema.field(index), changed)
        with table.io.new_output(path).create(overwrite=True) as stream:
            pq.write_table(altered, stream, compression="zstd")
        return str(path)
    raise AssertionError(f"no file holds {row_id}")


def test_equal_is_exit_0(house: Lakehouse) -> None:
    result = house.run_json("verify", "--table", "events")
    assert result["equal"] is True
    assert {t["organization"]: t["hot_rows"] for t in result["tables"]} == {"org-a": 40, "org-b": 10, "org-c": 0}


@pytest.mark.parametrize("value", ["SOME-OTHER", "audiT"])
def test_one_altered_value_in_a_parquet_file(house: Lakehouse, value: str) -> None:
    alter_one_value(house, "org-a", "org-a-e17", "source", value)
    result = house.run_json("verify", "--table", "events", check=1)
    (difference,) = [d for t in result["tables"] for d in t["differences"]]
    assert (difference["organization"], difference["key"]["id"]) == ("org-a", "org-a-e17")
    assert (difference["kind"], difference["columns"], difference["pending"]) == ("content", ["source"], False)
    shown = house.run("verify", "--table", "events", check=1)
    assert "org-a-e17" in shown.stdout
    assert "source" in shown.stdout


def test_one_hot_row_updated_with_capture_stopped(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET actor = 'someone' WHERE id = 'org-b-e3'")
    result = house.run_json("verify", "--table", "events", check=1)
    (difference,) = [d for t in result["tables"] for d in t["differences"]]
    assert (difference["key"]["id"], difference["kind"], difference["columns"]) == ("org-b-e3", "content", ["actor"])
    assert difference["pending"], "the next window would bring it"
    house.sync_ok("events")
    assert house.run_json("verify", "--table", "events")["equal"] is True


def test_missing_and_extra_rows_are_told_apart(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 900, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
    result = house.run_json("verify", "--table", "events", check=1)
    kinds = {d["key"]["id"]: d["kind"] for t in result["tables"] for d in t["differences"]}
    assert kinds == {"org-a-e900": "missing", "org-a-e1": "extra"}


def test_a_data_file_that_is_gone_is_an_error(house: Lakehouse, tmp_path: Path) -> None:
    table = house.lake_table("events", "org-a")
    table.io.delete(table.inspect.files()["file_path"].to_pylist()[0])
    done = house.run("verify", "--table", "events", check=1)
    assert "events: organization org-a" in done.stderr or "org-a" in done.stderr, done.stderr


def test_a_version_that_landed_twice_is_seen(house: Lakehouse) -> None:
    from lakehouse.landing.commit import WINDOW_SUMMARY

    table = house.lake_table("events", "org-b")
    rows = table.scan().to_arrow()
    one = rows.slice(0, 1)
    again = one.set_column(one.column_names.index("_sequence"), "_sequence", pa.array([10_000], pa.int64()))
    table.append(again.cast(rows.schema), snapshot_properties={WINDOW_SUMMARY: "by hand"})
    result = house.run_json("verify", "--table", "events", check=1)
    assert {t["organization"]: t["repeated"] for t in result["tables"]} == {"org-a": 0, "org-b": 1, "org-c": 0}
