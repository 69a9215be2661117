"""Which foreign keys refer to a hot table, and that no delete reaches a row that stays.

Read from the database's catalog, whatever schema the referring table is in: composite keys, references of a table to
itself, partitions on either side. What a key would do on delete does not matter: cascade takes rows with it, set null
and set default change them, restrict and no action fail. So a row goes only if no row that stays refers to it. Rows of
one table that refer to each other (`own`) go together, in one statement, if none of them is referred to from outside;
rows of two tables that refer to each other stay, because one of them would have to be changed first.

A key without a usable index on the referring side refuses the table: each delete would read all of that side.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from lakehouse.capture.source import HotTable

ACTIONS = {"a": "no action", "r": "restrict", "c": "cascade", "n": "set null", "d": "set default"}


@dataclass(frozen=True)
class Reference:
    """One foreign key that refers to the hot table: `child`.`columns` are the hot table's `target` columns."""

    name: str
    schema: str
    table: str
    columns: tuple[str, ...]
    target: tuple[str, ...]
    action: str
    own: bool
    """The referring table is the hot table itself."""
    granted: bool
    """The archive's user may read the referring table …"""
    secured: bool
    """… but row-level security would hide rows from it."""
    unindexed: tuple[tuple[str, str], ...]
    """Of the referring table, or of its partitions: (schema, table) without an index that serves the key."""

    @property
    def readable(self) -> bool:
        """Whether it can be asked who refers. Sessions let a query fail that row-level security would filter."""
        return self.granted and not self.secured

    @property
    def child(self) -> str:
        """Who refers, as people write it: `schema.table (columns)`."""
        return f"{self.schema}.{self.table} ({', '.join(self.columns)})"

    def condition(self, alias: str = "t") -> sql.Composable:
        """True where a row of the referring table refers to the row `alias`; the index serves it."""
        pairs = [
            sql.SQL("{} = {}").format(sql.Identifier("r", mine), sql.Identifier(alias, theirs))
            for mine, theirs in zip(self.columns, self.target, strict=True)
        ]
        return sql.SQL("EXISTS (SELECT FROM {} AS r WHERE {})").format(
            sql.Identifier(self.schema, self.table), sql.SQL(" AND ").join(pairs)
        )

    def refusals(self) -> list[str]:
        """Why nothing may be deleted while this key is as it is; empty where it may."""
        found = []
        if not self.granted:
            found.append(
                f"{self.child} refers to it by {self.name}, and there is no right to look: "
                f"GRANT SELECT ON {_written(self.schema, self.table)}"
            )
        elif self.secured:
            found.append(
                f"{self.child} refers to it by {self.name}, and row-level security hides rows of it from the archive's "
                "user, which cannot see who refers then: ALTER ROLE … BYPASSRLS for the user of "
                "LAKEHOUSE_ARCHIVE__URL; a policy is not enough"
            )
        for schema, table in self.unindexed:
            columns = ", ".join(sql.Identifier(c).as_string(None) for c in self.columns)
            found.append(
                f"{self.child} refers to it by {self.name}, without an index: each delete would read all of it. "
                f"CREATE INDEX CONCURRENTLY ON {_written(schema, table)} ({columns})"
            )
        return found


def read_references(connection: psycopg.Connection[Any], hot: HotTable) -> tuple[Reference, ...]:
    """Every foreign key that refers to the table, to a partition of it, or to what it is a partition of."""
    rows = connection.execute(_REFERENCES, {"table": hot.oid}).fetchall()
    return tuple(
        Reference(
            name=name,
            schema=schema,
            table=table,
            columns=tuple(columns),
            target=tuple(target),
            action=ACTIONS.get(action, action),
            own=own,
            granted=granted,
            secured=secured,
            unindexed=tuple((s, t) for s, t in unindexed or ()),
        )
        for name, schema, table, columns, target, action, own, granted, secured, unindexed in rows
    )


_REFERENCES = """
    WITH family AS (
        SELECT %(table)s::oid AS oid
        UNION SELECT relid::oid FROM pg_partition_tree(%(table)s::oid::regclass)
        UNION SELECT relid::oid FROM pg_partition_ancestors(%(table)s::oid::regclass)
    ), keys AS (
        -- A key of a partitioned table stands once for the whole and once for each partition: the whole is enough.
        SELECT c.oid, c.conname, c.conrelid, c.confrelid, c.confdeltype, c.conkey, c.confkey, c.conpfeqop
        FROM pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0 AND c.confrelid IN (SELECT oid FROM family)
    ), named AS (
        SELECT k.oid, p.n, p.operator, a.attname AS mine, b.attname AS theirs
        FROM keys k
        CROSS JOIN unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY AS p(mine, theirs, operator, n)
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.mine
        JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = p.theirs
    ), leaves AS (
        SELECT k.oid, k.conrelid AS leaf FROM keys k JOIN pg_class r ON r.oid = k.conrelid AND r.relkind <> 'p'
        UNION SELECT k.oid, l.relid::oid FROM keys k CROSS JOIN pg_partition_tree(k.conrelid) l WHERE l.isleaf
    )
    SELECT k.conname, s.nspname, r.relname,
           (SELECT array_agg(n.mine ORDER BY n.n) FROM named n WHERE n.oid = k.oid),
           (SELECT array_agg(n.theirs ORDER BY n.n) FROM named n WHERE n.oid = k.oid),
           k.confdeltype::text,
           k.conrelid IN (SELECT oid FROM family),
           has_schema_privilege(s.oid, 'USAGE') AND has_table_privilege(k.conrelid, 'SELECT'),
           row_security_active(k.conrelid),
           (SELECT array_agg(ARRAY[ls.nspname::text, lr.relname::text] ORDER BY lr.relname)
            FROM leaves l JOIN pg_class lr ON lr.oid = l.leaf JOIN pg_namespace ls ON ls.oid = lr.relnamespace
            WHERE l.oid = k.oid AND lr.relkind = 'r' AND NOT EXISTS (
                SELECT FROM pg_index i
                JOIN pg_class x ON x.oid = i.indexrelid
                JOIN pg_am m ON m.oid = x.relam AND m.amname IN ('btree', 'hash')
                WHERE i.indrelid = l.leaf AND i.indisvalid AND i.indisready AND i.indpred IS NULL
                -- Its leading columns are the key's, in whatever order, compared as the key compares them.
                AND NOT EXISTS (
                    SELECT FROM named n
                    JOIN pg_attribute a ON a.attrelid = l.leaf AND a.attname = n.mine AND NOT a.attisdropped
                    WHERE n.oid = k.oid AND NOT EXISTS (
                        SELECT FROM generate_series(0, cardinality(k.conkey) - 1) AS at
                        JOIN pg_opclass o ON o.oid = i.indclass[at]
                        JOIN pg_amop w ON w.amopfamily = o.opcfamily AND w.amopopr = n.operator
                        WHERE i.indkey[at] = a.attnum AND i.indcollation[at] IN (0, a.attcollation)))))
    FROM keys k JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace s ON s.oid = r.relnamespace
    ORDER BY s.nspname, r.relname, k.conname
"""


def children_first(
    tables: Iterable[str], parents: Mapping[str, Iterable[str]]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """An order in which no table comes before one that refers to it, and the cycles for which there is none.

    `parents`: by table, those that it refers to; a reference to itself is no cycle here. Tables on a cycle come in the
    order of their names, as if the last of its references were not there.
    """
    wanted = sorted(tables)
    graph = {t: sorted({p for p in parents.get(t, ()) if p in wanted and p != t}) for t in wanted}
    cycles: list[tuple[str, ...]] = []
    while True:
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for child, above in graph.items():
            sorter.add(child)
            for parent in above:
                sorter.add(parent, child)
        try:
            return list(sorter.static_order()), cycles
        except graphlib.CycleError as error:
            # Its second argument is the cycle, each a predecessor of the next: the first and the last are the same.
            cycle: Sequence[str] = error.args[1]
            cycles.append(tuple(sorted(set(cycle))))
            child, parent = cycle[0], cycle[1]
            graph[child].remove(parent)


def _written(schema: str, table: str) -> str:
    return sql.Identifier(schema, table).as_string(None)
