"""The hot database's own batches and tombstones, to be compared with the lake's; nothing where it does not answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from lakehouse.archive.archive_table import tombstone
from lakehouse.archive.installation import connect_if_installed, table
from lakehouse.archive.recorded import Recorded
from lakehouse.archive.records import Tombstone
from lakehouse.secrets.envelope import parse_key
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from datetime import datetime

    from lakehouse.app import App

COMPARED = "compared"
BATCHES_RESTORED = "batches restored"
"""In the audit: batches that a restored database got back from the lake, without their tombstones."""
_BATCHES = sql.SQL("SELECT number, id::text, table_name, receipt, chain, row_count FROM {}").format(table("batches"))


class HotRecords:
    """What one organization's batches and tombstones are in the hot database. `state`: whether it can be asked."""

    def __init__(self, connection: psycopg.Connection[Any] | None, organization: str, state: str) -> None:
        self._connection = connection
        self._organization = organization
        self.state = state

    def exported(self) -> dict[int, Recorded] | None:
        """Every batch by number; None where it cannot be asked."""
        if self._connection is None:
            return None
        return {b.number: b for b in self._batches(0)}

    def waiting(self, after: int) -> list[Recorded]:
        """Batches above a number, in order: the lake does not have them yet."""
        return self._batches(after) if self._connection is not None else []

    def _batches(self, after: int) -> list[Recorded]:
        assert self._connection is not None  # noqa: S101 - asked only where there is one
        rows = self._connection.execute(
            sql.SQL("{} WHERE organization_id = %s AND number > %s ORDER BY number").format(_BATCHES),
            [self._organization, after],
        )
        return [Recorded(n, (i,), (name,), (receipt,), (chain,), count) for n, i, name, receipt, chain, count in rows]

    def tombstones(self, numbers: Sequence[int]) -> dict[int, list[Tombstone]]:
        """The tombstones of these batches, by number, in the order of their keys' bytes; nothing if it is silent."""
        if self._connection is None:
            return {}
        found: dict[int, list[Tombstone]] = {number: [] for number in numbers}
        with self._connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                sql.SQL(
                    "SELECT * FROM {} WHERE organization_id = %s AND batch = ANY(%s) "
                    'ORDER BY batch, row_key COLLATE "C", sequence'
                ).format(table("cold_storage_archive")),
                [self._organization, list(numbers)],
            )
            for row in cursor:
                found[row["batch"]].append(tombstone(row))
        return found

    def cutoff(self, app: App) -> datetime | None:
        """See `audit_cutoff`; None where it cannot be asked."""
        return audit_cutoff(self._connection, app) if self._connection is not None else None

    def kept_from(self) -> int | None:
        """The first batch that has tombstones here; None where none has, or where it cannot be asked."""
        if self._connection is None:
            return None
        row = self._connection.execute(
            sql.SQL("SELECT min(batch) FROM {} WHERE organization_id = %s").format(table("cold_storage_archive")),
            [self._organization],
        ).fetchone()
        return row[0] if row else None

    def put_back(self) -> frozenset[int]:
        """Batches that the lake gave back after a restore, by the audit."""
        if self._connection is None:
            return frozenset()
        rows = self._connection.execute(
            sql.SQL(
                "SELECT (subject->>'first')::bigint, (subject->>'last')::bigint FROM {} "
                "WHERE organization_id = %s AND action = %s"
            ).format(table("audit")),
            [self._organization, BATCHES_RESTORED],
        ).fetchall()
        return frozenset(n for first, last in rows for n in range(first, last + 1))

    def of_row(self, row_key: str, table_name: str | None = None) -> list[Tombstone]:
        """The tombstones of one row."""
        if self._connection is None:
            return []
        with self._connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                sql.SQL(
                    "SELECT * FROM {} WHERE organization_id = %s AND row_key = %s "
                    "AND (%s::text IS NULL OR table_name = %s) ORDER BY batch"
                ).format(table("cold_storage_archive")),
                [self._organization, row_key, table_name, table_name],
            )
            return [tombstone(row) for row in cursor]


def audit_cutoff(connection: psycopg.Connection[Any], app: App) -> datetime:
    """Tombstones from before this moment may be pruned here: the audit window is over."""
    row = connection.execute(
        "SELECT %s - make_interval(years => %s)", [app.clock(), app.settings.archive.audit_years]
    ).fetchone()
    assert row is not None  # noqa: S101 - the query has no FROM
    cutoff: datetime = row[0]
    return cutoff


@contextmanager
def reading(app: App, organization: str, *, wanted: bool) -> Iterator[HotRecords]:
    """The hot database's records, as far as it can be asked; `wanted` false: it is not asked."""
    with ExitStack() as stack:
        if not wanted:
            yield HotRecords(None, organization, "not compared")
            return
        if app.settings.archive.url is None and not app.settings.source.given:
            yield HotRecords(None, organization, "not reachable: LAKEHOUSE_SOURCE__URL is not set")
            return
        try:
            connection = stack.enter_context(connect_if_installed(app))
        except LakehouseError as error:
            yield HotRecords(None, organization, f"not reachable: {error.detail}")
            return
        yield HotRecords(connection, organization, COMPARED if connection is not None else "has no archive")


def tombstone_keys(app: App) -> dict[str, bytes]:
    """The keys of tombstones' hashes that the settings have, by version: none at an auditor's."""
    return {
        version: parse_key(key.get_secret_value(), where=f"LAKEHOUSE_ARCHIVE__TOMBSTONE_KEYS, version {version}")
        for version, key in app.settings.archive.tombstone_keys.items()
    }
