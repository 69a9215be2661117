"""Keeps the tombstone logs of the trigger method short.

Invariant: a tombstone goes only when every position has passed it, and what was pruned is noted in the same
transaction, so a position from before it is found out by the next window. When it fails, logs only grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from lakehouse.capture import installation
from lakehouse.capture.source import SourceError
from lakehouse.capture.trigger import TriggerCapture
from schemas.contract import CHANGE_XID
from schemas.errors import Retry

if TYPE_CHECKING:
    from lakehouse.app import App


def prune_tombstones(app: App) -> dict[str, int]:
    """Delete tombstones that every position has passed; how many, by table. Tables that are not prepared are left out.

    What was pruned is noted beside the log in the same transaction: a position from before it (the control tables
    came from a backup) compares keys instead.

    Raises:
        SourceError: the database does not answer, or there is no right to prune; other tables were pruned.
    """
    from lakehouse.control import store

    counts: dict[str, int] = {}
    refused: list[str] = []
    with app.source.catalog() as connection:
        for contract in app.contracts.values():
            log = installation.log_table(contract)
            row = connection.execute(
                "SELECT pg_snapshot_xmin(pg_current_snapshot())::text FROM pg_class c JOIN pg_namespace n "
                "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
                [installation.SCHEMA, f"{installation.slug(contract)}_log"],
            ).fetchone()
            if row is None:
                continue
            # One that is stopped or paused holds up nothing: coming back behind what was pruned, it compares keys.
            positions = [m.cursor.position for m in store.members(app.engine, contract.table)]
            # Another method's position has no use for tombstones: its first window compares keys.
            passed = min([int(row[0]), *(p.xmin for p in positions if p.method == TriggerCapture.name)])
            names = {
                "progress": installation.PROGRESS,
                "log": log,
                "passed": sql.SQL("{}::xid8").format(sql.Literal(str(passed))),
                "column": sql.Identifier(CHANGE_XID),
            }
            names["name"] = sql.Literal(f"{installation.slug(contract)}_log")
            try:
                with connection.transaction():
                    connection.execute(
                        sql.SQL(
                            "UPDATE {progress} SET pruned_below = {passed} "
                            "WHERE log = {name} AND pruned_below < {passed}"
                        ).format(**names)
                    )
                    deleted = connection.execute(sql.SQL("DELETE FROM {log} WHERE {column} < {passed}").format(**names))
            except psycopg.errors.InsufficientPrivilege:
                refused.append(contract.table)
                continue
            counts[contract.table] = deleted.rowcount
            app.events.emit("maintenance", what="tombstones", table=contract.table, rows=deleted.rowcount)
    if refused:
        raise SourceError(
            f"no right to prune the tombstones of {', '.join(refused)}: they grow",
            "Run `lakehouse source prepare --apply` as the owner: it grants what is missing.",
            retry=Retry.MANUAL,
        )
    return counts
