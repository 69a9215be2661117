"""What the replica's schema holds, as SQL: the only place that knows its types; `names.py` has the names.

In the destination's schema, for each table of the lake:

- `_<table>`: the newest version of each identity, deletes too (a physical delete would let a late row bring the old
  one back). Keyed by the lake's identity, event time and key.
- `<table>`: the view of the latest state, in native types (jsonb, arrays, timestamptz).
- `<table>_history`, on request: every version, keyed by `_sequence`.
- `_lakehouse`: one row a table: whose it is (installation, organization, destination), whether its history is whole,
  and the `_sequence` that it is complete to.
- `_lakehouse_filling`, one row for each table that is being filled anew, and `_<table>_filling`, what that has taken.

Vendor-wide, the same tables hold every organization's rows: their keys have the tenant's column too, and the marks,
`_lakehouse_all`, one row a table and organization.

Views only ever gain columns at their end, so that what others built on them survives a change of contract.
Source: postgresql.org/docs/current/sql-createview.html, "CREATE OR REPLACE VIEW".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from psycopg import sql

from federation.aspects import Aspect, compared, compared_by
from federation.config import IDENTIFIER_BYTES
from federation.postgres.names import FILLINGS, MARKS, SHARED_MARKS, short
from federation.protocol import DIGITS, DestinationError
from schemas.canonical import postgres_field_text, postgres_hash
from schemas.contract import Column, Contract
from schemas.errors import Retry
from schemas.lake_columns import DELETE, LAKE_COLUMNS, OP, SEQUENCE, lake_fields, required_columns
from schemas.types import LogicalType

_TYPES = {
    "string": "text",
    "boolean": "boolean",
    "integer": "integer",
    "long": "bigint",
    "double": "double precision",
    "date": "date",
    "timestamptz": "timestamp with time zone",
    "json": "jsonb",
    "binary": "bytea",
}


def native_type(column: Column) -> str:
    """The type of a column in the replica. JSON keeps the source's own: json text survives only as json."""
    if column.type.name == "list":
        return f"{_TYPES[LogicalType(column.type.element).name]}[]"
    if column.type.name == "decimal":
        return f"numeric({column.type.precision},{column.type.scale})"
    if column.type.name == "json" and column.source_type == "json":
        return "json"
    return _TYPES[column.type.name]


@dataclass(frozen=True)
class Layout:
    """The names and statements of one table in one schema."""

    contract: Contract
    schema: str
    history: bool
    organization: str | None = None
    """Where the tables are all organizations': whose rows are meant."""

    def __post_init__(self) -> None:
        for name in (self.versions_name, f"{self.contract.table}_history", *(c.name for c in self.contract.columns)):
            if len(name.encode()) > IDENTIFIER_BYTES:
                raise DestinationError(
                    f"{self.contract.table}: the name {name} has more than {IDENTIFIER_BYTES} bytes",
                    "PostgreSQL would cut it. Leave the table out of this destination (--table).",
                    retry=Retry.NEVER,
                )

    @property
    def versions_name(self) -> str:
        return f"_{self.contract.table}"

    @property
    def versions(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.versions_name)

    @property
    def view(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.contract.table)

    @property
    def history_table(self) -> sql.Identifier:
        return sql.Identifier(self.schema, f"{self.contract.table}_history")

    @property
    def marks(self) -> sql.Identifier:
        return sql.Identifier(self.schema, MARKS if self.organization is None else SHARED_MARKS)

    @property
    def filling_name(self) -> str:
        # Several organizations' may be filled at once.
        whose = "" if self.organization is None else f"_{hashlib.sha256(self.organization.encode()).hexdigest()[:8]}"
        return short(f"{self.versions_name}_filling{whose}")

    @property
    def filling_table(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.filling_name)

    @property
    def fillings(self) -> sql.Identifier:
        return sql.Identifier(self.schema, FILLINGS)

    @property
    def identity(self) -> tuple[str, ...]:
        """What a version is of: the contract's identity, in tables of all organizations with whose it is."""
        tenant = () if self.organization is None else (self.contract.tenant,)
        return tuple(dict.fromkeys((*self.contract.identity, *tenant)))

    def mine(self, *more: sql.Composable) -> sql.Composable:
        """The WHERE that leaves the rows of one organization, and of `more` conditions."""
        conditions = [*more]
        if self.organization is not None:
            tenant = sql.Identifier(self.contract.tenant)
            conditions.append(sql.SQL("{}::text = {}").format(tenant, sql.Literal(self.organization)))
        return sql.SQL("WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL("")

    @property
    def fields(self) -> tuple[Column, ...]:
        return lake_fields(self.contract)

    def create(self, there: Callable[[str], Sequence[str]]) -> Iterator[sql.Composable]:
        """Statements that make what is missing of its tables. `there`: the columns that a table of this name has.

        A column that somebody dropped comes back; one that came with a later contract is added.
        """
        required = required_columns(self.contract)
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}{}").format(
                sql.Identifier(c.name),
                sql.SQL(native_type(c)),
                sql.SQL(" NOT NULL" if c.name in required else ""),
            )
            for c in self.fields
        )
        identity = _names(self.identity)
        tables = [(self.versions_name, identity)]
        if self.history:
            tables.append(
                (f"{self.contract.table}_history", _names((*self.identity[len(self.contract.identity) :], SEQUENCE)))
            )
        for name, key in tables:
            table, held = sql.Identifier(self.schema, name), there(name)
            if not held:
                yield sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(table, columns, key)
                continue
            for c in self.fields:
                if c.name not in held:
                    yield sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
                        table, sql.Identifier(c.name), sql.SQL(native_type(c))
                    )
        if self.contract.event_time:
            # The key begins with the event time where there is one; by the key alone people look things up.
            yield sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})").format(
                sql.Identifier(short(f"{self.versions_name}_key")), self.versions, _names(self.contract.primary_key)
            )
        # What came last is compared after each delivery. A block range index costs a write next to nothing.
        yield sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING brin ({})").format(
            sql.Identifier(short(f"{self.versions_name}_sequence")), self.versions, sql.Identifier(SEQUENCE)
        )

    @property
    def latest(self) -> sql.Composed:
        """What the view selects."""
        return sql.SQL("SELECT {} FROM {} WHERE {} <> {}").format(
            _names(tuple(c.name for c in self.shown)), self.versions, sql.Identifier(OP), sql.Literal(DELETE)
        )

    def describe(self) -> Iterator[sql.Composable]:
        """Comments on the view and its columns."""
        described = sql.Literal(f"{self.contract.title}: the latest state. {self.contract.description}")
        yield sql.SQL("COMMENT ON VIEW {} IS {}").format(self.view, described)
        for c in self.shown:
            yield sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
                self.view, sql.Identifier(c.name), sql.Literal(c.description)
            )

    @property
    def shown(self) -> Sequence[Column]:
        """The view's columns: the contract's by id, with the lake's own after those of the first version."""
        own = [c for c in LAKE_COLUMNS if c.name in (SEQUENCE, "_captured_at")]
        columns = sorted(self.contract.columns, key=lambda c: c.id)
        first = [c for c in columns if c.since.split(".")[1] == "0"]
        return [*first, *own, *(c for c in columns if c not in first)]

    def begin_filling(self) -> Iterator[sql.Composable]:
        """Statements that make an empty table for what a filling takes; what an older one took is dropped.

        Whose that is has been looked at: `Marks.begin_filling`.
        """
        columns = [sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(native_type(c))) for c in self.fields]
        yield sql.SQL("DROP TABLE IF EXISTS {}").format(self.filling_table)
        yield sql.SQL("CREATE TABLE {} ({})").format(self.filling_table, sql.SQL(", ").join(columns))

    def take(self, batch: sql.Identifier) -> sql.Composed:
        """Add a batch to what a filling has taken."""
        return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
            self.filling_table, _names([c.name for c in self.fields]), self._values(), batch
        )

    def merge(self, batch: sql.Identifier) -> sql.Composed:
        """Put the newest version of each identity of the batch over an older one; a newer one stays."""
        names = [c.name for c in self.fields]
        changed = [n for n in names if n not in self.identity]
        return sql.SQL(
            "INSERT INTO {versions} AS held ({names}) SELECT DISTINCT ON ({identity}) {values} FROM {batch} "
            "ORDER BY {identity}, {sequence} DESC ON CONFLICT ({identity}) DO UPDATE SET {changes} "
            "WHERE excluded.{sequence} > held.{sequence}"
        ).format(
            versions=self.versions,
            names=_names(names),
            values=self._values(),
            identity=_names(self.identity),
            batch=batch,
            sequence=sql.Identifier(SEQUENCE),
            changes=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in changed),
        )

    def clear(self, table: sql.Identifier, upto: int, stands: int) -> sql.Composed:
        """Remove every version up to a `_sequence`, and what claims to be newer than the newest that was delivered."""
        beyond = sql.SQL("({sequence} <= {} OR {sequence} > {})").format(
            sql.Literal(upto), sql.Literal(max(upto, stands)), sequence=sql.Identifier(SEQUENCE)
        )
        return sql.SQL("DELETE FROM {} {}").format(table, self.mine(beyond))

    def remember(self, batch: sql.Identifier) -> sql.Composed:
        """Add every version of the batch to the history."""
        return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING").format(
            self.history_table, _names([c.name for c in self.fields]), self._values(), batch
        )

    def content(self, after: int, aspect: Aspect) -> sql.Composed:
        """Rows and digest of an aspect, of versions that came after a `_sequence`."""
        return sql.SQL(
            "SELECT count(*), coalesce(sum(('x' || substr(_hash, 1, {})) ::bit({})::bigint), 0)::text FROM ({}) AS s"
        ).format(sql.Literal(DIGITS), sql.SQL(str(4 * DIGITS)), self.hashes(after, aspect))

    def hashes(self, after: int, aspect: Aspect) -> sql.Composed:
        """What names each row of an aspect, and its hash, of versions that came after a `_sequence`."""
        names = sql.SQL(", ").join(
            sql.SQL("v.{}").format(sql.Identifier(n)) for n in compared_by(self.contract, aspect)
        )
        select = sql.SQL("SELECT {}, {} AS _hash FROM {} AS v {}")
        if aspect is Aspect.HISTORY:
            return select.format(names, self._hash(aspect), self.history_table, self.mine(*_beyond(after)))
        shown = select.format(names, self._hash(Aspect.LATEST), self.view, self.mine(*_beyond(after)))
        if aspect is Aspect.LATEST:
            return shown
        same = sql.SQL(" AND ").join(sql.SQL("s.{0} = v.{0}").format(sql.Identifier(n)) for n in self.identity)
        hidden = sql.SQL("NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(self.view, same)
        deleted = sql.SQL("v.{} = {}").format(sql.Identifier(OP), sql.Literal(DELETE))
        gone = select.format(names, self._hash(aspect), self.versions, self.mine(*_beyond(after), deleted, hidden))
        return sql.SQL("{} UNION ALL {}").format(shown, gone)

    def texts(self, aspect: Aspect) -> sql.Composed:
        """Canonical text of what names a row, then of each column compared, of rows with one of some hashes ($1)."""
        tables = {Aspect.LATEST: self.view, Aspect.RANGE: self.versions, Aspect.HISTORY: self.history_table}
        fields = {c.name: c for c in self.fields}
        names = [*compared_by(self.contract, aspect), *(c.name for c in compared(self.contract, aspect))]
        return sql.SQL("SELECT {} FROM {} AS v {}").format(
            sql.SQL(", ").join(sql.SQL(postgres_field_text(fields[n], columns_source=False, alias="v")) for n in names),
            tables[aspect],
            self.mine(sql.SQL("{} = ANY($1)").format(self._hash(aspect))),
        )

    def _hash(self, aspect: Aspect) -> sql.Composed:
        row = sql.SQL(postgres_hash(self.contract, columns_source=False, alias="v"))
        if aspect is Aspect.LATEST:
            return sql.Composed([row])
        version = sql.SQL("encode(sha256(convert_to({} || ':' || v.{} || ':' || v.{}, 'UTF8')), 'hex')").format(
            row, sql.Identifier(SEQUENCE), sql.Identifier(OP)
        )
        if aspect is Aspect.HISTORY:
            return version
        return sql.SQL("CASE WHEN v.{} = {} THEN {} ELSE {} END").format(
            sql.Identifier(OP), sql.Literal(DELETE), version, row
        )

    def _values(self) -> sql.Composed:
        # Arrow brings JSON as text and decimals without their scale.
        return sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Identifier(c.name), sql.SQL(native_type(c)))
            if c.type.name in ("json", "decimal") or c.type.element == "json"
            else sql.Identifier(c.name)
            for c in self.fields
        )


def create_marks(schema: str, *, shared: bool) -> Iterator[sql.Composable]:
    """Statements that make the table of marks."""
    marks = sql.Identifier(schema, SHARED_MARKS if shared else MARKS)
    yield sql.SQL(
        "CREATE TABLE IF NOT EXISTS {} (table_name text, installation text NOT NULL, organization text NOT NULL, "
        "contract text NOT NULL, history boolean NOT NULL, destination text NOT NULL, "
        "sequence bigint NOT NULL DEFAULT 0, filled bigint NOT NULL DEFAULT 0, "
        "snapshot_id bigint, delivered_at timestamptz, PRIMARY KEY ({}))"
    ).format(marks, _names(("table_name", "organization") if shared else ("table_name",)))
    yield sql.SQL("COMMENT ON TABLE {} IS {}").format(
        marks,
        sql.Literal("Whose rows these tables hold, and the _sequence that each is complete to. Not to be changed."),
    )


def create_fillings(schema: str) -> sql.Composed:
    """The statement that makes the table of fillings."""
    return sql.SQL(
        "CREATE TABLE IF NOT EXISTS {} (table_name text, organization text, filling jsonb NOT NULL, "
        "begun_at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (table_name, organization))"
    ).format(sql.Identifier(schema, FILLINGS))


def _beyond(after: int) -> list[sql.Composable]:
    return [sql.SQL("{} > {}").format(sql.Identifier(SEQUENCE), sql.Literal(after))] if after else []


def _names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def quoted(name: str) -> str:
    """A name as SQL text, for what is looked up by text."""
    return '"' + name.replace('"', '""') + '"'
