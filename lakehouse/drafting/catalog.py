"""What PostgreSQL's catalog says about one table, as `lakehouse.drafting` needs it.

Reads only the catalog, so no privilege on the table itself is needed. Types are printed with the search path
`public`, whatever the session's is: a contract must not depend on who drafted it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from schemas.errors import LakehouseError

NO_XMIN = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
_IDENTIFIER = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\s."]+))\s*')


@dataclass(frozen=True)
class HotColumn:
    """A column with its type resolved through domains; an array's `base` is that of its element."""

    number: int
    name: str
    source_type: str
    base: str
    kind: str
    category: str
    built_in: bool
    typmod: int
    is_array: bool
    dimensions: int
    not_null: bool
    comment: str | None
    default: str | None
    generated: str
    labels: tuple[str, ...]
    indexed: bool
    reference: tuple[str, str, str] | None
    """(schema, table, column) that a foreign key points to."""
    follows_reference: bool
    """A foreign key sets it to null or its default when the row that it points to goes."""

    @property
    def defaults_to_now(self) -> bool:
        return bool(
            re.search(
                r"\bnow\(|current_timestamp|current_date|localtimestamp|_timestamp\(",
                self.default or "",
                re.I,
            )
        )


@dataclass(frozen=True)
class Stamp:
    """A row trigger that fires before every update; `body` is its function's source and arguments."""

    name: str
    body: str


@dataclass(frozen=True)
class HotTable:
    """A table that has rows of its own, and a primary key."""

    schema: str
    name: str
    quoted: str
    comment: str | None
    partition_of: str | None
    readable: bool
    row_security: bool
    primary_key: tuple[str, ...]
    columns: tuple[HotColumn, ...]
    stamps: tuple[Stamp, ...]


def read_table(connection: psycopg.Connection[Any], qualified_table: str) -> HotTable:
    """Read a table by the name that a person typed: `schema.table`, `schema."Table"` or `table`.

    Raises:
        LakehouseError: no such table (near names in the hint), a view or foreign table, or no primary key.
    """
    try:
        with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
            found = _find(cursor, qualified_table)
            with _public_search_path(cursor):
                return _read(cursor, found)
    except psycopg.Error as error:
        raise LakehouseError(f"{qualified_table}: the catalog cannot be read: {error}") from error


@contextmanager
def _public_search_path(cursor: psycopg.Cursor[dict[str, Any]]) -> Iterator[None]:
    previous = _one(cursor, "SELECT current_setting('search_path') AS path")["path"]
    cursor.execute("SELECT set_config('search_path', 'public', true)")
    yield
    # The caller may be inside a transaction of its own, where a local setting outlives ours.
    cursor.execute("SELECT set_config('search_path', %s, true)", (previous,))


def _one(
    cursor: psycopg.Cursor[dict[str, Any]], query: str, parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    cursor.execute(query.encode(), parameters)
    return cursor.fetchall()[0]


def _find(cursor: psycopg.Cursor[dict[str, Any]], typed: str) -> dict[str, Any]:
    parts = _parse(typed)
    if not 1 <= len(parts) <= 2:
        raise LakehouseError(
            f"{typed}: not the name of a table",
            'Write schema.table, with quotes where needed: shop."Orders".',
        )
    cursor.execute(
        """
        SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
               format('%%I.%%I', n.nspname, c.relname) AS quoted
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname = ANY(%(tables)s)
          AND CASE WHEN %(schemas)s::text[] IS NULL THEN pg_table_is_visible(c.oid)
                   ELSE n.nspname = ANY(%(schemas)s) END
        ORDER BY c.relname = %(folded)s DESC
        """,
        {
            "tables": list(parts[-1]),
            "folded": parts[-1][0],
            "schemas": list(parts[0]) if len(parts) == 2 else None,
        },
    )
    rows = cursor.fetchall()
    if not rows:
        raise LakehouseError(f"{typed}: no such table", _near_names(cursor, typed))
    if rows[0]["kind"] in NO_XMIN:
        raise LakehouseError(
            f"{rows[0]['quoted']} is {NO_XMIN[rows[0]['kind']]}: its rows carry no transaction id (xmin), "
            "so changes cannot be captured",
            "Draft a contract for the tables that it reads.",
        )
    return rows[0]


def _parse(typed: str) -> list[tuple[str, str]]:
    """Each part as (what SQL would fold it to, what was typed)."""
    parts: list[tuple[str, str]] = []
    position = 0
    while match := _IDENTIFIER.match(typed, position):
        quoted, bare = match.groups()
        exact = quoted.replace('""', '"') if quoted else bare
        parts.append((exact if quoted else exact.lower(), exact))
        position = match.end()
        if position == len(typed):
            return parts
        if typed[position] != ".":
            break
        position += 1
    return []


def _near_names(cursor: psycopg.Cursor[dict[str, Any]], typed: str) -> str:
    cursor.execute(
        """
        SELECT format('%I.%I', n.nspname, c.relname) AS quoted, n.nspname || '.' || c.relname AS plain
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        ORDER BY 1
        """
    )
    tables = {row["plain"].lower(): row["quoted"] for row in cursor.fetchall()}
    plain = typed.replace('"', "").lower()
    by_table = {full.split(".", 1)[1]: full for full in tables}
    near = difflib.get_close_matches(plain, tables, n=5)
    near += [by_table[t] for t in difflib.get_close_matches(plain.rsplit(".", 1)[-1], by_table, n=5)]
    if near:
        return f"Did you mean {', '.join(dict.fromkeys(tables[n] for n in near))}?"
    shown = ", ".join(list(tables.values())[:10])
    return (
        f"The database has {shown}{' and more' if len(tables) > 10 else ''}."
        if tables
        else "The database has no tables."
    )


def _read(cursor: psycopg.Cursor[dict[str, Any]], found: dict[str, Any]) -> HotTable:
    oid = {"oid": found["oid"]}
    facts = _one(
        cursor,
        """
        SELECT obj_description(c.oid, 'pg_class') AS comment,
               has_table_privilege(c.oid, 'SELECT') AS readable, row_security_active(c.oid) AS row_security,
               (SELECT format('%%I.%%I', n.nspname, p.relname)
                FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
                WHERE i.inhrelid = c.oid AND c.relispartition) AS partition_of,
               (SELECT array_agg(a.attname::text ORDER BY k.position)
                FROM pg_constraint pk, unnest(pk.conkey) WITH ORDINALITY k(number, position)
                JOIN pg_attribute a ON a.attnum = k.number AND a.attrelid = %(oid)s
                WHERE pk.conrelid = c.oid AND pk.contype = 'p') AS primary_key
        FROM pg_class c WHERE c.oid = %(oid)s
        """,
        oid,
    )
    if not facts["primary_key"]:
        raise LakehouseError(
            f"{found['quoted']} has no primary key: its rows cannot be told apart in the lake",
            _key_remedy(cursor, found),
        )
    return HotTable(
        schema=found["schema"],
        name=found["name"],
        quoted=found["quoted"],
        comment=facts["comment"],
        partition_of=facts["partition_of"],
        readable=facts["readable"],
        row_security=facts["row_security"],
        primary_key=tuple(facts["primary_key"]),
        columns=tuple(_columns(cursor, oid)),
        stamps=tuple(_stamps(cursor, oid)),
    )


def _key_remedy(cursor: psycopg.Cursor[dict[str, Any]], found: dict[str, Any]) -> str:
    """How to give the table a key: from a unique index that would do, if there is one."""
    cursor.execute(
        """
        SELECT quote_ident(i.relname) AS index FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
        WHERE x.indrelid = %(oid)s AND x.indisunique AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL
          AND NOT EXISTS (SELECT FROM pg_attribute a
                          WHERE a.attrelid = x.indrelid AND a.attnum = ANY(x.indkey) AND NOT a.attnotnull)
        ORDER BY x.indnkeyatts, 1
        """,
        {"oid": found["oid"]},
    )
    if rows := cursor.fetchall():
        key = f"USING INDEX {rows[0]['index']}"
        return f"A unique index will do: ALTER TABLE {found['quoted']} ADD PRIMARY KEY {key};"
    return f"Add one: ALTER TABLE {found['quoted']} ADD PRIMARY KEY (…); with an identity column, if need be."


_COLUMNS = """
WITH RECURSIVE resolved(number, oid, typmod, dimensions, is_array, depth) AS (
    SELECT attnum, atttypid, atttypmod, attndims::int, false, 0
    FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped
      AND NOT (attname = 'change_xid' AND atttypid = 'xid8'::regtype)  -- ours: `lakehouse source prepare`
  UNION ALL
    -- a domain leads to its base type, an array (once) to its element
    SELECT r.number, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END,
           CASE r.typmod WHEN -1 THEN t.typtypmod ELSE r.typmod END,
           greatest(r.dimensions, t.typndims), r.is_array OR t.typtype <> 'd', depth + 1
    FROM resolved r JOIN pg_type t ON t.oid = r.oid
    WHERE t.typtype = 'd' OR (t.typcategory = 'A' AND t.typelem <> 0 AND NOT r.is_array)
), base AS (SELECT DISTINCT ON (number) * FROM resolved ORDER BY number, depth DESC),
reference AS (
    SELECT DISTINCT ON (number) k.number, n.nspname, c.relname, a.attname
    FROM pg_constraint f, unnest(f.conkey, f.confkey) AS k(number, target), pg_class c, pg_namespace n, pg_attribute a
    WHERE f.conrelid = %(oid)s AND f.contype = 'f' AND c.oid = f.confrelid AND n.oid = c.relnamespace
      AND a.attrelid = c.oid AND a.attnum = k.target
    ORDER BY k.number, cardinality(f.conkey), f.conname
)
SELECT a.attnum::int AS number, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS source_type,
       t.typname AS base, t.typtype::text AS kind, t.typcategory::text AS category,
       t.typnamespace = 'pg_catalog'::regnamespace AS built_in, b.typmod, b.is_array, b.dimensions,
       a.attnotnull AS not_null, col_description(a.attrelid, a.attnum) AS comment,
       pg_get_expr(d.adbin, d.adrelid) AS default, a.attgenerated::text AS generated,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels,
       EXISTS (SELECT FROM pg_index x
               WHERE x.indrelid = a.attrelid AND x.indisvalid AND a.attnum = ANY(x.indkey)) AS indexed,
       r.nspname, r.relname, r.attname,
       EXISTS (SELECT FROM pg_constraint f
               WHERE f.conrelid = a.attrelid AND f.contype = 'f' AND a.attnum = ANY(f.conkey)
                 AND (f.confdeltype IN ('n', 'd') OR f.confupdtype IN ('n', 'd'))) AS follows_reference
FROM pg_attribute a JOIN base b ON b.number = a.attnum JOIN pg_type t ON t.oid = b.oid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN reference r ON r.number = a.attnum
WHERE a.attrelid = %(oid)s ORDER BY a.attnum
"""


def _columns(cursor: psycopg.Cursor[dict[str, Any]], oid: dict[str, Any]) -> Iterator[HotColumn]:
    cursor.execute(_COLUMNS, oid)
    for row in cursor.fetchall():
        schema, table, column = row.pop("nspname"), row.pop("relname"), row.pop("attname")
        row["labels"] = tuple(row["labels"])
        yield HotColumn(**row, reference=(schema, table, column) if table else None)


def _stamps(cursor: psycopg.Cursor[dict[str, Any]], oid: dict[str, Any]) -> Iterator[Stamp]:
    # BEFORE, FOR EACH ROW, UPDATE; unconditional, or some change would go unstamped
    cursor.execute(
        """
        SELECT tgname AS name, p.proname || ' ' || p.prosrc || ' ' || encode(t.tgargs, 'escape') AS body
        FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 19 = 19
          AND t.tgqual IS NULL AND cardinality(t.tgattr) = 0
        ORDER BY tgname
        """,
        oid,
    )
    for row in cursor.fetchall():
        yield Stamp(**row)
