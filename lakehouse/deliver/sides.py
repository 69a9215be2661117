"""The two sides of a comparison: a table of the lake, and what a destination holds of it.

Each says, where it is, how many rows an aspect has and the sum of their hashes; then, where these differ, what names
each row with its hash, and the canonical text of the few that are asked for.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Protocol

from federation.aspects import Aspect, compared, compared_by
from federation.files.manifest import Manifest
from federation.postgres.adapter import PostgresAdapter
from federation.protocol import DIGITS, Content
from lakehouse.deliver.reading import readable
from lakehouse.duck import column_type, literal, plain_path, quoted, type_name
from schemas.canonical import duckdb_field_text, duckdb_hash
from schemas.contract import Column, Contract
from schemas.lake_columns import DELETE, OP, SEQUENCE, arrow_schema, lake_fields
from schemas.types import LogicalType

if TYPE_CHECKING:
    import duckdb

HASH = "_hash"


class There(Protocol):
    """What a destination holds."""

    def content(self, aspect: Aspect) -> Content: ...

    def load(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect) -> None:
        """Make the temporary table `there`: what names each row, and its hash."""
        ...

    def texts(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect, hashes: list[str]) -> list[tuple[Any, ...]]:
        """Rows with these hashes: canonical text of what names them, then of each column that is compared."""
        ...


class Relation:
    """What a relation with the lake's columns holds at a `_sequence`; of it what came `after` one.

    `whole`: whatever its rows bear counts. A reader is shown that too.
    """

    def __init__(
        self,
        contract: Contract,
        relation: str,
        sequence: int,
        loosely: bool,
        after: int = 0,
        *,
        whole: bool = False,
    ) -> None:
        self.contract = contract
        self.sequence = sequence
        replaced = [
            f"{_digits_of(c)} AS {quoted(c.name)}"
            for c in contract.columns
            if loosely and "json" in (c.type.name, c.type.element)
        ]
        columns = "*" + (f" REPLACE ({', '.join(replaced)})" if replaced else "")
        upto = "" if whole else f" AND {SEQUENCE} <= {int(sequence)}"
        self._versions = f"SELECT {columns} FROM {relation} WHERE {SEQUENCE} > {int(after)}{upto}"

    def content(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect) -> Content:
        """Rows and digest of an aspect."""
        ((rows, digest),) = duck.execute(
            f"SELECT count(*), coalesce(sum(('0x' || substr(h, 1, {DIGITS}))::BIGINT), 0)::HUGEINT "
            f"FROM (SELECT {self._hash(aspect)} AS h FROM ({self._rows(aspect)}))"
        ).fetchall()
        return Content(self.sequence, int(rows), int(digest))

    def load(self, duck: duckdb.DuckDBPyConnection, name: str, aspect: Aspect) -> None:
        """Make a temporary table of what names each row of an aspect, and its hash."""
        names = ", ".join(quoted(n) for n in compared_by(self.contract, aspect))
        duck.execute(
            f"CREATE OR REPLACE TEMP TABLE {name} AS "
            f"SELECT {names}, {self._hash(aspect)} AS {HASH} FROM ({self._rows(aspect)})"
        )

    def texts(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect, hashes: list[str]) -> list[tuple[Any, ...]]:
        """See `There.texts`."""
        fields = [field_named(self.contract, n) for n in compared_by(self.contract, aspect)]
        texts = ", ".join(duckdb_field_text(c) for c in (*fields, *compared(self.contract, aspect)))
        return duck.execute(
            f"SELECT {texts} FROM ({self._rows(aspect)}) WHERE list_contains($1, {self._hash(aspect)})", [hashes]
        ).fetchall()

    def _rows(self, aspect: Aspect) -> str:
        if aspect is Aspect.HISTORY:
            return self._versions
        identity = ", ".join(quoted(n) for n in self.contract.identity)
        newest = f"row_number() OVER (PARTITION BY {identity} ORDER BY {SEQUENCE} DESC) = 1"
        alive = f" AND {OP} <> '{DELETE}'" if aspect is Aspect.LATEST else ""
        return f"{self._versions} QUALIFY {newest}{alive}"

    def _hash(self, aspect: Aspect) -> str:
        row = duckdb_hash(self.contract)
        version = f"sha256({row} || ':' || {SEQUENCE} || ':' || {OP})"
        by_aspect = {
            Aspect.LATEST: row,
            Aspect.HISTORY: version,
            Aspect.RANGE: f"CASE WHEN {OP} = '{DELETE}' THEN {version} ELSE {row} END",
        }
        return by_aspect[aspect]


class Replica:
    """A replica, of versions that came after a `_sequence`."""

    def __init__(self, contract: Contract, adapter: PostgresAdapter, after: int) -> None:
        self.contract = contract
        self.adapter = adapter
        self.after = after

    def content(self, aspect: Aspect) -> Content:
        if not self.adapter.standing(self.contract):
            # Nothing was delivered, or nothing is left of it: to look makes nothing there.
            return Content(0, 0, 0)
        self.adapter.prepare(self.contract)
        return self.adapter.content(self.contract, self.after, aspect)

    def load(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect) -> None:
        with self.adapter.hashes(self.contract, self.after, aspect) as reader:
            duck.register("stream", reader)
            duck.execute("CREATE OR REPLACE TEMP TABLE there AS SELECT * FROM stream")
            duck.unregister("stream")

    def texts(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect, hashes: list[str]) -> list[tuple[Any, ...]]:
        del duck
        return self.adapter.texts(self.contract, hashes, aspect)


class Files:
    """The files that a manifest names, of versions that came after a `_sequence`."""

    def __init__(
        self, contract: Contract, manifest: Manifest, loosely: bool, duck: duckdb.DuckDBPyConnection, after: int
    ) -> None:
        self.duck = duck
        manifest = dataclasses.replace(manifest, files=tuple(f for f in manifest.files if f.last > after))
        relation = jsonl_relation(contract, manifest) if loosely else parquet_relation(duck, contract, manifest)
        self.relation = Relation(contract, f"({relation})", manifest.sequence, loosely, after, whole=True)

    def content(self, aspect: Aspect) -> Content:
        with readable():
            return self.relation.content(self.duck, aspect)

    def load(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect) -> None:
        with readable():
            self.relation.load(self.duck, "mine", aspect)
            duck.register("stream", self.duck.execute("SELECT * FROM mine").to_arrow_table())
            duck.execute("CREATE OR REPLACE TEMP TABLE there AS SELECT * FROM stream")
            duck.unregister("stream")

    def texts(self, duck: duckdb.DuckDBPyConnection, aspect: Aspect, hashes: list[str]) -> list[tuple[Any, ...]]:
        del duck
        with readable():
            return self.relation.texts(self.duck, aspect, hashes)


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
    """SQL over the JSON Lines that a manifest names, in the lake's types; JSON as `json_digits` has it."""
    fields = lake_fields(contract)
    if not manifest.files:
        nothing = ", ".join(f"NULL::{column_type(c)} AS {quoted(c.name)}" for c in fields)
        return f"SELECT {nothing} WHERE false"
    shown = ", ".join(f"{_from_json(c.type, f'line.{quoted(c.name)}')} AS {quoted(c.name)}" for c in fields)
    types = json.dumps(
        {c.name: [_json_type(c.type.element)] if c.type.is_list else _json_type(c.type.name) for c in fields}
    )
    paths = ", ".join(literal(plain_path(f.path)) for f in manifest.files)
    return (
        f"SELECT {shown} FROM (SELECT from_json({_quoted_numbers('json::VARCHAR')}, {literal(types)}) AS line "
        f"FROM read_ndjson_objects([{paths}], compression = 'gzip', maximum_object_size = {MOST_LINE_BYTES}))"
    )


MOST_LINE_BYTES = 48 * 1024 * 1024
"""DuckDB keeps twice this for each thread."""
_NUMBER = "\ue000"
"""Before the digits of a number that became a string, so that it is not taken for one that was a string."""
_TOKENS = r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[^"0-9-]+'


def json_digits(text: str) -> str:
    """JSON in one spelling, with each number's digits as they are written: DuckDB reads a number into a double.

    Spaces between tokens and the way in which a character is escaped are no content. A JSON null and none at all are
    the same: JSON Lines cannot tell them apart.
    """
    return f"nullif(json({_quoted_numbers(text)})::VARCHAR, 'null')"


def _quoted_numbers(text: str) -> str:
    number = f"'\"{_NUMBER}' || _t || '\"'"
    tokens = f"regexp_extract_all({text}, {literal(_TOKENS)})"
    marked = f"list_transform({tokens}, lambda _t: CASE WHEN _t[1] BETWEEN '-' AND '9' THEN {number} ELSE _t END)"
    return f"array_to_string({marked}, '')"


def _digits_of(column: Column) -> str:
    name = quoted(column.name)
    return f"list_transform({name}, lambda _e: {json_digits('_e')})" if column.type.is_list else json_digits(name)


def _json_type(kind: str) -> str:
    return {"json": "JSON", "boolean": "BOOLEAN"}.get(kind, "VARCHAR")


def _from_json(kind: LogicalType, value: str) -> str:
    if kind.is_list:
        return f"list_transform({value}, lambda _e: {_from_json(LogicalType(kind.element), '_e')})"
    if kind.name == "json":
        return f"nullif({value}::VARCHAR, 'null')"
    if kind.name == "binary":
        return f"from_base64({value})"
    if kind.name in ("integer", "long", "decimal", "double"):
        value = f"ltrim({value}, '{_NUMBER}')"
    return f"{value}::{type_name(kind)}" if kind.name != "string" else value


def field_named(contract: Contract, name: str) -> Column:
    """A column of the lake table, its own ones too."""
    return next(c for c in lake_fields(contract) if c.name == name)
