"""Every value of every type of every contract comes back from the lake as it was: into a table, into each kind of file.

PostgreSQL is the judge: of what was kept of the hot tables, and of what came back.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from lakehouse.archive.installation import SCHEMA
from lakehouse.recall.request import Target
from schemas.contract import Contract
from tests import everything
from tests.integration.test_recall import bring
from tests.integration.test_types import COLUMNS, literal
from tests.integration.test_types import contract as odd_contract
from tests.support import Lakehouse, host_tables, local_variables


@pytest.fixture
def everywhere(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    """Every contract's table, and one with every type, filled with edge values, landed, and emptied."""
    host_tables(hot_url, ("org-a",))
    folder = tmp_path / "contracts" / "odd"
    folder.mkdir(parents=True)
    (folder / "v1.json").write_text(json.dumps(odd_contract()))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    house.reopen(CONTRACTS=json.dumps(["builtin", str(folder.parent)]))
    columns = ", ".join(f"{name} {source}" for name, (_, source, _) in COLUMNS.items())
    with house.hot() as hot:
        everything.only_primary_keys(hot)
        hot.execute(
            "CREATE TABLE odd (id text PRIMARY KEY, organization_id text NOT NULL, "
            f"happened_at timestamptz NOT NULL DEFAULT '2026-01-01', {columns})"  # type: ignore[arg-type]
        )
        for name, contract in house.app.contracts.items():
            if name == "odd":
                add_odd(hot)
            else:
                everything.fill(hot, contract, "org-a")
    house.init()
    with house.hot() as hot:
        for name, contract in house.app.contracts.items():
            landed = house.backfill(name)
            assert not landed.errors, landed.errors
            everything.keep(hot, contract)
            # As the archive leaves it: gone from the hot table, and no delete in the lake.
            hot.execute("SET session_replication_role = replica")
            hot.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(contract.source_table)))
    yield house
    house.close()


def add_odd(hot: psycopg.Connection[Any]) -> None:
    for name, (_, source, values) in COLUMNS.items():
        for number, value in enumerate(values):
            hot.execute(
                sql.SQL("INSERT INTO odd (id, organization_id, {}) VALUES (%s, 'org-a', %s::text::{})").format(
                    sql.Identifier(name), sql.SQL(source)
                ),
                [f"{name}-{number}", value],
            )
    hot.execute("INSERT INTO odd (id, organization_id) VALUES ('nothing', 'org-a')")


ELEMENTS = (
    "CASE WHEN v IS NOT NULL THEN (SELECT coalesce(array_agg(e ORDER BY i), '{}') FROM "
    "json_array_elements_text(v::json) WITH ORDINALITY AS x(e, i))::text[]::{t} END"
)
AS_TEXT = {"list": ELEMENTS, "binary": "decode(v, 'base64')", "timestamptz": "replace(v, 'Z', '+00')::{t}"}


def test_every_value_and_type_comes_back(everywhere: Lakehouse, tmp_path: Path) -> None:
    """Into a table and into each kind of file; hot tables stay empty."""
    for name, contract in everywhere.app.contracts.items():
        into_a_table(everywhere, name, contract)
        into_files(everywhere, name, contract, tmp_path)


def into_a_table(everywhere: Lakehouse, name: str, contract: Contract) -> None:
    done = bring(everywhere, name, where="true")
    assert done.target == f"table recalled_{name}"
    listed = sql.SQL(", ").join(sql.Identifier(c.source) for c in contract.columns)
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c.source)) for c in contract.columns)
    with everywhere.hot() as hot:
        kept, back = sql.Identifier(f"kept_{name}"), sql.Identifier(SCHEMA, f"recalled_{name}")
        types = [
            hot.execute(
                "SELECT array_agg(attname || ' ' || format_type(atttypid, atttypmod) ORDER BY attname) "
                "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attname = ANY(%s)",
                [relation.as_string(hot), [c.source for c in contract.columns]],
            ).fetchone()
            for relation in (kept, back)
        ]
        assert types[0] == types[1], name
        count = hot.execute(sql.SQL("SELECT count(*) FROM {}").format(kept)).fetchone()
        assert count == (done.rows,) and done.rows >= everything.ROWS
        for one, other in ((kept, back), (back, kept)):
            query = sql.SQL("SELECT {t} FROM {a} EXCEPT ALL SELECT {t} FROM {b}").format(t=texts, a=one, b=other)
            assert hot.execute(query).fetchall() == [], name
        assert hot.execute(sql.SQL("SELECT {} FROM {} LIMIT 1").format(listed, back)).fetchone() is not None
        left = hot.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(contract.source_table)))
        assert left.fetchone() == (0,), "nothing is written over a hot table"


def into_files(everywhere: Lakehouse, name: str, contract: Contract, tmp_path: Path) -> None:
    digests = set()
    for target, (rows, read) in FORMATS.items():
        path = tmp_path / f"{name}.{target}"
        done = bring(everywhere, name, where="true", target=target, output=path)
        digests.add(done.content_sha256)
        with everywhere.hot() as hot:
            hot.execute("SET TimeZone = 'UTC'")
            found = list(rows(path, hot, contract))
            assert len(found) == done.rows >= everything.ROWS
            if target == "jsonl":
                # A line break between tokens cannot stand in a line.
                for column in contract.columns:
                    if column.type.name == "json" and column.source_type == "json":
                        kept = sql.Identifier(f"kept_{name}")
                        hot.execute(
                            sql.SQL("UPDATE {t} SET {c} = replace({c}::text, E'\\n', ' ')::json").format(
                                t=kept, c=sql.Identifier(column.source)
                            )
                        )
            assert everything.differences(hot, contract, found, read) == [], (name, target)
    assert len(digests) == 1


def from_parquet(path: Path, hot: Any, contract: Contract) -> Iterator[dict[str, Any]]:
    table = pq.read_table(path)
    for row in table.to_pylist():
        yield {k: literal(v) for k, v in row.items()}


def from_csv(path: Path, hot: Any, contract: Contract) -> Iterator[dict[str, Any]]:
    """By PostgreSQL, which tells an empty text from null."""
    text = path.read_bytes().decode()
    header = next(csv.reader([text.partition("\r\n")[0]]))
    hot.execute(f"CREATE TEMP TABLE read_csv ({', '.join(f'{json.dumps(n)} text' for n in header)})")
    with hot.cursor() as cursor, cursor.copy("COPY read_csv FROM STDIN (FORMAT csv, HEADER match)") as copy:
        copy.write(text)
    cursor = hot.execute("SELECT * FROM read_csv")
    for row in cursor.fetchall():
        yield dict(zip(header, row, strict=True))
    hot.execute("DROP TABLE read_csv")


def from_jsonl(path: Path, hot: Any, contract: Contract) -> Iterator[dict[str, Any]]:
    """Each member as it is written; a text, outside of JSON columns, as its value."""
    raw = {c.name for c in contract.columns if c.type.name == "json"}
    sys.setrecursionlimit(10_000)  # deeper than any of these documents
    for line in path.read_bytes().decode().split("\n")[:-1]:
        row: dict[str, Any] = dict.fromkeys(c.name for c in contract.columns)
        place = 1
        while line[place] != "}":
            name, place = DECODER.raw_decode(line, place + (line[place] == ","))
            start = end = place + 1
            value, end = DECODER.raw_decode(line, end + len(line[end:]) - len(line[end:].lstrip(" \t")))
            end += len(line[end:]) - len(line[end:].lstrip(" \t"))
            written = line[start:end]
            row[name] = value if name not in raw and written.startswith(('"', "null")) else written
            place = end
        yield row


DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


FORMATS: dict[Target, tuple[Callable[[Path, Any, Contract], Iterator[dict[str, Any]]], dict[str, str]]] = {
    "parquet": (from_parquet, {}),
    "csv": (from_csv, AS_TEXT),
    "jsonl": (from_jsonl, AS_TEXT),
}
