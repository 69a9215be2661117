"""What every capture method offers: windows over a table for groups of organizations.

`xmin` and `trigger` are implementations; `logical` comes through the same protocol. A method owns its
position's meaning; whoever lands rows only stores it. A method that meets another's position reads exactly from
that position's `exact_xmin` on, minus what the lake holds, and compares keys: changing it loses and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

    from lakehouse.archive.tombstones import Tombstones
    from lakehouse.capture.forbidden import Examined, Key
    from lakehouse.capture.position import Position, Snapshot
    from lakehouse.capture.projection import Violation
    from schemas.contract import Contract
    from schemas.errors import LakehouseError


CONTENT_HASH = "_content_hash"
"""A column that a recapture's rows carry besides: the hash of the canonical row (docs/canonical-row.md)."""


class WindowKind(StrEnum):
    """How a group's share of a window is read."""

    WINDOW = "window"
    """Rows since the position, pruned by a timestamp where the table has a reliable, indexed one."""
    EXACT = "exact"
    """Rows since the last exact read, not pruned, minus what the lake holds already."""
    RECAPTURE = "recapture"
    """Every row, minus what the lake shows already: what the contract exports changed without rows being touched,
    the table is another one or has a new partition, or ids cannot be trusted (`lakehouse.capture.fence`)."""


@dataclass(frozen=True)
class Group:
    """Organizations that stand at the same position, to be read by one scan."""

    position: Position
    organizations: tuple[str, ...]


def group_positions(positions: Mapping[str, Position]) -> list[Group]:
    """Organizations that stand at the same position, largest group first.

    Keys were compared when they were for the one of the group that waits longest.
    """
    members: dict[Position, list[str]] = {}
    for organization, position in positions.items():
        members.setdefault(position, []).append(organization)
    never = datetime.min.replace(tzinfo=UTC)
    groups = [
        Group(min((positions[o] for o in m), key=lambda p: p.reconciled_at or never), tuple(sorted(m)))
        for m in members.values()
    ]
    return sorted(groups, key=lambda g: -len(g.organizations))


@dataclass(frozen=True)
class Plan:
    """How one group's share will be read."""

    group: Group
    kind: WindowKind
    ask_lake: bool
    """Rows may be in the lake already: (key, `_xmin`) pairs at or after `lower` must be subtracted."""
    lower: int | None
    """64-bit transaction id from which rows are read; None reads every row."""
    reconcile: bool
    because: str = ""
    """Why everything is read again, in words; empty where nothing out of the ordinary was found."""


class OpenWindow(Protocol):
    """One snapshot of one table. Everything below is read in the same transaction."""

    snapshot: Snapshot
    captured_at: datetime
    changes: int | None
    """Row versions ever written to the table, about, when the window was taken: what `status` measures its lag by."""
    plans: Sequence[Plan]
    refused: Mapping[str, LakehouseError]
    """Organizations whose lake was made from another source than this; no plan is theirs."""
    tombstones: Tombstones
    """What the archive took, as this snapshot sees it."""

    @property
    def violations(self) -> Mapping[str, Violation]:
        """Organizations with too many rows that the lake cannot hold; their share is not to be landed."""
        ...

    @property
    def flagged(self) -> Set[str]:
        """Organizations of which `rows` left out rows that the lake cannot hold: `examine` reads those whole."""
        ...

    def rows(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """The group's new rows: the contract's columns in lake types, then `_xmin`. Read to the end."""
        ...

    def examine(self, organization: str, keys: Sequence[Key]) -> Iterator[Examined]:
        """What the hot table has now, of the rows that `rows` left out and of those at `keys`; after `rows`.

        A key that does not come is not there. Fills `violations` where a row that was left out is not found again.
        """
        ...

    def deletes(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """Tenant (text), identity columns of rows that are known to be gone; to be applied before `rows`.

        Empty for a method that sees deletes by comparing keys only, and where the plan compares keys anyway. Without
        rows that are there and that the lake cannot hold: it keeps their last good version. Without what the archive
        took.
        """
        ...

    def returned(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """Tenant, identity columns of archived rows whose id is back under another event time, of the rows that `rows`
        brings; again with each later version of them. Empty where the plan compares keys, which finds them too.
        """
        ...

    def keys(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """Tenant, identity columns and `FORBIDDEN` of every row that the group's organizations have now.

        Where the lake cannot hold the row (`FORBIDDEN`), what it cannot hold of these columns is null.
        """
        ...

    def next_position(self, plan: Plan) -> Position:
        """Where the group stands once its rows are landed; only after every plan's rows were read."""
        ...


class CaptureMethod(Protocol):
    """A way to see changes."""

    name: str

    def open_window(
        self, contract: Contract, groups: Sequence[Group], *, reconcile: bool | None = None
    ) -> AbstractContextManager[OpenWindow]:
        """Take a snapshot. `reconcile` True forces key reconciliation, None leaves it to the method (a period, or when
        something made it necessary), False forbids it where only the period asks for it.

        Raises:
            SourceError, ContractViolation: the table cannot be captured; nothing was read.
            SourceRefused: it is not the source that any of the groups was read from.
        """
        ...

    def unchanged(
        self, catalog: psycopg.Connection[Any], contract: Contract, groups: Sequence[Group]
    ) -> datetime | None:
        """When it was seen, in one snapshot, that a window of these groups would read nothing and compare nothing.

        None where a window must be taken: something changed, something may have, keys are due to be compared, or the
        position has stood so long that it should move. Works over `catalog` alone, without loading Arrow.

        Raises:
            SourceError, ContractViolation: as `open_window`. psycopg.Error: the database refused or broke off.
        """
        ...
