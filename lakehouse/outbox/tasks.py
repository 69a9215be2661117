"""Standing pieces of work: made due, claimed, finished. One statement each, by the database's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from lakehouse.control.models import Task
from lakehouse.outbox.lease import Lease, seconds
from lakehouse.outbox.retry import Decision

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Engine


CAPTURE = "capture"
BACKFILL = "backfill"
MAINTAIN = "maintain"
PRUNE = "prune"
ARCHIVE = "archive"
PARITY = "parity"
SCHEDULE = "schedule"


@dataclass(frozen=True)
class ClaimedTask:
    """A task that this process works on."""

    kind: str
    table: str | None
    attempts: int
    lease: Lease


def task_id(kind: str, table: str | None = None) -> str:
    """`capture:events`; a task without a table is its kind."""
    return f"{kind}:{table}" if table else kind


def make_due(engine: Engine, tasks: Iterable[tuple[str, str | None]]) -> None:
    """Make tasks (kind, table) due now, unless they are at work or waiting for a retry."""
    rows = [
        {"id": task_id(kind, table), "kind": kind, "table_name": table, "due_at": func.clock_timestamp()}
        for kind, table in tasks
    ]
    if not rows:
        return
    statement = upsert(Task).values(rows)
    with engine.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["id"],
                set_={"due_at": statement.excluded.due_at},
                where=and_(Task.due_at.is_(None), Task.lease_owner.is_(None)),
            )
        )


def claim(engine: Engine, owner: str, lease_seconds: float, *, kinds: Sequence[str]) -> ClaimedTask | None:
    """The task that has been due longest, or one whose worker's lease ran out; None if there is none."""
    due = and_(Task.lease_owner.is_(None), Task.due_at <= func.clock_timestamp())
    return _claim(engine, owner, lease_seconds, and_(Task.kind.in_(kinds), or_(due, _ran_out())))


def claim_named(
    engine: Engine, owner: str, lease_seconds: float, kind: str, table: str | None = None
) -> ClaimedTask | None:
    """This task, due or not; None while another worker holds it.

    A holder that has died cannot say so: its lease is waited for. One that is alive renews it, and is not.
    """
    identifier = task_id(kind, table)
    with engine.begin() as connection:
        connection.execute(upsert(Task).values(id=identifier, kind=kind, table_name=table).on_conflict_do_nothing())
    seen: object = None
    while True:
        claimed = _claim(
            engine, owner, lease_seconds, and_(Task.id == identifier, or_(Task.lease_owner.is_(None), _ran_out()))
        )
        if claimed is not None:
            return claimed
        with engine.connect() as connection:
            row = connection.execute(
                select(Task.lease_expires_at, (Task.lease_expires_at - func.clock_timestamp()).label("left")).where(
                    Task.id == identifier, Task.lease_owner.is_not(None)
                )
            ).one_or_none()
        if row is None:
            continue
        if seen is not None and row.lease_expires_at != seen:
            return None
        seen = row.lease_expires_at
        threading.Event().wait(max(0.01, min(0.5, row.left.total_seconds())))


def _ran_out() -> ColumnElement[bool]:
    return and_(Task.lease_owner.is_not(None), Task.lease_expires_at < func.clock_timestamp())


def _claim(engine: Engine, owner: str, lease_seconds: float, condition: ColumnElement[bool]) -> ClaimedTask | None:
    asked_at = time.monotonic()
    chosen = (
        select(Task.id)
        .where(condition)
        .order_by(Task.due_at.asc().nulls_first())
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    with engine.begin() as connection:
        row = connection.execute(
            update(Task)
            .where(Task.id == chosen.scalar_subquery())
            .values(
                due_at=None,
                lease_owner=owner,
                lease_generation=Task.lease_generation + 1,
                lease_expires_at=func.clock_timestamp() + seconds(lease_seconds),
                takeovers=Task.takeovers + case((Task.lease_owner.is_not(None), 1), else_=0),
                started_at=func.clock_timestamp(),
                updated_at=func.clock_timestamp(),
            )
            .returning(Task.id, Task.kind, Task.table_name, Task.attempts, Task.lease_generation)
        ).one_or_none()
    if row is None:
        return None
    lease = Lease(row.id, owner, row.lease_generation, lease_seconds)
    lease.renewed(asked_at)
    return ClaimedTask(row.kind, row.table_name, row.attempts, lease)


def finish(engine: Engine, lease: Lease, *, again_in: float | None = None) -> bool:
    """Give the task back, done. `again_in`: due again after so many seconds, else when planning says so.

    False: the lease was another's already, and nothing was changed.
    """
    due = None if again_in is None else func.clock_timestamp() + seconds(again_in)
    return _give_back(engine, lease, due_at=due, attempts=0, last_error=None, detail={})


def fail(
    engine: Engine,
    lease: Lease,
    decision: Decision,
    longest_wait: float,
    *,
    organizations: Mapping[str, str] | None = None,
) -> bool:
    """Give the task back, failed: due again after the decision's wait. A standing task is never given up.

    `organizations`: whose fault it is; None: the whole table's.
    """
    wait = decision.wait_seconds if decision.wait_seconds is not None else longest_wait
    return _give_back(
        engine,
        lease,
        due_at=func.clock_timestamp() + seconds(wait),
        attempts=Task.attempts + 1,
        last_error=decision.error,
        detail={"": decision.error} if organizations is None else dict(organizations),
    )


def release(engine: Engine, lease: Lease) -> bool:
    """Give the task back as if it had not been claimed: when it was finished last stays as it was."""
    return _give_back(engine, lease, finished_at=Task.finished_at)


def retry_now(engine: Engine, table: str | None = None) -> list[str]:
    """Make tasks due that wait for their retry, with all attempts before them. Returns those that were."""
    with engine.begin() as connection:
        return list(
            connection.scalars(
                update(Task)
                .where(
                    Task.attempts > 0,
                    Task.lease_owner.is_(None),
                    *([Task.table_name == table] if table is not None else []),
                )
                .values(due_at=func.clock_timestamp(), attempts=0)
                .returning(Task.id)
            )
        )


def _give_back(engine: Engine, lease: Lease, **values: object) -> bool:
    with engine.begin() as connection:
        done = connection.execute(
            update(Task)
            .where(Task.id == lease.id, Task.lease_owner == lease.owner, Task.lease_generation == lease.generation)
            .values(
                **{
                    "lease_owner": None,
                    "lease_expires_at": None,
                    "finished_at": func.clock_timestamp(),
                    "updated_at": func.clock_timestamp(),
                }
                | values
            )
        )
    return bool(done.rowcount)


def put_off(engine: Engine, lease: Lease, wait_seconds: float) -> None:
    """After a task was given back: what it said was no fault; look again after so many seconds."""
    with engine.begin() as connection:
        connection.execute(
            update(Task)
            .where(Task.id == lease.id, Task.lease_owner.is_(None), Task.lease_generation == lease.generation)
            .values(due_at=func.clock_timestamp() + seconds(wait_seconds), attempts=0, last_error=None, detail={})
        )
