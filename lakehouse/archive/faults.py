"""What is wrong with evidence, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NAMED = 20
"""Keys that one fault names."""


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was signed. `keys`: some of the rows; `rows`: how many there are."""

    batch: int | None
    what: str
    """receipt, signature, tombstones, rows, content, deleted, chain, hot, file"""
    detail: str
    keys: tuple[str, ...] = ()
    rows: int | None = None


def fault(batch: int | None, what: str, detail: str, keys: Sequence[str] = ()) -> Fault:
    """A fault that names the first of these keys, and counts them."""
    return Fault(batch, what, detail, tuple(keys[:NAMED]), len(keys) or None)
