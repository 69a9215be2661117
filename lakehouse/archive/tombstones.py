"""The tombstones of one table as capture reads them: within the window's own transaction, under its snapshot.

A tombstone commits with the delete that it stands for, so a snapshot that does not see the row sees the tombstone.
Nothing here is decided by a setting, which anybody could set. A database without the archive's schema costs one look in
its catalog; one whose tombstones capture's user may not read stops the windows that would have to ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg import sql

from lakehouse.archive.installation import SCHEMA, table
from lakehouse.capture.source import SourceError
from schemas.contract import CHANGE_XID, Contract
from schemas.errors import Retry
from schemas.keys import postgres_key

if TYPE_CHECKING:
    from lakehouse.capture.source import Catalog

KEYS = 5_000
"""Keys that one statement asks for."""
EVERY = 50_000
"""Tombstones that one statement returns when all are read."""
LOG, BATCHES = "cold_storage_archive", "batches"

Taken = tuple[str, datetime | None, int]
"""A key's text, the row's event time, and the version in the lake that was proven equal to it."""


class Tombstones:
    """Asks about one table's tombstones over `catalog`, a window's transaction."""

    def __init__(self, catalog: Catalog, contract: Contract) -> None:
        self.contract = contract
        self._catalog = catalog
        self._found: tuple[bool | None, str] | None = None

    @property
    def there(self) -> bool:
        """Whether this database has an archive; looked up once.

        Raises:
            SourceError: it has one that this user may not read.
        """
        readable, user = self._look()
        if readable is False:
            raise SourceError(
                f"{self.contract.source_name}: keys are gone or new, and {user} may not read in the schema {SCHEMA} "
                "which of them the archive took: nothing was landed",
                f"As its owner: GRANT USAGE ON SCHEMA {SCHEMA} TO {user}; "
                f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO {user};",
                retry=Retry.MANUAL,
            )
        return readable is True

    @property
    def closed(self) -> bool:
        """It has one that this user may not read: whoever finds nothing to ask about goes on all the same."""
        return self._look()[0] is False

    def _look(self) -> tuple[bool | None, str]:
        self._found = self._found or _look(self._catalog)
        return self._found

    def of(self, organization: str, keys: Sequence[str]) -> list[Taken]:
        """The tombstones of these keys (texts); at most `KEYS` of them."""
        if not keys or not self.there:
            return []
        rows: list[Taken] = self._catalog.execute(
            "SELECT row_key, event_time, sequence FROM lakehouse_archive.cold_storage_archive "
            "WHERE organization_id = %s AND table_name = %s AND row_key = ANY(%s::text[])",
            [organization, self.contract.table, list(keys)],
        ).fetchall()
        return rows

    def complete(self, organization: str, number: int, chain: str) -> bool:
        """Whether no batch up to this one, the lake's last, has its tombstones in the lake alone.

        They are pruned after the audit window; a database that was restored has forgotten batches, or got them back
        without; and anybody may have removed them here. So each number is looked for: one probe of an index a batch.
        """
        if not self.there:
            # It may have had an archive, and have been restored without.
            return False
        (found,) = self._catalog.execute(
            "SELECT EXISTS (SELECT FROM lakehouse_archive.batches "
            "WHERE organization_id = %s AND number = %s AND chain = %s) AND NOT EXISTS ("
            # A subquery in this place is never joined: no plan of it reads all tombstones.
            "SELECT FROM generate_series(1, %s::bigint) AS n (batch) WHERE (SELECT true "
            "FROM lakehouse_archive.cold_storage_archive AS t "
            "WHERE t.organization_id = %s AND t.batch = n.batch LIMIT 1) IS NULL)",
            [organization, number, chain, number, organization],
        ).fetchone()
        return bool(found)

    def after(self, organization: str, number: int) -> Iterator[list[Taken]]:
        """The tombstones of batches above a number, and of those that are not noted as exported, page by page."""
        key, batch = None, None
        while self.there:
            rows = self._catalog.execute(
                "SELECT row_key, event_time, sequence, batch FROM lakehouse_archive.cold_storage_archive "
                "WHERE organization_id = %s AND table_name = %s "
                "AND (%s::text IS NULL OR (row_key, batch) > (%s::text, %s::bigint)) "
                "AND (batch > %s OR batch IN (SELECT number FROM lakehouse_archive.batches "
                "WHERE organization_id = %s AND exported_at IS NULL)) ORDER BY row_key, batch LIMIT %s",
                [organization, self.contract.table, key, key, batch, number, organization, EVERY],
            ).fetchall()
            if rows:
                yield [row[:3] for row in rows]
            if len(rows) < EVERY:
                return
            key, batch = rows[-1][0], rows[-1][3]


def archived_rows(catalog: Catalog) -> dict[tuple[str, str], tuple[int, int]] | None:
    """By organization and table: rows that the archive took, and how many of them are not exported yet.

    None where this user may not read it.
    """
    if (readable := _look(catalog)[0]) is None or not readable:
        return {} if readable is None else None
    rows = catalog.execute(
        "SELECT organization_id, table_name, sum(row_count)::bigint, "
        "coalesce(sum(row_count) FILTER (WHERE exported_at IS NULL), 0)::bigint "
        "FROM lakehouse_archive.batches GROUP BY 1, 2"
    ).fetchall()
    return {(organization, name): (count, waiting) for organization, name, count, waiting in rows}


def _look(catalog: Catalog) -> tuple[bool | None, str]:
    """Whether this user may read the archive's records (None: there is no archive), and who that is."""
    # By the catalog's own tables: asking for a name in a schema that is closed to this user is an error.
    found, readable, user = catalog.execute(
        "SELECT count(*), coalesce(bool_and(has_schema_privilege(n.oid, 'USAGE') "
        "AND has_table_privilege(c.oid, 'SELECT')), true), current_user::text "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = ANY(%s::text[])",
        [SCHEMA, [LOG, BATCHES]],
    ).fetchone()
    return (readable if found == 2 else None), user


def not_by_archive(contract: Contract) -> sql.Composable:
    """SQL over a row `t` of the trigger method's log: the transaction that wrote it did not leave a tombstone of it.

    The archive's transaction deletes the row and writes both, so their ids are one.
    """
    return sql.SQL(
        "NOT EXISTS (SELECT FROM {log} AS a WHERE a.organization_id = {tenant}::text AND a.table_name = {name} "
        "AND a.row_key = {key} AND a.xact = {change})"
    ).format(
        log=table(LOG),
        tenant=sql.Identifier("t", contract[contract.tenant].source),
        name=sql.Literal(contract.table),
        key=sql.SQL(postgres_key(contract, "t")),
        change=sql.Identifier("t", CHANGE_XID),
    )


def former_identities(contract: Contract, hot: sql.Composable, condition: sql.Composable) -> sql.Composable:
    """SQL of rows as the hot table's, one for each tombstone of a row `t` of `hot` that has another event time now.

    Such an id came back as another identity of the lake: the one that was archived is gone for good.
    """
    assert contract.event_time is not None  # noqa: S101 - without one, an id has one identity
    event = contract[contract.event_time]
    moment: sql.Composable = sql.SQL(
        "a.event_time" if "with time zone" in event.source_type else "a.event_time AT TIME ZONE 'UTC'"
    )
    if event.type.name == "date":
        moment = sql.SQL("({})::date").format(moment)
    kept = [contract[n] for n in dict.fromkeys((contract.tenant, *contract.primary_key)) if n != contract.event_time]
    return sql.SQL(
        "(SELECT t.xmin, {kept}, {moment} AS {event} FROM {hot} AS t JOIN {log} AS a ON a.organization_id = "
        "{tenant}::text AND a.table_name = {name} AND a.row_key = {key} "
        "WHERE {condition} AND {moment} IS DISTINCT FROM {own})"
    ).format(
        kept=sql.SQL(", ").join(sql.Identifier("t", c.source) for c in kept),
        moment=moment,
        event=sql.Identifier(event.source),
        own=sql.Identifier("t", event.source),
        hot=hot,
        log=table(LOG),
        tenant=sql.Identifier("t", contract[contract.tenant].source),
        name=sql.Literal(contract.table),
        key=sql.SQL(postgres_key(contract, "t")),
        condition=condition,
    )
