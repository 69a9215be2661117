"""A row as one line of text, written by DuckDB: for COPY, for CSV and for JSON Lines.

Text is made by the engine, a column at a time, so no value becomes a Python object. What a value looks like:

- COPY: PostgreSQL's text format, as `COPY … FROM STDIN` reads it; a list is an array literal.
- JSON Lines: one object a line, keys in the contract's order. JSON columns are JSON, with the text that the source
  printed (a line break between its tokens becomes a space); one that is null is left out, for `null` is a JSON value
  too. Decimals are numbers with all their digits, timestamps ISO 8601 in UTC with microseconds, binary is base64; NaN
  and Infinity are strings.
- CSV: RFC 4180 with a header, lines ended by CR LF. Nothing between two commas is null; `""` is an empty text. Texts,
  JSON and binary are quoted always; lists are JSON arrays; the rest is as in JSON Lines, without quotes.

Source: rfc-editor.org/rfc/rfc4180; postgresql.org/docs/current/sql-copy.html, "Text Format".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from lakehouse.duck import literal, quoted
from schemas.contract import Column, Contract
from schemas.types import LogicalType

MOMENT = "%Y-%m-%dT%H:%M:%S.%fZ"


def copy_line(contract: Contract, first: Sequence[str] = ()) -> str:
    """The SQL of a row as a line of COPY's text format: these values first (plain texts), then the columns."""
    fields = [literal(text) for text in first]
    fields += [f"coalesce({_copy_field(c.type, quoted(c.name))}, '\\N')" for c in contract.columns]
    return f"concat({f', {TAB}, '.join(fields)})"


TAB = "chr(9)"


def _copy_field(kind: LogicalType, value: str) -> str:
    text = _array(kind, value) if kind.is_list else _postgres_value(kind, value)
    if kind.is_list or kind.name in ("string", "json", "binary"):
        for plain, escaped in (("chr(92)", "chr(92) || chr(92)"), (TAB, "'\\t'"), ("chr(10)", "'\\n'")):
            text = f"replace({text}, {plain}, {escaped})"
        text = f"replace({text}, chr(13), '\\r')"
    return text


def _postgres_value(kind: LogicalType, value: str) -> str:
    """As PostgreSQL's input functions read it; an engine without JSON or decimals prints them as text already."""
    if kind.name in ("string", "json"):
        return value
    if kind.name == "binary":
        return f"'\\x' || hex({value})"
    return f"{value}::VARCHAR"


def _array(kind: LogicalType, value: str) -> str:
    element = LogicalType(kind.element)
    text = _postgres_value(element, "_e")
    if element.name in ("string", "json", "binary", "timestamptz"):
        text = f"concat('\"', replace(replace({text}, chr(92), chr(92) || chr(92)), '\"', chr(92) || '\"'), '\"')"
    items = f"list_transform({value}, lambda _e: CASE WHEN _e IS NULL THEN 'NULL' ELSE {text} END)"
    return f"CASE WHEN {value} IS NULL THEN NULL ELSE concat('{{', array_to_string({items}, ','), '}}') END"


def json_line(contract: Contract) -> str:
    """The SQL of a row as a JSON object on one line."""
    members = []
    for column in contract.columns:
        key, value = literal(f",{json.dumps(column.name)}:"), _json_field(column.type, quoted(column.name))
        # What is null is left out by concat(), with its name.
        members.append(f"{key} || {value}" if column.type.name == "json" else f"{key} || coalesce({value}, 'null')")
    return f"concat('{{', substr(concat({', '.join(members)}), 2), '}}')"


def csv_header(contract: Contract) -> str:
    """The first line."""
    return ",".join(_csv_text(c.name) for c in contract.columns)


def _csv_text(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def csv_line(contract: Contract) -> str:
    """The SQL of a row as a line of CSV, without its end."""
    fields = [f"coalesce({_csv_field(c)}, '')" for c in contract.columns]
    return f"concat({', chr(44), '.join(fields)})"


def _csv_field(column: Column) -> str:
    value = quoted(column.name)
    kind = column.type
    if kind.name in ("string", "json"):
        text = value
    elif kind.is_list:
        text = _json_field(kind, value)
    elif kind.name == "binary":
        # Empty, it is nothing between two commas, which is null.
        text = _PLAIN[kind.name](value)
    else:
        return _PLAIN[kind.name](value)
    return f"'\"' || replace({text}, '\"', '\"\"') || '\"'"


def _double(value: str) -> str:
    return (
        f"CASE WHEN isnan({value}) THEN 'NaN' WHEN isinf({value}) THEN "
        f"CASE WHEN {value} > 0 THEN 'Infinity' ELSE '-Infinity' END ELSE {value}::VARCHAR END"
    )


_PLAIN: dict[str, Callable[[str], str]] = {
    "boolean": lambda v: f"{v}::VARCHAR",
    "integer": lambda v: f"{v}::VARCHAR",
    "long": lambda v: f"{v}::VARCHAR",
    "double": _double,
    # DuckDB prints decimal(2,2) without its zero: .50
    "decimal": lambda v: f"regexp_replace({v}::VARCHAR, '^(-?)\\.', '\\10.')",
    "date": lambda v: f"{v}::VARCHAR",
    "timestamptz": lambda v: f"strftime({v}, {literal(MOMENT)})",
    "binary": lambda v: f"to_base64({v})",
}


def _json_field(kind: LogicalType, value: str) -> str:
    if kind.is_list:
        element = f"coalesce({_json_field(LogicalType(kind.element), '_e')}, 'null')"
        items = f"list_transform({value}, lambda _e: {element})"
        return f"CASE WHEN {value} IS NULL THEN NULL ELSE concat('[', array_to_string({items}, ','), ']') END"
    if kind.name == "string":
        return f"to_json({value})::VARCHAR"
    if kind.name == "json":
        # A raw line break can stand between tokens only: inside of a string JSON wants it escaped.
        return f"replace(replace({value}, chr(13), ' '), chr(10), ' ')"
    text = _PLAIN[kind.name](value)
    if kind.name == "double":
        return f"CASE WHEN isnan({value}) OR isinf({value}) THEN '\"' || {text} || '\"' ELSE {text} END"
    return f"'\"' || {text} || '\"'" if kind.name in ("date", "timestamptz", "binary") else text
