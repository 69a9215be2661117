"""What would leave the hot database now, what would stay, and why: asked of the hot database, and of the lake which
holds it has that a restored database forgot. Nothing is changed.

Counted by the same conditions that the deleting transaction uses, for organizations where archiving is off too. Two
things only a proof can tell (`lakehouse archive run --dry-run`): whether the lake holds a row as it is, and how long a
row has been in a state that leaves no timestamp; the plan counts what was written since the last window, and those.
A row that waits for rows which refer to it and go first is counted as going; what refers to it and stays, keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive import age
from lakehouse.archive.age import Retention, read_retention
from lakehouse.archive.batch import HELD, REFERRED
from lakehouse.archive.foreign_keys import Reference, children_first
from lakehouse.archive.gate import Gate, inspect
from lakehouse.archive.holds import concerns, forgotten, held
from lakehouse.archive.installation import connect_if_installed
from lakehouse.archive.policy import Policy, policies, wants
from lakehouse.archive.proof import NOT_LANDED
from lakehouse.archive.readiness import not_ready
from lakehouse.archive.records import Hold
from lakehouse.capture.position import XID_SPACE
from lakehouse.capture.source import SourceTableMissing
from lakehouse.control import store
from schemas.contract import Contract
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.landing.cursor import LakeCursor

IN_USE = "in use"
UNKNOWN = "in an unknown state"
AHEAD = "not old: a timestamp lies ahead"
NOT_OLD = "not old"
AGELESS = "not old: no timestamp tells its age"
UNDECIDED = "age counts from its landing, which a proof knows"
WAITS = "waits for "


@dataclass
class TablePlan:
    """One table of one organization."""

    organization: str
    table: str
    enabled: bool
    """Whether the policy covers it; where it does not, this is what would go if it did."""
    order: int
    refusals: list[str] = field(default_factory=list)
    """Why no row may go now; nothing is counted below then, unless it was counted for the sake of the plan."""
    notes: list[str] = field(default_factory=list)
    retention_days: int | None = None
    hot_rows: int = 0
    rows: int = 0
    bytes: int = 0
    """Of the rows that would go, as PostgreSQL stores them, without indexes."""
    oldest: datetime | None = None
    newest: datetime | None = None
    """Ages of the rows that would go."""
    kept: dict[str, int] = field(default_factory=dict)
    waits: dict[str, int] = field(default_factory=dict)
    """Of the rows that would go: those that go only after rows which refer to them."""
    quarantined: int = 0
    """Rows that the lake cannot hold, of whatever age; they are among the others above."""


@dataclass
class Plan:
    """What would happen, table by table in the order in which it would."""

    tables: list[TablePlan] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    cycles: list[tuple[str, ...]] = field(default_factory=list)
    """Tables that refer to each other: rows that do stay, because one of them would have to be changed first."""
    missing: list[str] = field(default_factory=list)
    """Tables that the host does not have (yet)."""
    installed: bool = True


@dataclass(frozen=True)
class Gates:
    """Every table that retention may be for, as the hot database has it now."""

    by_table: Mapping[str, Gate]
    order: Sequence[str]
    cycles: Sequence[tuple[str, ...]]
    missing: Sequence[str]

    def child(self, reference: Reference) -> Contract | None:
        """The contract of a referring table, if rows of it may be archived."""
        for gate in self.by_table.values():
            if (gate.contract.source_schema, gate.contract.source_table) == (reference.schema, reference.table):
                return gate.contract
        return None


def open_gates(connection: psycopg.Connection[Any], contracts: Iterable[Contract]) -> Gates:
    """Inspect every table that retention may be for, and order them: who refers comes first."""
    gates: dict[str, Gate] = {}
    missing = []
    for contract in contracts:
        if contract.retention == "never":
            continue
        try:
            gates[contract.table] = inspect(connection, contract)
        except SourceTableMissing:
            missing.append(contract.table)
    found = Gates(gates, (), (), missing)
    parents: dict[str, set[str]] = {}
    for name, gate in gates.items():
        for reference in gate.others:
            if (child := found.child(reference)) is not None:
                parents.setdefault(child.table, set()).add(name)
    order, cycles = children_first(gates, parents)
    return Gates(gates, order, cycles, missing)


def make_plan(app: App, organizations: Sequence[str] = (), tables: Sequence[str] = ()) -> Plan:
    """Plan for these organizations (by id; default: all that have a lake) and tables (default: all).

    Raises:
        LakehouseError: an unknown table, or a database does not answer.
    """
    named = {app.contract(t).table for t in tables}
    chosen = list(organizations) or [lake.organization_id for lake in store.lakes(app.engine)]
    with connect_if_installed(app) as archive:
        if archive is not None:
            return _make(app, archive, chosen, named, installed=True)
    with app.source.catalog(bounded=True) as catalog:
        return _make(app, catalog, chosen, named, installed=False)


def _make(
    app: App, connection: psycopg.Connection[Any], organizations: list[str], named: set[str], *, installed: bool
) -> Plan:
    gates = open_gates(connection, app.contracts.values())
    known = policies(connection) if installed else {}
    order = [t for t in gates.order if not named or t in named]
    plan = Plan(order=order, cycles=list(gates.cycles), missing=list(gates.missing), installed=installed)
    cursors = {t: store.cursors(app.engine, t) for t in order}
    for organization in organizations:
        policy = known.get(organization)
        retention: Retention | None = None
        refused = ""
        try:
            retention = read_retention(connection, app.settings.source, organization)
        except LakehouseError as error:
            refused = error.detail
        unknown, restored = "", list[Hold]()
        try:
            restored = forgotten(app, connection if installed else None, organization)
        except LakehouseError as error:
            unknown = f"nobody knows what the lake holds back: {error.detail}"
        for number, name in enumerate(order, start=1):
            gate = gates.by_table[name]
            one = TablePlan(organization, name, policy is not None and policy.covers(gate.contract), number)
            one.notes = list(gate.notes)
            one.refusals = [*filter(None, (refused, unknown))]
            if mine := [h for h in restored if concerns(h, name)]:
                one.notes.append(
                    f"{len(mine):,} holds are in the lake alone: the database was restored; the next run puts them back"
                )
            one.refusals += gate.refusals
            if why := not_ready(app, connection, gate, organization):
                one.refusals.append(why)
            if retention is not None:
                one.retention_days = retention.days
                cursor = cursors[name].get(organization)
                one.quarantined = cursor.quarantine.open if cursor and cursor.quarantine else 0
                _count(connection, gates, gate, policy, one, retention.cutoff, cursor, restored, installed=installed)
            plan.tables.append(one)
    return plan


def _count(
    connection: psycopg.Connection[Any],
    gates: Gates,
    gate: Gate,
    policy: Policy | None,
    one: TablePlan,
    cutoff: datetime,
    cursor: LakeCursor | None,
    restored: Sequence[Hold],
    *,
    installed: bool,
) -> None:
    contract = gate.contract
    if any(contract[name].source not in gate.hot.columns for name in _needed(contract)):
        return
    if not gate.hot.readable or gate.hot.row_security:
        return
    look = _Look(gates, policy, cutoff, installed, restored)
    cases: list[tuple[sql.Composable, str]] = [
        (age.unknown_state(contract), _states(contract, UNKNOWN)),
        (age.in_use(contract), _states(contract, IN_USE)),
        (sql.SQL("{} > clock_timestamp()").format(age.age(contract)), AHEAD),
        (sql.SQL("{} IS NULL").format(age.age(contract)), AGELESS),
        (
            sql.SQL("{} IS NOT TRUE").format(age.past(contract, cutoff)),
            f"{NOT_OLD}: newest of {', '.join(contract.age_bounds)}",
        ),
        (look.held(contract, "t"), HELD),
    ]
    readable = [r for r in gate.references if r.readable]
    cases += [(look.kept_by(r, "t"), f"{REFERRED}{r.child}") for r in readable]
    cases.append((_unread(cursor), NOT_LANDED))
    cases.append((age.since_landing(contract), _states(contract, UNDECIDED)))
    first_waiting = len(cases)
    cases += [(r.condition(), f"{WAITS}{r.child}") for r in readable]
    whens = sql.SQL(" ").join(
        sql.SQL("WHEN {} THEN {}").format(condition, sql.Literal(n)) for n, (condition, _) in enumerate(cases)
    )
    rows = connection.execute(
        sql.SQL(
            "SELECT w.reason, count(*), coalesce(sum(pg_column_size(w.whole)) FILTER (WHERE {goes}), 0)::bigint, "
            # Before our era is as good as at its beginning, and no Python time.
            "greatest(min(w.age) FILTER (WHERE {goes}), '0001-01-02'), max(w.age) FILTER (WHERE {goes}) FROM ("
            "SELECT CASE {whens} END AS reason, {age} AS age, t AS whole FROM {hot} AS t WHERE {tenant} = {mine}"
            ") AS w GROUP BY w.reason"
        ).format(
            goes=sql.SQL("w.reason IS NULL OR w.reason >= {}").format(sql.Literal(first_waiting)),
            whens=whens,
            age=age.age(contract),
            hot=sql.Identifier(contract.source_schema, contract.source_table),
            tenant=sql.Identifier("t", contract[contract.tenant].source),
            mine=sql.SQL("{}::{}").format(
                sql.Literal(one.organization), sql.SQL(gate.hot.columns[contract[contract.tenant].source].type)
            ),
        ),
        [],
    ).fetchall()
    for reason, count, size, oldest, newest in rows:
        one.hot_rows += count
        if reason is not None and reason < first_waiting:
            one.kept[cases[reason][1]] = one.kept.get(cases[reason][1], 0) + count
            continue
        one.rows += count
        one.bytes += size
        one.oldest = min(filter(None, (one.oldest, oldest)), default=None)
        one.newest = max(filter(None, (one.newest, newest)), default=None)
        if reason is not None:
            one.waits[cases[reason][1].removeprefix(WAITS)] = count
    one.kept = dict(sorted(one.kept.items(), key=lambda item: -item[1]))


def _states(contract: Contract, reason: str) -> str:
    if contract.states is None:
        return reason
    states = contract.states
    if reason == UNKNOWN:
        return f"{IN_USE}: {states.column} is none of {', '.join(states.known)}, which the contract knows"
    return f"{reason}: {states.column} {', '.join(states.never_old if reason == IN_USE else states.old_since_landing)}"


def _needed(contract: Contract) -> list[str]:
    state = [contract.states.column] if contract.states else []
    return [contract.tenant, *contract.identity, *contract.age_bounds, *state]


def _unread(cursor: LakeCursor | None) -> sql.Composable:
    """Written since the last window, so the lake does not have this version yet."""
    if cursor is None:
        return sql.SQL("false")
    lower = cursor.position.xmin
    return sql.SQL(
        # 1 and 2 are older than every other transaction.
        "(t.xmin::text NOT IN ('1', '2') AND (t.xmin::text::bigint - {low} + {space}) %% {space} "
        "< pg_snapshot_xmax(pg_current_snapshot())::text::bigint - {full})"
    ).format(low=sql.Literal(lower % XID_SPACE), space=sql.Literal(XID_SPACE), full=sql.Literal(lower))


@dataclass(frozen=True)
class _Look:
    """Whether a referring row would go too; followed from child to child."""

    gates: Gates
    policy: Policy | None
    cutoff: datetime
    installed: bool
    forgotten: Sequence[Hold]

    def held(self, contract: Contract, alias: str) -> sql.Composable:
        return held(contract, alias, installed=self.installed, forgotten=self.forgotten)

    def kept_by(self, reference: Reference, alias: str, seen: tuple[str, ...] = ()) -> sql.Composable:
        """A row that refers by this key to the row `alias` stays."""
        child = self.gates.child(reference)
        own = f"r{len(seen)}"
        pairs = [
            sql.SQL("{} = {}").format(sql.Identifier(own, mine), sql.Identifier(alias, theirs))
            for mine, theirs in zip(reference.columns, reference.target, strict=True)
        ]
        stays: sql.Composable = sql.SQL("true")
        if child is not None and child.table not in seen and self._may_go(child):
            gate = self.gates.by_table[child.table]
            goes = [
                age.past(child, self.cutoff, own),
                sql.SQL("NOT {}").format(age.in_use(child, own)),
                sql.SQL("NOT {}").format(age.since_landing(child, own)),
                sql.SQL("NOT {}").format(self.held(child, own)),
                *(
                    sql.SQL("NOT {}").format(self.kept_by(r, own, (*seen, child.table)))
                    for r in gate.others
                    if r.readable
                ),
            ]
            stays = sql.SQL("({}) IS NOT TRUE").format(sql.SQL(" AND ").join(goes))
        return sql.SQL("EXISTS (SELECT FROM {} AS {} WHERE {} AND {})").format(
            sql.Identifier(reference.schema, reference.table),
            sql.Identifier(own),
            sql.SQL(" AND ").join(pairs),
            stays,
        )

    def _may_go(self, contract: Contract) -> bool:
        gate = self.gates.by_table[contract.table]
        optional = self.policy.optional_tables if self.policy is not None else ()
        return not gate.refusals and wants(contract, optional)
