"""The hot database: connections, who it is, what a table really looks like.

Rows are read by ADBC (Arrow, no Python object a value), and so is the catalog within a window (`Reading`); what has no
window asks the catalog by psycopg.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from lakehouse.capture.position import SourceIdentity
from lakehouse.capture.projection import base_type
from lakehouse.capture.sessions import LONGEST_SECONDS, Sessions
from lakehouse.settings import SourceSettings
from schemas.contract import Contract
from schemas.errors import ContractViolation, LakehouseError, Retry

if TYPE_CHECKING:
    from adbc_driver_postgresql.dbapi import Connection as AdbcConnection
    from adbc_driver_postgresql.dbapi import Cursor as AdbcCursor

APPLICATION = "lakehouse"

SESSION = {
    # What a value's text looks like must not depend on the user's or the server's settings.
    "search_path": "public",
    "TimeZone": "UTC",
    "DateStyle": "ISO,YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    # A query that row-level security would filter fails instead: a hidden row would look deleted.
    "row_security": "off",
}


class SourceError(LakehouseError):
    """The hot database does not answer, refuses, or is not the one that was read before."""


class SourceTableMissing(SourceError):
    """The source has no such table (yet)."""


@dataclass(frozen=True)
class HotColumn:
    """A column of the hot table as its catalog has it."""

    name: str
    number: int
    type: str
    not_null: bool
    generated: str
    default: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class HotTable:
    """A hot table as it is now."""

    oid: int
    kind: str
    columns: dict[str, HotColumn]
    rows: int
    bytes: int
    partitions: tuple[int, ...]
    row_security: bool
    readable: bool
    storage: str
    """Which files hold its rows; new ones after TRUNCATE and whatever else rewrites the table."""

    def fingerprint(self, contract: Contract) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What exported content depends on without a row being touched: columns with their defaults, and enum
        labels by their oid."""
        used = [self.columns[c.source] for c in contract.columns]
        # A changed default changes no stored row, but one that came with its column (ADD COLUMN … DEFAULT) does.
        shape = [(c.name, c.number, c.type, c.generated, c.default) for c in used]
        exported = [(c.id, c.name, c.source, str(c.type)) for c in contract.columns]
        # An attached partition brings rows that no transaction since the last window wrote.
        digest = hashlib.sha256(json.dumps([shape, exported, self.partitions]).encode()).hexdigest()[:32]
        return digest, tuple(sorted({pair for c in used for pair in c.labels}))

    def key_types(self, contract: Contract) -> dict[str, str]:
        """The types of the primary key's columns, by lake name."""
        return {k: self.columns[contract[k].source].type for k in contract.primary_key}


class Rows(Protocol):
    """What a statement answers; of the driver's types."""

    def fetchone(self) -> Any: ...
    def fetchall(self) -> Any: ...


class Catalog(Protocol):
    """What can be asked about tables: a psycopg connection, or a window's own transaction (`Reading`)."""

    def execute(self, query: LiteralString, params: Sequence[Any] | None = None, /) -> Rows: ...


class Reading:
    """The connection that reads rows, asked about tables as a psycopg connection is.

    A window asks within its own transaction. Over a second connection it could wait behind somebody who waits for the
    window's lock on the table (TRUNCATE, a migration's ALTER TABLE): both would wait for ever, and the host's
    statements behind them, for PostgreSQL cannot see that two sessions are of one program. Who holds a lock is never
    made to wait for the same one.
    """

    def __init__(self, cursor: AdbcCursor) -> None:
        self._cursor = cursor

    def execute(self, query: LiteralString, params: Sequence[Any] | None = None, /) -> Rows:
        """Run a statement with %s where values go.

        Raises:
            SourceError: the database broke off or refused.
        """
        from adbc_driver_manager import Error

        text = sql.SQL(query.replace("%s", "{}")).format(*(sql.Literal(p) for p in params or ())).as_string(None)
        try:
            self._cursor.execute(text)
        except (Error, OSError) as error:
            raise SourceError(
                f"what the source knows about its tables cannot be read: {' '.join(str(error).split())[:400]}",
                "Nothing was lost.",
                retry=Retry.TIMED,
            ) from error
        rows: Rows = self._cursor
        return rows


class Source:
    """The hot database. Holds no connection, but for those that `session` keeps where that was asked for."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self._url = settings.url.get_secret_value()
        self._sessions: Sessions | None = None
        self._known: tuple[float, tuple[str, str]] | None = None

    def keep_sessions(self, most: int) -> None:
        """From now on keep so many idle sessions for the next windows, until `close`: for a program that goes on."""
        self._sessions = Sessions(self.reader, most)

    def close(self) -> None:
        """Close what was kept; nothing is kept any more."""
        sessions, self._sessions = self._sessions, None
        if sessions is not None:
            sessions.close()

    @contextmanager
    def session(self) -> Iterator[AdbcConnection]:
        """The connection of one window: a new one, or one that was kept.

        Raises:
            SourceError: it does not answer or refuses.
        """
        from adbc_driver_manager import Error

        sessions = self._sessions or Sessions(self.reader, 0)
        try:
            with sessions.session() as session:
                yield session.reader
        except Error as error:
            raise self._refused(error) from error

    @contextmanager
    def catalog(self, *, bounded: bool = False) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A psycopg connection in autocommit mode. `bounded`: statements and locks wait as long as the settings say.

        Raises:
            SourceError: it does not answer or refuses.
        """
        try:
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                application_name=f"{APPLICATION} catalog",
                connect_timeout=10,
                options=_options(self._bounds() if bounded else {}),
            )
        except psycopg.OperationalError as error:
            raise self._refused(error) from error
        try:
            with connection:
                yield connection
        except psycopg.OperationalError as error:
            raise self._refused(error) from error

    @contextmanager
    def reader(self) -> Iterator[AdbcConnection]:
        """An ADBC connection in autocommit mode: the caller writes BEGIN and COMMIT.

        Raises:
            SourceError: it does not answer or refuses.
        """
        from adbc_driver_manager import Error
        from adbc_driver_postgresql import dbapi

        parts = urlsplit(self._url)
        query = dict(parse_qsl(parts.query)) | {
            "application_name": f"{APPLICATION} capture",
            "options": _options(self._bounds()),
        }
        query.setdefault("connect_timeout", "10")
        # libpq decodes %20 but not +.
        url = urlunsplit(parts._replace(query=urlencode(query).replace("+", "%20")))
        try:
            connection = dbapi.connect(url, autocommit=True)
        except Error as error:
            raise self._refused(error) from error
        try:
            with connection:
                yield connection
        except Error as error:
            raise self._refused(error) from error

    def database(self) -> tuple[str, str]:
        """When its server was started, and the database's oid: what tells two databases apart. As old as a session.

        Raises:
            SourceError: it does not answer or refuses.
        """
        if self._known is None or time.monotonic() - self._known[0] > LONGEST_SECONDS:
            asked = time.monotonic()
            with self.catalog() as connection:
                row = connection.execute(
                    "SELECT extract(epoch FROM pg_postmaster_start_time())::text, oid::text "
                    "FROM pg_database WHERE datname = current_database()"
                ).fetchone()
            assert row is not None  # noqa: S101 - one is connected to
            self._known = asked, (str(row[0]), str(row[1]))
        return self._known[1]

    def _bounds(self) -> dict[str, str]:
        return {
            "statement_timeout": f"{self.settings.statement_timeout_seconds}s",
            "lock_timeout": f"{self.settings.lock_timeout_seconds}s",
        }

    def _refused(self, error: Exception) -> SourceError:
        return SourceError(
            f"source {self.settings.address} does not answer: {' '.join(str(error).split())[:400]}",
            "Check LAKEHOUSE_SOURCE__URL: host, port, user, password and database. Nothing was lost.",
            retry=Retry.TIMED,
        )

    def organizations(self) -> dict[str, str]:
        """Every organization's id with its label (slug or name), as the host lists them.

        Raises:
            SourceError: the settings name no such table.
        """
        with self.catalog() as connection:
            return self.organizations_by(connection)

    def organizations_by(self, connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, str]:
        """`organizations`, over a connection that is open."""
        settings = self.settings
        if settings.organizations_table is None:
            raise SourceError(
                "the settings name no table of organizations",
                "Name organizations one by one (`lakehouse init --organization ID`), "
                "or set LAKEHOUSE_SOURCE__ORGANIZATIONS_TABLE.",
            )
        label = settings.organizations_label or settings.organizations_key
        try:
            rows = connection.execute(
                sql.SQL("SELECT {}::text, {}::text FROM {} ORDER BY 1").format(
                    sql.Identifier(settings.organizations_key),
                    sql.Identifier(label),
                    sql.Identifier(*settings.organizations_table.split(".")),
                )
            ).fetchall()
        except psycopg.errors.Error as error:
            raise SourceError(
                f"organizations cannot be read from {settings.organizations_table}: {error.diag.message_primary}",
                "Set LAKEHOUSE_SOURCE__ORGANIZATIONS_TABLE, __ORGANIZATIONS_KEY and __ORGANIZATIONS_LABEL.",
            ) from error
        return dict(rows)


def change_counts(connection: Catalog, contracts: Sequence[Contract]) -> dict[str, int]:
    """By lake table: row versions that were ever inserted, updated or deleted, as the statistics count them.

    About right: what was rolled back counts too, and the server adds a session's figures a second late.
    """
    found = connection.execute(
        "SELECT n.nspname, c.relname, sum(pg_stat_get_tuples_inserted(l.oid) + pg_stat_get_tuples_updated(l.oid) "
        "+ pg_stat_get_tuples_deleted(l.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_class l ON l.oid = c.oid AND c.relkind <> 'p' "
        "OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf) "
        "WHERE c.relkind IN ('r', 'p') AND n.nspname || '.' || c.relname = ANY(%s) GROUP BY 1, 2",
        [[f"{c.source_schema}.{c.source_table}" for c in contracts]],
    ).fetchall()
    counts = {(schema, name): count for schema, name, count in found}
    return {
        c.table: counts[c.source_schema, c.source_table]
        for c in contracts
        if (c.source_schema, c.source_table) in counts
    }


def _options(more: dict[str, str]) -> str:
    return " ".join(f"-c{name}={value}" for name, value in (SESSION | more).items())


def describe(connection: Catalog, contract: Contract) -> HotTable:
    """The hot table as the catalog has it now.

    Raises:
        SourceTableMissing: there is none.
    """
    found = connection.execute(
        "SELECT c.oid::bigint, c.relkind::text, p.rows::bigint, p.bytes::bigint, p.leaves, "
        "row_security_active(c.oid), has_table_privilege(c.oid, 'SELECT'), p.storage "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL ("
        "  SELECT sum(greatest(l.reltuples, 0)) AS rows, sum(pg_relation_size(l.oid)) AS bytes, "
        "         array_agg(l.oid::bigint ORDER BY l.oid) FILTER (WHERE l.oid <> c.oid) AS leaves, "
        "         string_agg(pg_relation_filenode(l.oid)::text, ' ' ORDER BY l.oid) AS storage "
        "  FROM pg_class l WHERE l.oid = c.oid AND c.relkind <> 'p' "
        "     OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf)) p "
        "WHERE n.nspname = %s AND c.relname = %s",
        [contract.source_schema, contract.source_table],
    ).fetchone()
    if found is None:
        raise SourceTableMissing(
            f"{contract.source_name}: not there{' yet (the contract is provisional)' if contract.provisional else ''}",
            ""
            if contract.provisional
            else "Was it renamed? Mend `source` in the contract, or grant USAGE on its schema.",
            retry=Retry.MANUAL,
        )
    oid, kind, rows, heap, leaves, secured, readable, storage = found
    columns = connection.execute(
        """
        SELECT a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               CASE WHEN a.attgenerated <> '' THEN a.attgenerated::text || pg_get_expr(d.adbin, d.adrelid) ELSE '' END,
               CASE WHEN a.attgenerated = '' THEN coalesce(pg_get_expr(d.adbin, d.adrelid), '') ELSE '' END,
               (SELECT array_agg(e.oid::text || '=' || e.enumlabel ORDER BY e.oid) FROM pg_enum e
                WHERE e.enumtypid IN (t.oid, t.typelem))
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
        """,
        [oid],
    ).fetchall()
    return HotTable(
        oid=oid,
        kind=kind,
        columns={
            name: HotColumn(name, number, kind_, not_null, generated, default, tuple(_pair(x) for x in labels or ()))
            for name, number, kind_, not_null, generated, default, labels in columns
        },
        rows=rows or 0,
        bytes=heap or 0,
        partitions=tuple(leaves or ()),
        row_security=secured,
        readable=readable,
        storage=hashlib.sha256((storage or "").encode()).hexdigest()[:16],
    )


def _pair(text: str) -> tuple[str, str]:
    oid, _, label = text.partition("=")
    return oid, label


def check_table(contract: Contract, hot: HotTable) -> None:
    """Check that the hot table can be captured and keeps its contract.

    Raises:
        ContractViolation: with every fault: columns missing or of another type, no xmin, rows that would be hidden.
    """
    faults = []
    if hot.kind not in ("r", "p"):
        faults.append("it is a view or a foreign table, which has no xmin: name the table behind it")
    if not hot.readable:
        faults.append(f"no right to read it: GRANT SELECT ON {contract.source_name} (a grant on columns is not enough)")
    if hot.row_security:
        faults.append("row-level security hides rows from this user, and a hidden row looks deleted: grant BYPASSRLS")
    for column in contract.columns:
        actual = hot.columns.get(column.source)
        if actual is None:
            near = [n for n in sorted(hot.columns) if n not in {c.source for c in contract.columns}]
            faults.append(
                f"column {column.source} is missing"
                + (f" (renamed? not in the contract: {', '.join(near)})" if near else "")
            )
        elif not _same_type(actual.type, column.source_type, decimal=column.type.name == "decimal"):
            faults.append(f"column {column.source} is {actual.type}, the contract says {column.source_type}")
    if faults:
        raise ContractViolation(
            "\n".join(f"{contract.source_name}: {fault}" for fault in faults),
            "Mend the source, or the contract in a new version; other tables go on.",
        )


def _same_type(actual: str, expected: str, *, decimal: bool) -> bool:
    # A longer varchar or finer timestamp changes nothing for the lake; a decimal's scale does.
    return actual == expected if decimal else base_type(actual) == base_type(expected)


def identify(connection: Catalog, hot: HotTable, address: str) -> SourceIdentity:
    """Which table of which database this is; `address` as the settings have it, without credentials.

    On a standby the timeline is the one being replayed.
    """
    row = connection.execute(
        "SELECT (SELECT system_identifier::text FROM pg_control_system()), "
        "CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::text FROM pg_control_checkpoint()) "
        "ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint::text END, "
        "(SELECT oid::bigint FROM pg_database WHERE datname = current_database()), "
        "extract(epoch FROM pg_postmaster_start_time())::text"
    ).fetchone()
    assert row is not None  # noqa: S101 - the query has no FROM
    return SourceIdentity(
        system_identifier=row[0],
        timeline=row[1],
        database_oid=row[2],
        table_oid=hot.oid,
        address=address,
        storage=hot.storage,
        started=row[3],
    )
