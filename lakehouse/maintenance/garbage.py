"""Files that nothing needs any more: noted, kept for the grace period, then removed.

A reader that opened a table a moment ago still reads the files of a snapshot that is expired now, so nothing is
removed the moment it is freed. What is freed is noted in the control tables (before the commit that frees it), and
removed by a later run, after everything that the table and the control tables name was read again. Killed anywhere,
a note or a file is left that the next run takes.

A file of a table's folder that is older than `orphan_hours` and that nothing names is noted too. That age must be
longer than the longest window or backfill range: until those are recorded, only their age protects their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from catalog.errors import lake_errors
from lakehouse.control.models import FreedFile
from lakehouse.failpoints import failpoint
from lakehouse.landing.cursor import read_cursor
from lakehouse.maintenance.references import References

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.table import Table
    from sqlalchemy import Engine

EXPIRED, ORPHAN, SUPERSEDED = "expired", "orphan", "superseded"
_BATCH = 200
_THREADS = 8

_NAMED = text(
    """
    SELECT f->>'path' FROM landings l, jsonb_array_elements(l.files) f
    WHERE l.organization_id = :organization AND l.table_name = :table AND l.status = 'staged'
    UNION ALL
    SELECT f->>'path' FROM backfills b JOIN backfill_ranges r ON r.backfill_id = b.id, jsonb_array_elements(r.files) f
    WHERE b.table_name = :table AND b.status = 'running' AND f->>'organization' = :organization
    UNION ALL
    SELECT f->>'path' FROM backfills b JOIN backfill_ranges r ON r.backfill_id = b.id,
        jsonb_array_elements(r.quarantined) f
    WHERE b.table_name = :table AND b.status = 'running' AND f->>'organization' = :organization
    UNION ALL
    SELECT unnest(ARRAY[inventory->>'file', quarantine->>'file']) FROM cursors
    WHERE organization_id = :organization AND table_name = :table
    UNION ALL
    SELECT unnest(ARRAY[c->'inventory'->>'file', c->'quarantine'->>'file'])
    FROM landings l, LATERAL (VALUES (cursor_before), (cursor_after)) v(c)
    WHERE l.organization_id = :organization AND l.table_name = :table AND l.status = 'staged'
    """
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object in a table's folder."""

    path: str
    bytes: int
    modified_at: datetime


def note(engine: Engine, organization: str, table: str, paths: Iterable[str], reason: str, now: datetime) -> None:
    """Remember files that are about to be freed. The grace period of freed ones counts from the newest note."""
    rows = [
        {"organization_id": organization, "table_name": table, "path": path, "reason": reason, "noted_at": now}
        for path in sorted(paths)
    ]
    with engine.begin() as connection:
        for begin in range(0, len(rows), 1000):
            statement = upsert(FreedFile).values(rows[begin : begin + 1000])
            key = ["organization_id", "table_name", "path"]
            if reason == EXPIRED:
                statement = statement.on_conflict_do_update(index_elements=key, set_={"noted_at": now})
            else:
                statement = statement.on_conflict_do_nothing(index_elements=key)
            connection.execute(statement)


def named(engine: Engine, organization: str, table: str) -> set[str]:
    """Files that the control tables name: staged shares, ranges of a running backfill, inventories."""
    with engine.connect() as connection:
        found = connection.scalars(_NAMED, {"organization": organization, "table": table})
        return {path for path in found if path}


def pending(engine: Engine, organization: str, table: str) -> int:
    """How many files are noted and not removed yet."""
    with engine.connect() as connection:
        return connection.scalar(
            select(func.count()).where(FreedFile.organization_id == organization, FreedFile.table_name == table)
        ) or 0  # fmt: skip


def list_files(table: Table, folder: str = "") -> list[StoredFile]:
    """Every object below the table's location (or one folder of it).

    Raises:
        StorageError: the storage does not answer or refuses to list.
    """
    from pyarrow.fs import FileSelector

    location = table.location().rstrip("/") + (f"/{folder}" if folder else "")
    with lake_errors(location):
        files, path = _filesystem(table.io, location)
        infos = files.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    # A name that ends in a slash is how some stores keep an empty folder.
    return [
        StoredFile(location + info.path.removeprefix(path), info.size, info.mtime)
        for info in infos
        if info.is_file and not info.path.endswith("/")
    ]


def _filesystem(io: FileIO, location: str) -> tuple[Any, str]:
    from pyiceberg.io.pyarrow import PyArrowFileIO

    assert isinstance(io, PyArrowFileIO)  # noqa: S101 - every catalog of ours is opened with it
    scheme, netloc, path = io.parse_location(location, io.properties)
    return io.fs_by_scheme(scheme, netloc), path


def orphans(
    engine: Engine, references: References, organization: str, name: str, *, oldest: datetime
) -> list[tuple[StoredFile, str]]:
    """Files of the table's folder that nothing names, each with the reason.

    `oldest`: files modified after it are left alone, unless they can be known never to be needed: metadata files
    that lost a commit, and inventories older than the cursor's.
    """
    table = references.table
    listed = list_files(table)
    # In this order: what is landed between the two questions is no longer staged, but then it is in the table.
    keep = named(engine, organization, name)
    with lake_errors(".".join(table.name())):
        table.refresh()
    keep |= references.everything()
    found = []
    for file in listed:
        if file.path in keep:
            continue
        if _superseded(table, file.path):
            found.append((file, SUPERSEDED))
        elif file.modified_at <= oldest:
            found.append((file, ORPHAN))
    return found


def sweep(
    engine: Engine, references: References, organization: str, name: str, *, oldest: datetime, now: datetime
) -> tuple[int, int]:
    """Note files of the table's folder that nothing names: (how many, of how many bytes)."""
    found = orphans(engine, references, organization, name, oldest=oldest)
    for reason in (ORPHAN, SUPERSEDED):
        note(engine, organization, name, [f.path for f, why in found if why == reason], reason, now)
    return len(found), sum(f.bytes for f, _ in found)


def due_count(engine: Engine, organization: str, name: str, noted_before: datetime) -> int:
    """How many noted files are past their grace period."""
    with engine.connect() as connection:
        mine = (FreedFile.organization_id == organization, FreedFile.table_name == name)
        return connection.scalar(select(func.count()).where(*mine, FreedFile.noted_at <= noted_before)) or 0


def _superseded(table: Table, path: str) -> bool:
    name = path.removeprefix(table.location().rstrip("/") + "/")
    if match := re.fullmatch(r"metadata/(\d+)-[^/]+\.metadata\.json", name):
        # A commit swaps the version before it for its own: one that is not above the current can never be.
        current = re.fullmatch(r".*/(\d+)-[^/]+\.metadata\.json", table.metadata_location)
        return current is not None and int(match[1]) <= int(current[1])
    if match := re.fullmatch(r"inventory/(\d+)-[^/]+\.parquet", name):
        cursor = read_cursor(table)
        return cursor is not None and cursor.inventory is not None and int(match[1]) < cursor.inventory.sequence
    return False


def remove(engine: Engine, references: References, organization: str, name: str, *, noted_before: datetime) -> int:
    """Remove noted files whose grace period is over; a note of a file that is needed is dropped. How many went.

    Raises:
        CatalogError, StorageError: the lake does not answer; what is left is removed next time.
    """
    mine = (FreedFile.organization_id == organization, FreedFile.table_name == name)
    with engine.connect() as connection:
        due = set(connection.scalars(select(FreedFile.path).where(*mine, FreedFile.noted_at <= noted_before)))
    if not due:
        return 0
    table = references.table
    keep = named(engine, organization, name)
    with lake_errors(".".join(table.name())):
        table.refresh()
    keep |= references.everything()
    _forget(engine, organization, name, due & keep)
    going = sorted(due - keep)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="remove") as pool:
        for begin in range(0, len(going), _BATCH):
            batch = going[begin : begin + _BATCH]
            for _ in pool.map(lambda path: _delete(table.io, path), batch):
                pass
            failpoint("maintain.removed")
            _forget(engine, organization, name, batch)
    return len(going)


def _delete(io: FileIO, path: str) -> None:
    with lake_errors(path):
        try:
            io.delete(path)
        except FileNotFoundError:
            # Removed by a run that was killed before it said so.
            return


def _forget(engine: Engine, organization: str, name: str, paths: Iterable[str]) -> None:
    if gone := list(paths):
        with engine.begin() as connection:
            connection.execute(
                delete(FreedFile).where(
                    FreedFile.organization_id == organization, FreedFile.table_name == name, FreedFile.path.in_(gone)
                )
            )
