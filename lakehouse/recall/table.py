"""Recalled rows in the hot database: `recalled_<table>` in the archive's own schema, beside the host's and never in it.

Its columns are `recall_id`, `recalled_at`, and the contract's, under the host's names and types as the hot table's
catalog has them now; one that the host has dropped has the type that the contract remembers. Several recalls share it,
and each one's rows go when their time is over. Where the host's table has changed since, a column that is new is added;
one that is of another type now gives a table of its own (`recalled_<table>_2`).

Rows are filled in by COPY and compared with the lake by content, in the transaction that makes them visible. A table
without rows is dropped: as long as it is there, the host cannot drop an enum type that it uses.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive.installation import SCHEMA, table
from lakehouse.archive.records import ContentDigest
from lakehouse.capture.projection import base_type
from lakehouse.capture.source import SourceTableMissing, describe
from lakehouse.failpoints import failpoint
from lakehouse.recall.request import RecallError
from lakehouse.recall.select import HASH, KEY, Chosen
from lakehouse.recall.text import copy_line
from schemas.canonical import duckdb_field_text, postgres_field_text, postgres_hash
from schemas.contract import Column, Contract
from schemas.errors import Retry
from schemas.keys import postgres_key

if TYPE_CHECKING:
    Connection = psycopg.Connection[tuple[Any, ...]]

RECALL_ID, RECALLED_AT = "recall_id", "recalled_at"
_LOCK = 0x72636C6C  # "rcll"
_NAME_BYTES = 63
_PAGE = 20_000
FILE_HINT = "Recall it to a file instead (--to parquet, csv or jsonl), which keeps every value as it was."


@dataclass(frozen=True)
class Filled:
    """What is in the table now. `changes`: what had to be done to it, for a person."""

    table: str
    changes: tuple[str, ...]
    rows: int
    content_sha256: str


def fill(connection: Connection, chosen: Chosen, identity: uuid.UUID, at: datetime) -> Filled:
    """Copy the chosen rows into the recalled table and prove them there; within the caller's transaction.

    Raises:
        RecallError: a column's type or label is gone, or what came out is not what the lake holds. The caller's
            transaction must not commit then.
    """
    contract = chosen.lake.contract
    try:
        name, changes = _prepare(connection, contract)
    except psycopg.errors.LockNotAvailable as error:
        raise RecallError(
            f"{contract.table}: another recall is at work on its table", "Try again in a moment.", retry=Retry.TIMED
        ) from error
    digest = _copy(connection, chosen, name, identity, at)
    failpoint("recall.table_filled")
    if (found := _digest_of(connection, contract, name, identity)) != digest.hexdigest():
        raise _differs(connection, chosen, name, identity, found)
    return Filled(name, changes, digest.rows, digest.hexdigest())


def _prepare(connection: Connection, contract: Contract) -> tuple[str, tuple[str, ...]]:
    """A recalled table with the host's present columns: its name, and what was done for that."""
    columns = _wanted(connection, contract)
    # One at a time looks and changes; who finds everything well lets the next one look.
    connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [_LOCK, contract.table])
    while True:
        name, changes = _fit(connection, contract, columns)
        try:
            with connection.transaction():
                # From here on nobody drops it as empty.
                connection.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(table(name)))
        except psycopg.errors.UndefinedTable:
            continue
        break
    if not changes:
        connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", [_LOCK, contract.table])
    return name, tuple(changes)


def _fit(connection: Connection, contract: Contract, columns: dict[str, str]) -> tuple[str, list[str]]:
    """The first recalled table whose columns are not of other types; made or widened where it must be."""
    changes: list[str] = []
    for number in itertools.count(1):
        name = table_name(contract.table, number)
        there = _columns(connection, name)
        if not there:
            _create(connection, contract, name, columns)
            changes.append(f"{SCHEMA}.{name} was made")
            return name, changes
        other = [c for c, kind in columns.items() if there.get(c, kind) != kind]
        if other:
            changes.append(f"{SCHEMA}.{name} has {other[0]} as {there[other[0]]}, which is {columns[other[0]]} now")
            continue
        for column in [c for c in columns if c not in there]:
            connection.execute(
                sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
                    table(name), sql.Identifier(column), sql.SQL(columns[column])
                )
            )
            changes.append(f"{SCHEMA}.{name} got the column {column} {columns[column]}")
        return name, changes
    raise AssertionError("unreachable")


def table_name(name: str, number: int = 1) -> str:
    """The recalled table of a lake table; the first, unless the host's columns have changed their types."""
    suffix = f"_{number}" if number > 1 else ""
    return f"recalled_{name}"[: _NAME_BYTES - len(suffix)] + suffix


def _wanted(connection: Connection, contract: Contract) -> dict[str, str]:
    """The contract's columns under the host's names, with the host's types.

    Raises:
        RecallError: a type is gone, or a name is one of our own.
    """
    try:
        # The type is parsed by PostgreSQL, under the same search path as it was printed.
        hot = {name: column.type for name, column in describe(connection, contract).columns.items()}
    except SourceTableMissing:
        hot = {}
    columns = {c.source: hot.get(c.source, c.source_type) for c in contract.columns}
    for own in (RECALL_ID, RECALLED_AT):
        if own in columns:
            raise RecallError(f"{contract.table} has a column {own} itself", FILE_HINT, retry=Retry.NEVER)
    for column, kind in columns.items():
        if column in hot:
            continue
        try:
            with connection.transaction():
                found = connection.execute("SELECT to_regtype(%s)", [base_type(kind)]).fetchone()
        except psycopg.Error:
            found = None
        if found is None or found[0] is None:
            raise RecallError(
                f"{contract.table}: column {column}: the hot database has no type {kind} any more", FILE_HINT
            )
    return columns


def _columns(connection: Connection, name: str) -> dict[str, str]:
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass(%s) "
        "AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table(name).as_string(connection)],
    ).fetchall()
    return dict(rows)


def _create(connection: Connection, contract: Contract, name: str, columns: dict[str, str]) -> None:
    listed = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind)) for column, kind in columns.items()
    )
    connection.execute(
        sql.SQL("CREATE TABLE {} ({} uuid NOT NULL, {} timestamptz NOT NULL, {})").format(
            table(name), sql.Identifier(RECALL_ID), sql.Identifier(RECALLED_AT), listed
        )
    )
    key = sql.SQL(", ").join(sql.Identifier(contract[k].source) for k in contract.primary_key)
    connection.execute(sql.SQL("CREATE INDEX ON {} ({}, {})").format(table(name), sql.Identifier(RECALL_ID), key))
    connection.execute(sql.SQL("CREATE INDEX ON {} ({})").format(table(name), key))
    connection.execute(
        sql.SQL("COMMENT ON TABLE {} IS {}").format(
            table(name), sql.Literal("Rows that were brought back from the lake; removed when their recall expires.")
        )
    )


def _copy(connection: Connection, chosen: Chosen, name: str, identity: uuid.UUID, at: datetime) -> ContentDigest:
    contract = chosen.lake.contract
    digest = ContentDigest()
    names = [RECALL_ID, RECALLED_AT, *(c.source for c in contract.columns)]
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(table(name), sql.SQL(", ").join(map(sql.Identifier, names)))
    line = copy_line(contract, (str(identity), at.astimezone(UTC).isoformat()))
    try:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for batch in chosen.read(f"{line} AS line"):
                digest.add(batch[HASH].to_pylist())
                copy.write("\n".join([*batch["line"].to_pylist(), ""]))
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        # The second: a domain has got a condition since, or takes no null.
        column = _named_in(error.diag.context or "", contract)
        raise RecallError(
            f"{contract.table}: {f'column {column}' if column else 'a column'} of the hot table does not take "
            f"what the lake holds: {error.diag.message_primary}",
            FILE_HINT,
        ) from error
    return digest


def _named_in(context: str, contract: Contract) -> str | None:
    """The column that PostgreSQL names first; its sentence is in the server's language."""
    said = context.partition(",")[2]
    found = {
        match.start(): column.source
        for column in contract.columns
        if (match := re.search(rf"(?<![\w\"]){re.escape(column.source)}(?=[:\s]|$)", said)) is not None
    }
    return found[min(found)] if found else None


def _proof(connection: Connection, contract: Contract, name: str, identity: uuid.UUID) -> Iterator[tuple[str, str]]:
    """Key text and canonical hash of each recalled row, as PostgreSQL has it, in order of the keys' bytes."""
    key, row_hash = postgres_key(contract, "r"), postgres_hash(contract, alias="r")
    # Read over a cursor of the server's: any number of rows.
    with connection.cursor(name="recalled") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(
            sql.SQL(
                'SELECT k, h FROM (SELECT ({key}) COLLATE "C" AS k, {hash} AS h FROM {table} AS r WHERE {id} = {value}'
                ' OFFSET 0) AS p ORDER BY k, h COLLATE "C"'
            ).format(
                key=sql.SQL(key),
                hash=sql.SQL(row_hash),
                table=table(name),
                id=sql.Identifier("r", RECALL_ID),
                value=sql.Literal(identity),
            )
        )
        yield from cursor


def _digest_of(connection: Connection, contract: Contract, name: str, identity: uuid.UUID) -> str:
    digest = ContentDigest()
    digest.add(row_hash for _, row_hash in _proof(connection, contract, name, identity))
    return digest.hexdigest()


def _differs(connection: Connection, chosen: Chosen, name: str, identity: uuid.UUID, found: str) -> RecallError:
    """The error that names the first row and its columns that came out otherwise."""
    contract = chosen.lake.contract
    texts = ", ".join(f"{duckdb_field_text(c)} AS f{c.id}" for c in contract.columns)
    lake = (
        (key, row_hash, batch, index)
        for batch in chosen.read(texts)
        for index, (key, row_hash) in enumerate(zip(batch[KEY].to_pylist(), batch[HASH].to_pylist(), strict=True))
    )
    for ours, there in itertools.zip_longest(lake, _proof(connection, contract, name, identity)):
        if ours is None or there is None or ours[:2] != there:
            key = (ours or there)[0]
            there_texts = _texts(connection, contract, name, identity, key)
            batch, index = (ours[2], ours[3]) if ours is not None else (None, 0)
            columns = [
                c.source
                for c in contract.columns
                if batch is None or there_texts.get(c.source) != batch[f"f{c.id}"][index].as_py()
            ]
            return RecallError(
                f"{contract.table}: row {key} came out of the hot database with another {', '.join(columns)} than "
                "the lake holds: nothing was kept",
                f"The host's column cannot hold that value any more. {FILE_HINT}",
            )
    return RecallError(f"{contract.table}: the recalled rows have the digest {found}, which is not the lake's")


def _texts(connection: Connection, contract: Contract, name: str, identity: uuid.UUID, key: str) -> dict[str, str]:
    def field(column: Column) -> sql.Composable:
        return sql.SQL("({})").format(sql.SQL(postgres_field_text(column, alias="r")))

    row = connection.execute(
        sql.SQL("SELECT {} FROM {} AS r WHERE {} = {} AND {} = {} LIMIT 1").format(
            sql.SQL(", ").join(map(field, contract.columns)),
            table(name),
            sql.Identifier("r", RECALL_ID),
            sql.Literal(identity),
            sql.SQL(postgres_key(contract, "r")),
            sql.Literal(key),
        )
    ).fetchone()
    return dict(zip((c.source for c in contract.columns), row, strict=True)) if row is not None else {}


def remove_rows(connection: Connection, name: str, identity: uuid.UUID) -> None:
    """Remove one recall's rows, within the caller's transaction; the table too where none are left. Idempotent."""
    if not _columns(connection, name):
        return
    connection.execute(
        sql.SQL("DELETE FROM {} WHERE {} = %s").format(table(name), sql.Identifier(RECALL_ID)), [identity]
    )


def drop_empty(connection: Connection) -> list[str]:
    """Drop recalled tables that hold nothing and that nobody fills; their names. Each in a transaction of its own."""
    names = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r' "
        "AND relname LIKE 'recalled\\_%%' ORDER BY 1",
        [SCHEMA],
    ).fetchall()
    dropped = []
    for (name,) in names:
        try:
            with connection.transaction():
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(table(name)))
                row = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table(name))).fetchone()
                if row == (False,):
                    connection.execute(sql.SQL("DROP TABLE {}").format(table(name)))
                    dropped.append(name)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.UndefinedTable):
            # Somebody fills or reads it, or was first.
            continue
    return dropped
