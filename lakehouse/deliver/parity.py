"""Proof that a destination shows what the lake shows, at the `_sequence` that it stands at.

Each side computes, where it is, the number of rows of the latest state and the sum of the first 60 bits of every row's
canonical hash: the replica in SQL, files by DuckDB over exactly the files that their manifest names, the lake by DuckDB
over its own. Where these differ, keys and hashes are compared one by one, and the differing columns are named. Where
every version is kept (`"history": true`), all of them are compared too, with `_sequence` and `_op`.

JSON Lines are read line by line as text, and JSON is compared with every digit that is written (`sides.json_digits`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from catalog.lake import LakeAddress
from federation.aspects import Aspect, compared, compared_by
from federation.config import COPYING
from federation.files.adapter import FilesAdapter
from federation.kinds import DeliveryStatus, DestinationKind
from federation.postgres.adapter import PostgresAdapter
from federation.protocol import DIGITS, Content, DestinationError, GapError
from lakehouse.deliver.differences import remember
from lakehouse.deliver.ranges import LakeTable, open_lake_table
from lakehouse.deliver.sides import HASH, Files, Relation, Replica, There, field_named
from lakehouse.deliver.targets import opened, way_to
from lakehouse.destinations import organizations_of
from lakehouse.duck import connect, quoted
from lakehouse.landing.ended import Ending, in_ended_days, read_endings
from lakehouse.observe.events import describe
from schemas.canonical import duckdb_field_text
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    import duckdb

    from federation.protocol import Adapter
    from lakehouse.app import App
    from lakehouse.destinations import Destination

LIMIT = 20
COMPARISONS = 3
"""A table to which deliveries come meanwhile is compared so often at most."""
FEW = 3
"""Differences that an error names."""


class DifferenceError(DestinationError):
    """A destination holds something else than what was delivered to it."""


@dataclass(frozen=True)
class Difference:
    """One identity that both sides do not show alike. `kind`: missing (not there), extra (not in the lake), content."""

    key: dict[str, str]
    kind: str
    columns: tuple[str, ...] = ()
    aspect: Aspect = Aspect.LATEST

    def __str__(self) -> str:
        where = f"{self.aspect.value}: " if self.aspect is not Aspect.LATEST else ""
        return f"{where}{', '.join(f'{k}={v}' for k, v in self.key.items())}: {' '.join((self.kind, *self.columns))}"


@dataclass
class Parity:
    """One destination and table beside the lake. `lag`: numbers of `_sequence` that it has not got yet."""

    destination: str
    name: str
    kind: str
    organization: str
    table: str
    sequence: int = 0
    lake_sequence: int = 0
    rows: int = 0
    lake_rows: int = 0
    versions: int | None = None
    """Rows of its history; None where it keeps none."""
    digest: str = ""
    ended: int = 0
    """Rows there of days that the lake has let go of by its own retention: no difference."""
    differences: list[Difference] = field(default_factory=list)
    equal: bool = False
    error: LakehouseError | None = None

    @property
    def lag(self) -> int:
        return self.lake_sequence - self.sequence

    @property
    def fault(self) -> str | None:
        """What differs; None where nothing does, or where one of the two could not be asked now."""
        if self.error is not None:
            return None if self.error.retry is Retry.TIMED else describe(self.error)
        if self.equal:
            return None
        if not self.differences:
            return "differs from the lake"
        return f"differs from the lake, first at {self.differences[0]}"


def parity(
    app: App, destinations: Sequence[Destination], tables: Sequence[str], *, limit: int = LIMIT
) -> Iterator[Parity]:
    """Compare each destination and table that something was delivered to, one after another.

    What is found is remembered: no row is archived on the word of a destination that is known to differ.
    """
    for destination in destinations:
        kind = DestinationKind(destination.kind)
        if kind not in COPYING:
            continue
        delivered = acknowledged(app, destination)
        wanted = [t for t in tables if "*" in destination.tables or t in destination.tables]
        for organization in organizations_of(app, destination):
            for table in wanted:
                upto = delivered.get((organization, table), 0)
                result = _one(app, destination, organization, kind, app.contract(table), upto, limit)
                if result.equal or result.fault is not None:
                    remember(app.engine, destination.id, organization, table, result.fault or "")
                yield result


def acknowledged(app: App, destination: Destination) -> dict[tuple[str, str], int]:
    """By organization and table: the `_sequence` up to which the outbox says that it was delivered."""
    from sqlalchemy import func, select

    from lakehouse.control.models import WarehouseDelivery as Row

    query = select(Row.organization_id, Row.table_name, func.max(Row.sequence_upto)).where(
        Row.destination_id == destination.id, Row.status == DeliveryStatus.DELIVERED.value
    )
    with app.engine.connect() as connection:
        rows = connection.execute(query.group_by(Row.organization_id, Row.table_name))
        return {(organization, table): int(upto) for organization, table, upto in rows}


def _one(
    app: App,
    destination: Destination,
    organization: str,
    kind: DestinationKind,
    contract: Contract,
    delivered: int,
    limit: int,
) -> Parity:
    result = Parity(str(destination.id), destination.name, kind.value, organization, contract.table)
    try:
        lake = open_lake_table(app, contract, organization)
        result.lake_sequence = lake.sequence
        with _open(app, destination, organization, kind, contract) as side:
            latest = _compare(app, side, lake, Aspect.LATEST, limit, delivered=delivered)
            result.sequence, result.rows = latest.there.sequence, latest.there.rows
            result.lake_rows, result.digest = latest.lake.rows, f"{latest.lake.digest:x}"
            result.differences += latest.found
            result.ended, result.equal = latest.ended, latest.equal
            if side.every_version and latest.there.sequence:
                history = _compare(app, side, lake, Aspect.HISTORY, limit)
                result.versions = history.there.rows
                result.differences += history.found
                result.equal &= history.equal
    except LakehouseError as error:
        result.error, result.equal = error, False
    return result


def _same(one: Content, other: Content) -> bool:
    return (one.rows, one.digest) == (other.rows, other.digest)


@dataclass(frozen=True)
class _Compared:
    """An aspect there and in the lake, and what differs."""

    there: Content
    lake: Content
    found: list[Difference] = field(default_factory=list)
    ended: int = 0
    """Rows that were left out: the lake let go of their days."""
    rest_equal: bool = False

    @property
    def equal(self) -> bool:
        return _same(self.there, self.lake) or (self.ended > 0 and self.rest_equal)


def _compare(
    app: App, side: _Side, lake: LakeTable, aspect: Aspect, limit: int, *, after: int = 0, delivered: int = 0
) -> _Compared:
    for attempt in range(COMPARISONS):
        content = side.there.content(aspect)
        if content.sequence < delivered:
            raise GapError(
                f"stands at {content.sequence}, and {delivered} was delivered: it was cleared, or is an older copy",
                "Run `lakehouse destinations resync` for it: it is filled again from the lake.",
            )
        if content.sequence > lake.sequence:
            # Landed and delivered since the lake was opened, unless that was replaced by an older one.
            lake = open_lake_table(app, lake.contract, lake.organization, at_least=content.sequence)
        with connect([*app.addresses_of([lake.organization]), *side.addresses]) as duck:
            ours = Relation(lake.contract, lake.relation, content.sequence, side.loosely, after)
            mine = ours.content(duck, aspect)
            if _same(content, mine):
                return _Compared(content, mine)
            found = _differences(duck, lake.contract, ours, side.there, aspect, limit, read_endings(lake.table))
        if attempt + 1 == COMPARISONS or side.there.content(aspect) == content:
            break
        # A delivery came between the questions.
    return _Compared(content, mine, *found)


def check_range(
    app: App, adapter: Adapter, kind: DestinationKind, credentials: Mapping[str, str], lake: LakeTable, after: int
) -> None:
    """What a delivery brought is there as it is in the lake: the newest version of each row that came beyond `after`.

    Of a delete, that it is there and that nothing is shown for it; of a history, every version.

    Raises:
        DifferenceError: it is not; the first keys and columns are named.
        LakehouseError: one of the two cannot be read.
    """
    contract = lake.contract
    found: list[Difference] = []
    equal = True
    with _shown(app, lake.organization, kind, contract, adapter, credentials, after) as side:
        for aspect in (Aspect.RANGE if after else Aspect.LATEST, *((Aspect.HISTORY,) if side.every_version else ())):
            one = _compare(app, side, lake, aspect, FEW, after=after)
            if not one.equal:
                equal, found = False, found + one.found
    if equal:
        return
    raise DifferenceError(
        f"{contract.table}: what was delivered after {after} is not what the lake holds: "
        + ("; ".join(map(str, found[:FEW])) or "rows are there more than once"),
        "Something there changes rows (a trigger, a person), or a file was altered: end that, then "
        "`lakehouse destinations resync`.",
        retry=Retry.MANUAL,
    )


@dataclass(frozen=True)
class _Side:
    """What is there, and how it is compared."""

    there: There
    addresses: list[LakeAddress]
    """Those that DuckDB needs for it."""
    loosely: bool
    """It is JSON Lines: JSON has no spaces there, and no null of its own."""
    every_version: bool


@contextmanager
def _open(
    app: App, destination: Destination, organization: str, kind: DestinationKind, contract: Contract
) -> Iterator[_Side]:
    """As `_shown`, with an adapter of its own."""
    with (
        opened(app, destination, organization) as (adapter, credentials),
        _shown(app, organization, kind, contract, adapter, credentials) as found,
    ):
        yield found


@contextmanager
def _shown(
    app: App,
    organization: str,
    kind: DestinationKind,
    contract: Contract,
    adapter: Adapter,
    credentials: Mapping[str, str],
    after: int = 0,
) -> Iterator[_Side]:
    if isinstance(adapter, PostgresAdapter):
        yield _Side(Replica(contract, adapter, after), [], False, adapter.every_version)
    elif isinstance(adapter, FilesAdapter):
        way = way_to(app, organization, adapter.config, credentials)
        address = LakeAddress("files", "files", "", adapter.config.location, dict(way.storage))
        loosely = kind is DestinationKind.JSONL_S3
        _, manifest = adapter.manifest(contract)
        with connect([address]) as duck:
            files = Files(contract, manifest, loosely, duck, after)
            yield _Side(files, [address], loosely, adapter.every_version)
    else:
        raise LakehouseError(f"{kind.value}: cannot be compared", retry=Retry.NEVER)


def _differences(
    duck: duckdb.DuckDBPyConnection,
    contract: Contract,
    ours: Relation,
    there: There,
    aspect: Aspect,
    limit: int,
    endings: Sequence[Ending],
) -> tuple[list[Difference], int, bool]:
    """What differs; how many rows there were left out, for the lake let go of their day; whether the rest is equal."""
    ours.load(duck, "ours", aspect)
    there.load(duck, aspect)
    names = compared_by(contract, aspect)
    join = " AND ".join(f"o.{quoted(n)} IS NOT DISTINCT FROM t.{quoted(n)}" for n in names)
    ended = 0
    if endings:
        ((ended,),) = duck.execute(
            f"DELETE FROM there t WHERE {in_ended_days(contract, endings, alias='t')} "
            f"AND NOT EXISTS (SELECT 1 FROM ours o WHERE {join})"
        ).fetchall()
    sums = f"SELECT (count(*), sum(('0x' || substr({HASH}, 1, {DIGITS}))::BIGINT)) FROM"
    ((same,),) = duck.execute(f"SELECT ({sums} ours) IS NOT DISTINCT FROM ({sums} there)").fetchall()
    both = ", ".join(f"coalesce(o.{quoted(n)}, t.{quoted(n)}) AS {quoted(n)}" for n in names)
    shown = ", ".join(f"{quoted(n)}::VARCHAR" for n in names)
    # By their canonical text: each driver makes an object of its own of one moment.
    texts = ", ".join(duckdb_field_text(field_named(contract, n)) for n in names)
    rows = duck.execute(
        f"SELECT {shown}, {texts}, ours_hash, their_hash FROM (SELECT {both}, o.{HASH} AS ours_hash, "
        f"t.{HASH} AS their_hash FROM ours o FULL JOIN there t ON {join} WHERE o.{HASH} IS DISTINCT FROM t.{HASH}) "
        f"ORDER BY ALL LIMIT {int(limit)}"
    ).fetchall()
    width = len(names)
    differing = [row for row in rows if None not in row[-2:]]
    here: dict[tuple[str, ...], tuple[str, ...]] = {}
    theirs: dict[tuple[str, ...], tuple[str, ...]] = {}
    if differing:
        here = {r[:width]: r[width:] for r in ours.texts(duck, aspect, [r[-2] for r in differing])}
        theirs = {r[:width]: r[width:] for r in there.texts(duck, aspect, [r[-1] for r in differing])}
    found = []
    for row in rows:
        key, identity = dict(zip(names, row[:width], strict=True)), row[width:-2]
        kind = "missing" if row[-1] is None else "extra" if row[-2] is None else "content"
        pairs = zip(compared(contract, aspect), here.get(identity, ()), theirs.get(identity, ()), strict=False)
        found.append(Difference(key, kind, tuple(c.name for c, a, b in pairs if a != b), aspect))
    return found, ended, same
