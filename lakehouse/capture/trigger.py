"""Capture by triggers: each row carries the 64-bit id of the transaction that changed it, deletes leave tombstones.

A window reads, in one REPEATABLE READ transaction with the table locked in ACCESS SHARE mode, the tombstones and
the rows whose `change_xid` is at or after the xmin of the previous snapshot and was not visible to it; tombstones
are applied first, so a row that moved or came back ends alive. Cost follows the changes, by an index. A tombstone of
the log that the archive's transaction wrote beside its own (lakehouse/archive) is no delete.

Where something may have happened unseen (the position is another method's or another installation's, its
tombstones were pruned) the window is the exact read of `xmin` (rows by their own xmin, minus what the lake holds)
with a comparison of keys; a TRUNCATE, or a position that may repeat, has the comparison in place of tombstones.
A table that is not prepared, or no longer, is an error before anything is read.

Cannot see: versions that were overwritten between two windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakehouse.archive.tombstones import Tombstones, former_identities, not_by_archive
from lakehouse.capture import installation
from lakehouse.capture.fence import Verdict, judge
from lakehouse.capture.forbidden import Flags, predicate
from lakehouse.capture.installation import GONE, TRUNCATED, WHAT, Installation
from lakehouse.capture.position import Position, Snapshot, SourceIdentity
from lakehouse.capture.projection import select_list, to_lake
from lakehouse.capture.protocol import Group, Plan, WindowKind
from lakehouse.capture.source import Reading, Source, SourceError, change_counts, check_table, describe, identify
from lakehouse.capture.xmin import (
    CHANGED,
    XminWindow,
    read_error,
    refuse_groups,
    stream,
    tenant_condition,
    transaction,
)
from lakehouse.clock import Clock
from lakehouse.failpoints import failpoint
from lakehouse.settings import CaptureSettings
from schemas.contract import CHANGE_XID, Contract
from schemas.errors import Retry

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa
    from adbc_driver_postgresql.dbapi import Cursor as AdbcCursor

    from lakehouse.capture.source import Catalog, HotTable

_COLUMN = sql.Identifier(CHANGE_XID)


@dataclass(frozen=True)
class LogState:
    """What a snapshot shows besides rows. Ids are 64-bit."""

    generation: str
    visible: tuple[int, ...]
    """Ids at or after the snapshot's xmin that it sees, of rows and tombstones: the next window's `seen`."""
    capped: bool
    """There were more of them than are kept."""
    truncated: tuple[int, ...]
    """Transactions that emptied the table, since the oldest position."""
    pruned_below: int
    """Tombstones of transactions before this one may be gone."""


class TriggerCapture:
    """The method for tables that `lakehouse source prepare` has prepared. See the module."""

    name = "trigger"

    def __init__(self, source: Source, settings: CaptureSettings, clock: Clock) -> None:
        self.source = source
        self.settings = settings
        self.clock = clock

    @contextmanager
    def open_window(
        self, contract: Contract, groups: Sequence[Group], *, reconcile: bool | None = None
    ) -> Iterator[TriggerWindow]:
        """See `CaptureMethod.open_window`.

        Raises:
            NotPrepared: column, triggers, index or log are missing, changed or switched off.
        """
        with self.source.session() as reader, reader.cursor() as cursor:
            catalog = Reading(cursor)
            # Before the snapshot: what changes meanwhile is rather counted as not read yet.
            changes = change_counts(catalog, [contract]).get(contract.table)
            with transaction(cursor, contract):
                yield self._open(contract, groups, catalog, cursor, changes, reconcile)

    def unchanged(
        self, catalog: psycopg.Connection[Any], contract: Contract, groups: Sequence[Group]
    ) -> datetime | None:
        """See `CaptureMethod.unchanged`."""
        cursor: Any = catalog.cursor()
        with transaction(cursor, contract):
            return self._open(contract, groups, catalog, cursor, None, None).unchanged()

    def _open(
        self,
        contract: Contract,
        groups: Sequence[Group],
        catalog: Catalog,
        cursor: AdbcCursor,
        changes: int | None,
        reconcile: bool | None,
    ) -> TriggerWindow:
        hot = describe(catalog, contract)
        check_table(contract, hot)
        identity = identify(catalog, hot, self.source.settings.address)
        snapshot = Snapshot.parse(_text(cursor, contract, sql.SQL("SELECT pg_current_snapshot()::text")))
        captured_at = self.clock()
        failpoint("capture.before_read")
        refused, accepted = refuse_groups(contract, groups, identity, snapshot)
        # Under the snapshot: what it sees of triggers is what wrote the rows that it sees.
        found = installation.parse_state(_text(cursor, contract, installation.state_query(contract)))
        installation.require(contract, hot, found)
        log = self._log(cursor, contract, found, snapshot, min(g.position.xmin for g in groups))
        return TriggerWindow(
            contract=contract,
            snapshot=snapshot,
            captured_at=captured_at,
            plans=[self._plan(g, contract, hot, identity, snapshot, log, reconcile) for g in accepted],
            refused=refused,
            cursor=cursor,
            prune=False,
            bound=None,
            max_seen=self.settings.max_seen,
            fingerprint=hot.fingerprint(contract),
            identity=identity,
            tenant_type=hot.columns[contract[contract.tenant].source].type,
            key_types=hot.key_types(contract),
            flags=Flags(contract, self.settings.max_quarantined),
            tombstones=Tombstones(catalog, contract),
            changes=changes,
            log=log,
            log_tenant_type=installation.log_type(contract[contract.tenant], hot),
        )

    def _log(
        self, cursor: AdbcCursor, contract: Contract, found: Installation, snapshot: Snapshot, oldest: int
    ) -> LogState:
        names = {
            "hot": installation.hot_table(contract),
            "log": installation.log_table(contract),
            "column": _COLUMN,
            "xmin": _xid(snapshot.xmin),
            "xmax": _xid(snapshot.xmax),
            "most": sql.Literal(self.settings.max_seen + 1),
            "oldest": _xid(oldest),
            "what": sql.Identifier(WHAT),
            "truncated": sql.Literal(TRUNCATED),
            "progress": installation.PROGRESS,
            "name": sql.Literal(f"{installation.slug(contract)}_log"),
        }
        query = sql.SQL(
            "SELECT concat((SELECT string_agg(x::text, ',') FROM (SELECT {column} AS x FROM {hot} "
            "WHERE {column} >= {xmin} UNION SELECT {column} FROM {log} WHERE {column} >= {xmin} LIMIT {most}) u), "
            "'/', coalesce((SELECT pruned_below FROM {progress} WHERE log = {name}), {xmax}))"
        )
        seen, pruned = _split(_text(cursor, contract, query.format(**names)))
        truncated = _text(
            cursor,
            contract,
            sql.SQL(
                "SELECT coalesce(string_agg({column}::text, ','), '') FROM {log} "
                "WHERE {column} >= {oldest} AND {what} = {truncated}"
            ).format(**names),
        )
        if any(x >= snapshot.xmax for x in seen):
            raise SourceError(
                f"{contract.source_name}: rows carry a {CHANGE_XID} that this database has not given out yet",
                "They were restored from another database. Run `lakehouse source prepare --remove`, then `--apply`, "
                f"with `--table {contract.table}`.",
                retry=Retry.MANUAL,
            )
        capped = len(seen) > self.settings.max_seen
        return LogState(
            generation=found.generation,
            visible=() if capped else tuple(sorted(seen)),
            capped=capped,
            truncated=tuple(map(int, filter(None, truncated.split(",")))),
            pruned_below=pruned,
        )

    def _plan(
        self,
        group: Group,
        contract: Contract,
        hot: HotTable,
        identity: SourceIdentity,
        snapshot: Snapshot,
        log: LogState,
        forced: bool | None,
    ) -> Plan:
        position = group.position
        columns, labels = hot.fingerprint(contract)
        judgement = judge(position, identity, snapshot)
        if judgement.verdict is not Verdict.SAME:
            return Plan(group, WindowKind.RECAPTURE, False, None, reconcile=True, because=judgement.detail)
        if columns != position.columns or not set(position.labels) <= set(labels):
            return Plan(group, WindowKind.RECAPTURE, False, None, reconcile=True, because=CHANGED)
        if position.method != self.name or position.generation != log.generation:
            return Plan(group, WindowKind.EXACT, ask_lake=True, lower=position.exact_xmin, reconcile=True)
        emptied = any(x >= position.xmin and x not in position.seen for x in log.truncated)
        compare = position.repeats or emptied or position.xmin < log.pruned_below or forced is True
        return Plan(group, WindowKind.WINDOW, ask_lake=position.repeats, lower=position.xmin, reconcile=compare)


def _xid(number: int) -> sql.Composable:
    return sql.SQL("{}::xid8").format(sql.Literal(str(number)))


def _text(cursor: AdbcCursor, contract: Contract, query: sql.Composable) -> str:
    from adbc_driver_manager import Error

    try:
        cursor.execute(query.as_string(None))
        row = cursor.fetchone()
    except (Error, OSError) as error:
        raise read_error(contract, error) from error
    text: str = row[0]
    return text


def _split(text: str) -> tuple[list[int], int]:
    seen, _, pruned = text.rpartition("/")
    return [int(x) for x in seen.split(",") if x], int(pruned)


@dataclass(kw_only=True)
class TriggerWindow(XminWindow):
    """One snapshot of one table, being read; `XminWindow` reads what does not go by `change_xid`."""

    log: LogState
    log_tenant_type: str

    def deletes(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """See `OpenWindow.deletes`: tombstones, once an identity, unless keys are compared."""
        if plan.reconcile:
            return
        contract = self.contract
        only = [c.name for c in installation.identity_columns(contract)]
        gone = self._gone(plan)
        if self.tombstones.closed and not self._any(self._sign_of_gone(plan)):
            return
        if self.tombstones.there:
            gone.append(not_by_archive(contract))
        query = sql.SQL("SELECT DISTINCT ON ({}) {} FROM {} AS t WHERE {}").format(
            sql.SQL(", ").join(
                sql.SQL("t.{}").format(sql.Identifier(c.source)) for c in installation.identity_columns(contract)
            ),
            select_list(contract, only=tuple(only)),
            installation.log_table(contract),
            sql.SQL(" AND ").join([*gone, *_landable(contract), self._not_quarantined()]),
        )
        for raw in stream(self.cursor, query, contract):
            # A key that no lake could hold left nothing there to delete.
            yield to_lake(raw, contract)[0].select(only)

    def returned(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """See `OpenWindow.returned`. Of tombstones that were pruned only a comparison of keys knows."""
        contract = self.contract
        if plan.reconcile or contract.identity == contract.primary_key:
            return
        if self.tombstones.closed and not self._any(super()._signs(plan)[0]):
            return
        if not self.tombstones.there:
            return
        only = [c.name for c in installation.identity_columns(contract)]
        query = sql.SQL("SELECT DISTINCT {} FROM {} AS t").format(
            select_list(contract, only=tuple(only)),
            former_identities(contract, self._table(), sql.SQL(" AND ").join(self._conditions(plan))),
        )
        for raw in stream(self.cursor, query, contract):
            yield to_lake(raw, contract)[0].select(only)

    def next_position(self, plan: Plan) -> Position:
        """See `OpenWindow.next_position`. What the snapshot saw is the same for every group."""
        return Position(
            xmin=self.snapshot.xmin,
            xmax=self.snapshot.xmax,
            seen=self.log.visible,
            exact_xmin=self.snapshot.xmin,
            bound=None,
            repeats=self.log.capped,
            reconciled_at=self.captured_at if plan.reconcile else plan.group.position.reconciled_at,
            columns=self.fingerprint[0],
            labels=self.fingerprint[1],
            source=self.identity,
            method=TriggerCapture.name,
            generation=self.log.generation,
        )

    def _gone(self, plan: Plan) -> list[sql.Composable]:
        return [
            tenant_condition(self.contract, plan.group.organizations, self.log_tenant_type),
            *self._changed(plan),
            sql.SQL("t.{} = {}").format(sql.Identifier(WHAT), sql.Literal(GONE)),
        ]

    def _not_quarantined(self) -> sql.Composable:
        """A row that is there and that the lake cannot hold is not gone: the lake keeps its last good version."""
        # The log holds some types as text; in the hot table's own type its index serves.
        types = {self.contract.tenant: self.tenant_type, **self.key_types}
        same = [
            sql.SQL("q.{c} = t.{c}::{own}").format(c=sql.Identifier(self.contract[name].source), own=sql.SQL(hot_type))
            for name, hot_type in types.items()
        ]
        return sql.SQL("NOT EXISTS (SELECT FROM {} AS q WHERE {} AND {})").format(
            self._table(), sql.SQL(" AND ").join(same), predicate(self.contract, alias="q")
        )

    def _signs(self, plan: Plan) -> list[sql.Composed]:
        # With the tombstones that are not landed: they may end a quarantine.
        return [*super()._signs(plan), self._sign_of_gone(plan)]

    def _sign_of_gone(self, plan: Plan) -> sql.Composed:
        return sql.SQL("SELECT 1 FROM {} AS t WHERE {} LIMIT 1").format(
            installation.log_table(self.contract), sql.SQL(" AND ").join(self._gone(plan))
        )

    def _any(self, sign: sql.Composable) -> bool:
        return any(batch.num_rows for batch in stream(self.cursor, sign, self.contract))

    def _changed(self, plan: Plan) -> list[sql.Composable]:
        position = plan.group.position
        conditions: list[sql.Composable] = [sql.SQL("t.{} >= {}").format(_COLUMN, _xid(position.xmin))]
        if position.seen and not plan.ask_lake:
            conditions.append(
                sql.SQL("t.{} <> ALL({}::xid8[])").format(
                    _COLUMN, sql.Literal("{" + ",".join(map(str, position.seen)) + "}")
                )
            )
        return conditions

    def _conditions(self, plan: Plan) -> list[sql.Composable]:
        if plan.kind is WindowKind.WINDOW:
            return [self._tenants(plan), *self._changed(plan)]
        return super()._conditions(plan)


def _landable(contract: Contract) -> Iterator[sql.Composable]:
    """A row that no lake could hold left nothing there to delete, and must not stop its organization."""
    for column in installation.identity_columns(contract):
        name = sql.Identifier(column.source)
        if column.type.name in ("timestamptz", "date"):
            yield sql.SQL("t.{} >= '0001-01-01' AND t.{} < '10000-01-01'").format(name, name)
        elif column.type.name == "decimal":
            yield sql.SQL("t.{} NOT IN ('NaN', 'Infinity', '-Infinity')").format(name)
        else:
            yield sql.SQL("t.{} IS NOT NULL").format(name)
