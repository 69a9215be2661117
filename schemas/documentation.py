"""docs/tables.md: what each table of the lake holds, derived from the contracts and from nothing else.

The same contracts give the same text, so a test can say that the committed file is up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from schemas.contract import Column, Contract
from schemas.lake_columns import LAKE_COLUMNS
from schemas.views import latest_view_sql

_HEAD = """\
# Tables

Derived from the contracts (`schemas/<table>/v<major>.json`); do not edit. Regenerate with
`lakehouse contract docs > docs/tables.md`.

Each organization has these tables in a namespace of its own. A table is a history: one row for each version of a
key that was captured. The latest state is a view, shown with each table. *null* says what the source promises; in the
lake every column but key, organization, event time and the lake's own may be null, because a delete carries no more.
"""

_RETENTION = {
    "applies": "the organization's retention window may delete the hot row; the lake keeps it",
    "optional": "retention deletes the hot row only where it is turned on for this table; the lake keeps it",
    "never": "retention leaves the hot row alone",
}


def contracts_markdown(contracts: Mapping[str, Contract]) -> str:
    """Markdown for all the tables, by name; ends with a line feed."""
    ordered = [contracts[name] for name in sorted(contracts)]
    parts = [_HEAD, *_table(("table", "holds", "source", "version"), map(_index_row, ordered)), ""]
    parts += ["## Columns of the lake's own, in every table", ""]
    parts += _columns(LAKE_COLUMNS)
    for contract in ordered:
        parts += ["", *_section(contract)]
    return "\n".join(parts) + "\n"


def _index_row(contract: Contract) -> tuple[str, ...]:
    # The heading's anchor as GitHub makes it: names are lower snake case, so it is the name itself.
    return f"[{contract.table}](#{contract.table})", contract.title, _code(contract.source_name), contract.version


def _section(contract: Contract) -> Iterator[str]:
    yield from (f"## {contract.table}", "", f"**{contract.title}.** {contract.description}", "")
    if contract.provisional:
        yield from ("*Provisional: the source table is planned and may not be there yet.*", "")
    yield f"- Source: {_code(contract.source_name)}; contract version {contract.version}"
    yield f"- Key: {_codes(contract.primary_key)}; organization: {_code(contract.tenant)}"
    if contract.event_time:
        yield f"- Event time: {_code(contract.event_time)}; the lake is partitioned by its UTC day"
    else:
        yield "- Event time: none; the lake table is not partitioned"
    if contract.watermark:
        every = "each insert and update stamps it" if contract.watermark.every_change else "not every change stamps it"
        yield f"- Watermark: {_code(contract.watermark.column)}; {every}"
    bounds = f"; age is the newest of {_codes(contract.age_bounds)}" if contract.age_bounds else ""
    yield f"- Retention: {contract.retention} ({_RETENTION[contract.retention]}){bounds}"
    if (states := contract.states) is not None:
        if states.never_old:
            yield f"- In use, so never old, while {_code(states.column)} is {_codes(states.never_old)}"
        if states.finished:
            yield f"- Not in use any more while it is {_codes(states.finished)}; in a state that is in no list, it is"
        if states.old_since_landing:
            yield (
                f"- While {_code(states.column)} is {_codes(states.old_since_landing)}, which no timestamp records, "
                "age counts from the landing of the first version that says so"
            )
    yield ""
    yield from _columns(contract.columns)
    yield ""
    if contract.not_exported:
        yield "Not exported:"
        yield ""
        for item in contract.not_exported:
            yield f"- {_code(item.column)}: {item.reason}"
    else:
        yield "Every column of the source table is exported."
    relation = f'"{contract.table}"'
    yield from ("", "The latest state (DuckDB):", "", "```sql", latest_view_sql(contract, relation=relation), "```")


def _columns(columns: Iterable[Column]) -> list[str]:
    return _table(("id", "name", "type", "null", "sensitivity", "description"), map(_column_row, columns))


def _column_row(column: Column) -> tuple[str, ...]:
    text = column.description
    if column.source != column.name:
        text += f" Hot column {_code(column.source)}."
    if not column.since.endswith(".0"):
        text += f" Since {column.since}."
    null = "yes" if column.nullable else ""
    return str(column.id), _code(column.name), _code(str(column.type)), null, column.sensitivity, text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *(tuple(map(_cell, row)) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))
