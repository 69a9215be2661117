"""Reads what a peer wrote with DuckDB, compares it with the table row by row and column by column, and names changes.

The reference is PostgreSQL's own text of JSON and enums, read once by the driver that we use ourselves. Columns are
compared by hash after a join on the key; of a column that differs, the JSON of up to 1,000 differing rows is parsed
(numbers kept as text) to say whether only the text was rewritten or a value too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
from adbc_driver_postgresql import dbapi

from lakehouse.duck import EXTENSIONS, extension_path
from tests.bench.world import World

SAMPLE = 1000


@dataclass
class Difference:
    """What a copy of the table lacks, has too much of, or has otherwise."""

    rows: int
    missing: int = 0
    extra: int = 0
    repeated: int = 0
    absent: list[str] = field(default_factory=list)
    """Columns that the copy does not have."""
    values: dict[str, int] = field(default_factory=dict)
    """By column: rows of another value."""
    changed: list[str] = field(default_factory=list)
    """What was changed, in words."""

    @property
    def equal(self) -> bool:
        return not (self.missing or self.extra or self.repeated or self.absent or self.values)

    def words(self) -> str:
        """One line for a table."""
        if self.equal and not self.changed:
            return "nothing"
        counts = {"missing": self.missing, "not in the table": self.extra, "twice": self.repeated}
        rows = [f"{n:,} rows {what}" for what, n in counts.items() if n]
        rows += [f"column {name} missing" for name in self.absent]
        return "; ".join([*rows, *self.changed])


@contextmanager
def reader(world: World, folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that can read the bucket and spills into `folder`."""
    endpoint = urlsplit(world.s3.endpoint)
    settings = {"memory_limit": "3GB", "temp_directory": str(folder / "spill"), "autoinstall_known_extensions": "false"}
    with duckdb.connect(str(folder / "compare.duckdb"), config=settings) as duck:
        for name in EXTENSIONS:
            duck.execute(f"LOAD '{extension_path(name)}'")
        duck.execute("SET TimeZone = 'UTC'")
        duck.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{world.s3.access_key}', SECRET '{world.s3.secret_key}', "
            f"REGION '{world.s3.region}', ENDPOINT '{endpoint.netloc}', URL_STYLE 'path', "
            f"USE_SSL {endpoint.scheme == 'https'})"
        )
        yield duck


def remember(duck: duckdb.DuckDBPyConnection, url: str) -> list[str]:
    """Read the table into `reference`; JSON and enums as PostgreSQL writes them. Its columns."""
    with dbapi.connect(url) as source, source.cursor() as cursor:
        cursor.execute(
            "SELECT string_agg(CASE WHEN t.typtype = 'e' OR t.typname IN ('json', 'jsonb') "
            "THEN format('%1$I::text AS %1$I', attname) ELSE format('%I', attname) END, ', ' ORDER BY attnum) "
            "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
            "WHERE attrelid = 'public.ingested_events'::regclass AND attnum > 0 AND NOT attisdropped"
        )
        (columns,) = cursor.fetchone()
        cursor.execute(f"SELECT {columns} FROM public.ingested_events")
        rows = cursor.fetch_record_batch()
        duck.execute("CREATE OR REPLACE TABLE reference AS SELECT * FROM rows")
        return list(rows.schema.names)


def compare(duck: duckdb.DuckDBPyConnection, columns: Sequence[str], relation: str) -> Difference:
    """Compare a relation with `reference`."""
    ours = {name: kind for name, kind, *_ in duck.execute("DESCRIBE reference").fetchall()}
    theirs = {name: kind for name, kind, *_ in duck.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
    present = [c for c in columns if c in theirs]
    found = Difference(0, absent=[c for c in columns if c not in theirs])
    hashed = ", ".join(f'hash("{c}") AS "{c}"' for c in present if c != "id")
    read = ", ".join(f'{_same(c, ours[c], theirs[c])} AS "{c}"' for c in present)
    differs = ", ".join(
        f'count(*) FILTER (WHERE s.id IS NOT NULL AND r.id IS NOT NULL AND s."{c}" <> r."{c}")'
        for c in present
        if c != "id"
    )
    found.rows, distinct = duck.execute(f"SELECT count(*), count(DISTINCT id) FROM {relation}").fetchone() or (0, 0)
    found.repeated = found.rows - distinct
    found.missing, found.extra, *counts = duck.execute(
        f"WITH s AS (SELECT id, {hashed} FROM reference), "
        f"r AS (SELECT id, {hashed} FROM (SELECT {read} FROM {relation})) "
        f"SELECT count(*) FILTER (WHERE r.id IS NULL), count(*) FILTER (WHERE s.id IS NULL), {differs} "
        "FROM s FULL JOIN r ON s.id = r.id"
    ).fetchone() or (0, 0)
    found.values = {c: n for c, n in zip([c for c in present if c != "id"], counts, strict=True) if n}
    for column, count in found.values.items():
        pairs = duck.execute(
            f'SELECT s."{column}", r."{column}" FROM reference s JOIN (SELECT {read} FROM {relation}) r '
            f'ON s.id = r.id WHERE s."{column}" IS DISTINCT FROM r."{column}" ORDER BY s.id LIMIT {SAMPLE}'
        ).fetchall()
        found.changed.append(_named(column, count, pairs))
    for column in present:
        if theirs[column] not in (ours[column], "JSON"):
            found.changed.append(f"{column}: {ours[column]} became {theirs[column]}")
    if added := [c for c in theirs if c not in columns]:
        found.changed.append(f"adds {', '.join(added)}")
    found.changed = _gathered(found.changed)
    return found


def _same(column: str, ours: str, theirs: str) -> str:
    """The copy's column in the reference's type; a time with a zone is read as UTC."""
    if theirs == "TIMESTAMP WITH TIME ZONE" and ours == "TIMESTAMP":
        return f"(\"{column}\" AT TIME ZONE 'UTC')"
    return f'"{column}"' if ours == theirs else f'CAST("{column}" AS {ours})'


def _named(column: str, count: int, pairs: Sequence[tuple[Any, Any]]) -> str:
    values, example = 0, ""
    for before, after in pairs:
        try:
            # Numbers stay text: 4.50 and 4.5 are two things here.
            was, now = (json.loads(text, parse_float=str, parse_int=str) for text in (before, after))
        except (TypeError, ValueError):
            return f"{column}: another value in {count:,} rows ({_short(before)} became {_short(after)})"
        if was != now:
            values += 1
            example = example or _first_difference("", was, now)
    if not values:
        return f"{column}: JSON text rewritten in {count:,} rows, its values kept"
    of = f"{values:,} of {len(pairs):,} looked at" if values < len(pairs) else "all that were looked at"
    return f"{column}: JSON rewritten in {count:,} rows, with other values in {of} ({example})"


def _first_difference(where: str, was: Any, now: Any) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in was:
            if was[key] != now.get(key):
                return _first_difference(f"{where}.{key}".lstrip("."), was[key], now.get(key))
    return f"{where} {_short(was)} became {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _gathered(lines: Sequence[str]) -> list[str]:
    """`a: X became Y` and `b: X became Y` as one line."""
    by_change: dict[str, list[str]] = {}
    for line in lines:
        column, _, change = line.partition(": ")
        by_change.setdefault(change or line, []).append(column if change else "")
    return [f"{', '.join(names)}: {change}" if names[0] else change for change, names in by_change.items()]
