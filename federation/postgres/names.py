"""The names of everything that a table needs in a replica's schema: no two tables may need one and the same.

PostgreSQL keeps tables, views and indexes apart by their name alone. What two of our tables both took for theirs would
be dropped or refused for ever by the one, and the advice to remove it would take the other's rows away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from federation.config import IDENTIFIER_BYTES
from federation.protocol import DestinationError
from schemas.errors import Retry

MARKS = "_lakehouse"
FILLINGS = "_lakehouse_filling"
SHARED_MARKS = "_lakehouse_all"


def own_names(table: str, *, history: bool) -> tuple[str, ...]:
    """Every name that a table's things have; a primary key's index is named by PostgreSQL."""
    tables = (f"_{table}", *([f"{table}_history"] if history else []))
    keys = [_primary_key(t) for t in tables]
    return (*tables, *keys, table, *(short(f"_{table}_{what}") for what in ("key", "sequence", "filling")))


def refuse_one_name(tables: Sequence[str], *, history: bool) -> None:
    """Each of these tables, and our marks, has names of its own.

    Raises:
        DestinationError: two need one and the same.
    """
    marks = (MARKS, FILLINGS, SHARED_MARKS)
    taken = {name: "our marks" for mark in marks for name in (mark, _primary_key(mark))}
    for table in dict.fromkeys(tables):
        for name in own_names(table, history=history):
            if name in taken:
                raise DestinationError(
                    f"{name} would be what both {table} and {taken[name]} have there",
                    f"Leave {table} out of this destination (--table), and give it another of its own.",
                    retry=Retry.NEVER,
                )
        taken |= dict.fromkeys(own_names(table, history=history), table)


def short(name: str) -> str:
    """A name that PostgreSQL would cut, cut by us so that it is nobody else's."""
    if len(name.encode()) <= IDENTIFIER_BYTES:
        return name
    return f"{name[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _primary_key(table: str) -> str:
    return f"{table[: IDENTIFIER_BYTES - len('_pkey')]}_pkey"
