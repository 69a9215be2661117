"""Which ranges are due. One statement, whatever the number of destinations, organizations and tables.

A destination has one open delivery a table at most (a vendor-wide one, a table and organization): its ranges follow one
another without a hole. A range begins where the newest one ended and goes to where the lake stands, at most `STEP`
numbers: what a paused destination missed is brought in large steps, without waiting for its cadence between them. One
that is new, or further behind than a bound, gets all at once, for it is filled from the lake's current state; but not
one with a history, which wants every version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import text

from federation.config import COPYING

if TYPE_CHECKING:
    import uuid

    from sqlalchemy import Engine

STEP = 1_000_000

_PLAN = text(
    """
    INSERT INTO warehouse_deliveries
        (id, organization_id, destination_id, table_name, sequence_after, sequence_upto, status, next_attempt_at)
    SELECT gen_random_uuid(), c.organization_id, d.id, c.table_name, coalesce(w.upto, 0),
           CASE WHEN (w.upto IS NULL OR c.sequence - w.upto > :behind)
                     AND NOT coalesce(cast(d.config ->> 'history' AS boolean), false)
                THEN c.sequence ELSE least(c.sequence, coalesce(w.upto, 0) + :step) END,
           'PENDING', clock_timestamp()
    FROM warehouse_destinations d
    JOIN cursors c ON (d.organization_id IS NULL OR c.organization_id = d.organization_id)
        AND (c.table_name = ANY(d.enabled_tables) OR '*' = ANY(d.enabled_tables))
    LEFT JOIN destination_tables t ON t.destination_id = d.id AND t.table_name = c.table_name
    LEFT JOIN LATERAL (
        SELECT max(x.sequence_upto) AS upto, max(x.delivered_at) AS delivered_at,
               bool_or(x.status <> 'DELIVERED') AS open
        FROM warehouse_deliveries x
        WHERE x.destination_id = d.id AND x.organization_id = c.organization_id AND x.table_name = c.table_name
    ) w ON true
    WHERE d.kind = ANY(:kinds) AND d.status <> 'paused' AND c.table_name = ANY(:tables)
      AND NOT coalesce(w.open, false) AND c.sequence > coalesce(w.upto, 0)
      AND (:early OR w.delivered_at IS NULL OR c.sequence - w.upto >= :step
           OR w.delivered_at + make_interval(secs => coalesce(t.cadence_seconds, d.cadence_seconds))
              <= clock_timestamp())
      AND (cast(:destinations AS uuid[]) IS NULL OR d.id = ANY(cast(:destinations AS uuid[])))
    ON CONFLICT DO NOTHING
    RETURNING id
    """
)


def plan_deliveries(
    engine: Engine,
    tables: Sequence[str],
    *,
    behind: int,
    early: bool = False,
    destinations: Sequence[uuid.UUID] | None = None,
    step: int = STEP,
) -> list[uuid.UUID]:
    """Add the deliveries that are due; returns their ids. `early`: also those whose cadence has not passed.

    `behind`: the bound of a lag, in numbers of `_sequence`. `destinations`: only of these.
    """
    with engine.begin() as connection:
        return list(
            connection.scalars(
                _PLAN,
                {
                    "kinds": [k.value for k in COPYING],
                    "tables": list(tables),
                    "early": early,
                    "destinations": list(destinations) if destinations is not None else None,
                    "step": step,
                    "behind": behind,
                },
            )
        )
