"""The log of rows that the lake cannot hold: kept whole, beside the table, and named by its cursor.

A row that holds a value for which the lake has none is quarantined: not changed, not landed, but written here as the
text of every exported column. The log is a Parquet file in the table's own folder. The cursor names it with its
SHA-256, so it changes in the very commit that acknowledges the window: a crash before that leaves a file that nobody
names, a crash after it leaves nothing to do, and a lost control database loses none of it.

An event says that a row was `quarantined` (once for each of its versions that a window met) or `resolved`: mended, and
landed as any other row, or gone. A row is open while its last event is the former; the lake shows its last good
version meanwhile. Numbers are from the table's own `_sequence`. Nothing is ever taken out of the log; a file that has
grown big is sealed and the open rows go on in the next one.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from catalog.errors import lake_errors
from catalog.objects import Writes
from lakehouse.capture.forbidden import Examined, Key
from lakehouse.landing.cursor import Quarantine
from lakehouse.landing.parquet import HashingStream, StagedFile
from schemas.contract import Contract
from schemas.errors import ContractViolation, LakehouseError, Retry

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.io import FileIO

QUARANTINED, MENDED, GONE = "quarantined", "mended", "gone"
SEAL_BYTES = 4 * 1024 * 1024
_HELD_BYTES = 8 * 1024 * 1024
_FEW = 16
"""Rows that are read at once where contents may be big."""


@dataclass(frozen=True)
class Entry:
    """One event of the log. `content`: a JSON object of texts by column; None for what was resolved, or not read."""

    sequence: int
    event: str
    key: Key
    xmin: int | None
    captured_at: datetime
    window: str
    faults: tuple[tuple[str, str], ...]
    content_sha256: str | None
    content: str | None = None

    def describe(self, contract: Contract) -> str:
        """Key, column and reason in one line."""
        key = ", ".join(f"{name}={value!r}" for name, value in zip(contract.primary_key, self.key, strict=True))
        return f"row {key}: " + "; ".join(f"{column}: {reason}" for column, reason in self.faults)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("sequence", pa.int64()),
            ("event", pa.string()),
            ("key", pa.string()),
            ("xmin", pa.int64()),
            ("captured_at", pa.timestamp("us", tz="UTC")),
            ("window", pa.string()),
            ("faults", pa.string()),
            ("content_sha256", pa.string()),
            ("content", pa.large_string()),
        ]
    )


class _Log:
    """A new file of the log, being written. Memory is that of a few rows."""

    def __init__(self, writer: Any, stream: HashingStream) -> None:
        self.stream = stream
        self.entries = 0
        self._writer = writer
        self._held: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        self._held.append(row)
        self.entries += 1
        self._bytes += len(row["content"] or "")
        if self._bytes >= _HELD_BYTES or len(self._held) >= 1000:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._held:
            self._writer.write_table(pa.Table.from_pylist(self._held, _schema()))
        self._held, self._bytes = [], 0


@contextmanager
def _writing(io: Writes, path: str) -> Iterator[_Log]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with lake_errors(path), io.new_output(path).create(overwrite=False) as stream:
        hashing = HashingStream(stream)
        with (
            pa.PythonFile(hashing, mode="w") as sink,
            pq.ParquetWriter(sink, _schema(), compression="zstd", use_dictionary=["event", "window", "faults"]) as out,
        ):
            log = _Log(out, hashing)
            yield log
            log.flush()


def _rows(io: FileIO, path: str, *, content: bool) -> Iterator[dict[str, Any]]:
    """The rows of one file. Raises StorageError, or LakehouseError where it is gone or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = io.new_input(path)
    with lake_errors(path):
        if not source.exists():
            raise LakehouseError(
                f"{path}: is gone: it says which rows the lake could not hold",
                "Bring it back from the bucket's versions. Nothing was written.",
                retry=Retry.MANUAL,
            )
        names = [n for n in _schema().names if content or n != "content"]
        try:
            with source.open() as stream, pq.ParquetFile(pa.PythonFile(stream, mode="r")) as file:
                for batch in file.iter_batches(_FEW if content else 1000, columns=names):
                    yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise LakehouseError(
                f"{path}: is damaged: it says which rows the lake could not hold: {error}",
                "Bring it back from the bucket's versions. Nothing was written.",
                retry=Retry.MANUAL,
            ) from error


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        sequence=row["sequence"],
        event=row["event"],
        key=tuple(json.loads(row["key"])),
        xmin=row["xmin"],
        captured_at=row["captured_at"],
        window=row["window"],
        faults=tuple((column, reason) for column, reason in json.loads(row["faults"])),
        content_sha256=row["content_sha256"],
        content=row.get("content"),
    )


def read_entries(
    io: FileIO, quarantine: Quarantine | None, *, every: bool = False, content: bool = False
) -> Iterator[Entry]:
    """Events of the log in the order of `sequence`: of the open rows, or `every` one. `content`: with the rows.

    Raises:
        StorageError, LakehouseError: a file of the log cannot be read.
    """
    if quarantine is None:
        return
    if every:
        done: set[int] = set()
        for path in quarantine.files:
            for row in _rows(io, path, content=content):
                # Open rows are written again at the begin of the file after a sealed one.
                if row["sequence"] not in done:
                    done.add(row["sequence"])
                    yield _entry(row)
        return
    last = {row["key"]: row for row in _rows(io, quarantine.file, content=False)}
    wanted = {row["sequence"] for row in last.values() if row["event"] == QUARANTINED}
    for row in _rows(io, quarantine.file, content=content):
        if row["sequence"] in wanted:
            yield _entry(row)


def open_keys(io: FileIO, quarantine: Quarantine | None) -> dict[Key, Entry]:
    """The rows that are quarantined now, without their contents."""
    if quarantine is None or not quarantine.open:
        return {}
    return {entry.key: entry for entry in read_entries(io, quarantine)}


@dataclass(frozen=True)
class Moment:
    """Which window, or range of a backfill, sees the rows. `take(n)`: the first of n `_sequence` numbers."""

    window: str
    captured_at: datetime
    take: Callable[[int], int]


@dataclass(frozen=True)
class Known:
    """A log that is there, with its open rows (`open_keys`)."""

    io: FileIO
    log: Quarantine
    open: dict[Key, Entry]


def advance(
    io: Writes,
    location: str,
    contract: Contract,
    organization: str,
    before: Known | None,
    examined: Iterable[Examined],
    moment: Moment,
    most: int,
) -> Quarantine | None:
    """The log after a window: what `examined` brings beside the open rows of `before`.

    A version that is in it already is not written again. Returns the log that was there where nothing changed.
    `examined` is read to its end.

    Raises:
        ContractViolation: more than `most` rows would be open. StorageError, LakehouseError: the storage.
    """
    seen: set[Key] = set()
    fine: set[Key] = set()
    old_log, present = (before.log, before.open) if before else (None, {})
    opened = dict(present)
    path = f"{location}/quarantine/{moment.window}-{uuid.uuid4().hex[:8]}.parquet"
    seal = old_log is not None and old_log.bytes >= SEAL_BYTES and old_log.entries >= 2 * old_log.open

    def events() -> Iterator[dict[str, Any]]:
        for row in examined:
            seen.add(row.key)
            if not row.faults:
                fine.add(row.key)
                continue
            assert row.content is not None  # noqa: S101 - it comes with the faults
            digest = hashlib.sha256(row.content.encode()).hexdigest()
            old = present.get(row.key)
            if old is None or (old.xmin, old.content_sha256) != (row.xmin, digest):
                event = _event(moment, QUARANTINED, row.key, row.xmin, row.faults, digest, row.content)
                opened[row.key] = _entry({**event, "content": None})
                if len(opened) > most:
                    raise _too_many(contract, organization, opened[row.key], most)
                yield event
        for key, old in present.items():
            if key in fine or key not in seen:
                del opened[key]
                yield _event(moment, MENDED if key in fine else GONE, key, None, old.faults, None, None)

    changes = events()
    first = next(changes, None)
    if first is None:
        return old_log
    with _writing(io, path) as log:
        if before is not None:
            wanted = {e.sequence for e in present.values()}
            for row in _rows(before.io, before.log.file, content=True):
                if not seal or row["sequence"] in wanted:
                    log.add(row)
        log.add(first)
        for event in changes:
            log.add(event)
    resolved = any(key not in opened for key in present)
    return Quarantine(
        file=path,
        bytes=log.stream.size,
        sha256=log.stream.sha256.hexdigest(),
        entries=log.entries,
        open=len(opened),
        first=_first(contract, opened),
        resolved_at=moment.captured_at if resolved else old_log.resolved_at if old_log else None,
        sealed=() if old_log is None else old_log.files if seal else old_log.sealed,
    )


def _event(
    moment: Moment,
    event: str,
    key: Key,
    xmin: int | None,
    faults: Sequence[tuple[str, str]],
    digest: str | None,
    content: str | None,
) -> dict[str, Any]:
    return {
        "sequence": moment.take(1),
        "event": event,
        "key": json.dumps(key, ensure_ascii=False),
        "xmin": xmin,
        "captured_at": moment.captured_at,
        "window": moment.window,
        "faults": json.dumps(faults, ensure_ascii=False),
        "content_sha256": digest,
        "content": content,
    }


def _first(contract: Contract, opened: dict[Key, Entry]) -> str:
    oldest = min(opened.values(), key=lambda e: e.sequence, default=None)
    return oldest.describe(contract)[:400] if oldest else ""


def _too_many(contract: Contract, organization: str, entry: Entry, most: int) -> ContractViolation:
    return ContractViolation(
        f"{contract.source_name}: organization {organization}: {entry.describe(contract)}; and more than {most} rows "
        "hold what the lake cannot",
        "Mend the values in the source or the contract, or raise LAKEHOUSE_CAPTURE__MAX_QUARANTINED.",
    )


def gather(
    io: FileIO, location: str, contract: Contract, organization: str, name: str, parts: Sequence[StagedFile], most: int
) -> Quarantine | None:
    """The first log of a table, from the files that the ranges of its backfill wrote.

    Raises:
        ContractViolation: more than `most` rows would be open. StorageError, LakehouseError: the storage.
    """
    if not parts:
        return None
    opened: dict[Key, Entry] = {}
    path = f"{location}/quarantine/{name}-{uuid.uuid4().hex[:8]}.parquet"
    with _writing(io, path) as log:
        for part in parts:
            for row in _rows(io, part.path, content=True):
                entry = _entry({**row, "content": None})
                opened[entry.key] = entry
                if len(opened) > most:
                    raise _too_many(contract, organization, entry, most)
                log.add(row)
    return Quarantine(
        path, log.stream.size, log.stream.sha256.hexdigest(), log.entries, len(opened), _first(contract, opened)
    )


def staged(organization: str, quarantine: Quarantine) -> StagedFile:
    """The log's file as one that was staged: to be checked before another process commits the cursor that names it,
    and to be remembered with a range."""
    return StagedFile(
        organization=organization,
        path=quarantine.file,
        rows=quarantine.entries,
        bytes=quarantine.bytes,
        day=None,
        first_sequence=0,
        last_sequence=0,
        sha256=quarantine.sha256,
    )
