"""What of a table is compared with the lake, and by which columns a row of it is named."""

from __future__ import annotations

from enum import StrEnum

from schemas.contract import Column, Contract
from schemas.lake_columns import LAKE_COLUMNS, OP, SEQUENCE


class Aspect(StrEnum):
    """What of a table is compared. Versions that are not the latest state are hashed with `_sequence` and `_op`."""

    LATEST = "latest"
    """The latest state: what readers are shown."""
    RANGE = "range"
    """Of each row that a range touched its newest version in it; of a delete, that it is there and nothing is shown."""
    HISTORY = "history"
    """Every version."""


def compared_by(contract: Contract, aspect: Aspect) -> tuple[str, ...]:
    """The columns that name a row of an aspect."""
    return (*contract.identity, *((SEQUENCE,) if aspect is Aspect.HISTORY else ()))


def compared(contract: Contract, aspect: Aspect) -> tuple[Column, ...]:
    """The columns whose difference is named, in the order of the canonical text."""
    own = [] if aspect is Aspect.LATEST else [c for c in LAKE_COLUMNS if c.name in (OP, SEQUENCE)]
    return (*sorted(contract.columns, key=lambda c: c.id), *own)
