"""Rows written straight into a lake, by the million: what a lake of years looks like, without a hot table of years.

Events of the days before `FIRST_DAY`, so many a day, one data file a day as a compaction leaves them, landed in commits
of a hundred days with the table's own cursor carried on. DuckDB makes them from their numbers: the same at every run.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import duckdb
import pyarrow as pa

from catalog.tables import open_table
from lakehouse.app import App
from lakehouse.landing.commit import land
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.parquet import StagedFile, write_data_file
from schemas.lake_columns import arrow_schema

FIRST_DAY = date(2026, 1, 1)
DAYS_A_COMMIT = 100
_DAY = """
SELECT 'upsert' AS _op, {sequence} + n AS _sequence, TIMESTAMPTZ '2026-01-01' AS _captured_at, 'bulk' AS _window,
       NULL::BIGINT AS _xmin,
       'b' || lpad(to_hex({first} + n), 10, '0') || substr(md5(({first} + n)::VARCHAR), 1, 14) AS id,
       '{organization}' AS organization_id, 'int-{organization}' AS integration_id, 'GITHUB' AS provider,
       'repo.push' AS event_type, 'audit_log' AS source, 'user' || h % 5000 || '@example.com' AS actor,
       'INFO' AS severity,
       '{{"ip": "10.' || h % 256 || '.' || (h // 256) % 256 || '.7", "session": "' || md5('s' || h % 200000)
           || '", "request_id": "' || md5('r' || ({first} + n)) || '", "user_agent": "Mozilla/5.0 (X11; Linux x86_64) '
           || 'AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0", "message": "action performed by automation on '
           || 'behalf of user ' || h % 5000 || ' in workspace ' || h % 90 || '"}}' AS payload,
       'PROCESSED' AS processing_status,
       TIMESTAMPTZ '{day}' + to_microseconds((n * 86400000000 // {rows})::BIGINT) AS occurred_at,
       TIMESTAMPTZ '{day}' + to_microseconds((n * 86400000000 // {rows})::BIGINT + 3000000) AS processed_at,
       TIMESTAMPTZ '{day}' + to_microseconds((n * 86400000000 // {rows})::BIGINT + 1000000) AS created_at,
       NULL::VARCHAR AS ingestion_job_id
FROM (SELECT n, hash({first} + n)::UBIGINT % 1000000007 AS h FROM range({rows}) AS r(n))
"""


def fill_lake(
    app: App, organization: str, rows: int, *, per_day: int, held: int = 0, say: Callable[[str], None]
) -> None:
    """Add events to a lake table that a backfill has made, until it holds `rows` of these. `held`: so many it has."""
    contract = app.contract("events")
    table = open_table(app.lake(organization), contract)
    first_day, last_day = held // per_day, -(-rows // per_day)
    with duckdb.connect() as duck:
        duck.execute("SET TimeZone = 'UTC'")
        for begin in range(first_day, last_day, DAYS_A_COMMIT):
            window = str(uuid.uuid4())
            before = read_cursor(table)
            assert before is not None
            sequence, files = before.sequence + 1, []
            for number in range(begin, min(begin + DAYS_A_COMMIT, last_day)):
                day = FIRST_DAY - timedelta(days=number + 1)
                files.append(_write(duck, app, organization, day, number * per_day, per_day, sequence, window))
                sequence += per_day
            after = dataclasses.replace(before, sequence=sequence - 1, captured_at=datetime.now(UTC))
            land(table, window, files, before, after, most_partitions=DAYS_A_COMMIT)
            say(f"{min(begin + DAYS_A_COMMIT, last_day) * per_day:,} rows in the lake")


def _write(
    duck: duckdb.DuckDBPyConnection,
    app: App,
    organization: str,
    day: date,
    first: int,
    rows: int,
    sequence: int,
    window: str,
) -> StagedFile:
    contract = app.contract("events")
    table = open_table(app.lake(organization), contract)
    query = _DAY.format(organization=organization, day=day.isoformat(), first=first, rows=rows, sequence=sequence)
    found = duck.execute(query).to_arrow_table()
    schema = arrow_schema(contract)
    typed = pa.Table.from_arrays([found[f.name].cast(f.type) for f in schema], schema=schema)
    number = (day - date(1970, 1, 1)).days
    path = f"{table.location()}/data/occurred_at_day={day.isoformat()}/{window}-{first:012d}.parquet"
    return write_data_file(table.io, contract, organization, typed, path, number)
