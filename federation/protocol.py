"""What an adapter is: one destination, opened, that can be brought up to a `_sequence` and asked what it holds.

A delivery is the range (after, upto] of `_sequence` of one table. Its rows come from any snapshot of the lake that
holds them, in the lake's own columns, so a compaction or an expiry between two attempts changes nothing.

Invariants, which the conformance suite proves of every kind (tests/conformance):
- A delivery takes effect whole or not at all, together with the `_sequence` that the target then stands at; delivering
  it again, also beside another worker that does the same, changes nothing.
- A version never replaces a newer one, in whatever order deliveries come. A delete is kept as a version.
- The target carries the mark of the installation and organization that it belongs to; another's is refused before
  anything is written.
- What goes wrong is a `DestinationError`: TIMED where trying again may help, MANUAL where a person must do something
  there, NEVER where the destination must be configured anew. No secret is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    import pyarrow as pa

DIGITS = 15
"""Of a row's canonical hash, so many hex digits are summed: 60 bits, as PostgreSQL and DuckDB both can."""


class DestinationError(LakehouseError):
    """A destination does not do what it was asked. What was there before is there still."""


class ForeignTargetError(DestinationError):
    """The target belongs to another organization or installation, or to nobody that we know."""

    retry = Retry.NEVER


class GapError(DestinationError):
    """The target stands before the range that was to be delivered: it was cleared, or is an older copy."""

    retry = Retry.NEVER


class OvertakenError(DestinationError):
    """While it was filled anew a delivery came that began before that state and ended after it: fill it once more."""

    retry = Retry.TIMED


@dataclass(frozen=True)
class Owner:
    """Whose rows a target holds; written into it and compared before anything else is."""

    installation: str
    organization: str
    shared: bool = False
    """The target holds the rows of every organization of this installation, in one table; it is the operator's."""


@dataclass(frozen=True)
class Delivery:
    """The range (after, upto] of one table. `snapshot_id`: the lake's snapshot that its rows are read from."""

    id: str
    contract: Contract
    after: int
    upto: int
    snapshot_id: int


RangeReader = Callable[[int, int], "Iterator[pa.RecordBatch]"]
"""Rows of the lake with `_sequence` in (after, upto], ordered by it, in the columns of `schemas.lake_columns`."""


@dataclass(frozen=True)
class Receipt:
    """What a delivery did. `rows`: versions written now (none where it had been delivered before)."""

    sequence: int
    rows: int
    bytes: int = 0


@dataclass(frozen=True)
class Content:
    """The latest state that a target (or the lake) shows at a `_sequence`.

    `digest`: the sum of the first 60 bits of every row's canonical hash (schemas/canonical.py), computed there.
    """

    sequence: int
    rows: int
    digest: int


class Adapter(Protocol):
    """One open destination of one organization. Not shared between threads."""

    def check(self) -> None:
        """Reach the target as a delivery would, and check whose it is. Writes nothing that stays.

        Raises:
            DestinationError: what does not work, and what to do.
        """
        ...

    def prepare(self, contract: Contract) -> None:
        """Make what the table needs there, and add what its contract has gained. Idempotent.

        Raises:
            DestinationError: no right to it, or the target is another's.
        """
        ...

    def standing(self, contract: Contract) -> int:
        """The `_sequence` that the table is complete to; 0 where nothing was delivered.

        Raises:
            DestinationError: it cannot be asked.
        """
        ...

    def deliver(self, delivery: Delivery, rows: RangeReader) -> Receipt:
        """Bring the table to `delivery.upto`. See the module.

        Raises:
            GapError: the table stands before `delivery.after`.
            DestinationError: nothing of it, or (where the adapter cuts a range) a part with its own `_sequence`, is
                there.
        """
        ...

    def replace(self, contract: Contract, sequence: int, snapshot_id: int, rows: Iterator[pa.RecordBatch]) -> Receipt:
        """Fill the table anew: `rows` are the lake's latest state at `sequence`, ordered by event time.

        Readers see what was there before or the whole of this, and are not held up. What is missing there is made
        again. Deliveries go on meanwhile: what they bring beyond `sequence` stays.

        Raises:
            OvertakenError: one of them cannot be told apart; fill it with the state that the target stands at now.
            DestinationError: what was there is there still.
        """
        ...

    def close(self) -> None:
        """Release connections. Idempotent; never raises."""
        ...
