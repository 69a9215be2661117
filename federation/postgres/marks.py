"""Whose a schema is, how far its tables are, and how far each is filled anew: rows beside what they speak of.

Read and written in the transaction of what they say, so they are never ahead of it nor behind.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from federation.postgres.layout import Layout, create_fillings, quoted
from federation.postgres.names import FILLINGS, MARKS, SHARED_MARKS, refuse_one_name
from federation.protocol import Filling, FillingTakenError, ForeignTargetError, Owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adbc_driver_postgresql.dbapi import Cursor

    from schemas.contract import Contract


@dataclass(frozen=True)
class Made:
    """What a table was made as. `history`: every version has been kept since."""

    contract: str
    history: bool
    destination: str


@dataclass(frozen=True)
class Marks:
    """The marks of one schema. `where` names it in errors."""

    schema: str
    owner: Owner
    where: str

    def check_owner(self, cursor: Cursor) -> bool:
        """True where the schema has marks, and they are ours; False where it has none.

        Raises:
            ForeignTargetError: they are another's.
        """
        names = [f"{quoted(self.schema)}.{quoted(marks)}" for marks in (MARKS, SHARED_MARKS)]
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
        cursor.execute(f"SELECT DISTINCT installation, organization, destination FROM {ours}")
        for installation, organization, destination in cursor.fetchall():
            if installation != self.owner.installation or (
                organization != self.owner.organization and not self.owner.shared
            ):
                raise ForeignTargetError(
                    f"{self.where}: belongs to organization {organization} of installation {installation}",
                    "Give each organization a schema of its own. Nothing was written.",
                )
            if self.owner.beside(destination):
                raise ForeignTargetError(
                    f"{self.where}: is what destination {destination} writes to, however its host is spelled",
                    "Two destinations never share a schema: remove one of them. Nothing was written.",
                )
        return True

    def refuse_strangers(self, cursor: Cursor, layout: Layout) -> None:
        """Nothing of these names is there: no mark of ours says that we made it.

        Raises:
            ForeignTargetError: something is.
            DestinationError: another table of ours has it, or would have it.
        """
        query = sql.SQL("SELECT DISTINCT table_name FROM {}").format(layout.marks)
        cursor.execute(query.as_string(None))
        refuse_one_name([*(row[0] for row in cursor.fetchall()), layout.contract.table], history=layout.history)
        names = [
            layout.versions_name,
            layout.contract.table,
            *([f"{layout.contract.table}_history"] if layout.history else []),
            layout.filling_name,
        ]
        self._refuse(cursor, layout, names)

    def _refuse(self, cursor: Cursor, layout: Layout, names: Sequence[str]) -> None:
        for name in names:
            cursor.execute("SELECT to_regclass($1) IS NULL", (f"{quoted(layout.schema)}.{quoted(name)}",))
            if cursor.fetchone() != (True,):
                raise ForeignTargetError(
                    f"{self.where}: {name} is there already and bears no mark of ours",
                    "Choose another schema, or remove it. Nothing was written.",
                )

    def made(self, cursor: Cursor, layout: Layout) -> dict[str, Made]:
        """By organization: what a table was made as; none where nobody made it."""
        query = sql.SQL("SELECT organization, contract, history, destination FROM {} WHERE table_name = $1")
        cursor.execute(query.format(layout.marks).as_string(None), (layout.contract.table,))
        return {row[0]: Made(*row[1:]) for row in cursor.fetchall()}

    def wanted(self, layout: Layout) -> Made:
        """What the table should have been made as."""
        return Made(layout.contract.version, layout.history, self.owner.destination)

    def set_made(self, cursor: Cursor, layout: Layout) -> None:
        """The table is as its contract says, and is ours. A history that was not kept for a while is none."""
        statement = sql.SQL(
            "INSERT INTO {} AS held (table_name, installation, organization, contract, history, destination) "
            "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT ({}) DO UPDATE SET contract = excluded.contract, "
            "history = held.history AND excluded.history, destination = excluded.destination"
        ).format(layout.marks, sql.SQL("table_name, organization" if self.owner.shared else "table_name"))
        now = self.wanted(layout)
        of = (layout.contract.table, self.owner.installation, self.owner.organization)
        cursor.execute(statement.as_string(None), (*of, now.contract, now.history, now.destination))

    def set_history(self, cursor: Cursor, layout: Layout) -> None:
        """It was filled anew: every version is there, where that is wanted."""
        statement = sql.SQL("UPDATE {} SET history = $3 WHERE table_name = $1 AND organization = $2")
        values = (*self._key(layout.contract), layout.history)
        cursor.execute(statement.format(layout.marks).as_string(None), values)

    def standing(self, cursor: Cursor, layout: Layout, *, lock: bool) -> int | None:
        """The `_sequence` that the table is complete to; None where it has no mark."""
        query = sql.SQL("SELECT sequence FROM {} WHERE table_name = $1 AND organization = $2{}").format(
            layout.marks, sql.SQL(" FOR UPDATE" if lock else "")
        )
        cursor.execute(query.as_string(None), (layout.contract.table, self.owner.organization))
        row = cursor.fetchone()
        return int(row[0]) if row is not None else None

    def filled(self, cursor: Cursor, layout: Layout) -> int:
        """The `_sequence` of the state that the table was last filled with; 0 where it never was."""
        query = sql.SQL("SELECT filled FROM {} WHERE table_name = $1 AND organization = $2").format(layout.marks)
        cursor.execute(query.as_string(None), self._key(layout.contract))
        row = cursor.fetchone()
        return int(row[0]) if row is not None else 0

    def stand(self, cursor: Cursor, layout: Layout, sequence: int, snapshot_id: int) -> None:
        """The table is complete to this `_sequence`; the batch is done with."""
        statement = sql.SQL(
            "UPDATE {} SET sequence = $2, snapshot_id = $3, delivered_at = clock_timestamp() "
            "WHERE table_name = $1 AND organization = $4"
        ).format(layout.marks)
        values = (layout.contract.table, sequence, snapshot_id, self.owner.organization)
        cursor.execute(statement.as_string(None), values)

    def filling(self, cursor: Cursor, layout: Layout, *, lock: bool = False) -> Filling | None:
        """How far the table is filled anew; None where that cannot be gone on with."""
        schema = quoted(layout.schema)
        names = (f"{schema}.{quoted(FILLINGS)}", layout.filling_table.as_string(None))
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

    def hold_filling(self, cursor: Cursor, layout: Layout, wanted: Filling) -> None:
        """Lock it for this transaction, if it is still where it is thought to be.

        Raises:
            FillingTakenError: it is not.
        """
        if self.filling(cursor, layout, lock=True) != wanted:
            raise FillingTakenError(
                f"{self.where}: {layout.contract.table} is filled by somebody else too", "It goes on there."
            )

    def begin_filling(self, cursor: Cursor, layout: Layout) -> None:
        """From now on what was filled before is forgotten; nothing is known of the new one yet.

        Raises:
            ForeignTargetError: there is a table of that name, and no filling of ours that made it.
        """
        cursor.execute(create_fillings(layout.schema).as_string(None))
        known = sql.SQL("SELECT FROM {} WHERE table_name = $1 AND organization = $2").format(layout.fillings)
        cursor.execute(known.as_string(None), self._key(layout.contract))
        if cursor.fetchone() is None:
            self._refuse(cursor, layout, [layout.filling_name])
        statement = sql.SQL(
            "INSERT INTO {} (table_name, organization, filling) VALUES ($1, $2, '{{}}') "
            "ON CONFLICT (table_name, organization) DO UPDATE SET begun_at = clock_timestamp()"
        ).format(layout.fillings)
        cursor.execute(statement.as_string(None), self._key(layout.contract))

    def note_filling(self, cursor: Cursor, layout: Layout, reached: Filling) -> None:
        """It is so far."""
        statement = sql.SQL(
            "UPDATE {} SET filling = $3::text::jsonb WHERE table_name = $1 AND organization = $2"
        ).format(layout.fillings)
        values = (*self._key(layout.contract), json.dumps(dataclasses.asdict(reached)))
        cursor.execute(statement.as_string(None), values)

    def end_filling(self, cursor: Cursor, layout: Layout, sequence: int) -> None:
        """What it took is shown: the state at this `_sequence`."""
        statement = sql.SQL("UPDATE {} SET filled = $3 WHERE table_name = $1 AND organization = $2").format(
            layout.marks
        )
        cursor.execute(statement.as_string(None), (*self._key(layout.contract), sequence))
        statement = sql.SQL("DELETE FROM {} WHERE table_name = $1 AND organization = $2").format(layout.fillings)
        cursor.execute(statement.as_string(None), self._key(layout.contract))

    def _key(self, contract: Contract) -> tuple[str, str]:
        return contract.table, self.owner.organization
