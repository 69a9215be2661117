"""Every type of the contracts with its edge values goes out to the lake and comes back as it was.

PostgreSQL is the judge: what the lake holds is given back to it as text and must be the value again, and print alike.
What the lake cannot hold is quarantined: test_bad_input_values.py.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from psycopg import sql

from tests.support import Lakehouse, host_tables, local_variables

UNICODE = (
    "".join(map(chr, range(1, 0x20))),
    "\x7f\x80\x9f\u00a0\u00ad",
    "e\u0301 \u00e9 \u1e9b\u0323 \u212b",  # two spellings of one letter, and what normalization would change
    "\U0001f469\U0001f3fd\u200d\U0001f680\ufe0f \U0001f1e8\U0001f1ed",
    "\u202e\u0627\u0644\u0639\u0631\u0628\u064a\u0629\u202c \u05e2\u05d1\u05e8\u05d9\u05ea \u200f\u200e",
    "\ufeff\ufffd\ufffe\uffff\ue000\U000f0000\U0010ffff",
    "\u0130\u0131\u00df\u1e9e\ufb03",
    "\u2028\u2029\u0085\r\n\t ",
    "NULL",
    "~",
    "''\"\"\\\\%s{}",
)
TEXTS = ("", " ", *UNICODE)
JSONB = (
    "null",
    '""',
    "{}",
    "[]",
    '{"a": {"a": ""}, "": null, "b": [null, [], {}]}',
    "[" * 2000 + "]" * 2000,
    '{"k": ' * 500 + "1" + "}" * 500,
    "1e400",
    "-1e-400",
    "1" + "0" * 130_000,
    "0." + "0" * 16_000 + "1",
    "[1.10, 100000000000000000000000000000000000001, -0, 1E5]",
    json.dumps(list(UNICODE)),
)
JSON = (
    '{"a": 1, "a": 2, "b" : 1e999999, "a":3}',
    '"\\u0000 \\ud800 \\uDFFF"',
    " [ 1.0 ,\n\t-0, 1E+5 ] ",
    "[" * 1500 + "]" * 1500,
    "",  # replaced: json has no empty text
)
DOUBLES = (
    "0",
    "-0",
    "NaN",
    "Infinity",
    "-Infinity",
    "5e-324",
    "-1.7976931348623157e308",
    "0.1",
    "1e22",
    "123456789.123",
)
COLUMNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # Lake column: logical type, PostgreSQL type, edge values as PostgreSQL reads them.
    "words": ("string", "text", TEXTS),
    "short": ("string", "character varying(20)", ("", "\U0001f680" * 20, " x ", "x" * 20)),
    "label": ("string", '"Severity"', ("CRITICAL", "INFO")),
    "flag": ("boolean", "boolean", ("t", "f")),
    "small": ("integer", "smallint", ("-32768", "32767", "0")),
    "whole": ("integer", "integer", ("-2147483648", "2147483647", "0")),
    "big": ("long", "bigint", ("-9223372036854775808", "9223372036854775807", "0")),
    "double": ("double", "double precision", DOUBLES),
    "exact": ("decimal(38,10)", "numeric(38,10)", ("9" * 28 + "." + "9" * 10, "-1e27", "0", "1e-10")),
    "share": ("decimal(5,2)", "numeric(5,2)", ("999.99", "-999.99", "0.00", "0.5")),
    "tiny": ("decimal(38,38)", "numeric(38,38)", ("0." + "9" * 38, "-0." + "9" * 38, "1e-38")),
    "day": ("date", "date", ("0001-01-01", "9999-12-31", "1969-12-31", "1582-10-10", "2000-02-29")),
    "moment": (
        "timestamptz",
        "timestamp without time zone",
        ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999999", "1969-12-31 23:59:59.999999", "2026-03-29 02:30:00"),
    ),
    "zoned": (
        "timestamptz",
        "timestamp with time zone",
        ("0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00", "1900-01-01 12:00:00-11:30"),
    ),
    "doc": ("json", "jsonb", JSONB),
    "raw": ("json", "json", JSON[:-1]),
    "bytes": ("binary", "bytea", ("\\x", "\\x00ff", "\\x" + "00" * 1000)),
    "words_list": ("list<string>", "text[]", ("{}", "{NULL}", '{"",NULL," ","NULL","a,b","{}","\\"","\\\\"}')),
    "labels": ("list<string>", '"Severity"[]', ("{}", "{INFO,NULL,CRITICAL}")),
    "flags": ("list<boolean>", "boolean[]", ("{}", "{t,NULL,f}")),
    "wholes": ("list<integer>", "integer[]", ("{}", "{-2147483648,NULL,2147483647}")),
    "bigs": ("list<long>", "bigint[]", ("{}", "{-9223372036854775808,NULL,9223372036854775807}")),
    "doubles": ("list<double>", "double precision[]", ("{}", "{" + ",".join(DOUBLES) + ",NULL}")),
}  # fmt: skip
MEGABYTES = 20


def contract() -> dict[str, Any]:
    names = {
        "id": ("string", "text"),
        "organization_id": ("string", "text"),
        "happened_at": ("timestamptz", "timestamp with time zone"),
    }
    every = names | {name: (kind, source) for name, (kind, source, _) in COLUMNS.items()}
    lists = [name for name, (kind, _) in every.items() if kind.startswith("list")]
    return {
        "table": "odd",
        "version": "1.0",
        "title": "Every type",
        "description": "Every type.",
        "source": {"schema": "public", "table": "odd"},
        "tenant": "organization_id",
        "primary_key": ["id"],
        "event_time": "happened_at",
        "watermark": None,
        "age_bounds": ["happened_at"],
        "retention": "never",
        "columns": [
            {
                "id": 6 + place,
                **({"element_id": 6 + len(every) + lists.index(name)} if name in lists else {}),
                "name": name,
                "type": kind,
                "nullable": name not in names,
                "source": name,
                "source_type": source,
                "description": name,
                "sensitivity": "internal",
            }
            for place, (name, (kind, source)) in enumerate(every.items())
        ],
        "not_exported": [],
    }


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    folder = tmp_path / "contracts" / "odd"
    folder.mkdir(parents=True)
    (folder / "v1.json").write_text(json.dumps(contract()))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    house.reopen(CONTRACTS=json.dumps(["builtin", str(folder.parent)]))
    columns = ", ".join(f"{name} {source}" for name, (_, source, _) in COLUMNS.items())
    with house.hot() as hot:
        hot.execute(
            "CREATE TABLE odd (id text PRIMARY KEY, organization_id text NOT NULL, "
            f"happened_at timestamptz NOT NULL DEFAULT '2026-01-01', {columns})"  # type: ignore[arg-type]
        )
    house.init()
    yield house
    house.close()


def add(house: Lakehouse, prefix: str) -> int:
    """A row for each edge value, all other columns null; how many."""
    count = 0
    with house.hot() as hot:
        for name, (_, source, values) in COLUMNS.items():
            for number, value in enumerate(values):
                hot.execute(
                    sql.SQL("INSERT INTO odd (id, organization_id, {}) VALUES (%s, 'org-a', %s::text::{})").format(
                        sql.Identifier(name), sql.SQL(source)
                    ),
                    [f"{prefix}-{name}-{number}", value],
                )
                count += 1
        hot.execute(
            "INSERT INTO odd (id, organization_id, doc, raw) SELECT %s, 'org-a', d::jsonb, d::json FROM "
            "(SELECT '[\"' || repeat('0123456789abcdef', %s::int * 1024 * 64) || '\"]' AS d) x",
            [f"{prefix}-large", MEGABYTES],
        )
    return count + 1


def literal(value: Any) -> Any:
    """A value of the lake as PostgreSQL reads it."""
    match value:
        case bool():
            return "t" if value else "f"
        case bytes():
            return "\\x" + value.hex()
        case float():
            return "-0" if value == 0 and struct.pack(">d", value)[0] else repr(value).replace("inf", "Infinity")
        case datetime():
            return value.astimezone(UTC).isoformat(sep=" ")
        case date() | Decimal():
            return f"{value:f}" if isinstance(value, Decimal) else value.isoformat()
        case list():
            escaped = [
                "NULL" if v is None else '"' + str(literal(v)).replace("\\", "\\\\").replace('"', '\\"') + '"'
                for v in value
            ]
            return "{" + ",".join(escaped) + "}"
        case _:
            return None if value is None else str(value)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def test_every_type_and_edge_value_comes_back_as_it_was(house: Lakehouse) -> None:
    expected = add(house, "backfilled")
    assert house.backfill("odd").rows == {"org-a": expected}
    expected += add(house, "captured")
    assert house.sync_ok("odd").quarantined == {}
    house.assert_equal("odd")

    lake: pa.Table = house.lake_table("odd", "org-a").scan().to_arrow()
    assert lake.num_rows == expected
    judged = 0
    with house.hot() as hot:
        hot.execute("SET TimeZone = 'UTC'")
        for row in lake.to_pylist():
            for name in [n for n in COLUMNS if row[n] is not None]:
                source, value = COLUMNS[name][1], literal(row[name])
                if source == "timestamp without time zone":
                    value = value.removesuffix("+00:00")  # UTC in the host
                found = hot.execute(
                    sql.SQL(
                        "SELECT {c}::text = %s::text::{t}::text, num_nonnulls({all}) FROM odd WHERE id = %s"
                    ).format(
                        c=sql.Identifier(name),
                        t=sql.SQL(source),
                        all=sql.SQL(", ").join(map(sql.Identifier, COLUMNS)),
                    ),
                    [value, row["id"]],
                ).fetchone()
                large = row["id"].endswith("-large")
                assert found == (True, 2 if large else 1), (row["id"], name, str(value)[:200])
                judged += 1
    # Each edge value twice, and the large document in two columns.
    assert judged == expected + 2
