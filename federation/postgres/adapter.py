"""Delivers to a PostgreSQL replica: a range is one transaction, rows go in by binary COPY.

The table's row in `_lakehouse` is locked first, so of two workers with one range the second finds it delivered. ADBC
streams Arrow into a temporary table; one INSERT … ON CONFLICT merges it, and the `_sequence` moves with it. Killed
anywhere, the server rolls back; a server that hangs is given up (`line.py`). The user needs CREATE on the schema (or on
the database, to make it), nothing more.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from psycopg import sql

from federation.aspects import Aspect
from federation.config import PostgresReplicaConfig
from federation.postgres.layout import FILLINGS, MARKS, SHARED_MARKS, Layout, create_fillings, create_marks
from federation.postgres.line import Line, Patience
from federation.protocol import (
    Content,
    Delivery,
    DestinationError,
    Filling,
    FillingTakenError,
    ForeignTargetError,
    GapError,
    Owner,
    RangeReader,
    Receipt,
)
from schemas.contract import Contract
from schemas.errors import Retry
from schemas.lake_columns import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from adbc_driver_postgresql.dbapi import Connection, Cursor

BATCH = "_lakehouse_batch"
_BATCH = sql.Identifier("pg_temp", BATCH)
_SESSION = (
    "-csearch_path=pg_catalog,pg_temp -cTimeZone=UTC -cDateStyle=ISO,YMD -cextra_float_digits=1 -clock_timeout=10s "
    # A statement of a line that was cut ends, and with it what it has locked.
    "-cclient_connection_check_interval=10s"
)
_MISSING = {"3F000", "42P01", "42703", "42804", "42809", "42P10", "42P16", "42704"}
_REFUSED = {"28000", "28P01", "42501", "3D000"}
_REFUSALS = (
    "authentication failed", "no pg_hba.conf entry", "does not exist", "not permitted to log in",
    "no password supplied", "does not support SSL", "certificate",
)  # fmt: skip
"""In what libpq says of a connection that was not made; no SQLSTATE comes with it."""


class PostgresAdapter:
    """An open replica. See `federation.protocol.Adapter`."""

    def __init__(
        self,
        config: PostgresReplicaConfig,
        url: str,
        owner: Owner,
        where: str,
        server: tuple[str, int],
        patience: Patience,
        never: Callable[[], Set[tuple[str, str]]] = frozenset,
    ) -> None:
        """`where` names the server in errors, without credentials; `server` is the address that is connected to.

        `never`: what it must not be (`identity`), asked at each opening: where an address leads can change.
        """
        self.config = config
        self.owner = owner
        self._server = server
        self._patience = patience
        self._never = never
        self._line: Line | None = None
        self.where = f"{where}, schema {config.schema_name}"
        self._url = url
        self._open: Connection | None = None

    def layout(self, contract: Contract) -> Layout:
        """The names and statements of a table."""
        organization = self.owner.organization if self.owner.shared else None
        return Layout(contract, self.config.schema_name, self.config.history, organization)

    def check(self) -> None:
        """See `Adapter.check`."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT has_database_privilege(current_database(), 'CREATE') "
                "OR coalesce(has_schema_privilege(to_regnamespace($1), 'CREATE'), false), "
                "has_database_privilege(current_database(), 'TEMPORARY')",
                (_quoted(self.config.schema_name),),
            )
            may_create, may_load = cursor.fetchone()
            if not may_load:
                raise DestinationError(
                    f"{self.where}: its user may make no temporary tables, through which rows are loaded",
                    "GRANT TEMPORARY ON DATABASE: it was taken from PUBLIC, which has it otherwise.",
                    retry=Retry.MANUAL,
                )
            if not may_create:
                raise DestinationError(
                    f"{self.where}: its user may make no tables there",
                    f"GRANT CREATE ON DATABASE, or make the schema {self.config.schema_name} and GRANT CREATE ON it.",
                    retry=Retry.MANUAL,
                )
            self._check_owner(cursor)

    def identity(self) -> tuple[str, str]:
        """When the server was started, and the database's oid: what tells two databases apart."""
        with self._transaction() as cursor:
            return _identity(cursor)

    def prepare(self, contract: Contract) -> None:
        """See `Adapter.prepare`."""
        self._make(contract, again=False)

    def _make(self, contract: Contract, *, again: bool) -> None:
        """`again`: look whether all is there, although the mark says so."""
        layout = self.layout(contract)
        with self._transaction() as cursor:
            # Two workers that make the same things at once would disturb each other.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", (f"lakehouse {layout.schema}",))
            cursor.execute("SELECT to_regnamespace($1) IS NULL", (_quoted(layout.schema),))
            if cursor.fetchone() == (True,):
                self._run(cursor, sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(layout.schema)))
            self._check_owner(cursor)
            for statement in create_marks(layout.schema, shared=self.owner.shared):
                self._run(cursor, statement)
            cursor.execute(
                sql.SQL("SELECT contract, organization FROM {} WHERE table_name = $1")
                .format(layout.marks)
                .as_string(None),
                (contract.table,),
            )
            marks = {organization: version for version, organization in cursor.fetchall()}
            row = (marks[self.owner.organization],) if self.owner.organization in marks else None
            if not marks:
                self._refuse_strangers(cursor, layout)
            elif row is None:
                pass
            elif row[0] == contract.version and not again:
                return
            # Only what is missing: a change of a table or view would wait for its readers, and hold up new ones.
            for statement in layout.create(lambda name: self._columns(cursor, layout.schema, name)):
                self._run(cursor, statement)
            if not self._shows(cursor, layout):
                self._run(cursor, sql.SQL("CREATE OR REPLACE VIEW {} AS {}").format(layout.view, layout.latest))
            for statement in layout.describe():
                self._run(cursor, statement)
            cursor.execute(
                sql.SQL(
                    "INSERT INTO {} (table_name, installation, organization, contract) VALUES ($1, $2, $3, $4) "
                    "ON CONFLICT ({}) DO UPDATE SET contract = excluded.contract"
                )
                .format(layout.marks, sql.SQL("table_name, organization" if self.owner.shared else "table_name"))
                .as_string(None),
                (contract.table, self.owner.installation, self.owner.organization, contract.version),
            )

    def _shows(self, cursor: Cursor, layout: Layout) -> bool:
        """The view is there and selects what it should."""
        wanted = sql.Identifier("pg_temp", f"{BATCH}_view")
        self._run(
            cursor, sql.SQL("CREATE TEMPORARY VIEW {} AS {}").format(sql.Identifier(f"{BATCH}_view"), layout.latest)
        )
        cursor.execute(
            "SELECT pg_get_viewdef(to_regclass($1)) IS NOT DISTINCT FROM pg_get_viewdef(to_regclass($2))",
            (wanted.as_string(None), layout.view.as_string(None)),
        )
        same: bool = cursor.fetchone() == (True,)
        self._run(cursor, sql.SQL("DROP VIEW {}").format(wanted))
        return same

    def _columns(self, cursor: Cursor, schema: str, name: str) -> tuple[str, ...]:
        """The columns of a table or view in their order; none where it is not there."""
        cursor.execute(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 "
            "AND NOT attisdropped ORDER BY attnum",
            (f"{_quoted(schema)}.{_quoted(name)}",),
        )
        return tuple(row[0] for row in cursor.fetchall())

    def standing(self, contract: Contract) -> int:
        """See `Adapter.standing`."""
        with self._transaction() as cursor:
            if not self._check_owner(cursor):
                return 0
            found = self._standing(cursor, self.layout(contract), lock=False)
        return found or 0

    def deliver(self, delivery: Delivery, rows: RangeReader) -> Receipt:
        """See `Adapter.deliver`."""
        layout = self.layout(delivery.contract)
        with self._transaction() as cursor:
            self._check_owner(cursor)
            stands = self._standing(cursor, layout, lock=True)
            if stands is None or stands < delivery.after:
                raise GapError(
                    f"{self.where}: {delivery.contract.table} stands at {stands or 0}, the delivery begins after "
                    f"{delivery.after}: it was cleared, or is an older copy",
                    "Run `lakehouse destinations resync` for it: it is filled again from the lake.",
                )
            if stands >= delivery.upto:
                return Receipt(stands, 0)
            count = self._load(cursor, delivery.contract, rows(stands, delivery.upto))
            if layout.history:
                self._run(cursor, layout.remember(_BATCH))
            self._run(cursor, layout.merge(_BATCH))
            self._stand(cursor, layout, delivery.upto, delivery.snapshot_id)
            self._run(cursor, sql.SQL("DROP TABLE {}").format(_BATCH))
        return Receipt(delivery.upto, count)

    @property
    def every_version(self) -> bool:
        """See `Adapter.every_version`."""
        return self.config.history

    def filling(self, contract: Contract) -> Filling | None:
        """See `Adapter.filling`."""
        with self._transaction() as cursor:
            return self._filling(cursor, self.layout(contract)) if self._check_owner(cursor) else None

    def take(
        self,
        contract: Contract,
        before: Filling | None,
        rows: Iterator[pa.RecordBatch],
        after: Callable[[], Filling],
    ) -> Filling:
        """See `Adapter.take`. One transaction."""
        layout = self.layout(contract)
        if before is None:
            self._make(contract, again=True)
        key = (contract.table, self.owner.organization)
        with self._transaction() as cursor:
            self._check_owner(cursor)
            if before is None:
                self._run(cursor, create_fillings(layout.schema))
                cursor.execute(
                    sql.SQL(
                        "INSERT INTO {} (table_name, organization, filling) VALUES ($1, $2, '{{}}') "
                        "ON CONFLICT (table_name, organization) DO UPDATE SET begun_at = clock_timestamp()"
                    )
                    .format(layout.fillings)
                    .as_string(None),
                    key,
                )
                for statement in layout.begin_filling():
                    self._run(cursor, statement)
            else:
                self._hold_filling(cursor, layout, before)
            self._load(cursor, contract, rows)
            self._run(cursor, layout.take(_BATCH))
            self._run(cursor, sql.SQL("DROP TABLE {}").format(_BATCH))
            reached = after()
            cursor.execute(
                sql.SQL("UPDATE {} SET filling = $3::text::jsonb WHERE table_name = $1 AND organization = $2")
                .format(layout.fillings)
                .as_string(None),
                (*key, json.dumps(dataclasses.asdict(reached))),
            )
        return reached

    def replace(self, contract: Contract, filling: Filling, snapshot_id: int) -> Receipt:
        """See `Adapter.replace`. One transaction; readers are not held up."""
        layout = self.layout(contract)
        self._make(contract, again=True)
        with self._transaction() as cursor:
            self._check_owner(cursor)
            # Deliveries went on while it was filled; they wait for no more than the exchange, and it for one of them.
            self._run(cursor, sql.SQL("SET LOCAL lock_timeout = '10min'"))
            stands = self._standing(cursor, layout, lock=True) or 0
            self._hold_filling(cursor, layout, filling)
            # Not TRUNCATE, which would hold up every reader until the end.
            if layout.history:
                self._run(cursor, layout.clear(layout.history_table, filling.sequence, stands))
                self._run(cursor, layout.remember(layout.filling_table))
            self._run(cursor, layout.clear(layout.versions, filling.sequence, stands))
            self._run(cursor, layout.merge(layout.filling_table))
            self._stand(cursor, layout, max(filling.sequence, stands), snapshot_id)
            self._run(cursor, sql.SQL("DROP TABLE {}").format(layout.filling_table))
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE table_name = $1 AND organization = $2")
                .format(layout.fillings)
                .as_string(None),
                (contract.table, self.owner.organization),
            )
        return Receipt(max(filling.sequence, stands), filling.rows)

    def content(self, contract: Contract, after: int = 0, aspect: Aspect = Aspect.LATEST) -> Content:
        """An aspect, hashed by the server, in one snapshot with the `_sequence` that the table stands at.

        `after`: only versions that came after this `_sequence`.

        Raises:
            DestinationError: it cannot be asked.
        """
        layout = self.layout(contract)
        with self._transaction(repeatable=True) as cursor:
            self._check_owner(cursor)
            stands = self._standing(cursor, layout, lock=False)
            self._run(cursor, layout.content(after, aspect))
            rows, digest = cursor.fetchone()
        return Content(stands or 0, int(rows), int(digest))

    @contextmanager
    def hashes(
        self, contract: Contract, after: int = 0, aspect: Aspect = Aspect.LATEST
    ) -> Iterator[pa.RecordBatchReader]:
        """What names each row of an aspect, and its canonical hash (`_hash`).

        Raises:
            DestinationError: it cannot be asked.
        """
        with self._transaction(repeatable=True) as cursor:
            self._run(cursor, self.layout(contract).hashes(after, aspect))
            yield cursor.fetch_record_batch()

    def texts(self, contract: Contract, hashes: list[str], aspect: Aspect = Aspect.LATEST) -> list[tuple[Any, ...]]:
        """Canonical text of what names a row, then of each column that is compared, of rows with these hashes.

        Raises:
            DestinationError: it cannot be asked.
        """
        listed = "{" + ",".join(hashes) + "}"
        query = self.layout(contract).texts(aspect).as_string(None).replace("ANY($1)", f"ANY('{listed}'::text[])")
        with self._transaction() as cursor:
            cursor.execute(query)
            found: list[tuple[Any, ...]] = cursor.fetchall()
        return found

    def close(self) -> None:
        """See `Adapter.close`."""
        from adbc_driver_manager import Error

        if self._open is not None:
            with suppress(Error):
                self._open.close()
            self._open = None
        if self._line is not None:
            self._line.close()
            self._line = None

    def _connect(self) -> tuple[Connection, Line]:
        from adbc_driver_postgresql import dbapi

        if self._line is None:
            self._line = Line(self._server, self._patience)
        line = self._line
        if self._open is None:
            never = self._never()
            with line.asking():
                self._open = dbapi.connect(connection_url(self._url, line.port), autocommit=False)
                with self._open.cursor() as cursor:
                    found = _identity(cursor)
                self._open.rollback()
            line.connected()
            if found in never:
                self.close()
                raise DestinationError(
                    f"{self.where}: the replica is the hot database itself",
                    "Give it a database of its own, on any server. Nothing was written. Where its address leads to the "
                    "hot database since it was added, mend that, then `lakehouse deliveries retry`.",
                    retry=Retry.NEVER,
                )
        return self._open, line

    def _resting(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same rows; while one is waited for, no answer of the server's is."""
        iterator = iter(rows)
        while True:
            with self._line.asking(resting=True) if self._line else nullcontext():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def _transaction(self, *, repeatable: bool = False) -> Iterator[Cursor]:
        from adbc_driver_manager import Error

        try:
            connection, line = self._connect()
            with line.asking(), connection.cursor() as cursor:
                if repeatable:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                try:
                    yield cursor
                except BaseException:
                    with suppress(Error):
                        connection.rollback()
                    raise
                connection.commit()
        except (Error, OSError) as error:
            cut = self._line.fault if self._line is not None else None
            # What broke may be the connection: the next transaction opens one anew.
            self.close()
            raise self._fault(error, cut) from error

    def _fault(self, error: Exception, cut: str | None) -> DestinationError:
        if cut is not None:
            return DestinationError(f"{self.where}: {cut}", "It is tried again.", retry=Retry.TIMED)
        state = str(getattr(error, "sqlstate", "") or "")
        # The server's own words, without the statement that the driver puts before them.
        said = re.search(r"\b(?:ERROR|FATAL|PANIC):\s+(.+)", str(error))
        text = (
            said[1] if said else next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        )
        text = text[:300]
        if state in _REFUSED or (not state and any(word in text for word in _REFUSALS)):
            return DestinationError(
                f"{self.where}: refused: {text}",
                "Check user, password, database and rights of the replica; it needs CREATE on its schema, and "
                "owns what it made there.",
                retry=Retry.MANUAL,
            )
        if state in _MISSING:
            return DestinationError(
                f"{self.where}: something is missing or changed there: {text}",
                "Somebody removed or changed a table of the replica. Run `lakehouse destinations resync` for it; where "
                "that does not help, drop what it names first.",
                retry=Retry.MANUAL,
            )
        if state[:2] in ("22", "42", "23", "0A"):
            return DestinationError(
                f"{self.where}: {text}",
                "If nobody put a constraint or trigger there, this is a fault of the program's.",
                retry=Retry.MANUAL,
            )
        return DestinationError(f"{self.where}: {text}", "Nothing was delivered; it is tried again.", retry=Retry.TIMED)

    def _check_owner(self, cursor: Cursor) -> bool:
        """True where the schema has marks, and they are ours; False where it has none.

        Raises:
            ForeignTargetError: they are another's.
        """
        names = [f"{_quoted(self.config.schema_name)}.{_quoted(marks)}" for marks in (MARKS, SHARED_MARKS)]
        ours, others = reversed(names) if self.owner.shared else names
        cursor.execute("SELECT to_regclass($1) IS NULL, to_regclass($2) IS NULL", (ours, others))
        none, alone = cursor.fetchone()
        if not alone:
            raise ForeignTargetError(
                f"{self.where}: is {'one organization' if self.owner.shared else 'all organizations'}'s",
                "Give each its own schema. Nothing was written.",
            )
        if none:
            return False
        cursor.execute(f"SELECT DISTINCT installation, organization FROM {ours}")
        for installation, organization in cursor.fetchall():
            if installation != self.owner.installation or (
                organization != self.owner.organization and not self.owner.shared
            ):
                raise ForeignTargetError(
                    f"{self.where}: belongs to organization {organization} of installation {installation}",
                    "Give each organization a schema of its own. Nothing was written.",
                )
        return True

    def _refuse_strangers(self, cursor: Cursor, layout: Layout) -> None:
        names = [
            layout.versions_name,
            layout.contract.table,
            *([f"{layout.contract.table}_history"] if layout.history else []),
        ]
        for name in names:
            cursor.execute("SELECT to_regclass($1) IS NULL", (f"{_quoted(layout.schema)}.{_quoted(name)}",))
            if cursor.fetchone() != (True,):
                raise ForeignTargetError(
                    f"{self.where}: {name} is there already and bears no mark of ours",
                    "Choose another schema, or remove it. Nothing was written.",
                )

    def _load(self, cursor: Cursor, contract: Contract, rows: Iterator[pa.RecordBatch]) -> int:
        """Stream rows into the temporary table `BATCH` by binary COPY; how many."""
        import pyarrow as pa

        schema = pa.schema([f.remove_metadata() for f in arrow_schema(contract)])
        reader = pa.RecordBatchReader.from_batches(schema, (_plain(b, schema) for b in self._resting(rows)))
        return int(cursor.adbc_ingest(BATCH, reader, mode="create", temporary=True))

    def _stand(self, cursor: Cursor, layout: Layout, sequence: int, snapshot_id: int) -> None:
        """The table is complete to this `_sequence`; the batch is done with."""
        statement = sql.SQL(
            "UPDATE {} SET sequence = $2, snapshot_id = $3, delivered_at = clock_timestamp() "
            "WHERE table_name = $1 AND organization = $4"
        ).format(layout.marks)
        values = (layout.contract.table, sequence, snapshot_id, self.owner.organization)
        cursor.execute(statement.as_string(None), values)

    def _hold_filling(self, cursor: Cursor, layout: Layout, wanted: Filling) -> None:
        """Lock it for this transaction, if it is still where it is thought to be."""
        if self._filling(cursor, layout, lock=True) != wanted:
            raise FillingTakenError(
                f"{self.where}: {layout.contract.table} is filled by somebody else too", "It goes on there."
            )

    def _filling(self, cursor: Cursor, layout: Layout, *, lock: bool = False) -> Filling | None:
        schema = _quoted(layout.schema)
        names = (f"{schema}.{_quoted(FILLINGS)}", layout.filling_table.as_string(None))
        cursor.execute("SELECT to_regclass($1) IS NULL OR to_regclass($2) IS NULL", names)
        if cursor.fetchone() == (True,):
            return None
        query = sql.SQL("SELECT filling::text FROM {} WHERE table_name = $1 AND organization = $2{}").format(
            layout.fillings, sql.SQL(" FOR UPDATE" if lock else "")
        )
        cursor.execute(query.as_string(None), (layout.contract.table, self.owner.organization))
        row = cursor.fetchone()
        found = json.loads(row[0]) if row is not None else {}
        return Filling(**found | {"reached": tuple(found["reached"])}) if found else None

    def _standing(self, cursor: Cursor, layout: Layout, *, lock: bool) -> int | None:
        query = sql.SQL("SELECT sequence FROM {} WHERE table_name = $1 AND organization = $2{}").format(
            layout.marks, sql.SQL(" FOR UPDATE" if lock else "")
        )
        cursor.execute(query.as_string(None), (layout.contract.table, self.owner.organization))
        row = cursor.fetchone()
        return int(row[0]) if row is not None else None

    def _run(self, cursor: Cursor, statement: sql.Composable) -> None:
        cursor.execute(statement.as_string(None))


def _identity(cursor: Cursor) -> tuple[str, str]:
    cursor.execute(
        "SELECT extract(epoch FROM pg_postmaster_start_time())::text, oid::text "
        "FROM pg_database WHERE datname = current_database()"
    )
    started, oid = cursor.fetchone()
    return str(started), str(oid)


def connection_url(url: str, port: int) -> str:
    """A URL for libpq with our session's settings, through a port of this machine; TLS is with the url's host."""
    from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query)) | {
        "application_name": "lakehouse replica",
        "options": _SESSION,
        "hostaddr": "127.0.0.1",
    }
    query.setdefault("connect_timeout", "10")
    user, at, host = parts.netloc.rpartition("@")
    netloc = f"{user}{at}{re.sub(r':[0-9]*$', '', host)}:{port}"
    # libpq decodes %20 but not +.
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query).replace("+", "%20")))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [batch.column(f.name).cast(f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
