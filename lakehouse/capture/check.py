"""`lakehouse source check`: what capture can and cannot see of each table, what a window costs, what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg

from lakehouse.capture import installation
from lakehouse.capture.prepare import look
from lakehouse.capture.source import HotTable, Source, SourceTableMissing, check_table, describe
from lakehouse.capture.trigger import TriggerCapture
from lakehouse.capture.xmin import prunable_by
from lakehouse.settings import CaptureSettings, method_of
from schemas.contract import CHANGE_XID, Contract
from schemas.errors import ContractViolation

TRIGGER_WORTH_BYTES = 1024**3
PRUNED_BYTES = 64 * 1024
PREPARE = "run `lakehouse source prepare --apply --table {}` as the table's owner"


@dataclass
class TableCheck:
    """What `source check` says of one table."""

    table: str
    source: str
    method: str = "xmin"
    prepared: bool = False
    """Whether `source prepare` has done all that the trigger method needs, whichever method is chosen."""
    ready: bool = False
    absent: bool = False
    rows: int = 0
    window_bytes: int = 0
    reconcile_bytes: int = 0
    pruned_by: str | None = None
    sees: list[str] = field(default_factory=list)
    cannot_see: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What an operator must mend before the table can be captured."""
    warnings: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


@dataclass
class SourceCheck:
    """What `source check` says of the database, and of each table."""

    address: str
    version: str
    facts: dict[str, Any]
    warnings: list[str]
    tables: list[TableCheck]

    @property
    def ready(self) -> bool:
        return all(t.ready or t.absent for t in self.tables)


def check_source(source: Source, contracts: dict[str, Contract], settings: CaptureSettings) -> SourceCheck:
    """Look at the database and every contract's table; changes nothing.

    Raises:
        SourceError: the database does not answer.
    """
    with source.catalog() as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), current_user, pg_is_in_recovery(), "
            "pg_has_role('pg_read_all_stats', 'USAGE'), current_setting('wal_level'), "
            "(SELECT count(*) FROM pg_prepared_xacts), (SELECT max(age(datfrozenxid)) FROM pg_database)"
        ).fetchone()
        assert row is not None  # noqa: S101 - the query has no FROM
        version, user, standby, sees_activity, wal_level, prepared, age = row
        warnings = []
        if not sees_activity:
            warnings.append(
                f"{user} cannot see others' activity, so windows are never pruned: GRANT pg_read_all_stats TO {user}"
            )
        if standby:
            warnings.append("this is a standby: windows are complete, but not pruned, and show what was replayed")
        if prepared:
            warnings.append(f"{prepared} prepared transactions are open: windows are not pruned while they are")
        return SourceCheck(
            address=source.settings.address,
            version=version,
            facts={"user": user, "standby": standby, "wal_level": wal_level, "prepared": prepared, "oldest_age": age},
            warnings=warnings,
            tables=[_check(connection, c, settings, prune=sees_activity and not standby) for c in contracts.values()],
        )


def _check(
    connection: psycopg.Connection[Any], contract: Contract, settings: CaptureSettings, *, prune: bool
) -> TableCheck:
    check = TableCheck(contract.table, contract.source_name, method=method_of(settings, contract))
    try:
        hot = describe(connection, contract)
    except SourceTableMissing as error:
        check.absent = contract.provisional
        check.missing.append(error.detail if not contract.provisional else "not there yet")
        return check
    check.rows = hot.rows
    try:
        check_table(contract, hot)
        check.ready = True
    except ContractViolation as error:
        check.missing += error.detail.splitlines()
    check.warnings += [
        f"column {name} is neither exported nor listed as not exported: the lake does not hold it"
        for name in contract.unknown_columns(hot.columns)
    ]
    check.warnings += _promises(contract, hot)
    if check.ready:
        _prepared(connection, contract, check)
    if check.method == TriggerCapture.name:
        check.reconcile_bytes, check.window_bytes = hot.bytes, PRUNED_BYTES
    elif check.ready:
        _costs(connection, contract, hot, check, settings, prune=prune)
    _sight(check, settings)
    return check


def _prepared(connection: psycopg.Connection[Any], contract: Contract, check: TableCheck) -> None:
    hot, found = look(connection, contract)
    faults = installation.faults(contract, hot, found)
    check.prepared = not faults
    if found.column not in (None, "xid8"):
        check.warnings.append(f"column {CHANGE_XID} is the host's own: the lake does not hold it")
    if check.method != TriggerCapture.name:
        return
    check.missing += [*faults, *([PREPARE.format(contract.table)] if faults else [])]
    check.ready = not faults


def _promises(contract: Contract, hot: HotTable) -> list[str]:
    return [
        f"column {c.source} may be null in the source, the contract says it never is: a null would stop the table"
        for c in contract.columns
        if not c.nullable and c.source in hot.columns and not hot.columns[c.source].not_null
    ]


def _costs(
    connection: psycopg.Connection[Any],
    contract: Contract,
    hot: HotTable,
    check: TableCheck,
    settings: CaptureSettings,
    *,
    prune: bool,
) -> None:
    check.reconcile_bytes = hot.bytes
    check.pruned_by = prunable_by(connection, contract, hot) if prune and settings.prune else None
    check.window_bytes = PRUNED_BYTES if check.pruned_by else hot.bytes
    if check.pruned_by:
        return
    stamped = contract.watermark is not None and contract.watermark.every_change
    if stamped and contract.watermark is not None:
        column = contract[contract.watermark.column].source
        check.advice.append(
            f"an index would prune windows: CREATE INDEX CONCURRENTLY ON {contract.source_name} ({column})"
        )
    else:
        check.advice.append("no timestamp is set by every change: every window reads the whole table")
    if hot.bytes > TRIGGER_WORTH_BYTES:
        check.advice.append(
            f"each window reads {hot.bytes / 1024**3:.1f} GiB: lengthen its cadence; the trigger method, "
            "which reads only what changed, is the better choice"
            + ("" if check.prepared else f" ({PREPARE.format(contract.table)})")
        )


def blind_spots(method: str, settings: CaptureSettings) -> list[str]:
    """What a capture method cannot see."""
    if method == TriggerCapture.name:
        return ["versions that were overwritten between two windows"]
    return [
        "rows that came and went, and versions that were overwritten, between two windows",
        f"a delete sooner than the next comparison of keys (up to {settings.reconcile_every_seconds} s)",
    ]


def _sight(check: TableCheck, settings: CaptureSettings) -> None:
    check.cannot_see = blind_spots(check.method, settings)
    if check.method == TriggerCapture.name:
        check.sees = [
            "every committed insert, update, delete and move, late commits, ties and savepoints too, at once",
            "TRUNCATE, and triggers that were switched off or replaced, by comparing keys at the next window",
        ]
        return
    check.sees = [
        "every committed insert and update, late commits, ties and savepoints too",
        f"deletes and moves, by comparing keys every {settings.reconcile_every_seconds} s",
    ]
    if check.pruned_by:
        check.sees.append("changes that did not set the timestamp, at the next comparison of keys")
