"""Reads one range in a process of its own: from a shared snapshot to staged files."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql

from catalog.objects import ObjectWriter
from lakehouse.backfill.ranges import Range, range_condition
from lakehouse.capture.forbidden import Flags, check_flagged, examine
from lakehouse.capture.projection import Violation, select_list, to_lake
from lakehouse.capture.source import Source, SourceError
from lakehouse.capture.xmin import stream, tenant_condition, transaction
from lakehouse.control.database import ControlError
from lakehouse.failpoints import failpoint
from lakehouse.landing.parquet import StagedFile
from lakehouse.landing.quarantine import Moment, advance, staged
from lakehouse.landing.staging import Stager, Target
from lakehouse.settings import Settings
from schemas.contract import Contract
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    import pyarrow as pa

LIBRARIES = (__name__, "pyarrow.fs", "pyarrow.parquet")
"""What reading a range needs, for `lakehouse.executor.LocalProcesses`."""


@dataclass(frozen=True)
class RangeTask:
    """What a worker needs to read one range."""

    settings: Settings
    writers: dict[str, ObjectWriter]
    """By organization: each lake is written in its own place, with its own keys."""
    contract: Contract
    backfill: str
    number: int
    bounds: Range
    organizations: tuple[str, ...]
    tenant_type: str
    key_types: dict[str, str]
    """Of the primary key's columns, by lake name."""
    exported: str
    snapshot: str
    captured_at: datetime


@dataclass(frozen=True)
class RangeResult:
    """What a worker wrote. Organizations with a violation have no files.

    `quarantined`: files of rows that the lake cannot hold.
    """

    number: int
    files: list[StagedFile]
    rows: int
    violations: dict[str, Violation]
    failures: dict[str, str]
    quarantined: list[StagedFile]


def read_range(task: RangeTask) -> RangeResult:
    """Read a range under the exported snapshot and stage it.

    Raises:
        SourceError: the database broke off; the range is read again by the next run.
    """
    contract = task.contract
    flags = Flags(contract, task.settings.capture.max_quarantined)
    source = Source(task.settings.source)
    query = sql.SQL("SELECT {} FROM {} AS t WHERE {}").format(
        select_list(contract),
        sql.Identifier(contract.source_schema, contract.source_table),
        sql.SQL(" AND ").join(
            [
                tenant_condition(contract, task.organizations, task.tenant_type),
                *range_condition(contract, task.key_types[contract.primary_key[0]], task.bounds),
            ]
        ),
    )

    def rows() -> Iterator[pa.RecordBatch]:
        for raw in stream(cursor, query, contract):
            batch, found = to_lake(raw, contract)
            flags.add(found)
            yield batch

    numbers = _Numbers(task.settings, task.backfill)
    stager = Stager(
        contract,
        functools.partial(_target, task),
        numbers.take,
        window=task.backfill,
        captured_at=task.captured_at,
        # The bound is the program's: its processes share it.
        chunk_bytes=task.settings.capture.chunk_bytes // task.settings.backfill.workers,
        threads=max(1, task.settings.landing.threads // task.settings.backfill.workers),
    )
    with contextlib.closing(numbers), source.reader() as reader, reader.cursor() as cursor, stager:
        with transaction(cursor, contract, snapshot=task.exported):
            total = stager.add(rows())
            quarantined = _quarantine(task, cursor, flags, numbers, stager.failures)
        shares = stager.finish()
    failpoint("backfill.range_read")
    return RangeResult(
        number=task.number,
        files=[f for o, share in shares.items() if o not in flags.violations for f in share.files],
        rows=total,
        violations=flags.violations,
        failures={o: str(e) for o, e in stager.failures.items()},
        quarantined=quarantined,
    )


def _quarantine(
    task: RangeTask, cursor: Any, flags: Flags, numbers: _Numbers, failures: dict[str, LakehouseError]
) -> list[StagedFile]:
    """Write the rows that were left out, whole; a file for each organization that has any."""
    files = []
    contract = task.contract
    for organization, flagged in flags.of.items():
        if organization in flags.violations or organization in failures:
            continue
        examined = examine(
            lambda query: stream(cursor, query, contract),
            contract,
            tenant_condition(contract, [organization], task.tenant_type),
            task.key_types,
            flagged=flagged,
        )
        try:
            target = _target(task, organization)
            log = advance(
                target.io,
                target.location,
                contract,
                organization,
                None,
                check_flagged(flags, organization, examined),
                Moment(
                    task.backfill,
                    task.captured_at,
                    functools.partial(numbers.take, organization),
                ),
                task.settings.capture.max_quarantined,
            )
        except SourceError:
            raise
        except LakehouseError as error:
            failures[organization] = error
            continue
        if log is not None:
            files.append(staged(organization, log))
    return files


def _target(task: RangeTask, organization: str) -> Target:
    writer = task.writers[organization]
    return Target(writer, writer.location)


class _Numbers:
    """Blocks of `_sequence` from the control tables; one row an organization is the counter.

    Ranges in other processes take the numbers after these.
    """

    def __init__(self, settings: Settings, backfill: str) -> None:
        self._settings = settings
        self._backfill = backfill
        self._connection: psycopg.Connection[Any] | None = None

    def take(self, organization: str, count: int) -> int:
        """The first of `count` numbers."""
        import psycopg

        if self._connection is None:
            self._connection = psycopg.connect(
                self._settings.control_url,
                autocommit=True,
                options=f"-csearch_path={self._settings.control.schema_name}",
                application_name="lakehouse backfill",
                connect_timeout=10,
            )
        row = self._connection.execute(
            "UPDATE backfill_sequences SET next_sequence = next_sequence + %s "
            "WHERE backfill_id = %s::uuid AND organization_id = %s RETURNING next_sequence",
            [count, self._backfill, organization],
        ).fetchone()
        if row is None:
            raise ControlError(f"backfill {self._backfill} is not in the control tables any more")
        upper: int = row[0]
        return upper - count

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
