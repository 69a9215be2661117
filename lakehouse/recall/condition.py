"""A condition that a person wrote (`--where`): one SQL expression over a table's columns, and nothing besides.

DuckDB parses it in the place where it will stand, and the tree is looked at: one SELECT with this one WHERE, made of
columns of the table, constants and scalar functions. Subqueries, other tables, files, settings and functions whose
answer changes from call to call are refused. The engine that runs it reads the table's own folder and nothing else
(`lakehouse.recall.select`), so what this would let through reads nothing either.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from lakehouse.recall.request import RecallError

_PLACES = ("SELECT * FROM rows WHERE\n{}\n", "SELECT * FROM rows WHERE (\n{}\n)")
"""Without parentheses none can be closed too early; within them nothing can follow the condition."""
_OWN_SCHEMAS = {"", "main", "pg_catalog"}
"""Which the parser itself writes before functions that have a syntax of their own."""
_HINT = "Write one SQL condition over the table's columns, as it would stand behind WHERE."
_EXPRESSIONS = {
    "COMPARISON", "CONJUNCTION", "FUNCTION", "COLUMN_REF", "CONSTANT", "CAST", "OPERATOR", "CASE", "BETWEEN", "LAMBDA",
    "COLLATE",
}  # fmt: skip
_NAMES = {"SUBQUERY": "a subquery", "WINDOW": "a window function", "STAR": "a star", "PARAMETER": "a parameter"}
_FORBIDDEN = {"current_setting", "getvariable", "setseed", "write_log", "nextval", "currval", "stats", "in_search_path"}
_CLOCKS = {"now", "today", "current_date", "transaction_timestamp", "get_current_time", "get_current_timestamp"}
_MACROS = {"nullif", "split_part", "json", "ago", "days_in_month", "date_add", "fmod", "fdiv", "array_to_string"}


def check_condition(condition: str, columns: Iterable[str]) -> str:
    """The condition as it may stand behind WHERE.

    Raises:
        RecallError: it is not one condition over these columns; the message says what is wrong.
    """
    import duckdb

    with duckdb.connect(config={"enable_external_access": "false"}) as engine:
        functions, known = _functions(engine), sorted(columns)
        for place in _PLACES:
            text = engine.execute("SELECT json_serialize_sql(?)", [place.format(condition)]).fetchall()[0][0]
            tree = json.loads(text)
            if tree["error"]:
                # What it cannot print as a tree is no SELECT: more than one statement.
                fault = tree["error_message"] if tree["error_type"] == "parser" else "is more than one statement"
                raise RecallError(f"--where: {fault}", _HINT)
            _check_statement(tree["statements"])
            where = tree["statements"][0]["node"]["where_clause"]
            _check(where, {c.casefold() for c in known}, frozenset(), functions, known)
    return condition


def _check_statement(statements: list[dict[str, Any]]) -> None:
    node = statements[0]["node"] if len(statements) == 1 else {}
    table = node.get("from_table") or {}
    plain = (
        node.get("type") == "SELECT_NODE"
        and table.get("type") == "BASE_TABLE"
        and not node["modifiers"]
        and not node["cte_map"]["map"]
        and not any(node[k] for k in ("group_expressions", "group_sets", "having", "qualify", "sample"))
        and not any(table[k] for k in ("sample", "alias", "at_clause"))
        and node["where_clause"] is not None
    )
    if not plain:
        raise RecallError("--where: is more than one condition", _HINT)


def _functions(engine: Any) -> frozenset[str]:
    """Scalar functions that answer the same to the same, and a few macros of them."""
    rows = engine.execute(
        "SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar' GROUP BY 1 "
        "HAVING bool_and(stability = 'CONSISTENT')"
    ).fetchall()
    names = {name.casefold() for (name,) in rows} | _CLOCKS | _MACROS
    return frozenset(names - _FORBIDDEN)


def _check(
    node: Mapping[str, Any], columns: set[str], local: frozenset[str], functions: frozenset[str], known: list[str]
) -> None:
    kind = node["class"]
    if kind not in _EXPRESSIONS:
        what = _NAMES.get(kind, kind.lower().replace("_", " "))
        raise RecallError(
            f"--where: {what} is not allowed in it", "A condition looks at one row of the table: its own columns."
        )
    again = functools.partial(_check, columns=columns, functions=functions, known=known)
    if kind == "COLUMN_REF":
        names = [n.casefold() for n in node["column_names"]]
        if len(names) != 1 or names[0] not in columns | local:
            shown = ".".join(node["column_names"])
            raise RecallError(f"--where: the table has no column {shown!r}", f"There are: {', '.join(known)}")
        return
    if kind == "LAMBDA":
        inner = frozenset(n.casefold() for ref in _references(node["lhs"]) for n in ref["column_names"])
        again(node["expr"], local=local | inner)
        return
    if kind == "FUNCTION":
        name = node["function_name"].casefold()
        own = node["schema"] in _OWN_SCHEMAS and node["catalog"] in ("", "system")
        if name not in functions or not own or node["filter"] or node["distinct"]:
            raise RecallError(
                f"--where: the function {node['function_name']} is not allowed in it",
                "Scalar functions of DuckDB that answer the same to the same may be used.",
            )
    for child in _children(node):
        again(child, local=local)


def _children(node: Any) -> Iterable[Mapping[str, Any]]:
    """Expressions right below this one."""
    for value in node.values():
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, Mapping):
                if "class" in item:
                    yield item
                else:
                    yield from _children(item)


def _references(node: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if node["class"] == "COLUMN_REF":
        yield node
    for child in _children(node):
        yield from _references(child)
