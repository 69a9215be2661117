"""Which keys that are not in the hot table any more the archive took: those are no deletes.

draft
"""

from __future__ import annotations

from psycopg import sql

from lakehouse.capture.position import XID_SPACE, Position


def settled(position: Position, alias: str = "t") -> sql.Composable:
    """SQL over a hot row: no window that is under way, or comes, can bring another version of what it is now.

    `position`: where the organization's cursor stands (`lakehouse.control.store.cursors`), read before the lake was.
    A row that was written since may be staged already: it would land after its tombstone, with a higher `_sequence`
    than was proven, and look like an id that came back. Whoever deletes must ask this of the locked row.
    """
    # As windows ask it (`lakehouse.capture.xmin`): ids are 32-bit, and frozen ones have the greatest age.
    return sql.SQL("NOT (age({}.xmin) BETWEEN 0 AND age({}::text::xid))").format(
        sql.Identifier(alias), sql.Literal(str(position.exact_xmin % XID_SPACE))
    )
