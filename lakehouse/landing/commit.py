"""The fenced commit: files and cursor in one Iceberg snapshot, or nothing.

pyiceberg's own retry is off (a table property, see `catalog.tables`): with it on, a stale handle would commit
an older window after a newer one. The appended snapshot carries the requirement that the branch is still
where we read it, so of two racing commits one wins; the fence then tells the loser why. A commit whose reply
was lost is settled by asking the table.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.errors import CatalogError, lake_errors
from lakehouse.failpoints import failpoint
from lakehouse.landing.cursor import CURSOR_PROPERTY, CursorError, LakeCursor, read_cursor
from lakehouse.landing.history import history_properties
from lakehouse.landing.parquet import StagedFile, describe_data_file
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    from pyiceberg.table import Table

WINDOW_SUMMARY = "lakehouse.window"
PART_SUMMARY = "lakehouse.part"
COMPACTION_SUMMARY = "lakehouse.compaction"
COMPACTED_PART_SUMMARY = "lakehouse.compacted-part"
"""On a compaction's snapshot: the part of the landing before it, whose own snapshot may expire."""
ATTEMPTS = 3


class FencedError(LakehouseError):
    """The table's cursor is not where this landing started from: another landed in between. Nothing was written."""

    retry = Retry.TIMED


@dataclass(frozen=True)
class Landed:
    """What a landing left: the last snapshot and the cursor that stands in the table."""

    snapshot_id: int
    cursor: LakeCursor


def split_parts(files: Sequence[StagedFile], most_partitions: int) -> list[list[StagedFile]]:
    """Cut a share into parts of at most so many partitions, whole days together, in order of day."""
    days = sorted({f.day for f in files if f.day is not None})
    if len(days) <= most_partitions:
        return [list(files)]
    part_of = {day: index // most_partitions for index, day in enumerate(days)}
    parts: list[list[StagedFile]] = [[] for _ in range(max(part_of.values()) + 1)]
    for file in files:
        assert file.day is not None  # noqa: S101 - days were counted above
        parts[part_of[file.day]].append(file)
    return parts


def land(
    table: Table,
    window: str,
    files: Sequence[StagedFile],
    before: LakeCursor | None,
    after: LakeCursor,
    *,
    most_partitions: int,
    guard: Callable[[], None] = lambda: None,
) -> Landed:
    """Commit one organization's share of a window, in parts if it must be.

    `before`: the cursor that the share was read from (None: nothing ever landed). `after`: the cursor to
    leave, without its fence. A part that is not the last leaves `before`'s position with `repeats` set: if we
    die there, the window is read again and what landed is subtracted. `guard` is called right before each commit
    and raises where this process may no longer do it.

    Raises:
        FencedError: the table stands elsewhere; nothing (more) was committed.
        CatalogError, StorageError: the lake is not reachable; the outcome was asked for and is "not committed".
    """
    parts = split_parts(files, most_partitions)
    fence = before.fence if before else None
    landed: Landed | None = None
    done = _parts_done(table, window)
    history = history_properties(table, after)
    for number, part in enumerate(parts, start=1):
        last = number == len(parts)
        cursor = dataclasses.replace(after if last else _between_parts(before, after), fence=f"{window}/{number}")
        if number > done:
            landed = _commit(table, window, number, len(parts), part, fence, cursor, guard, history)
            if not last:
                failpoint("landing.after_part")
        fence = cursor.fence
    if landed is None:
        landed = _settled(table, dataclasses.replace(after, fence=fence))
    assert landed is not None  # noqa: S101 - the last part was committed now or before
    return landed


def reset_incomplete(table: Table) -> None:
    """Empty a table that holds parts of a backfill that nobody can go on with, and forget its cursor. One commit.

    Raises:
        CursorError: its cursor is complete: what it holds is history.
    """
    from pyiceberg.expressions import AlwaysTrue

    where = ".".join(table.name())
    with lake_errors(where):
        table.refresh()
    found = read_cursor(table)
    if found is None:
        return
    if found.complete:
        raise CursorError(f"{where}: holds a complete history, which is never emptied")
    with lake_errors(where):
        with table.transaction() as transaction:
            transaction.remove_properties(CURSOR_PROPERTY)
            transaction.delete(AlwaysTrue(), snapshot_properties={"lakehouse.reset": found.fence or ""})
        table.refresh()


def landed_part(table: Table) -> str:
    """The newest landing's part as "number/of", whatever compactions came after it; empty where that is not known."""
    snapshot = table.current_snapshot()
    properties = snapshot.summary.additional_properties if snapshot and snapshot.summary else {}
    return properties.get(PART_SUMMARY) or properties.get(COMPACTED_PART_SUMMARY) or ""


def _parts_done(table: Table, window: str) -> int:
    with lake_errors(".".join(table.name())):
        table.refresh()
    found = read_cursor(table)
    head, _, number = (found.fence if found and found.fence else "").partition("/")
    return int(number) if head == window else 0


def _between_parts(before: LakeCursor | None, after: LakeCursor) -> LakeCursor:
    # The sequence is the highest of all parts: a number must never be given out twice.
    if before is None:
        return dataclasses.replace(after, complete=False)
    return dataclasses.replace(
        before, position=dataclasses.replace(before.position, repeats=True), sequence=after.sequence
    )


def _commit(
    table: Table,
    window: str,
    part: int,
    parts: int,
    files: Sequence[StagedFile],
    expected_fence: str | None,
    cursor: LakeCursor,
    guard: Callable[[], None],
    history: dict[str, str],
) -> Landed:
    from pyiceberg.exceptions import CommitFailedException

    where = ".".join(table.name())
    for attempt in range(1, ATTEMPTS + 1):
        with lake_errors(where):
            table.refresh()
        if (done := _settled(table, cursor)) is not None:
            return done
        _check_fence(table, expected_fence)
        failpoint("landing.before_commit")
        guard()
        try:
            _append(table, window, part, parts, files, cursor, history)
        except CommitFailedException as error:
            # Somebody else committed (maintenance, or another landing): look at the fence and try once more.
            if attempt == ATTEMPTS:
                raise CatalogError(
                    f"{where}: {ATTEMPTS} commits in a row lost against another writer: {error}",
                    "It is tried again with the next window.",
                    retry=Retry.TIMED,
                ) from error
            continue
        except Exception:  # the reply may be lost: only the table knows
            with lake_errors(where):
                table.refresh()
                if (done := _settled(table, cursor)) is not None:
                    return done
                raise
        failpoint("landing.after_commit")
        if (done := _settled(table, cursor)) is None:
            raise CatalogError(f"{where}: the commit of window {window} was acknowledged and is not in the table")
        return done
    raise AssertionError("unreachable")


def _append(
    table: Table,
    window: str,
    part: int,
    parts: int,
    files: Sequence[StagedFile],
    cursor: LakeCursor,
    history: dict[str, str],
) -> None:
    # A footer that has to be read back is a round trip to the storage.
    with ThreadPoolExecutor(8, thread_name_prefix="footer") as pool:
        entries = list(pool.map(functools.partial(describe_data_file, table), files))
    with table.transaction() as transaction:
        transaction.set_properties({CURSOR_PROPERTY: json.dumps(cursor.to_json(), separators=(",", ":"))} | history)
        summary = {
            WINDOW_SUMMARY: window,
            PART_SUMMARY: f"{part}/{parts}",
            "lakehouse.sequence": str(cursor.sequence),
            "lakehouse.captured-at": cursor.captured_at.isoformat(),
        }
        with transaction.update_snapshot(snapshot_properties=summary).merge_append() as append:
            for entry in entries:
                append.append_data_file(entry)


def _settled(table: Table, cursor: LakeCursor) -> Landed | None:
    found = read_cursor(table)
    snapshot = table.current_snapshot()
    if found is None or snapshot is None or found.fence != cursor.fence:
        return None
    return Landed(snapshot.snapshot_id, found)


def _check_fence(table: Table, expected: str | None) -> None:
    found = read_cursor(table)
    stands = found.fence if found else None
    if stands != expected:
        raise FencedError(
            f"{'.'.join(table.name())}: stands after window {stands or '(none)'}, "
            f"this landing was read from {expected or '(none)'}: another program landed between, nothing was written",
            "Only one installation writes a lake; the next window starts from where the table stands.",
        )
