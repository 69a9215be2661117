"""Staging: cuts a stream of rows by organization and day, sorts it, and writes data files.

Memory is bounded: batches are gathered until `chunk_bytes`; each is sorted by organization, event time and key as
it comes, and each organization's days are slices of all of them (sorting the whole chunk at once copies it twice
through memory that is new to the process, six times the cost). Uploads overlap with reading through a bounded number
of threads. Inside a file rows are in order within what came as one batch; `_sequence` follows the order in the file.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from catalog.objects import Writes
from lakehouse.failpoints import failpoint
from lakehouse.landing.parquet import StagedFile, lake_rows, write_data_file
from schemas.contract import Contract
from schemas.errors import LakehouseError
from schemas.lake_columns import UPSERT

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Target:
    """Where one organization's files go."""

    io: Writes
    location: str


@dataclass
class Share:
    """What was staged for one organization."""

    files: list[StagedFile] = field(default_factory=list)
    rows: int = 0
    deletes: int = 0
    watermark_start: datetime | None = None
    watermark_end: datetime | None = None

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


class Stager:
    """Writes the files of one window or backfill range. Use as a context manager; `finish` gives the shares.

    `target(organization)`: where its files go, asked when it has rows. `allocate(organization, n)`: the first
    of n `_sequence` numbers. An organization whose storage fails is left out (`failures`); the others go on.
    `attempt` is part of every file's name, so that no attempt writes another's file.
    """

    def __init__(
        self,
        contract: Contract,
        target: Callable[[str], Target],
        allocate: Callable[[str, int], int],
        *,
        window: str,
        captured_at: datetime,
        chunk_bytes: int,
        threads: int,
    ) -> None:
        self.contract = contract
        self.target = target
        self.allocate = allocate
        self.window = window
        self.captured_at = captured_at
        self.chunk_bytes = chunk_bytes
        self.attempt = uuid.uuid4().hex[:8]
        self.shares: dict[str, Share] = {}
        self.failures: dict[str, LakehouseError] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="upload")
        self._of_last_chunk = 0
        self._pending: list[tuple[str, Future[StagedFile]]] = []
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def add(self, batches: Iterable[pa.RecordBatch], op: str = UPSERT) -> int:
        """Stage a stream of rows (contract's columns, `_xmin`); returns how many were read."""
        total = 0
        for chunk in _chunks(batches, self.chunk_bytes, self._sorted):
            total += sum(batch.num_rows for batch in chunk)
            self._add_chunk(chunk, op)
        return total

    def finish(self) -> dict[str, Share]:
        """Wait for every upload and return what was staged, by organization, without those that failed."""
        self._drain(0)
        for organization in self.failures:
            self.shares.pop(organization, None)
        for share in self.shares.values():
            share.files.sort(key=lambda f: f.first_sequence)
        return self.shares

    def _sorted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa
        import pyarrow.compute as pc

        names = dict.fromkeys([self.contract.tenant, *self.contract.identity])
        order = pc.sort_indices(batch, sort_keys=[(name, "ascending") for name in names])
        if pc.all(pc.equal(order, pa.arange(0, batch.num_rows).cast(order.type))).as_py():
            return batch
        return batch.take(order)

    def _add_chunk(self, chunk: list[pa.RecordBatch], op: str) -> None:
        import pyarrow as pa

        # A pending upload keeps its whole chunk in memory: only the last chunk's may be under way.
        self._drain(self._of_last_chunk)
        before = self._number
        shares: dict[str, dict[int | None, list[pa.RecordBatch]]] = {}
        for batch in chunk:
            for organization, day, part in self._parts(batch):
                shares.setdefault(organization, {}).setdefault(day, []).append(part)
        for organization, days in sorted(shares.items()):
            if (target := self._target(organization)) is None:
                continue
            tables = {day: pa.Table.from_batches(parts) for day, parts in days.items()}
            sequence = self.allocate(organization, sum(t.num_rows for t in tables.values()))
            for day, part in sorted(tables.items(), key=lambda item: item[0] or 0):
                self._count(organization, part, op)
                rows = lake_rows(
                    self.contract,
                    part,
                    op=op,
                    first_sequence=sequence,
                    captured_at=self.captured_at,
                    window=self.window,
                )
                self._write(organization, target, day, rows)
                sequence += part.num_rows
        self._of_last_chunk = self._number - before
        failpoint("capture.chunk_staged")

    def _parts(self, batch: pa.RecordBatch) -> Iterator[tuple[str, int | None, pa.RecordBatch]]:
        """Slices of a sorted batch: one organization, one day."""
        import pyarrow as pa

        tenants = batch.column(self.contract.tenant)
        ends = set(_run_ends(tenants.cast(pa.string())))
        days = None
        if self.contract.event_time is not None:
            days = batch.column(self.contract.event_time).cast(pa.date32(), safe=False).cast(pa.int32())
            ends.update(_run_ends(days))
        begin = 0
        for end in sorted(ends):
            day = None if days is None else days[begin].as_py()
            yield str(tenants[begin].as_py()), day, batch.slice(begin, end - begin)
            begin = end

    def _target(self, organization: str) -> Target | None:
        if organization in self.failures:
            return None
        try:
            return self.target(organization)
        except LakehouseError as error:
            self.failures[organization] = error
            return None

    def _write(self, organization: str, target: Target, day: int | None, rows: pa.Table) -> None:
        folder = "" if day is None else f"{self.contract.event_time}_day={_date(day)}/"
        path = f"{target.location}/data/{folder}{self.window}-{self.attempt}-{self._number:05d}.parquet"
        self._number += 1
        upload = self._pool.submit(write_data_file, target.io, self.contract, organization, rows, path, day)
        self._pending.append((organization, upload))

    def _drain(self, most: int) -> None:
        while len(self._pending) > most:
            organization, upload = self._pending.pop(0)
            try:
                self.shares[organization].files.append(upload.result())
            except LakehouseError as error:
                self.failures.setdefault(organization, error)

    def _count(self, organization: str, rows: pa.Table, op: str) -> None:
        import pyarrow.compute as pc

        share = self.shares.setdefault(organization, Share())
        if op != UPSERT:
            share.deletes += rows.num_rows
            return
        share.rows += rows.num_rows
        if self.contract.watermark:
            found = pc.min_max(rows[self.contract.watermark.column]).as_py()
            if found["min"] is not None:
                share.watermark_start = min(filter(None, (share.watermark_start, found["min"])))
                share.watermark_end = max(filter(None, (share.watermark_end, found["max"])))


def _chunks(
    batches: Iterable[pa.RecordBatch], most_bytes: int, prepare: Callable[[pa.RecordBatch], pa.RecordBatch]
) -> Iterator[list[pa.RecordBatch]]:
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        held.append(prepare(batch))
        size += batch.nbytes
        if size >= most_bytes:
            yield held
            held, size = [], 0
    if held:
        yield held


def _run_ends(values: pa.Array) -> list[int]:
    """Where each run of equal values ends; the loop is over runs, not rows."""
    import pyarrow.compute as pc

    ends: list[int] = pc.run_end_encode(values).run_ends.to_pylist()
    return ends


def _date(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
