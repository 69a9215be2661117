"""Which keys that are not in the hot table any more the archive took: those are no deletes.

The rule (docs/adr/0005-the-cold-tier.md). A row that the lake shows alive and that the hot table has not was archived
if there is a tombstone of its key whose proven `_sequence` is at or above the newest version that the lake has of that
key, of whatever event time, and if that newest version is the row's own. An id that was inserted again has a newer
version, or is in the hot table under another event time: its former identity is a delete. Tombstones are read under
the window's own snapshot, for the candidates alone. Those that are not there any more (pruned, forgotten by a restored
database, removed by hand) are in the lake's `_archive`, which is asked wherever a batch that it has is without
tombstones in the hot database. So nothing that can get lost, as an inventory can, has to remember what is archived.

Cannot be known: that an archived id was inserted again and deleted, if no window saw it in between and its log of
deletes does not tell either (only the trigger method has one, and a window that compares keys does not ask it); or if
it was quarantined all that time, so that the lake never had a version of it. The lake then goes on to show the version
that was archived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lakehouse.archive.archive_table import read_standing
from lakehouse.archive.tombstones import KEYS, Taken, Tombstones
from lakehouse.duck import lake_relation, literal, quoted
from schemas.contract import Contract
from schemas.lake_columns import DELETE, OP, SEQUENCE

if TYPE_CHECKING:
    import duckdb
    from pyiceberg.table import Table

_TAKEN = "CREATE OR REPLACE TEMP TABLE taken (row_key VARCHAR, event_time TIMESTAMPTZ, sequence BIGINT)"


class Archived:
    """Asks for one table which of an organization's keys have tombstones. `archive` opens a lake's `_archive`."""

    def __init__(self, contract: Contract, tombstones: Tombstones, archive: Callable[[str], Table | None]) -> None:
        self.contract = contract
        self.tombstones = tombstones
        self._archive = archive

    def find(self, duck: duckdb.DuckDBPyConnection, organization: str, *tables: str) -> bool:
        """Fill the temporary table `taken` with the tombstones of the keys in `tables` (their column `row_key`).

        The first of these has the keys that are gone. True if there are any tombstones.

        Raises:
            SourceError: they cannot be read. LakehouseError, duckdb.Error: the lake's `_archive` cannot.
        """
        duck.execute(_TAKEN)
        if not any(_last(duck, name) for name in tables):
            return False
        for name in tables:
            for begin in range(0, _last(duck, name), KEYS):
                page = duck.execute(
                    f"SELECT row_key FROM {name} WHERE rowid >= {begin} AND rowid < {begin + KEYS}"
                ).fetchall()
                _insert(duck, self.tombstones.of(organization, [key for (key,) in page]))
        # Where this database has no archive (any more), the lake is asked for what is gone, and not for what came.
        asked = " UNION ".join(f"SELECT row_key FROM {name}" for name in tables[: None if self.tombstones.there else 1])
        missing = f"({asked}) EXCEPT SELECT row_key FROM taken"
        if (
            duck.execute(f"SELECT 1 FROM ({missing}) LIMIT 1").fetchall()
            and (relation := self._not_here(organization)) is not None
        ):
            duck.execute(
                f"INSERT INTO taken SELECT row_key, event_time, sequence FROM {relation} "
                f"WHERE row_key IN (SELECT * FROM ({missing}))"
            )
        return bool(_last(duck, "taken"))

    def load_all(self, duck: duckdb.DuckDBPyConnection, organization: str) -> str | None:
        """SQL of all tombstones of the table, here and in the lake; None where there are none. Fills `taken`.

        Only complete if `_archive` was opened before the window's snapshot was taken, and right only then: a row of
        the snapshot that has a tombstone was inserted again, or came back with a restored database.
        """
        archive = self._archive(organization)
        duck.execute(_TAKEN)
        for page in self.tombstones.after(organization, read_standing(archive).number if archive else 0):
            _insert(duck, page)
        relations = [r for r in (tombstones_in(archive, self.contract),) if r is not None]
        if _last(duck, "taken"):
            relations.append("(SELECT * FROM taken)")
        return f"({' UNION ALL '.join(f'SELECT * FROM {r}' for r in relations)})" if relations else None

    def _not_here(self, organization: str) -> str | None:
        """SQL of the table's tombstones in the lake's `_archive`; None where the hot database has all of them."""
        archive = self._archive(organization)
        if archive is None or (relation := tombstones_in(archive, self.contract)) is None:
            return None
        standing = read_standing(archive)
        return None if self.tombstones.complete(organization, standing.number, standing.chain) else relation


def tombstones_in(archive: Table | None, contract: Contract) -> str | None:
    """SQL of a table's tombstones in `_archive`, as it was last read; None where there are none."""
    if archive is None or contract.table not in read_standing(archive).tables:
        return None
    return (
        f"(SELECT row_key, event_time, sequence FROM {lake_relation(archive.metadata_location)} "
        f"WHERE table_name = {literal(contract.table)})"
    )


def archived_of(
    duck: duckdb.DuckDBPyConnection, contract: Contract, candidates: str, history: str, since: int | None
) -> None:
    """Fill the temporary table `archived` with the rows of `candidates` that the archive took.

    `candidates`: a table of identities that are alive in the lake and not in the table `hot`, with their `row_key`;
    `taken`: their tombstones (`Archived.find`); `history`: the lake table as SQL. `since`: a `_sequence` up to which
    each candidate's identity is known to be its key's newest (the key was in the hot table then); None: nothing is.
    """
    columns = ", ".join(f"c.{quoted(n)}" for n in dict.fromkeys([contract.tenant, *contract.identity]))
    duck.execute(
        f"CREATE OR REPLACE TEMP TABLE claimed AS SELECT c.*, t.sequence AS proven FROM {candidates} c "
        "JOIN (SELECT row_key, max(sequence) AS sequence FROM taken GROUP BY row_key) t ON t.row_key = c.row_key"
    )
    if not _last(duck, "claimed"):
        duck.execute("CREATE OR REPLACE TEMP TABLE archived AS SELECT * FROM claimed")
        return
    versions = f"SELECT * FROM {history} WHERE {OP} <> '{DELETE}'"
    within = ""
    if contract.event_time is not None:
        # Only the files of these days are read.
        event = quoted(contract.event_time)
        kind = "DATE" if contract[contract.event_time].type.name == "date" else "TIMESTAMPTZ"
        bounds = duck.execute(f"SELECT min({event})::VARCHAR, max({event})::VARCHAR FROM claimed").fetchall()[0]
        within = " AND {0} >= {1} {2} AND {0} <= {1} {3}".format(event, kind, *map(literal, bounds))
    later = "" if since is None else f" AND {SEQUENCE} > {since}"
    same = " AND ".join(f"h.{quoted(n)} = c.{quoted(n)}" for n in contract.identity)
    same_key = " AND ".join(f"h.{quoted(n)} = c.{quoted(n)}" for n in contract.primary_key)
    head = quoted(contract.identity[0])
    duck.execute(
        f"CREATE OR REPLACE TEMP TABLE archived AS SELECT {columns}, c.row_key FROM claimed c "
        f"JOIN (SELECT c.row_key, c.{head}, max(h.{SEQUENCE}) AS newest FROM claimed c "
        f"JOIN ({versions}{within}) h ON {same} GROUP BY ALL) own ON own.row_key = c.row_key AND own.{head} = c.{head} "
        f"LEFT JOIN (SELECT c.row_key, max(h.{SEQUENCE}) AS newest FROM claimed c "
        f"JOIN ({versions}{later}) h ON {same_key} GROUP BY ALL) k ON k.row_key = c.row_key "
        "WHERE c.proven >= own.newest AND coalesce(k.newest, own.newest) <= own.newest "
        # It came back, under another event time: what was archived has no place beside it.
        f"AND NOT EXISTS (SELECT 1 FROM hot h WHERE h.{quoted(contract.tenant)} = c.{quoted(contract.tenant)} "
        f"AND {same_key})"
    )


def _last(duck: duckdb.DuckDBPyConnection, table: str) -> int:
    """The number after the last row's: 0 of a table without rows."""
    last: int = duck.execute(f"SELECT coalesce(max(rowid) + 1, 0) FROM {table}").fetchall()[0][0]
    return last


def _insert(duck: duckdb.DuckDBPyConnection, rows: Iterable[Taken]) -> None:
    import pyarrow as pa

    found = list(rows)
    if found:
        keys, moments, sequences = zip(*found, strict=True)
        kind = pa.timestamp("us", tz="UTC")
        duck.register(
            "found",
            pa.table({"row_key": list(keys), "event_time": pa.array(moments, kind), "sequence": list(sequences)}),
        )
        duck.execute("INSERT INTO taken SELECT * FROM found")
        duck.unregister("found")
