"""Where a group of organizations stands in one hot table, and the arithmetic of transaction ids.

PostgreSQL shows `xmin` in 32 bits; snapshots are in 64. A position keeps the 64-bit ids of the last snapshot,
and `seen`: ids at or after its xmin that were already exported. A row is new if its xmin is at or after the
position's xmin and not seen. A snapshot's own list of running transactions is not used: it omits
subtransactions. Source: postgresql.org/docs/current/functions-info.html, "pg_snapshot".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

XID_SPACE = 2**32
HALF_SPACE = 2**31
TOO_OLD = 10**9
"""Transactions after which a position is not used any more: 32-bit ages wrap at 2^31."""


@dataclass(frozen=True)
class SourceIdentity:
    """Which table of which database was read. Empty text: not known, written by an earlier version; not compared.

    `address` comes from the settings: a cloned database is identical inside. `storage`: the files that hold the
    rows (TRUNCATE and every rewrite give new ones). `started`: when the server began, in seconds: after a start
    the database may have lost its last transactions, or be an older copy of itself.
    """

    system_identifier: str
    timeline: str
    database_oid: int
    table_oid: int
    address: str = ""
    storage: str = ""
    started: str = ""

    def same_history(self, other: SourceIdentity) -> bool:
        """Whether a transaction id means the same transaction in both."""
        return all(
            a == b or "" in (a, b)
            for a, b in (
                (self.system_identifier, other.system_identifier),
                (self.timeline, other.timeline),
                (self.database_oid, other.database_oid),
                (self.started, other.started),
            )
        )


@dataclass(frozen=True)
class Adoption:
    """A person said that the lake goes on from this source, as it stood then; the next window compares all of it."""

    id: str
    source: SourceIdentity
    xmax: int


@dataclass(frozen=True)
class Position:
    """Where a table was read up to. Organizations with equal positions are read by one scan.

    `xmin`, `xmax`: of the last snapshot. `exact_xmin`: of the last snapshot that was read without pruning;
    an exact sweep starts there. `bound`: rows stamped before it cannot be new (None: do not prune).
    `repeats`: the next window may meet rows that the lake holds already and must ask it (after a backfill,
    after part of a landing, when `seen` was too long). `seen` holds 32-bit ids under `xmin`, 64-bit ones under
    `trigger`. `columns`, `labels`: what exported content depends on
    without a row being touched. `adoption`: set by `lakehouse lake adopt`, until the next window has compared
    everything. `reconciled_at` does not keep organizations apart: the oldest of a group counts.
    """

    xmin: int
    xmax: int
    seen: tuple[int, ...]
    exact_xmin: int
    bound: datetime | None
    repeats: bool
    columns: str
    labels: tuple[tuple[str, str], ...]
    source: SourceIdentity
    method: str = "xmin"
    adoption: Adoption | None = None
    reconciled_at: datetime | None = dataclasses.field(default=None, compare=False)
    generation: str | None = None
    """Under `trigger`: which installation of the triggers saw to this position. Another one may have missed rows."""

    def to_json(self) -> dict[str, Any]:
        raw = dataclasses.asdict(self)
        for key in ("bound", "reconciled_at"):
            raw[key] = raw[key].isoformat() if raw[key] else None
        raw["labels"] = dict(self.labels)
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Position:
        values = dict(raw)
        for key in ("bound", "reconciled_at"):
            values[key] = datetime.fromisoformat(values[key]) if values[key] else None
        values["seen"] = tuple(values["seen"])
        values["labels"] = tuple(sorted(values["labels"].items()))
        values["source"] = SourceIdentity(**values["source"])
        if adoption := values.get("adoption"):
            values["adoption"] = Adoption(**{**adoption, "source": SourceIdentity(**adoption["source"])})
        return cls(**values)


@dataclass(frozen=True)
class Snapshot:
    """`pg_current_snapshot()`, without the list of running transactions."""

    xmin: int
    xmax: int

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        xmin, xmax, _ = text.split(":")
        return cls(int(xmin), int(xmax))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}"


def new_ids(xids: pa.Array, snapshot: Snapshot) -> set[int]:
    """Of 32-bit ids that this snapshot exported, those that the next window's scan would meet again."""
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = pc.unique(xids)
    # (x - xmin) modulo 2^32, without a negative remainder.
    offset = pc.bit_wise_and(pc.subtract(distinct, pa.scalar(snapshot.xmin % XID_SPACE)), pa.scalar(XID_SPACE - 1))
    return set(distinct.filter(pc.less(offset, pa.scalar(HALF_SPACE))).to_pylist())


def still_new(seen: Iterable[int], snapshot: Snapshot) -> set[int]:
    """Of ids seen before, those that are at or after this snapshot's xmin."""
    return {x for x in seen if (x - snapshot.xmin) % XID_SPACE < HALF_SPACE}
