"""Prunes the control tables by age. Whatever a later step needs stays.

Kept for good: of each destination and table the newest delivery (the next range begins where it ends), the first one
(a backfill that is made again would name it again) and all from the oldest unfinished one on; of each organization
and table the newest landing; of each table the windows that `status` measures; whatever is staged, pending, running
or dead. Killed between two statements, the rest goes next time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import text

from lakehouse.app import App

if TYPE_CHECKING:
    from sqlalchemy import Engine

KEPT_WINDOWS = 50
_BATCH = 5000

_STATEMENTS = {
    "warehouse_deliveries": """
        DELETE FROM warehouse_deliveries WHERE id IN (
            SELECT d.id FROM warehouse_deliveries d
            WHERE d.status = 'DELIVERED' AND d.delivered_at < :before AND d.sequence_after > 0
              AND d.sequence_after < (
                SELECT max(n.sequence_after) FROM warehouse_deliveries n
                WHERE n.destination_id = d.destination_id AND n.organization_id = d.organization_id
                  AND n.table_name = d.table_name AND n.status = 'DELIVERED')
              AND NOT EXISTS (
                SELECT 1 FROM warehouse_deliveries o
                WHERE o.destination_id = d.destination_id AND o.organization_id = d.organization_id
                  AND o.table_name = d.table_name AND o.status <> 'DELIVERED' AND o.sequence_after < d.sequence_after)
            LIMIT :batch)""",
    "landings": """
        DELETE FROM landings WHERE (window_id, organization_id) IN (
            SELECT l.window_id, l.organization_id FROM landings l
            WHERE l.status <> 'staged' AND coalesce(l.landed_at, l.created_at) < :before
              AND (l.status = 'abandoned' OR l.sequence_upto < (
                SELECT max(n.sequence_upto) FROM landings n
                WHERE n.organization_id = l.organization_id AND n.table_name = l.table_name AND n.status = 'landed'))
            LIMIT :batch)""",
    "windows": """
        DELETE FROM windows WHERE id IN (
            SELECT w.id FROM windows w
            WHERE w.created_at < :before
              AND NOT EXISTS (SELECT 1 FROM landings l WHERE l.window_id = w.id)
              AND w.captured_at < coalesce((
                SELECT n.captured_at FROM windows n WHERE n.table_name = w.table_name
                ORDER BY n.captured_at DESC OFFSET :kept LIMIT 1), '-infinity')
            LIMIT :batch)""",
    "backfills": """
        DELETE FROM backfills WHERE id IN (
            SELECT id FROM backfills
            WHERE status <> 'running' AND coalesce(finished_at, created_at) < :before LIMIT :batch)""",
    "workers": "DELETE FROM workers WHERE id IN (SELECT id FROM workers WHERE seen_at < :before LIMIT :batch)",
}


def prune_outbox(app: App) -> dict[str, int]:
    """Delete finished rows older than `maintenance.outbox_days`; returns how many of each table. Idempotent."""
    before = app.clock() - timedelta(days=app.settings.maintenance.outbox_days)
    with app.events.unit("maintenance", table="outbox") as event:
        counts = {name: _prune(app.engine, statement, before) for name, statement in _STATEMENTS.items()}
        event["pruned"] = counts
    return counts


def _prune(engine: Engine, statement: str, before: datetime) -> int:
    total = 0
    while True:
        # A transaction a batch: no long lock beside workers that claim.
        with engine.begin() as connection:
            gone = connection.execute(
                text(statement),
                {"before": before, "batch": _BATCH} | ({"kept": KEPT_WINDOWS} if ":kept" in statement else {}),
            ).rowcount
        total += gone
        if gone < _BATCH:
            return total
