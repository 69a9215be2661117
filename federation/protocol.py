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
from dataclasses import dataclass, field
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
    """While it was filled anew a delivery came that began before that state and ended after it: bring it further."""

    retry = Retry.TIMED


class FillingTakenError(DestinationError):
    """Somebody else fills this table too, and was faster."""

    retry = Retry.TIMED


@dataclass(frozen=True)
class Owner:
    """Whose rows a target holds; written into it and compared before anything else is."""

    installation: str
    organization: str
    shared: bool = False
    """The target holds the rows of every organization of this installation, in one table; it is the operator's."""
    destination: str = field(default="", compare=False)
    """The id of the destination: the target bears it, for one target can be reached by several spellings."""
    living: Callable[[str], bool] = field(default=lambda _: False, compare=False, repr=False)
    """Whether a destination of this id is there. The target of one that was removed can be another's."""

    def beside(self, destination: str) -> bool:
        """The target is that of another destination, which is there still."""
        return destination != self.destination and self.living(destination)


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
class Filling:
    """How far a table is filled anew. It is kept with the target, together with the rows that this took.

    First comes the lake's state at `sequence`, ordered by identity: `reached` is the identity of the last row that was
    taken (with its `_sequence` where every version is wanted), as text. Once that is `whole`, ranges that were landed
    meanwhile follow, ordered by `_sequence`, and `sequence` moves on.
    """

    id: str
    sequence: int
    contract: str
    every_version: bool
    of: int = 0
    """Versions that the lake held of it when it was begun; where only the newest of each row is wanted, at most."""
    rows: int = 0
    reached: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Content:
    """An aspect of a table, in a target or the lake, at a `_sequence`.

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

    def filled(self, contract: Contract) -> int:
        """The `_sequence` of the state that the table was last filled with; 0 where it never was.

        Of what was deleted up to there it holds nothing, unless it has every version.

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

    @property
    def every_version(self) -> bool:
        """Readers have every version here, not the newest of each row alone."""
        ...

    def filling(self, contract: Contract) -> Filling | None:
        """The filling that was begun here and has not ended; None where none can be gone on with.

        Raises:
            DestinationError: it cannot be asked, or is another's.
        """
        ...

    def take(
        self,
        contract: Contract,
        before: Filling | None,
        rows: Iterator[pa.RecordBatch],
        after: Callable[[], Filling],
    ) -> Filling:
        """Keep rows of a filling where no reader sees them, and with them how far it is: all of it or nothing.

        `before`: how far it is; None begins it, and drops what an older one took. `after` is asked when the rows are
        at an end. What is missing there is made again.

        Raises:
            FillingTakenError: it is not where `before` says.
            DestinationError: nothing was kept.
        """
        ...

    def replace(self, contract: Contract, filling: Filling, snapshot_id: int) -> Receipt:
        """Show what a whole filling took, in place of what was there up to its `sequence`.

        Readers see what was there before or the whole of this, and are not held up. What deliveries brought beyond
        that `sequence` stays.

        Raises:
            FillingTakenError: it is not where `filling` says.
            OvertakenError: a delivery cannot be told apart; bring the filling to where the target stands.
            DestinationError: what was there is there still.
        """
        ...

    def close(self) -> None:
        """Release connections. Idempotent; never raises."""
        ...
