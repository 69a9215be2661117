"""Delivers to a PostgreSQL replica: a range is one transaction, rows go in by binary COPY.

The table's row in `_lakehouse` is locked first, so of two workers with one range the second finds it delivered. ADBC
streams Arrow into a temporary table; one INSERT … ON CONFLICT merges it, and the `_sequence` moves with it. Killed
anywhere, the server rolls back; a server that hangs is given up (`session.py`). The user needs CREATE on the schema (or
on the database, to make it), nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg import sql

from federation.aspects import Aspect
from federation.config import PostgresReplicaConfig
from federation.postgres.layout import Layout, create_marks, quoted
from federation.postgres.line import Patience
from federation.postgres.marks import Marks
from federation.postgres.session import Session
from federation.protocol import (
    Content,
    Delivery,
    DestinationError,
    Filling,
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
    from adbc_driver_postgresql.dbapi import Cursor

BATCH = "_lakehouse_batch"
_BATCH = sql.Identifier("pg_temp", BATCH)


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
        """See `Session`."""
        self.config = config
        self.owner = owner
        self.where = f"{where}, schema {config.schema_name}"
        self._session = Session(url, self.where, server, patience, never)
        self._marks = Marks(config.schema_name, owner, self.where)

    def layout(self, contract: Contract) -> Layout:
        """The names and statements of a table."""
        organization = self.owner.organization if self.owner.shared else None
        return Layout(contract, self.config.schema_name, self.config.history, organization)

    def check(self) -> None:
        """See `Adapter.check`."""
        with self._session.transaction() as cursor:
            cursor.execute(
                "SELECT has_database_privilege(current_database(), 'CREATE') "
                "OR coalesce(has_schema_privilege(to_regnamespace($1), 'CREATE'), false), "
                "has_database_privilege(current_database(), 'TEMPORARY'), "
                "current_setting('transaction_read_only')::boolean",
                (quoted(self.config.schema_name),),
            )
            may_create, may_load, only_read = cursor.fetchone()
            if only_read:
                raise DestinationError(
                    f"{self.where}: only reading is possible there",
                    "It is a standby, or default_transaction_read_only is on: give the primary's address.",
                    retry=Retry.MANUAL,
                )
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
            self._marks.check_owner(cursor)

    def identity(self) -> tuple[str, str]:
        """When the server was started, and the database's oid: what tells two databases apart."""
        return self._session.identity()

    def prepare(self, contract: Contract) -> None:
        """See `Adapter.prepare`."""
        self._make(contract, again=False)

    def _make(self, contract: Contract, *, again: bool) -> None:
        """`again`: look whether all is there, although the mark says so."""
        layout = self.layout(contract)
        with self._session.transaction() as cursor:
            # Two workers that make the same things at once would disturb each other.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", (f"lakehouse {layout.schema}",))
            cursor.execute("SELECT to_regnamespace($1) IS NULL", (quoted(layout.schema),))
            if cursor.fetchone() == (True,):
                self._run(cursor, sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(layout.schema)))
            self._marks.check_owner(cursor)
            for statement in create_marks(layout.schema, shared=self.owner.shared):
                self._run(cursor, statement)
            made = self._marks.made(cursor, layout)
            mine = made.get(self.owner.organization)
            if not made:
                self._marks.refuse_strangers(cursor, layout)
            elif mine is not None and not again:
                if layout.history and not mine.history:
                    raise DestinationError(
                        f"{self.where}: {contract.table} was filled by a destination that kept no history",
                        "Run `lakehouse destinations resync` for it: it is filled with every version.",
                        retry=Retry.NEVER,
                    )
                if mine == self._marks.wanted(layout):
                    return
            # Only what is missing: a change of a table or view would wait for its readers, and hold up new ones.
            for statement in layout.create(lambda name: self._columns(cursor, layout.schema, name)):
                self._run(cursor, statement)
            if not self._shows(cursor, layout):
                self._run(cursor, sql.SQL("CREATE OR REPLACE VIEW {} AS {}").format(layout.view, layout.latest))
            for statement in layout.describe():
                self._run(cursor, statement)
            self._marks.set_made(cursor, layout)

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
            (f"{quoted(schema)}.{quoted(name)}",),
        )
        return tuple(row[0] for row in cursor.fetchall())

    def standing(self, contract: Contract) -> int:
        """See `Adapter.standing`."""
        with self._session.transaction() as cursor:
            if not self._marks.check_owner(cursor):
                return 0
            found = self._marks.standing(cursor, self.layout(contract), lock=False)
        return found or 0

    def filled(self, contract: Contract) -> int:
        """See `Adapter.filled`."""
        with self._session.transaction() as cursor:
            return self._marks.filled(cursor, self.layout(contract)) if self._marks.check_owner(cursor) else 0

    def deliver(self, delivery: Delivery, rows: RangeReader) -> Receipt:
        """See `Adapter.deliver`."""
        layout = self.layout(delivery.contract)
        with self._session.transaction() as cursor:
            self._marks.check_owner(cursor)
            stands = self._marks.standing(cursor, layout, lock=True)
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
            self._marks.stand(cursor, layout, delivery.upto, delivery.snapshot_id)
            self._run(cursor, sql.SQL("DROP TABLE {}").format(_BATCH))
        return Receipt(delivery.upto, count)

    @property
    def every_version(self) -> bool:
        """See `Adapter.every_version`."""
        return self.config.history

    def filling(self, contract: Contract) -> Filling | None:
        """See `Adapter.filling`."""
        with self._session.transaction() as cursor:
            return self._marks.filling(cursor, self.layout(contract)) if self._marks.check_owner(cursor) else None

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
        with self._session.transaction() as cursor:
            self._marks.check_owner(cursor)
            if before is None:
                self._marks.begin_filling(cursor, layout)
                for statement in layout.begin_filling():
                    self._run(cursor, statement)
            else:
                self._marks.hold_filling(cursor, layout, before)
            self._load(cursor, contract, rows)
            self._run(cursor, layout.take(_BATCH))
            self._run(cursor, sql.SQL("DROP TABLE {}").format(_BATCH))
            reached = after()
            self._marks.note_filling(cursor, layout, reached)
        return reached

    def replace(self, contract: Contract, filling: Filling, snapshot_id: int) -> Receipt:
        """See `Adapter.replace`. One transaction; readers are not held up."""
        layout = self.layout(contract)
        self._make(contract, again=True)
        with self._session.transaction() as cursor:
            self._marks.check_owner(cursor)
            # Deliveries went on while it was filled; they wait for no more than the exchange, and it for one of them.
            self._run(cursor, sql.SQL("SET LOCAL lock_timeout = '10min'"))
            stands = self._marks.standing(cursor, layout, lock=True) or 0
            self._marks.hold_filling(cursor, layout, filling)
            # Not TRUNCATE, which would hold up every reader until the end.
            if layout.history:
                self._run(cursor, layout.clear(layout.history_table, filling.sequence, stands))
                self._run(cursor, layout.remember(layout.filling_table))
            self._run(cursor, layout.clear(layout.versions, filling.sequence, stands))
            self._run(cursor, layout.merge(layout.filling_table))
            self._marks.stand(cursor, layout, max(filling.sequence, stands), snapshot_id)
            self._marks.set_history(cursor, layout)
            self._run(cursor, sql.SQL("DROP TABLE {}").format(layout.filling_table))
            self._marks.end_filling(cursor, layout, filling.sequence)
        return Receipt(max(filling.sequence, stands), filling.rows)

    def content(self, contract: Contract, after: int = 0, aspect: Aspect = Aspect.LATEST) -> Content:
        """An aspect, hashed by the server, in one snapshot with the `_sequence` that the table stands at.

        `after`: only versions that came after this `_sequence`.

        Raises:
            DestinationError: it cannot be asked.
        """
        layout = self.layout(contract)
        with self._session.transaction(repeatable=True) as cursor:
            self._marks.check_owner(cursor)
            stands = self._marks.standing(cursor, layout, lock=False)
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
        with self._session.transaction(repeatable=True) as cursor:
            self._run(cursor, self.layout(contract).hashes(after, aspect))
            yield cursor.fetch_record_batch()

    def texts(self, contract: Contract, hashes: list[str], aspect: Aspect = Aspect.LATEST) -> list[tuple[Any, ...]]:
        """Canonical text of what names a row, then of each column that is compared, of rows with these hashes.

        Raises:
            DestinationError: it cannot be asked.
        """
        listed = "{" + ",".join(hashes) + "}"
        query = self.layout(contract).texts(aspect).as_string(None).replace("ANY($1)", f"ANY('{listed}'::text[])")
        with self._session.transaction() as cursor:
            cursor.execute(query)
            found: list[tuple[Any, ...]] = cursor.fetchall()
        return found

    def close(self) -> None:
        """See `Adapter.close`."""
        self._session.close()

    def _load(self, cursor: Cursor, contract: Contract, rows: Iterator[pa.RecordBatch]) -> int:
        """Stream rows into the temporary table `BATCH` by binary COPY; how many."""
        import pyarrow as pa

        schema = pa.schema([f.remove_metadata() for f in arrow_schema(contract)])
        reader = pa.RecordBatchReader.from_batches(schema, (_plain(b, schema) for b in self._session.resting(rows)))
        return int(cursor.adbc_ingest(BATCH, reader, mode="create", temporary=True))

    def _run(self, cursor: Cursor, statement: sql.Composable) -> None:
        cursor.execute(statement.as_string(None))


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [batch.column(f.name).cast(f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
