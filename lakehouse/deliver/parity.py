"""Proof that a destination shows what the lake shows, at the `_sequence` that it stands at.

Each side computes, where it is, the number of rows of the latest state and the sum of the first 60 bits of every row's
canonical hash: the replica in SQL, files by DuckDB over exactly the files that their manifest names, the lake by DuckDB
over its own. Where these differ, keys and hashes are compared one by one, and the differing columns are named.

JSON Lines print JSON without the source's spaces and trailing zeros when they are read again, so there both sides are
compared by JSON as DuckDB prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from catalog.lake import LakeAddress
from federation.config import COPYING
from federation.files.adapter import FilesAdapter
from federation.files.manifest import Manifest
from federation.kinds import DeliveryStatus, DestinationKind
from federation.postgres.adapter import PostgresAdapter
from federation.protocol import DIGITS, Content, DestinationError, GapError
from lakehouse.deliver.ranges import LakeTable, check_reaches, open_lake_table
from lakehouse.deliver.targets import adapter_of, credentials_of, way_to
from lakehouse.destinations import organizations_of
from lakehouse.duck import column_type, connect, literal, plain_path, quoted
from lakehouse.landing.ended import Ending, in_ended_days, read_endings
from schemas.canonical import duckdb_field_text, duckdb_hash
from schemas.contract import Column, Contract
from schemas.errors import LakehouseError, Retry
from schemas.lake_columns import DELETE, OP, SEQUENCE, arrow_schema, lake_fields

if TYPE_CHECKING:
    import duckdb

    from federation.protocol import Adapter
    from lakehouse.app import App
    from lakehouse.destinations import Destination

HASH = "_hash"
LIMIT = 20
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
    digest: str = ""
    ended: int = 0
    """Rows there of days that the lake has let go of by its own retention: no difference."""
    differences: list[Difference] = field(default_factory=list)
    equal: bool = False
    error: LakehouseError | None = None

    @property
    def lag(self) -> int:
        return self.lake_sequence - self.sequence


class _There(Protocol):
    def content(self) -> Content: ...

    def load(self, duck: duckdb.DuckDBPyConnection) -> None:
        """Make the temporary table `there`: identity and hash of every row that it shows."""
        ...

    def texts(self, duck: duckdb.DuckDBPyConnection, hashes: list[str]) -> list[tuple[Any, ...]]:
        """Rows with these hashes: canonical text of the identity, then of each column by id."""
        ...


def parity(
    app: App, destinations: Sequence[Destination], tables: Sequence[str], *, limit: int = LIMIT
) -> Iterator[Parity]:
    """Compare each destination and table that something was delivered to, one after another."""
    for destination in destinations:
        kind = DestinationKind(destination.kind)
        if kind not in COPYING:
            continue
        delivered = acknowledged(app, destination)
        wanted = [t for t in tables if "*" in destination.tables or t in destination.tables]
        for organization in organizations_of(app, destination):
            for table in wanted:
                upto = delivered.get((organization, table), 0)
                yield _one(app, destination, organization, kind, app.contract(table), upto, limit)


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
        with _open(app, destination, organization, kind, contract) as (there, addresses, loosely):
            content = there.content()
            result.sequence, result.rows = content.sequence, content.rows
            if content.sequence < delivered:
                raise GapError(
                    f"stands at {content.sequence}, and {delivered} was delivered: it was cleared, or is an older copy",
                    "Run `lakehouse destinations resync` for it: it is filled again from the lake.",
                )
            check_reaches(lake.table, lake.sequence, content.sequence)
            with connect([*app.addresses_of([organization]), *addresses]) as duck:
                ours = _Relation(contract, lake.relation, content.sequence, loosely)
                mine = ours.content(duck)
                result.lake_rows, result.digest = mine.rows, f"{mine.digest:x}"
                result.equal = (content.rows, content.digest) == (mine.rows, mine.digest)
                if not result.equal:
                    found = _differences(duck, contract, ours, there, limit, read_endings(lake.table))
                    result.differences, result.ended, result.equal = found
    except LakehouseError as error:
        result.error = error
    return result


def check_range(
    app: App, adapter: Adapter, kind: DestinationKind, credentials: Mapping[str, str], lake: LakeTable, after: int
) -> None:
    """What a delivery brought is there as it is in the lake: rows of the latest state that came beyond `after`.

    Raises:
        DifferenceError: it is not; the first keys and columns are named.
        LakehouseError: one of the two cannot be read.
    """
    contract = lake.contract
    with _shown(app, lake.organization, kind, contract, adapter, credentials, after) as (there, addresses, loosely):
        content = there.content()
        if content.sequence > lake.sequence:
            # Somebody else has brought it further meanwhile, and compares that.
            return
        with connect([*app.addresses_of([lake.organization]), *addresses]) as duck:
            ours = _Relation(contract, lake.relation, content.sequence, loosely, after)
            if ours.content(duck) == content:
                return
            found, _, equal = _differences(duck, contract, ours, there, FEW, read_endings(lake.table))
            if equal:
                return
    named = "; ".join(
        f"{', '.join(f'{k}={v}' for k, v in d.key.items())}: {' '.join((d.kind, *d.columns))}" for d in found
    )
    raise DifferenceError(
        f"{contract.table}: what was delivered after {after} is not what the lake holds: {named}",
        "Something there changes rows (a trigger, a person), or a file was altered: end that, then "
        "`lakehouse destinations resync`.",
        retry=Retry.MANUAL,
    )


@contextmanager
def _open(
    app: App, destination: Destination, organization: str, kind: DestinationKind, contract: Contract
) -> Iterator[tuple[_There, list[LakeAddress], bool]]:
    """As `_shown`, with an adapter of its own."""
    credentials = credentials_of(app, destination.id)
    adapter = adapter_of(app, organization, kind, destination.config, credentials, shared=destination.shared)
    try:
        with _shown(app, organization, kind, contract, adapter, credentials) as found:
            yield found
    finally:
        adapter.close()


@contextmanager
def _shown(
    app: App,
    organization: str,
    kind: DestinationKind,
    contract: Contract,
    adapter: Adapter,
    credentials: Mapping[str, str],
    after: int = 0,
) -> Iterator[tuple[_There, list[LakeAddress], bool]]:
    """What is there, the addresses that DuckDB needs for it, and whether JSON is compared as DuckDB prints it."""
    if isinstance(adapter, PostgresAdapter):
        yield _Replica(contract, adapter, after), [], False
    elif isinstance(adapter, FilesAdapter):
        way = way_to(app, organization, adapter.config, credentials)
        address = LakeAddress("files", "files", "", adapter.config.location, dict(way.storage))
        loosely = kind is DestinationKind.JSONL_S3
        _, manifest = adapter.manifest(contract)
        with connect([address]) as duck:
            yield _Files(contract, manifest, loosely, duck, after), [address], loosely
    else:
        raise LakehouseError(f"{kind.value}: cannot be compared", retry=Retry.NEVER)


class _Relation:
    """The latest state that a relation with the lake's columns shows at a `_sequence`; of it what came `after` one."""

    def __init__(self, contract: Contract, relation: str, sequence: int, loosely: bool, after: int = 0) -> None:
        self.contract = contract
        self.sequence = sequence
        order = ", ".join(quoted(n) for n in contract.identity)
        replaced = [
            f"json({quoted(c.name)})::VARCHAR AS {quoted(c.name)}"
            for c in contract.columns
            if loosely and c.type.name == "json"
        ]
        columns = "*" + (f" REPLACE ({', '.join(replaced)})" if replaced else "")
        self.latest = (
            f"SELECT {columns} FROM {relation} WHERE {SEQUENCE} > {int(after)} AND {SEQUENCE} <= {int(sequence)} "
            f"QUALIFY row_number() OVER (PARTITION BY {order} ORDER BY {SEQUENCE} DESC) = 1 AND {OP} <> '{DELETE}'"
        )

    def content(self, duck: duckdb.DuckDBPyConnection) -> Content:
        ((rows, digest),) = duck.execute(
            f"SELECT count(*), coalesce(sum(('0x' || substr(h, 1, {DIGITS}))::BIGINT), 0)::HUGEINT "
            f"FROM (SELECT {duckdb_hash(self.contract)} AS h FROM ({self.latest}))"
        ).fetchall()
        return Content(self.sequence, int(rows), int(digest))

    def load(self, duck: duckdb.DuckDBPyConnection, name: str) -> None:
        identity = ", ".join(quoted(n) for n in self.contract.identity)
        duck.execute(
            f"CREATE OR REPLACE TEMP TABLE {name} AS "
            f"SELECT {identity}, {duckdb_hash(self.contract)} AS {HASH} FROM ({self.latest})"
        )

    def texts(self, duck: duckdb.DuckDBPyConnection, hashes: list[str]) -> list[tuple[Any, ...]]:
        identity = ", ".join(duckdb_field_text(self.contract[n]) for n in self.contract.identity)
        texts = ", ".join(duckdb_field_text(c) for c in by_id(self.contract))
        return duck.execute(
            f"SELECT {identity}, {texts} FROM ({self.latest}) WHERE list_contains($1, {duckdb_hash(self.contract)})",
            [hashes],
        ).fetchall()


class _Replica:
    def __init__(self, contract: Contract, adapter: PostgresAdapter, after: int) -> None:
        self.contract = contract
        self.adapter = adapter
        self.after = after

    def content(self) -> Content:
        if not self.adapter.standing(self.contract):
            # Nothing was delivered, or nothing is left of it: to look makes nothing there.
            return Content(0, 0, 0)
        self.adapter.prepare(self.contract)
        return self.adapter.content(self.contract, self.after)

    def load(self, duck: duckdb.DuckDBPyConnection) -> None:
        with self.adapter.hashes(self.contract, self.after) as reader:
            duck.register("stream", reader)
            duck.execute("CREATE OR REPLACE TEMP TABLE there AS SELECT * FROM stream")
            duck.unregister("stream")

    def texts(self, duck: duckdb.DuckDBPyConnection, hashes: list[str]) -> list[tuple[Any, ...]]:
        del duck
        return self.adapter.texts(self.contract, hashes)


class _Files:
    def __init__(
        self, contract: Contract, manifest: Manifest, loosely: bool, duck: duckdb.DuckDBPyConnection, after: int
    ) -> None:
        self.duck = duck
        manifest = dataclasses.replace(manifest, files=tuple(f for f in manifest.files if f.last > after))
        relation = jsonl_relation(contract, manifest) if loosely else parquet_relation(duck, contract, manifest)
        self.relation = _Relation(contract, f"({relation})", manifest.sequence, loosely, after)

    def content(self) -> Content:
        with _readable():
            return self.relation.content(self.duck)

    def load(self, duck: duckdb.DuckDBPyConnection) -> None:
        with _readable():
            self.relation.load(self.duck, "mine")
            duck.register("stream", self.duck.execute("SELECT * FROM mine").to_arrow_table())
            duck.execute("CREATE OR REPLACE TEMP TABLE there AS SELECT * FROM stream")
            duck.unregister("stream")

    def texts(self, duck: duckdb.DuckDBPyConnection, hashes: list[str]) -> list[tuple[Any, ...]]:
        del duck
        with _readable():
            return self.relation.texts(self.duck, hashes)


@contextmanager
def _readable() -> Iterator[None]:
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise LakehouseError(
            f"the destination's files cannot be read: {str(error).splitlines()[0][:300]}",
            "A file is gone or damaged: run `lakehouse destinations resync` for it.",
            retry=Retry.MANUAL,
        ) from error


def parquet_relation(duck: duckdb.DuckDBPyConnection, contract: Contract, manifest: Manifest) -> str:
    """SQL over the Parquet files that a manifest names; columns that came later are null in older files."""
    duck.register("no_rows", arrow_schema(contract).empty_table())
    if not manifest.files:
        return "SELECT * FROM no_rows"
    paths = ", ".join(literal(plain_path(f.path)) for f in manifest.files)
    return (
        "SELECT * FROM no_rows UNION ALL BY NAME "
        f"SELECT * FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"
    )


def jsonl_relation(contract: Contract, manifest: Manifest) -> str:
    """SQL over the JSON Lines that a manifest names, in the lake's types."""
    fields = lake_fields(contract)
    columns = ", ".join(f"{literal(c.name)}: {literal(_json_type(c))}" for c in fields)
    shown = ", ".join(_from_json(c) for c in fields)
    if not manifest.files:
        nothing = ", ".join(f"NULL::{column_type(c)} AS {quoted(c.name)}" for c in fields)
        return f"SELECT {nothing} WHERE false"
    paths = ", ".join(literal(plain_path(f.path)) for f in manifest.files)
    return (
        f"SELECT {shown} FROM read_json([{paths}], format = 'newline_delimited', compression = 'gzip', "
        f"columns = {{{columns}}}, hive_partitioning = false, maximum_object_size = {MOST_LINE_BYTES})"
    )


MOST_LINE_BYTES = 48 * 1024 * 1024
"""DuckDB keeps twice this for each thread."""


def _json_type(column: Column) -> str:
    # As text: a double would lose digits of a decimal, and base64 is no blob.
    return "VARCHAR" if column.type.name in ("decimal", "binary", "double") else column_type(column)


def _from_json(column: Column) -> str:
    name = quoted(column.name)
    if column.type.name == "binary":
        return f"from_base64({name}) AS {name}"
    if column.type.name in ("decimal", "double"):
        return f"{name}::{column_type(column)} AS {name}"
    return name


def by_id(contract: Contract) -> list[Column]:
    """The columns in the order of the canonical text."""
    return sorted(contract.columns, key=lambda c: c.id)


def _differences(
    duck: duckdb.DuckDBPyConnection,
    contract: Contract,
    ours: _Relation,
    there: _There,
    limit: int,
    endings: Sequence[Ending],
) -> tuple[list[Difference], int, bool]:
    """What differs; how many rows there were left out, for the lake let go of their day; whether the rest is equal."""
    ours.load(duck, "ours")
    there.load(duck)
    names = list(contract.identity)
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
    texts = ", ".join(duckdb_field_text(contract[n]) for n in names)
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
        here = {r[:width]: r[width:] for r in ours.texts(duck, [r[-2] for r in differing])}
        theirs = {r[:width]: r[width:] for r in there.texts(duck, [r[-1] for r in differing])}
    found = []
    for row in rows:
        key, identity = dict(zip(names, row[:width], strict=True)), row[width:-2]
        kind = "missing" if row[-1] is None else "extra" if row[-2] is None else "content"
        pairs = zip(by_id(contract), here.get(identity, ()), theirs.get(identity, ()), strict=False)
        found.append(Difference(key, kind, tuple(c.name for c, a, b in pairs if a != b)))
    return found, ended, bool(ended) and same
