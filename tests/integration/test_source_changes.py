"""What changes at the source without a row being touched, clocks that jump, and transaction ids that run out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from lakehouse.control import store
from lakehouse.embedded.postgres import EmbeddedPostgres
from tests.servers import freeze, next_transaction
from tests.support import Lakehouse, host_tables, insert_events, local_variables

NOTES = """
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE TABLE notes (id bigint PRIMARY KEY, organization_id text NOT NULL, at timestamptz NOT NULL, word text,
                    feeling mood DEFAULT 'calm', extra varchar(20),
                    long text GENERATED ALWAYS AS (word || '!') VIRTUAL);
INSERT INTO notes SELECT n, 'org-a', timestamptz '2026-01-02' + n * interval '1 hour', 'w' || n, 'calm', 'x'
FROM generate_series(1, 20) n;
"""


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def notes(house: Lakehouse, tmp_path: Path) -> Lakehouse:
    """A table of every kind of column that changes unseen, with its contract, backfilled."""
    with house.hot() as hot:
        hot.execute(NOTES)
    contracts = tmp_path / "contracts"
    house.run("contract", "draft", "--table", "public.notes", "-o", str(contracts))
    house.reopen(CONTRACTS=json.dumps([str(contracts)]))
    house.backfill("notes")
    assert house.sync_ok("notes").upserts == {}
    return house


CHANGES = {
    "a renamed label": ("ALTER TYPE mood RENAME VALUE 'calm' TO 'quiet'", 20, 0, "enum labels"),
    "a column made again under its name": (
        "ALTER TABLE notes DROP COLUMN extra; ALTER TABLE notes ADD COLUMN extra varchar(20) DEFAULT 'y'",
        *(20, 0, "columns"),
    ),
    "a virtual column's expression": (
        "ALTER TABLE notes ALTER COLUMN long SET EXPRESSION AS (word || '?')",
        *(20, 0, "columns"),
    ),
    "a default, which no row has": ("ALTER TABLE notes ALTER COLUMN feeling SET DEFAULT 'cross'", 0, 0, "defaults"),
    "a type that changes no value": ("ALTER TABLE notes ALTER COLUMN extra TYPE varchar(90)", 0, 0, "columns"),
    "a rewrite that changes nothing": ("VACUUM FULL notes", 0, 0, "rewritten"),
    "truncated, some ids inserted again": (
        "CREATE TABLE k AS TABLE notes; TRUNCATE notes;"
        "INSERT INTO notes (id, organization_id, at, word, feeling, extra) SELECT id, organization_id, at,"
        " CASE WHEN id < 3 THEN 'new' ELSE word END, feeling, extra FROM k WHERE id < 11",
        *(2, 10, "truncated"),
    ),
    "dropped and created": (
        "ALTER TABLE notes RENAME TO old; CREATE TABLE notes (LIKE old INCLUDING ALL);"
        "INSERT INTO notes (id, organization_id, at, word, feeling, extra) SELECT id, organization_id, at, word,"
        " feeling, extra FROM old WHERE id <> 7; DROP TABLE old",
        *(0, 1, "another table"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_touches_no_row(notes: Lakehouse, name: str) -> None:
    statement, upserts, deletes, why = CHANGES[name]
    with notes.hot() as hot:
        for one in statement.split(";"):
            hot.execute(one)
    result = notes.sync_ok("notes")
    assert len(result.notes) == 1 and why in result.notes[0], result.notes
    assert (sum(result.upserts.values()), sum(result.deletes.values())) == (upserts, deletes)
    notes.assert_equal("notes", "org-a")
    again = notes.sync_ok("notes")
    assert (again.notes, again.upserts) == ([], {}), "once"


def test_a_type_that_the_contract_forbids_stops_the_table(notes: Lakehouse) -> None:
    with notes.hot() as hot:
        hot.execute("ALTER TABLE notes DROP COLUMN long, ALTER COLUMN word TYPE integer USING 1")
    assert "word" in str(notes.sync("notes").errors[""])


def test_a_clock_that_jumps_loses_and_repeats_nothing(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 5)
        house.backfill("events")
        house.sync_ok("events")
        for number, hours in enumerate((0, 5, -7, -7, 3, -30, 0, 0)):
            house.clock.offset = timedelta(hours=hours)
            insert_events(hot, "org-a", 10 + number, 1)
            hot.execute("UPDATE ingested_events SET severity = %s WHERE id = 'org-a-e1'", [("LOW", "HIGH")[number % 2]])
            hot.execute("DELETE FROM ingested_events WHERE id = %s", [f"org-a-e{9 + number}"])
            assert house.sync_ok("events").upserts == {"org-a": 2}
        # Set back by hours after a comparison in what is now the future: the next one is not put off that long.
        house.clock.offset = timedelta(minutes=20)
        assert house.sync_ok("events").reconciled
    house.assert_equal("events")
    moments = [v["_captured_at"] for v in house.versions("events", "org-a", "_captured_at")]
    assert moments == sorted(moments)


def test_keys_are_compared_after_the_clock_was_set_back(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 5)
        house.backfill("events")
        house.clock.offset = timedelta(hours=5)
        house.sync_ok("events", reconcile=True)
        house.clock.offset = timedelta()
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        assert house.sync_ok("events").deletes == {"org-a": 1}
    house.assert_equal("events")


def test_a_position_of_long_ago_and_ids_that_wrap(postgres_url: str, tmp_path: Path) -> None:
    with EmbeddedPostgres() as source:
        url = source.create_database("app")
        host_tables(url)
        house = Lakehouse(url, local_variables(url, tmp_path) | {"LAKEHOUSE_CONTROL__URL": postgres_url})
        house.init()
        try:
            with house.hot() as hot:
                insert_events(hot, "org-a", 1, 10)
            house.backfill("events")
            house.sync_ok("events")
            for xid, upserts, deletes in ((2**30, 2, 1), (2**31 + 2**29, 1, 0)):
                with house.hot() as hot:
                    hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
                    insert_events(hot, "org-a", 20 + xid // 2**29, 1)
                    hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
                freeze(source)
                next_transaction(source, xid)
                _as_if_never_restarted(house, source)
                result = house.sync_ok("events", reconcile=False)
                assert "transactions old" in result.notes[0]
                assert (result.upserts, result.deletes) == ({"org-a": upserts}, {"org-a": deletes})
                house.assert_equal("events")
            # To the last ids of the 32-bit space, and over its end.
            freeze(source)
            next_transaction(source, 2**32 - 2**20)
            house.sync_ok("events")
            with house.hot() as hot, psycopg.connect(url) as late:
                insert_events(late, "org-a", 600, 1)
                insert_events(hot, "org-a", 500, 1)
                assert house.sync_ok("events").upserts == {"org-a": 1}
                _burn(hot, 2**20)
                assert _next(hot) > 2**32
                insert_events(hot, "org-a", 501, 1)
                hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e4'")
                assert house.sync_ok("events").upserts == {"org-a": 2}
                late.commit()
                assert house.sync_ok("events").upserts == {"org-a": 1}
                insert_events(hot, "org-a", 502, 1)
                assert house.sync_ok("events").upserts == {"org-a": 1}
            house.assert_equal("events")
        finally:
            house.close()


def _next(hot: psycopg.Connection[tuple[int]]) -> int:
    row = hot.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    assert row is not None
    return row[0]


def _burn(hot: psycopg.Connection[tuple[int]], count: int) -> None:
    hot.execute("SET synchronous_commit = off")
    hot.execute(
        f"DO $$ BEGIN FOR i IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"  # type: ignore[arg-type]
    )


def _as_if_never_restarted(house: Lakehouse, source: EmbeddedPostgres) -> None:
    """The age alone must be enough: ids move on without a restart in real life."""
    from sqlalchemy import text

    with psycopg.connect(source.url()) as connection:
        row = connection.execute("SELECT extract(epoch FROM pg_postmaster_start_time())::text").fetchone()
    assert row is not None
    with house.app.engine.begin() as control:
        control.execute(
            text("UPDATE cursors SET position = jsonb_set(position, '{source,started}', to_jsonb(CAST(:s AS text)))"),
            {"s": row[0]},
        )
    assert all(c.position.source.started == row[0] for c in store.cursors(house.app.engine, "events").values())
