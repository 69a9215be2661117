"""What would leave the lake, and what stays for which reason; reads only.

A day is old when its last moment is so many years ago. Of an old day, one thing keeps all of it: a row that is still
hot, a hold, a source that is not known to be the lake's. Rows and bytes are what the manifests say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from catalog.tables import open_table
from lakehouse.adopt import archiving_allowed
from lakehouse.archive.holds import holds_on
from lakehouse.archive.records import Hold
from lakehouse.capture.source import SourceTableMissing, describe
from lakehouse.capture.xmin import tenant_condition
from lakehouse.duck import connect, literal, plain_path
from lakehouse.landing.held import unreadable
from lakehouse.maintenance.references import LiveFile, References
from lakehouse.retention.policy import LakeRetention, retentions
from schemas.contract import Contract
from schemas.errors import LakehouseError
from schemas.keys import duckdb_key

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from lakehouse.app import App

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Day:
    """A day of a lake table, with the files that hold it. `number`: days since 1970."""

    number: int
    files: tuple[LiveFile, ...]

    @property
    def date(self) -> date:
        return _EPOCH + timedelta(days=self.number)

    @property
    def versions(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


@dataclass
class TablePlan:
    """One table of one organization. `kept`: days that are old and stay, by reason."""

    organization: str
    table: str
    years: int
    before: date
    """Days before this are old."""
    ends: list[Day] = field(default_factory=list)
    kept: dict[str, list[Day]] = field(default_factory=dict)
    readable_until: datetime | None = None
    """When, after an end of life now, the last snapshot that has the rows expires; tags keep theirs longer."""
    tags: tuple[str, ...] = ()
    """Tags whose snapshots have them, for as long as the tags are there."""
    destinations: tuple[str, ...] = ()
    """Which keep what they have of these days."""
    error: LakehouseError | None = None

    @property
    def versions(self) -> int:
        return sum(d.versions for d in self.ends)

    @property
    def bytes(self) -> int:
        return sum(d.bytes for d in self.ends)


def plan(app: App, organization: str) -> list[TablePlan]:
    """What `apply` would do for an organization now, table by table; empty where it has no policy.

    Errors that are understood are in the plan of their table.
    """
    policy = retentions(app).get(organization)
    if policy is None:
        return []
    plans = []
    for contract in app.contracts.values():
        found = TablePlan(organization, contract.table, policy.years, cutoff(app.clock(), policy.years))
        try:
            plan_table(app, contract, policy, found)
        except LakehouseError as error:
            found.error = error
        if found.ends or found.kept or found.error:
            plans.append(found)
    return plans


def cutoff(now: datetime, years: int) -> date:
    """The first day that is not old: so many years ago, by the calendar."""
    today = now.astimezone(UTC).date()
    try:
        return today.replace(year=today.year - years)
    except ValueError:
        # 29 February, in a year that has none.
        return today.replace(year=today.year - years, day=28)


def plan_table(app: App, contract: Contract, policy: LakeRetention, found: TablePlan) -> References | None:
    """Fill in one table's plan; returns what its days were read by, None where it is not in the lake.

    Raises:
        LakehouseError: lake, catalog or hot database do not answer, or the lake is another's.
    """
    from pyiceberg.exceptions import NoSuchTableError

    if contract.event_time is None:
        return None
    lake = app.lake(policy.organization)
    lake.check()
    try:
        references = References(open_table(lake, contract))
    except NoSuchTableError:
        return None
    old = _old_days(references, found.before)
    if not old:
        return references
    keep = keepers(app, contract, policy.organization, references.table, found.before, old)
    for day in old:
        if (reason := next((r for r in (k(day) for k in keep) if r is not None), None)) is not None:
            found.kept.setdefault(reason, []).append(day)
        else:
            found.ends.append(day)
    settings = app.settings
    found.readable_until = app.clock() + timedelta(
        days=settings.maintenance.keep_daily,
        minutes=settings.maintenance.grace_minutes,
        seconds=settings.schedule.maintain_every_seconds,
    )
    found.tags = tuple(sorted(name for name in references.table.metadata.refs if name != "main"))
    found.destinations = _destinations(app, policy.organization, contract.table)
    return references


def _old_days(references: References, before: date) -> list[Day]:
    days: dict[int, list[LiveFile]] = {}
    for file in references.live():
        if file.day is not None and _EPOCH + timedelta(days=file.day) < before:
            days.setdefault(file.day, []).append(file)
    return [Day(number, tuple(files)) for number, files in sorted(days.items())]


def _destinations(app: App, organization: str, table: str) -> tuple[str, ...]:
    from federation.config import COPYING
    from federation.kinds import DestinationKind
    from lakehouse.destinations import destinations

    return tuple(
        d.name
        for d in destinations(app, organization)
        if DestinationKind(d.kind) in COPYING and ("*" in d.tables or table in d.tables)
    )


Keeper = Callable[[Day], str | None]
"""Why a day stays; None where this does not keep it."""


def keepers(
    app: App, contract: Contract, organization: str, table: Table, before: date, days: Sequence[Day]
) -> list[Keeper]:
    """Everything that can keep a day, asked now.

    Raises:
        LakehouseError: somebody does not answer: then nothing may go.
    """
    if not archiving_allowed(app, organization, contract.table):
        return [lambda _: "the source is not known to be the one that this lake was made from (`lakehouse status`)"]
    try:
        with app.source.catalog(bounded=True) as connection:
            hot = _hot_days(connection, contract, organization, before)
    except SourceTableMissing:
        return [lambda _: f"there is no hot table {contract.source_name} to ask"]
    holds = holds_on(app, organization, contract.table)
    held = [_holder(app, contract, table, hold, days) for hold in holds]
    return [*held, lambda day: "rows of it are hot" if hot[day.number] else None]


def _hot_days(connection: psycopg.Connection[Any], contract: Contract, organization: str, before: date) -> Counter[int]:
    """Rows of the hot table by day of their event time, of those before a day."""
    assert contract.event_time is not None  # noqa: S101 - asked by the callers
    hot = describe(connection, contract)
    time = sql.Identifier("t", contract[contract.event_time].source)
    kind = hot.columns[contract[contract.event_time].source].type
    # A time without a zone is UTC in the host; with one, midnight must be UTC's.
    limit = sql.SQL("{}::timestamptz" if kind.endswith("with time zone") else "{}").format(
        sql.Literal(f"{before.isoformat()} 00:00:00+00")
    )
    day = sql.SQL("floor(extract(epoch FROM {}) / 86400)::int").format(time)
    rows = connection.execute(
        # An infinite time is in no day, and in no lake.
        sql.SQL(
            "SELECT {day}, count(*) FROM {hot} AS t WHERE {tenant} AND {time} < {limit} AND isfinite({time}) GROUP BY 1"
        ).format(
            day=day,
            hot=sql.Identifier(contract.source_schema, contract.source_table),
            tenant=tenant_condition(contract, [organization], hot.columns[contract[contract.tenant].source].type),
            time=time,
            limit=limit,
        )
    ).fetchall()
    return Counter(dict(rows))


def _holder(app: App, contract: Contract, table: Table, hold: Hold, days: Sequence[Day]) -> Keeper:
    said = f"hold {hold.id}: {hold.reason}"
    if hold.row_keys is not None:
        keys = _days_of(app, contract, table, hold, days)
        return lambda day: said if day.number in keys else None
    first, last = hold.event_from, hold.event_upto

    def by_time(day: Day) -> str | None:
        begin = datetime(day.date.year, day.date.month, day.date.day, tzinfo=UTC)
        before = last is not None and begin >= last
        after = first is not None and begin + timedelta(days=1) <= first
        return None if before or after else said

    return by_time


def _days_of(app: App, contract: Contract, table: Table, hold: Hold, days: Sequence[Day]) -> set[int]:
    """Days in which versions of the rows lie that a hold names."""
    import duckdb

    found = set()
    keys = ", ".join(map(literal, hold.row_keys or ()))
    with connect(app.addresses_of([hold.organization])) as connection:
        for day in days:
            paths = ", ".join(literal(plain_path(f.path)) for f in day.files)
            try:
                rows = connection.execute(
                    f"SELECT 1 FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = false) "
                    f"WHERE {duckdb_key(contract)} IN ({keys}) LIMIT 1"
                ).fetchall()
            except duckdb.Error as error:
                raise unreadable(table, error) from error
            if rows:
                found.add(day.number)
    return found
