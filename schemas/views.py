"""The published views over a lake table: its latest state, and its history.

A lake table is append-only: each row is one version of a key. The latest state is the version with the highest
`_sequence` of each key, unless that version is a delete; so deletes are dropped after versions are ranked, never
before, or the version under a delete would come back.

The window names the raw event time first, though the key alone identifies a row: it never changes for a key, and
only a filter on a column that the window partitions by is pushed below it, where it prunes files. Ten to seventy
times faster for a question about some days (a date_trunc of it, or the key alone, is not).
"""

from __future__ import annotations

from textwrap import fill
from typing import Final, Literal

from schemas.contract import Contract
from schemas.lake_columns import CAPTURED_AT, DELETE, LAKE_COLUMNS, OP, SEQUENCE

Dialect = Literal["duckdb"]
_QUOTE: Final[dict[Dialect, str]] = {"duckdb": '"'}


def latest_columns(contract: Contract) -> tuple[str, ...]:
    """What the latest view shows: the exported columns as the contract lists them, then which version it is."""
    return (*(column.name for column in contract.columns), SEQUENCE, CAPTURED_AT)


def history_columns(contract: Contract) -> tuple[str, ...]:
    """What the history shows: the exported columns as the contract lists them, then the lake's own."""
    return (*(column.name for column in contract.columns), *(column.name for column in LAKE_COLUMNS))


def latest_view_sql(contract: Contract, *, relation: str, dialect: Dialect = "duckdb", as_of: str | None = None) -> str:
    """The SELECT of a table's latest state.

    `relation` is what stands behind FROM: a quoted name, a scan, a subquery in parentheses. `as_of`, an SQL
    expression for a timestamp (a literal, a parameter), limits it to versions captured until then.
    """
    quote = _QUOTE[dialect]

    def quoted(names: tuple[str, ...]) -> str:
        return ", ".join(quote + name + quote for name in names)

    # Also where the event time is part of the key, but not its first column.
    event_time = (contract.event_time,) if contract.event_time else ()
    identity = tuple(dict.fromkeys((*event_time, *contract.primary_key)))
    # Lines that a person can read; names hold no space, so only between columns.
    shown = fill(quoted(latest_columns(contract)), width=110, subsequent_indent="    ", break_on_hyphens=False)
    until = f"\nWHERE {quoted((CAPTURED_AT,))} <= ({as_of})" if as_of is not None else ""
    return (
        f"SELECT {shown}\n"
        f"FROM {relation}{until}\n"
        f"QUALIFY row_number() OVER (PARTITION BY {quoted(identity)} ORDER BY {quoted((SEQUENCE,))} DESC) = 1\n"
        f"    AND {quoted((OP,))} <> '{DELETE}'"
    )
