"""Rows of other tables than the host's leave as well: composite keys of odd types, dates, partitions, no event time,
and the trigger method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lakehouse.archive import age
from lakehouse.archive.evidence import public_keys, verify
from lakehouse.archive.export import export_batches
from lakehouse.archive.installation import connect
from lakehouse.archive.plan import make_plan
from lakehouse.archive.policy import enable
from lakehouse.archive.run import archive_all
from schemas.contract import parse_contract
from tests.cold import REFERENCES, allow, archive_once, archive_variables, old_events, tombstones
from tests.support import Lakehouse, host_tables, local_variables


def column(number: int, name: str, kind: str, source_type: str, *, nullable: bool = False) -> dict[str, Any]:
    made = {"id": number, "name": name, "type": kind, "nullable": nullable, "source": name, "source_type": source_type}
    return made | {"description": "x", "sensitivity": "internal"}


def contract(table: str, columns: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "table": table,
        "version": "1.0",
        "title": table,
        "description": "x",
        "source": {"schema": "public", "table": table},
        "retention": "applies",
        "watermark": None,
        "not_exported": [],
        "columns": columns,
        **more,
    }


READINGS = contract(
    "readings",
    [
        column(6, "tenant", "integer", "integer"),
        column(7, "station", "string", "uuid"),
        column(8, "day", "date", "date"),
        column(9, "n", "decimal(10,2)", "numeric(10,2)"),
        column(10, "raw", "binary", "bytea"),
        column(11, "seen", "timestamptz", "timestamp with time zone", nullable=True),
        column(12, "note", "string", "text", nullable=True) | {"source": "note%d"},
    ],
    tenant="tenant",
    primary_key=["station", "n", "raw"],
    event_time="day",
    age_bounds=["day", "seen"],
)
NOTES = contract(
    "notes",
    [
        column(6, "id", "string", "text"),
        column(7, "tenant", "string", "text"),
        column(8, "written", "timestamptz", "timestamp with time zone"),
    ],
    tenant="tenant",
    primary_key=["id"],
    event_time=None,
    age_bounds=["written"],
)


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("7",))
    for made in (READINGS, NOTES):
        folder = tmp_path / "contracts" / made["table"]
        folder.mkdir(parents=True)
        (folder / "v1.json").write_text(json.dumps(made))
    variables = local_variables(hot_url, tmp_path) | archive_variables(tmp_path)
    variables["LAKEHOUSE_CONTRACTS"] = json.dumps(["builtin", str(tmp_path / "contracts")])
    lakehouse = Lakehouse(hot_url, variables)
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def assert_sound(house: Lakehouse, rows: int) -> None:
    """Every receipt verifies from the lake: signatures, tombstones, content."""
    export_batches(house.app, "7")
    result = verify(house.app, "7", public_keys(house.app, []), chain=True)
    assert result.faults == [] and (result.rows, result.contents, result.keyed_hashes) == (rows, rows, rows)


def test_a_composite_key_of_odd_types_and_an_event_time_of_days(house: Lakehouse) -> None:
    allow(house, "7")
    with house.hot() as hot:
        hot.execute(
            "CREATE TABLE readings (tenant integer NOT NULL, station uuid NOT NULL, day date NOT NULL, "
            'n numeric(10,2) NOT NULL, raw bytea NOT NULL, seen timestamptz, "note%d" text, '
            "PRIMARY KEY (raw, station, n))"
        )
        hot.execute(
            "INSERT INTO readings SELECT t, ('00000000-0000-0000-0000-00000000000' || s)::uuid, d::date, n, "
            "decode(repeat('0' || n, 3), 'hex'), '2020-01-01', 'x' FROM unnest(ARRAY[7, 8]) t, unnest(ARRAY[1, 2]) s, "
            "generate_series(0, 3) n, unnest(ARRAY['2020-01-01'::timestamp]) d WHERE t = 7 OR s = 3"
        )
        hot.execute("UPDATE readings SET day = now()::date - 90 WHERE n = 0 AND right(station::text, 1) = '1'")
        hot.execute("UPDATE readings SET day = now()::date - 91 WHERE n = 0 AND right(station::text, 1) = '2'")
        # Only the tenant's own day is left to tell its age.
        hot.execute("UPDATE readings SET seen = NULL WHERE n = 1 AND right(station::text, 1) = '1'")
        assert not house.backfill("readings").errors
        (one,) = [t for t in make_plan(house.app, ["7"], ["readings"]).tables if t.table == "readings"]
        assert (one.rows, one.refusals) == (6, [])
        done = archive_once(house, "readings", "7", batch_rows=4, most=5)
        assert done.rows == 5
        (rest,) = archive_all(house.app, ["7"], ["readings"]).tables
        assert (rest.rows, rest.error, rest.detail) == (1, None, "")
        left = hot.execute("SELECT n::int, right(station::text, 1) FROM readings ORDER BY 1").fetchall()
        assert left == [(0, "1"), (1, "1")], "a day is old when it is over for 90 days"
    keys = {t.row_key for t in tombstones(house, "7")}
    assert "36:00000000-0000-0000-0000-000000000002,4:2.00,6:020202," in keys
    assert_sound(house, 6)


def test_partitions_keys_that_refer_to_one_and_no_event_time(house: Lakehouse) -> None:
    allow(house, "7")
    with house.hot() as hot:
        hot.execute(
            "CREATE TABLE notes (id text NOT NULL PRIMARY KEY, tenant text NOT NULL, written timestamptz NOT NULL) "
            "PARTITION BY HASH (id)"
        )
        for n in (0, 1):
            hot.execute(
                f"CREATE TABLE notes_{n} PARTITION OF notes FOR VALUES WITH (MODULUS 2, REMAINDER {n})".encode()
            )
        hot.execute("INSERT INTO notes SELECT 'n' || n, '7', '2020-01-01' FROM generate_series(10, 29) n")
        hot.execute("CREATE TABLE links (note text REFERENCES notes ON DELETE CASCADE) PARTITION BY LIST (note)")
        hot.execute("CREATE TABLE links_a PARTITION OF links FOR VALUES IN ('n10', 'n11')")
        hot.execute("CREATE TABLE links_b PARTITION OF links DEFAULT")
        hot.execute("CREATE TABLE pins (note text REFERENCES notes_0 ON DELETE CASCADE)")
        house.backfill("notes")
        (one,) = make_plan(house.app, ["7"], ["notes"]).tables
        wanted = [f'CREATE INDEX CONCURRENTLY ON "public"."{t}" ("note")' for t in ("links_a", "links_b", "pins")]
        assert len(one.refusals) == 3
        assert all(any(w in r for r in one.refusals) for w in wanted)
        for statement in wanted:
            hot.execute(statement.encode())
        row = hot.execute("SELECT min(id) FROM notes_0").fetchone()
        assert row is not None
        hot.execute("INSERT INTO pins VALUES (%s)", [row[0]])
        hot.execute("INSERT INTO links VALUES ('n11'), ('n12')")
        stay = {row[0], "n11", "n12"}
        (one,) = make_plan(house.app, ["7"], ["notes"]).tables
        assert (one.refusals, one.rows) == ([], 20 - len(stay))
        house.reopen(ARCHIVE__PROOF_ROWS="6", ARCHIVE__BATCH_ROWS="4")
        (done,) = archive_all(house.app, ["7"], ["notes"]).tables
        assert done.rows == 20 - len(stay)
        assert {r[0] for r in hot.execute("SELECT id FROM notes").fetchall()} == stay
        assert hot.execute("SELECT count(*) FROM links").fetchone() == (2,)
        assert hot.execute("SELECT count(*) FROM pins").fetchone() == (1,)
    assert_sound(house, done.rows)


def test_a_contract_that_cannot_tell_the_age_is_refused() -> None:
    only = parse_contract(READINGS | {"age_bounds": ["day"]}, where="x")
    assert "the tenant gives" in (age.fault(only) or "")
    assert "names no timestamps" in (age.fault(parse_contract(NOTES | {"age_bounds": []}, where="x")) or "")
    stamped = READINGS | {"age_bounds": ["day"], "watermark": {"column": "day", "every_change": True}}
    assert age.fault(parse_contract(stamped, where="x")) is None


def test_rows_that_triggers_capture_leave_too(house: Lakehouse) -> None:
    with house.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
        old_events(hot, "7", 1, 20)
    house.run("source", "prepare", "--apply", "--table", "events")
    house.reopen(CAPTURE__METHODS='{"events": "trigger"}')
    house.backfill("events")
    house.sync_ok("events")
    enable(house.app, "7", reason="x")
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id IN ('7-e1', '7-e2')")
        house.sync_ok("events")
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = '7-e2'")
    plan = make_plan(house.app, ["7"], ["events"]).tables[0]
    assert (plan.rows, plan.refusals, plan.notes) == (19, [], [])
    (done,) = archive_all(house.app, tables=["events"]).tables
    assert (done.rows, done.kept) == (19, {"not landed yet": 1})
    with house.hot() as hot, connect(house.app) as archive:
        logs = hot.execute("SELECT relname FROM pg_class WHERE relname LIKE '%\\_log' AND relkind = 'r'").fetchall()
        assert len(logs) == 1
        row = archive.execute("SELECT count(DISTINCT xact) FROM lakehouse_archive.cold_storage_archive").fetchone()
        assert row == (1,)
