"""The canonical text of a row: one definition by which every engine compares content.

A hot row may be deleted only when the lake holds the same content, so PostgreSQL, DuckDB and the Python
reference below must print each value alike, to the byte. docs/canonical-row.md is the definition and
schemas/canonical_vectors.json holds its worked examples; the functions here only follow it.

Invariants: the text of a row names every exported column, in order of field id; two rows have one text only
if they have the same values. What the lake cannot hold (an infinite timestamp, a two-dimensional array, a
digit beyond the scale) still has a text, which no lake value has: such a row is unequal, never an error and
never NULL. The SQL is plain text with quoted names; a driver that reads `%` as a parameter needs it doubled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from schemas.contract import Column, Contract
from schemas.types import LogicalType

_NULL = "~,"
_ZERO = "0" * 16
_NAN = "7ff8" + "0" * 12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN_NUMERIC = re.compile(r"numeric\(\d+,(\d+)\)")
# The bounds of PostgreSQL's numeric; beyond them jsonb refuses a number, and so does the reference.
_NUMERIC_DIGITS, _NUMERIC_SCALE = 131072, 16383


def postgres_text(contract: Contract, columns_source: bool = True, alias: str = "") -> str:
    """The SQL expression of a row's canonical text in PostgreSQL (14 or newer, server encoding UTF8).

    Over the hot table's columns; with `columns_source` false over a table that carries the lake's names and
    types, such as a replica. `alias` is the name of the table in the query, unquoted.
    """
    return " || ".join(postgres_field_text(c, columns_source, alias) for c in _ordered(contract))


def postgres_hash(contract: Contract, columns_source: bool = True, alias: str = "") -> str:
    """The SQL expression of a row's canonical hash in PostgreSQL: SHA-256 in lower-case hex."""
    return f"encode(sha256(convert_to({postgres_text(contract, columns_source, alias)}, 'UTF8')), 'hex')"


def postgres_field_text(column: Column, columns_source: bool = True, alias: str = "") -> str:
    """The SQL expression of one column's share of `postgres_text`; to name the columns that differ."""
    name = _column(column.source if columns_source else column.name, alias)
    # Only the hot column's own type is known well enough for a short cut.
    return _postgres_field(column.type, name, column.source_type if columns_source else "")


def duckdb_text(contract: Contract, alias: str = "") -> str:
    """The SQL expression of a row's canonical text in DuckDB, over the lake's columns. Needs no extension."""
    # concat() copies once where a chain of || copies for each column; no field is NULL, which it would skip.
    return f"concat({', '.join(duckdb_field_text(c, alias) for c in _ordered(contract))})"


def duckdb_hash(contract: Contract, alias: str = "") -> str:
    """The SQL expression of a row's canonical hash in DuckDB: SHA-256 in lower-case hex."""
    return f"sha256({duckdb_text(contract, alias)})"


def duckdb_field_text(column: Column, alias: str = "") -> str:
    """The SQL expression of one column's share of `duckdb_text`; to name the columns that differ."""
    return _duckdb_field(column.type, _column(column.name, alias))


def python_text(contract: Contract, row: Mapping[str, Any]) -> str:
    """The canonical text of a row given by lake names; the reference for vectors and receipts.

    Values are what pyarrow and psycopg return (a naive datetime is UTC). A json value that is a str is the
    stored text; anything else is printed by `canonical_json`.

    Raises:
        KeyError: the row lacks an exported column.
    """
    return "".join(_python_field(c.type, row[c.name]) for c in _ordered(contract))


def python_field_text(column: Column, value: Any) -> str:
    """One column's share of `python_text`."""
    return _python_field(column.type, value)


def python_hash(contract: Contract, row: Mapping[str, Any]) -> str:
    """SHA-256 of `python_text` in lower-case hex."""
    return hashlib.sha256(python_text(contract, row).encode()).hexdigest()


def _ordered(contract: Contract) -> Iterable[Column]:
    """By id, which is permanent; the order of the contract's list is for readers and may change."""
    return sorted(contract.columns, key=lambda c: c.id)


def _column(name: str, alias: str) -> str:
    return f"{_quoted(alias)}.{_quoted(name)}" if alias else _quoted(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _sql_netstring(length: str, text: str) -> str:
    """A field in either dialect; `text` is NULL exactly if the value is."""
    return f"coalesce({length} || ':' || {text} || ',', '{_NULL}')"


def _sql_boolean(value: str) -> str:
    return f"CASE {value} WHEN true THEN '1:t,' WHEN false THEN '1:f,' ELSE '{_NULL}' END"


def _sql_double(value: str, is_nan: str, bits: str) -> str:
    return (
        f"CASE WHEN {value} IS NULL THEN '{_NULL}' WHEN {value} = 0 THEN '16:{_ZERO},' "
        f"WHEN {is_nan} THEN '16:{_NAN},' ELSE '16:' || {bits} || ',' END"
    )


def _postgres_field(kind: LogicalType, value: str, source_type: str) -> str:
    if kind.name == "list":
        return _postgres_list(kind, value)
    if kind.name == "boolean":
        return _sql_boolean(value)
    if kind.name == "double":
        double = f"({value})::float8"
        return _sql_double(double, f"{double} = 'NaN'::float8", f"encode(float8send({double}), 'hex')")
    if kind.name == "binary":
        return _sql_netstring(f"2 * octet_length({value})", f"encode({value}, 'hex')")
    if kind.name == "json" and source_type == "jsonb":
        # Printing jsonb is most of the work on a row of events: OFFSET 0 keeps it to once (a quarter less).
        return (
            f"coalesce((SELECT octet_length(_v) || ':' || _v || ',' "
            f"FROM (SELECT ({value})::text AS _v OFFSET 0) AS _s), '{_NULL}')"
        )
    text = _postgres_value(kind, value, source_type)
    return _sql_netstring(f"octet_length({text})", text)


def _postgres_value(kind: LogicalType, value: str, source_type: str) -> str:
    if kind.name == "decimal":
        plain = _PLAIN_NUMERIC.fullmatch(source_type)
        if plain and int(plain[1]) == kind.scale:
            return f"({value})::text"
        number = f"({value})::numeric"
        padded = f"round({number}, {kind.scale})"
        return f"CASE WHEN {number} = {padded} THEN {padded}::text ELSE trim_scale({number})::text END"
    if kind.name == "timestamptz":
        # extract() is an exact numeric with six fraction digits since 14, and takes a timestamp without time
        # zone as UTC. trunc() drops zeros only and, unlike ::bigint, prints infinity instead of failing.
        return f"trunc(extract(epoch FROM {value}) * 1000000)::text"
    if kind.name == "date":
        return f"CASE WHEN isfinite({value}) THEN ({value} - DATE '1970-01-01')::text ELSE ({value})::text END"
    return f"({value})::text"


def _postgres_list(kind: LogicalType, value: str) -> str:
    element = _postgres_field(LogicalType(kind.element), "_e", "")
    return (
        # An empty list, the host's usual default, spares the subquery.
        f"CASE WHEN {value} IS NULL THEN '{_NULL}' WHEN cardinality({value}) = 0 THEN '3:0[],' "
        # Other bounds or dimensions than a list's are lost in Arrow: '!' makes such a row unequal.
        f"WHEN array_ndims({value}) > 1 OR array_lower({value}, 1) <> 1 THEN '!,' "
        f"ELSE (SELECT octet_length(_v) || ':' || _v || ',' FROM (SELECT cardinality({value}) || '[' "
        f"|| string_agg({element}, '' ORDER BY _i) || ']' AS _v "
        f"FROM unnest({value}) WITH ORDINALITY AS _u(_e, _i)) AS _s) END"
    )


def _duckdb_field(kind: LogicalType, value: str) -> str:
    if kind.name == "boolean":
        return _sql_boolean(value)
    if kind.name == "double":
        return _sql_double(value, f"isnan({value})", f"lower(hex({value}::BIT::BLOB))")
    if kind.name == "binary":
        return _sql_netstring(f"2 * octet_length({value})", f"lower(hex({value}))")
    text = _duckdb_value(kind, value)
    field = _sql_netstring(f"strlen({text})", text)
    if kind.name == "timestamptz":
        # epoch_us() of an infinite timestamp is NULL; that must not read as a null value.
        return f"CASE WHEN {value} IS NOT NULL AND NOT isfinite({value}) THEN '!,' ELSE {field} END"
    return field


def _duckdb_value(kind: LogicalType, value: str) -> str:
    if kind.name == "list":
        element = _duckdb_field(LogicalType(kind.element), "_e")
        return f"len({value}) || '[' || array_to_string(list_transform({value}, lambda _e: {element}), '') || ']'"
    if kind.name == "timestamptz":
        return f"epoch_us({value})::VARCHAR"
    if kind.name == "date":
        return f"({value} - DATE '1970-01-01')::VARCHAR"
    if kind.name == "decimal" and kind.precision == kind.scale:
        # DuckDB prints decimal(2,2) without its zero: .50
        return f"replace({value}::VARCHAR, '.', '0.')"
    return value if kind.name in ("string", "json") else f"{value}::VARCHAR"


def _python_field(kind: LogicalType, value: Any) -> str:
    if value is None:
        return _NULL
    text = _python_value(kind, value)
    return f"{len(text.encode())}:{text},"


def _python_value(kind: LogicalType, value: Any) -> str:  # noqa: PLR0911  (one return a type reads best)
    match kind.name:
        case "list":
            element = LogicalType(kind.element)
            return f"{len(value)}[{''.join(_python_field(element, item) for item in value)}]"
        case "boolean":
            return "t" if value else "f"
        case "integer" | "long":
            return str(int(value))
        case "decimal":
            return _decimal_text(Decimal(value), kind.scale)
        case "double":
            number = float(value)
            if number == 0:
                return _ZERO
            return _NAN if math.isnan(number) else struct.pack(">d", number).hex()
        case "timestamptz":
            moment: datetime = value if value.tzinfo else value.replace(tzinfo=UTC)
            return str((moment - _EPOCH) // timedelta(microseconds=1))
        case "date":
            day: date = value
            return str(day.toordinal() - _EPOCH.toordinal())
        case "binary":
            return bytes(value).hex()
        case "json" if not isinstance(value, str):
            return canonical_json(value)
        case _:
            return str(value)


def _decimal_text(value: Decimal, scale: int) -> str:
    """Exactly `scale` fraction digits, more only where dropping them would change the value."""
    if not value.is_finite():
        return "NaN" if value.is_nan() else "Infinity" if value > 0 else "-Infinity"
    whole, _, fraction = format(value.copy_abs(), "f").partition(".")  # abs() rounds to the context's 28 digits
    fraction = fraction[:scale].ljust(scale, "0") + fraction[scale:].rstrip("0")
    return ("-" if value < 0 else "") + whole + ("." + fraction if fraction else "")


def decode_json(text: str) -> Any:
    """JSON text as Python values that keep what jsonb keeps: each number's digits; the last of a doubled key.

    Raises:
        ValueError: not JSON.
    """
    return json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=_refused)


def canonical_json(value: Any) -> str:
    """Print a decoded JSON value as PostgreSQL's jsonb prints it.

    Keys by length in bytes, then bytes; numbers without exponent and with their scale; only control
    characters, quote and backslash escaped. A float is printed by its shortest digits.

    Raises:
        ValueError: what jsonb refuses: NaN, infinity, a number out of its range, NUL, half a surrogate pair.
        TypeError: not a JSON value.
    Source: PostgreSQL, src/backend/utils/adt/json.c (escape_json), jsonb_util.c (lengthCompareJsonbString).
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _json_string(value)
    if isinstance(value, int | float | Decimal):
        return _json_number(Decimal(repr(value)) if isinstance(value, float) else Decimal(value))
    if isinstance(value, Mapping):
        by_bytes = sorted(((key.encode(), key) for key in value), key=lambda k: (len(k[0]), k[0]))
        return "{" + ", ".join(f"{_json_string(k)}: {canonical_json(value[k])}" for _, k in by_bytes) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return "[" + ", ".join(map(canonical_json, value)) + "]"
    raise TypeError(f"not a JSON value: {type(value).__name__}")


def _json_number(value: Decimal) -> str:
    # Checked before printing: 1e999999999 would be a gigabyte of zeros.
    if (
        not value.is_finite()
        or int(value.as_tuple().exponent) < -_NUMERIC_SCALE
        or (value and value.adjusted() >= _NUMERIC_DIGITS)
    ):
        _refused("a number out of the range of numeric")
    return format(value if value else value.copy_abs(), "f")  # no negative zero


def _json_string(value: str) -> str:
    if "\0" in value:
        _refused("NUL")
    value.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    return json.dumps(value, ensure_ascii=False)


def _refused(what: str) -> Any:
    raise ValueError(f"jsonb cannot hold {what}")
