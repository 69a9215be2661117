"""A small archiver for tests of what comes after it: batch, tombstones and delete in one transaction, as the gate does.

It keeps the gate's rules that others rely on: a row goes only if the lake's latest version of it has its content, and
if no window can still bring another version of it. Its receipts are plain text.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from catalog.lake import encode_organization
from lakehouse.archive.installation import install, lock_organization, table
from lakehouse.archive.records import FIRST_CHAIN, chain_after
from lakehouse.capture.position import XID_SPACE
from lakehouse.control import store
from lakehouse.duck import connect, lake_relation
from schemas.canonical import duckdb_hash, postgres_hash
from schemas.keys import duckdb_key, postgres_key
from tests.support import Lakehouse

INSERT = (
    "INSERT INTO {} (organization_id, table_name, row_key, event_time, sequence, batch, delivered_to, snapshot_id, "
    "keyed_hash, hash_key, contract_version, policy, operator, archived_at) VALUES "
    "(%s, %s, %s, %s, %s, %s, '{{lake}}', %s, %s, 't1', %s, '90 days', 'tests', %s)"
)


def enable(house: Lakehouse) -> None:
    """Make the archive's schema in the hot database."""
    install(house.app)


def archive_rows(
    house: Lakehouse,
    name: str,
    organization: str,
    keys: Iterable[str] | None = None,
    *,
    connection: psycopg.Connection[Any] | None = None,
    at: datetime | None = None,
) -> list[str]:
    """Archive these rows (by key text; None: all) of a table in one batch; the keys that went.

    `connection`: an open one, whose transaction the caller ends.
    """
    contract = house.app.contract(name)
    cursor = store.cursors(house.app.engine, name).get(organization)
    wanted = None if keys is None else list(keys)
    lake = house.app.lake(organization).catalog.load_table((encode_organization(organization), name))
    if cursor is None or lake.current_snapshot() is None:
        return []
    with connect([house.app.address_of(organization)]) as duck:
        chosen = "" if wanted is None else f"WHERE {duckdb_key(contract)} IN (SELECT unnest($keys))"
        proven = {
            row[0]: row[1:]
            for row in duck.execute(
                f"SELECT {duckdb_key(contract)}, _sequence, {duckdb_hash(contract)}, _op "
                f"FROM {lake_relation(lake.metadata_location)} {chosen} ORDER BY _sequence",
                {} if wanted is None else {"keys": wanted},
            ).fetchall()
        }
    if connection is not None:
        return _batch(house, name, organization, connection, cursor.position, proven, lake, at)
    with house.hot() as own, own.transaction():
        return _batch(house, name, organization, own, cursor.position, proven, lake, at)


def _batch(
    house: Lakehouse,
    name: str,
    organization: str,
    connection: psycopg.Connection[Any],
    position: Any,
    proven: dict[str, Any],
    lake: Any,
    at: datetime | None,
) -> list[str]:
    contract = house.app.contract(name)
    lock_organization(connection, organization)
    hot = sql.Identifier(contract.source_schema, contract.source_table)
    tenant = sql.Identifier("t", contract[contract.tenant].source)
    key = sql.SQL(postgres_key(contract, "t"))
    event_time: sql.Composable = sql.SQL("NULL::timestamptz")
    if contract.event_time is not None:
        event = contract[contract.event_time]
        zoned = "with time zone" in event.source_type
        event_time = sql.SQL("{}" if zoned else "{} AT TIME ZONE 'UTC'").format(sql.Identifier("t", event.source))
    # A row that was written since the cursor may be on its way: it would land after its tombstone, as a newer version.
    settled = sql.SQL("NOT (age(t.xmin) BETWEEN 0 AND age({}::text::xid))").format(
        sql.Literal(str(position.exact_xmin % XID_SPACE))
    )
    rows = connection.execute(
        sql.SQL(
            "SELECT {}, {}, {} FROM {} AS t WHERE {}::text = %s AND {} = ANY(%s) AND {} "
            "ORDER BY 1 FOR UPDATE OF t SKIP LOCKED"
        ).format(key, event_time, sql.SQL(postgres_hash(contract, alias="t")), hot, tenant, key, settled),
        [organization, list(proven)],
    ).fetchall()
    going = [r for r in rows if proven[r[0]][1:] == (r[2], "upsert")]
    if not going:
        return []
    number, previous = connection.execute(
        sql.SQL("SELECT number, chain FROM {} WHERE organization_id = %s ORDER BY number DESC LIMIT 1").format(
            table("batches")
        ),
        [organization],
    ).fetchone() or (0, FIRST_CHAIN)
    receipt = f"receipt of batch {number + 1} of {organization}"
    now = at or house.app.clock()
    connection.execute(
        sql.SQL(
            "INSERT INTO {} (organization_id, number, id, table_name, row_count, receipt, chain, created_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
        ).format(table("batches")),
        [organization, number + 1, uuid.uuid4(), name, len(going), receipt, chain_after(previous, receipt), now],
    )
    snapshot = lake.current_snapshot().snapshot_id
    with connection.cursor() as cursor:
        cursor.executemany(
            sql.SQL(INSERT).format(table("cold_storage_archive")),
            [
                (organization, name, k, moment, proven[k][0], number + 1, snapshot, h, contract.version, now)
                for k, moment, h in going
            ],
        )
    keys = [r[0] for r in going]
    connection.execute(
        sql.SQL("DELETE FROM {} AS t WHERE {}::text = %s AND {} = ANY(%s)").format(hot, tenant, key),
        [organization, keys],
    )
    return keys


def tombstones(house: Lakehouse, organization: str) -> list[dict[str, Any]]:
    """What the hot database has, by batch and key."""
    with house.hot() as hot:
        cursor = hot.cursor(row_factory=psycopg.rows.dict_row)
        return cursor.execute(
            sql.SQL('SELECT * FROM {} WHERE organization_id = %s ORDER BY batch, row_key COLLATE "C"').format(
                table("cold_storage_archive")
            ),
            [organization],
        ).fetchall()
