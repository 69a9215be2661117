"""What the control tables remember of a backfill, so that a restart reads only what is left."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from lakehouse.backfill.ranges import Range
from lakehouse.capture.position import Position, Snapshot, SourceIdentity
from lakehouse.control.models import Backfill, BackfillRange, BackfillSequence
from lakehouse.landing.parquet import StagedFile
from lakehouse.outbox.lease import Lease, guard_task

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from lakehouse.backfill.worker import RangeResult


@dataclass(frozen=True)
class FirstPosition:
    """What the first window will go on from, known before the first range is read."""

    fingerprint: str
    labels: tuple[tuple[str, str], ...]
    source: SourceIdentity
    bound: datetime | None

    def to_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "labels": dict(self.labels),
            "source": asdict(self.source),
            "bound": self.bound.isoformat() if self.bound else None,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> FirstPosition:
        return cls(
            fingerprint=raw["fingerprint"],
            labels=tuple(sorted(raw["labels"].items())),
            source=SourceIdentity(**raw["source"]),
            bound=datetime.fromisoformat(raw["bound"]) if raw["bound"] else None,
        )


@dataclass(frozen=True)
class RangeState:
    """One range: its bounds and, when it is done, what it wrote and under which snapshot."""

    number: int
    bounds: Range
    done: bool
    snapshot: Snapshot | None
    captured_at: datetime | None
    rows: int
    files: list[StagedFile]
    quarantined: list[StagedFile]


@dataclass(frozen=True)
class BackfillState:
    """A backfill as the control tables have it."""

    id: uuid.UUID
    organizations: tuple[str, ...]
    first: FirstPosition
    ranges: list[RangeState]
    sequences: dict[str, int]
    estimated_rows: int

    def position(self) -> Position:
        """Where the first window starts: at the oldest of the ranges' snapshots, with nothing seen.

        A backfill's own transaction ids in the seen list would hide rows that other ranges have not read.
        """
        snapshots = [r.snapshot for r in self.ranges if r.snapshot is not None]
        oldest = min(s.xmin for s in snapshots)
        return Position(
            xmin=oldest,
            xmax=max(s.xmax for s in snapshots),
            seen=(),
            exact_xmin=oldest,
            bound=self.first.bound,
            repeats=True,
            reconciled_at=None,
            columns=self.first.fingerprint,
            labels=self.first.labels,
            source=self.first.source,
        )


def running(engine: Engine, table: str) -> BackfillState | None:
    """The table's backfill that was begun and not finished, if there is one."""
    with engine.connect() as connection:
        found = connection.scalar(select(Backfill.id).where(Backfill.table_name == table, Backfill.status == "running"))
    return load(engine, found) if found else None


def load(engine: Engine, backfill: uuid.UUID) -> BackfillState:
    """A backfill with its ranges, in order."""
    with engine.connect() as connection:
        head = connection.execute(select(Backfill.__table__).where(Backfill.id == backfill)).one()
        ranges = connection.execute(
            select(BackfillRange.__table__).where(BackfillRange.backfill_id == backfill).order_by(BackfillRange.number)
        ).all()
        sequences = connection.execute(
            select(BackfillSequence.organization_id, BackfillSequence.next_sequence).where(
                BackfillSequence.backfill_id == backfill
            )
        ).all()
    return BackfillState(
        id=head.id,
        organizations=tuple(head.organizations),
        first=FirstPosition.from_json(head.start),
        ranges=[
            RangeState(
                number=r.number,
                bounds=(r.lower, r.upper),
                done=r.status == "done",
                snapshot=Snapshot(*map(int, r.snapshot.split(":"))) if r.snapshot else None,
                captured_at=r.captured_at,
                rows=r.row_count,
                files=[StagedFile(**f) for f in r.files],
                quarantined=[StagedFile(**f) for f in r.quarantined],
            )
            for r in ranges
        ],
        sequences=dict(sequences),
        estimated_rows=head.estimated_rows,
    )


def begin(
    engine: Engine,
    backfill: uuid.UUID,
    table: str,
    organizations: Sequence[str],
    first: FirstPosition,
    ranges: Sequence[Range],
    estimated_rows: int,
) -> BackfillState:
    """Remember a new backfill and its ranges, all pending."""
    with engine.begin() as connection:
        connection.execute(
            insert(Backfill).values(
                id=backfill,
                table_name=table,
                organizations=list(organizations),
                status="running",
                start=first.to_json(),
                estimated_rows=estimated_rows,
            )
        )
        connection.execute(
            insert(BackfillRange),
            [
                {"backfill_id": backfill, "number": n, "lower": lower, "upper": upper}
                for n, (lower, upper) in enumerate(ranges)
            ],
        )
        connection.execute(
            insert(BackfillSequence),
            [{"backfill_id": backfill, "organization_id": o, "next_sequence": 1} for o in organizations],
        )
    return load(engine, backfill)


def range_done(
    engine: Engine,
    lease: Lease,
    backfill: uuid.UUID,
    result: RangeResult,
    snapshot: str,
    captured_at: datetime,
    now: datetime,
) -> None:
    """Remember what a range wrote: it will not be read again. Who broke in it leaves the backfill.

    Raises:
        LeaseLostError: the backfill is another worker's now; nothing was written.
    """
    broken = set(result.violations) | set(result.failures)
    with engine.begin() as connection:
        guard_task(connection, lease)
        _leave_out(connection, backfill, broken)
        connection.execute(
            update(BackfillRange)
            .where(BackfillRange.backfill_id == backfill, BackfillRange.number == result.number)
            .values(
                status="done",
                snapshot=snapshot,
                captured_at=captured_at,
                row_count=result.rows,
                files=[f.to_json() for f in result.files],
                quarantined=[f.to_json() for f in result.quarantined],
                attempt=BackfillRange.attempt + 1,
                finished_at=now,
            )
        )


def leave_out(engine: Engine, backfill: uuid.UUID, organizations: Iterable[str]) -> None:
    """These organizations are not landed by this backfill: some of their rows were not read."""
    with engine.begin() as connection:
        _leave_out(connection, backfill, organizations)


def _leave_out(connection: Connection, backfill: uuid.UUID, organizations: Iterable[str]) -> None:
    for organization in organizations:
        connection.execute(
            update(Backfill)
            .where(Backfill.id == backfill)
            .values(organizations=func.array_remove(Backfill.organizations, organization))
        )


def finish(engine: Engine, backfill: uuid.UUID, now: datetime) -> None:
    """Every organization that could be landed was."""
    with engine.begin() as connection:
        connection.execute(update(Backfill).where(Backfill.id == backfill).values(status="done", finished_at=now))


def abandon(engine: Engine, backfill: uuid.UUID) -> None:
    """Its ranges are of no use any more; their files are left to maintenance."""
    with engine.begin() as connection:
        connection.execute(update(Backfill).where(Backfill.id == backfill).values(status="abandoned"))
