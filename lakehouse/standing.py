"""Where each table of each destination that is fed by deliveries stands, as the outbox knows it; no target is asked.

Nothing waits for a destination: a range is read from whatever snapshot of the lake holds its rows, so expiry and
compaction go on however far behind one is. What bounds its lag is that it is then filled from the current state.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from federation.config import COPYING

if TYPE_CHECKING:
    from sqlalchemy import Connection

_STANDING = text(
    """
    SELECT d.id, d.name, d.kind, d.status, c.organization_id, c.table_name, c.sequence AS lake_sequence,
           coalesce(w.upto, 0) AS sequence, o.status AS open, o.last_error, d.last_error AS noted,
           coalesce(cast(d.config ->> 'history' AS boolean), false) AS history,
           f.row_count AS filled, f.of_rows AS of
    FROM warehouse_destinations d
    JOIN cursors c ON (d.organization_id IS NULL OR c.organization_id = d.organization_id)
        AND (c.table_name = ANY(d.enabled_tables) OR '*' = ANY(d.enabled_tables))
    LEFT JOIN LATERAL (
        SELECT max(x.sequence_upto) AS upto FROM warehouse_deliveries x
        WHERE x.destination_id = d.id AND x.organization_id = c.organization_id AND x.table_name = c.table_name
          AND x.status = 'DELIVERED'
    ) w ON true
    LEFT JOIN LATERAL (
        SELECT x.status, x.last_error FROM warehouse_deliveries x
        WHERE x.destination_id = d.id AND x.organization_id = c.organization_id AND x.table_name = c.table_name
          AND x.status <> 'DELIVERED'
        LIMIT 1
    ) o ON true
    LEFT JOIN destination_fillings f ON f.destination_id = d.id AND f.organization_id = c.organization_id
        AND f.table_name = c.table_name
    WHERE d.kind = ANY(:kinds) AND c.table_name = ANY(:tables)
    ORDER BY d.organization_id, d.name, c.organization_id, c.table_name
    """
)


@dataclass(frozen=True)
class Standing:
    """One table of one destination."""

    destination: uuid.UUID
    name: str
    kind: str
    organization: str
    table: str
    state: str
    """paused, needs a person, error, differs, filling, delivering, behind, current"""
    sequence: int
    lake_sequence: int
    bound: int | None
    """The lag above which it is filled from the current state; None where it has a history and gets every version."""
    filled: tuple[int, int] | None
    """While it is filled: rows, of at most so many."""
    error: str | None

    @property
    def lag(self) -> int:
        """Numbers of `_sequence` that it has not got yet."""
        return self.lake_sequence - self.sequence

    @property
    def healthy(self) -> bool:
        return self.state not in ("needs a person", "error", "differs")


def standings(connection: Connection, tables: list[str], bound: int, differs: str) -> list[Standing]:
    """Every table of every destination that copies. `differs`: how the note begins of one that parity found unequal."""
    rows = connection.execute(_STANDING, {"kinds": [k.value for k in COPYING], "tables": tables})
    found = []
    for r in rows:
        noted = r.noted if r.noted and r.noted.startswith(differs) and f"{r.table_name}: " in r.noted else None
        behind = r.lake_sequence > r.sequence
        states = {
            "paused": r.status == "paused",
            "needs a person": r.open == "DEAD_LETTER",
            "error": r.last_error is not None and r.open is not None,
            "differs": noted is not None,
            "filling": r.filled is not None,
            "delivering": r.open == "PROCESSING",
            "behind": behind,
            "current": True,
        }
        found.append(
            Standing(
                destination=r.id,
                name=r.name,
                kind=r.kind,
                organization=r.organization_id,
                table=r.table_name,
                state=next(state for state, holds in states.items() if holds),
                sequence=r.sequence,
                lake_sequence=r.lake_sequence,
                bound=None if r.history else bound,
                filled=(r.filled, r.of) if r.filled is not None else None,
                error=r.last_error or noted,
            )
        )
    return found
