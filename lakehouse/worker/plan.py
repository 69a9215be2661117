"""Planning: which tasks are due. One statement a question, whatever the number of organizations and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, literal, not_, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import Text

from federation.config import COPYING
from lakehouse.control.models import Cursor, DestinationTable, Lake, Task, WarehouseDestination
from lakehouse.control.store import is_due, is_open, wants_table
from lakehouse.outbox.lease import seconds
from lakehouse.outbox.tasks import ARCHIVE, BACKFILL, CAPTURE, MAINTAIN, PARITY, PRUNE, SCHEDULE

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Engine, Select


def plan_windows(engine: Engine, tables: Sequence[str]) -> list[str]:
    """Make `capture:<table>` due where an organization's cadence has passed. Returns the tasks made due."""
    due = (
        select(Cursor.table_name.label("name"))
        .join(Lake, Lake.organization_id == Cursor.organization_id)
        .join(WarehouseDestination, wants_table(Cursor.table_name.expression))
        .outerjoin(
            DestinationTable,
            and_(
                DestinationTable.destination_id == WarehouseDestination.id,
                DestinationTable.table_name == Cursor.table_name,
            ),
        )
        .where(Cursor.table_name.in_(tables), is_due(), not_(is_open()))
        .distinct()
    )
    return _make_due(engine, CAPTURE, due)


def plan_backfills(engine: Engine, tables: Sequence[str]) -> list[str]:
    """Make `backfill:<table>` due where an organization has no cursor yet. Returns the tasks made due."""
    names = func.unnest(literal(list(tables), ARRAY(Text))).table_valued("name").render_derived()
    missing = (
        select(Lake.id)
        .join(WarehouseDestination, wants_table(names.c.name))
        .outerjoin(Cursor, and_(Cursor.organization_id == Lake.organization_id, Cursor.table_name == names.c.name))
        .where(Cursor.organization_id.is_(None))
        .correlate(names)
        .exists()
    )
    return _make_due(engine, BACKFILL, select(names.c.name).where(missing))


def plan_maintenance(engine: Engine, tables: Sequence[str], every_seconds: float) -> list[str]:
    """Make `maintain:<table>` due where it was finished so long ago or never. Returns the tasks made due."""
    names = func.unnest(literal(list(tables), ARRAY(Text))).table_valued("name").render_derived()
    old = (
        select(names.c.name)
        .outerjoin(Task, Task.id == MAINTAIN + ":" + names.c.name)
        .where(_finished_long_ago(every_seconds))
    )
    due = _make_due(engine, MAINTAIN, old)
    # One row of its own: the outbox and the tombstone logs are pruned at the same rhythm.
    return [*due, *(make_due_again(engine, PRUNE, every_seconds))]


def plan_parity(engine: Engine, every_seconds: float) -> list[str]:
    """Make `parity` due where it was finished so long ago or never, if any destination is fed by deliveries."""
    fed = select(WarehouseDestination.id).where(WarehouseDestination.kind.in_([k.value for k in COPYING])).limit(1)
    with engine.connect() as connection:
        if connection.execute(fed).one_or_none() is None:
            return []
    return make_due_again(engine, PARITY, every_seconds)


def waits_for_archive(engine: Engine, every_seconds: float) -> bool:
    """Whether the archive's task is idle, and was finished so long ago or never."""
    with engine.connect() as connection:
        row = connection.execute(
            select(Task.due_at.is_(None), Task.lease_owner.is_(None), _finished_long_ago(every_seconds)).where(
                Task.id == ARCHIVE
            )
        ).one_or_none()
    return row is None or all(row)


def make_due_again(engine: Engine, kind: str, every_seconds: float) -> list[str]:
    """Make a task without a table due, if it is idle and was finished so long ago or never; its id if it was made."""
    with engine.begin() as connection:
        connection.execute(upsert(Task).values(id=kind, kind=kind).on_conflict_do_nothing())
        return list(
            connection.scalars(
                update(Task)
                .where(
                    Task.id == kind,
                    Task.due_at.is_(None),
                    Task.lease_owner.is_(None),
                    _finished_long_ago(every_seconds),
                )
                .values(due_at=func.clock_timestamp())
                .returning(Task.id)
            )
        )


def _finished_long_ago(every_seconds: float) -> ColumnElement[bool]:
    return or_(Task.finished_at.is_(None), Task.finished_at + seconds(every_seconds) <= func.clock_timestamp())


def _make_due(engine: Engine, kind: str, names: Select[Any]) -> list[str]:
    found = names.subquery()
    statement = upsert(Task).from_select(
        ["id", "kind", "table_name", "due_at"],
        select(literal(f"{kind}:") + found.c.name, literal(kind), found.c.name, func.clock_timestamp()),
    )
    # At work, or waiting for a retry: it comes again by itself.
    idle = and_(Task.due_at.is_(None), Task.lease_owner.is_(None))
    with engine.begin() as connection:
        return list(
            connection.scalars(
                statement.on_conflict_do_update(
                    index_elements=["id"], set_={"due_at": statement.excluded.due_at}, where=idle
                ).returning(Task.id)
            )
        )


def note_planning(engine: Engine, error: str | None) -> None:
    """What went wrong in the scheduler's last round, where `status` finds it."""
    with engine.begin() as connection:
        connection.execute(
            update(Task)
            .where(Task.kind == SCHEDULE, Task.last_error.is_distinct_from(error))
            .values(last_error=error, updated_at=func.clock_timestamp())
        )
