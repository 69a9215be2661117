"""Reads one range in a process of its own: from a shared snapshot to staged files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakehouse.backfill.ranges import Range, range_condition
from lakehouse.capture.projection import Violation, select_list, to_lake
from lakehouse.capture.source import Source
from lakehouse.capture.xmin import stream, tenant_condition, transaction
from lakehouse.failpoints import failpoint
from lakehouse.landing.parquet import StagedFile
from lakehouse.landing.staging import Stager, Target
from lakehouse.settings import Settings
from schemas.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from sqlalchemy import Engine


@dataclass(frozen=True)
class RangeTask:
    """What a worker needs to read one range."""

    settings: Settings
    storages: dict[str, dict[str, str]]
    """By organization: each lake is written with its own keys."""
    contract: Contract
    backfill: str
    number: int
    bounds: Range
    organizations: tuple[str, ...]
    locations: dict[str, str]
    tenant_type: str
    key_type: str
    exported: str
    snapshot: str
    captured_at: datetime


@dataclass(frozen=True)
class RangeResult:
    """What a worker wrote. Organizations with a violation have no files."""

    number: int
    files: list[StagedFile]
    rows: int
    violations: dict[str, Violation]
    failures: dict[str, str]


def read_range(task: RangeTask) -> RangeResult:
    """Read a range under the exported snapshot and stage it.

    Raises:
        SourceError: the database broke off; the range is read again by the next run.
    """
    contract = task.contract
    violations: dict[str, Violation] = {}
    source = Source(task.settings.source)
    query = sql.SQL("SELECT {} FROM {} AS t WHERE {}").format(
        select_list(contract),
        sql.Identifier(contract.source_schema, contract.source_table),
        sql.SQL(" AND ").join(
            [
                tenant_condition(contract, task.organizations, task.tenant_type),
                *range_condition(contract, task.key_type, task.bounds),
            ]
        ),
    )

    def rows() -> Iterator[pa.RecordBatch]:
        for raw in stream(cursor, query, contract):
            batch, found = to_lake(raw, contract)
            for violation in found:
                violations.setdefault(violation.organization, violation)
            yield batch

    stager = Stager(
        contract,
        functools.partial(_target, task),
        functools.partial(_allocate, _engine(task.settings), task.backfill),
        window=task.backfill,
        captured_at=task.captured_at,
        chunk_bytes=task.settings.capture.chunk_bytes,
        threads=max(1, task.settings.landing.threads // task.settings.backfill.workers),
    )
    with source.reader() as reader, reader.cursor() as cursor, stager:
        with transaction(cursor, contract, snapshot=task.exported):
            total = stager.add(rows())
        shares = stager.finish()
    failpoint("backfill.range_read")
    return RangeResult(
        number=task.number,
        files=[f for o, share in shares.items() if o not in violations for f in share.files],
        rows=total,
        violations=violations,
        failures={o: str(e) for o, e in stager.failures.items()},
    )


def _target(task: RangeTask, organization: str) -> Target:
    from pyiceberg.io import load_file_io

    location = task.locations[organization]
    properties = {"py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO", **task.storages[organization]}
    return Target(load_file_io(properties, location), location)


@functools.cache
def _engine_for(url: str, schema: str) -> Engine:
    from sqlalchemy import create_engine

    from lakehouse.settings import sqlalchemy_url

    return create_engine(
        sqlalchemy_url(url),
        connect_args={"options": f"-csearch_path={schema}", "application_name": "lakehouse backfill"},
    )


def _engine(settings: Settings) -> Engine:
    return _engine_for(settings.control_url, settings.control.schema_name)


def _allocate(engine: Any, backfill: str, organization: str, count: int) -> int:
    from sqlalchemy import text

    # One row per organization is the counter: ranges in other processes take the numbers after these.
    with engine.begin() as connection:
        upper: int = connection.execute(
            text(
                "UPDATE backfill_sequences SET next_sequence = next_sequence + :n "
                "WHERE backfill_id = CAST(:b AS uuid) AND organization_id = :o RETURNING next_sequence"
            ),
            {"n": count, "b": backfill, "o": organization},
        ).scalar_one()
    return upper - count
