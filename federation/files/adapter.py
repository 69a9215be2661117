"""Delivers plain files: one immutable file a step and date, then the manifest that makes them count.

A range is cut into steps of at most `max_dates` dates, each with a manifest of its own, so what was done is not done
again. A file's name is made of what it holds, so a step that is repeated after a crash puts the same file in the same
place. The manifest is replaced only where it is still the one that was read: of two workers with one range the
second finds it delivered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import unquote

from federation.config import FilesConfig
from federation.files import manifest
from federation.files.manifest import Entry, Manifest
from federation.files.mark import Mark
from federation.files.store import DamagedError, Found, RaceLostError, Store
from federation.protocol import (
    Delivery,
    DestinationError,
    Filling,
    FillingTakenError,
    GapError,
    OvertakenError,
    Owner,
    RangeReader,
    Receipt,
)
from schemas.contract import Contract
from schemas.lake_columns import SEQUENCE

if TYPE_CHECKING:
    import pyarrow as pa

ATTEMPTS = 3
_SPOOL_BYTES = 1024 * 1024
"""In memory for each file that is being written; the rest of it lies in a temporary file."""
FILE_ROWS = 1_000_000
"""A date that has more latest rows is filled by several files."""
_READ_BYTES = 1024 * 1024


class Format(Protocol):
    """How rows become a file."""

    kind: str
    suffix: str

    def open(self, contract: Contract, file: BinaryIO) -> Writer:
        """A writer of one file."""
        ...


class Writer(Protocol):
    """One file being written."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Add rows of the lake's columns, in order of `_sequence`."""
        ...

    def close(self) -> None:
        """End the file. What is below it stays open."""
        ...


class FilesAdapter:
    """An open prefix. See `federation.protocol.Adapter`."""

    def __init__(self, config: FilesConfig, form: Format, store: Store, owner: Owner) -> None:
        self.config = config
        self.form = form
        self.store = store
        self.owner = Owner(owner.installation, owner.organization)
        self.shared = owner.shared
        self._mark = Mark(store, owner, form.kind)

    def check(self) -> None:
        """See `Adapter.check`."""
        import io
        import uuid

        self._mark.check()
        self._look_around()
        probe = f"_lakehouse/probe-{uuid.uuid4().hex}"
        self.store.put(probe, io.BytesIO(b"{}"))
        self.store.read_json(probe)
        self.store.delete(probe)

    def _look_around(self) -> None:
        """No table there has another's files, whatever the mark says, or if there is none."""
        for table in self.store.folders():
            for folder in self.store.folders(f"{table}/"):
                organization = unquote(folder.partition("organization_id=")[2])
                name = manifest.name(table, dataclasses.replace(self.owner, organization=organization))
                if organization and (found := self.store.read_json(name)) is not None:
                    # Whose they have to be: ours, or where they are all organizations' each one's.
                    owner = dataclasses.replace(self.owner, organization=organization) if self.shared else self.owner
                    manifest.read(found, self.form.kind, owner, table, self.store.url(name))

    def prepare(self, contract: Contract) -> None:
        """See `Adapter.prepare`. An added column is there from the next file on; older ones read as null."""
        marked = self._mark.check()
        if marked is None:
            self._look_around()
        self._mark.take(marked)
        found, held = self.manifest(contract)
        if found is None or held.contract != contract.version:
            try:
                self._replace(contract, dataclasses.replace(held, contract=contract.version), found)
            except RaceLostError:
                # Whoever was first has made the same.
                self.manifest(contract)

    def standing(self, contract: Contract) -> int:
        """See `Adapter.standing`."""
        return self.manifest(contract)[1].sequence

    def filled(self, contract: Contract) -> int:
        """See `Adapter.filled`."""
        return self.manifest(contract)[1].filled_upto

    def manifest(self, contract: Contract) -> tuple[Found | None, Manifest]:
        """The manifest with what it was read as; an empty one where there is none.

        Raises:
            ForeignTargetError: it is another's.
            DestinationError: it cannot be read.
        """
        self._mark.once()
        name = manifest.name(contract.table, self.owner)
        found = self.store.read_json(name)
        if found is None:
            return None, self._nothing(contract)
        return found, manifest.read(found, self.form.kind, self.owner, contract.table, self.store.url(name))

    def deliver(self, delivery: Delivery, rows: RangeReader) -> Receipt:
        """See `Adapter.deliver`."""
        contract = delivery.contract
        written = size = 0
        lost = 0
        while True:
            found, held = self.manifest(contract)
            if held.sequence < delivery.after:
                raise GapError(
                    f"{self.store.url(manifest.name(contract.table, self.owner))}: stands at {held.sequence}, the "
                    f"delivery begins after {delivery.after}: it was cleared, or is an older copy",
                    "Run `lakehouse destinations resync` for it: it is filled again from the lake.",
                )
            if held.sequence >= delivery.upto:
                return Receipt(held.sequence, written, size)
            upto, entries = self._step(contract, held.sequence, delivery.upto, rows)
            grown = dataclasses.replace(
                held, sequence=upto, snapshot_id=delivery.snapshot_id, files=(*held.files, *entries)
            )
            try:
                self._replace(contract, grown, found)
            except RaceLostError:
                lost += 1
                if lost == ATTEMPTS:
                    raise
                continue
            written += sum(e.rows for e in entries)
            size += sum(e.bytes for e in entries)

    @property
    def every_version(self) -> bool:
        """See `Adapter.every_version`."""
        return self.config.history

    def filling(self, contract: Contract) -> Filling | None:
        """See `Adapter.filling`."""
        taken = self._taken(contract)[1]
        try:
            shown = self.manifest(contract)[1].filled
        except DamagedError:
            shown = None
        # Where its files count already, only the list of them was not removed.
        return taken.filling if taken.filling is not None and taken.filling.id != shown else None

    def take(
        self,
        contract: Contract,
        before: Filling | None,
        rows: Iterator[pa.RecordBatch],
        after: Callable[[], Filling],
    ) -> Filling:
        """See `Adapter.take`. The files' names are made of what they hold: taken twice they are the same."""
        found, taken = self._taken(contract)
        if before is None:
            taken = self._nothing(contract)
        elif taken.filling != before:
            raise self._other_filling(contract)
        entries = tuple(self._write(contract, rows))
        reached = after()
        grown = dataclasses.replace(taken, files=(*taken.files, *entries), filling=reached)
        name = manifest.filling_name(contract.table, self.owner)
        try:
            self.store.write_json(name, grown.to_json(), instead_of=found)
        except DestinationError as error:
            # It may have been written, and the answer was lost.
            if self._taken(contract)[1] != grown:
                if isinstance(error, RaceLostError):
                    raise self._other_filling(contract) from None
                raise
        return reached

    def replace(self, contract: Contract, filling: Filling, snapshot_id: int) -> Receipt:
        """See `Adapter.replace`. Files that no manifest names any more stay for readers that hold the old one."""
        where = self.store.url(manifest.name(contract.table, self.owner))
        _, taken = self._taken(contract)
        if taken.filling != filling:
            raise self._other_filling(contract)
        for _ in range(ATTEMPTS):
            try:
                found, held = self.manifest(contract)
            except DamagedError as error:
                found, held = Found({}, error.etag), self._nothing(contract)
            # What was delivered beyond that state while its files were written.
            later = [f for f in held.files if f.last > filling.sequence]
            if any(f.first <= filling.sequence for f in later):
                raise OvertakenError(f"{where}: a delivery came while it was filled")
            fresh = dataclasses.replace(
                self._nothing(contract),
                sequence=max(filling.sequence, held.sequence),
                snapshot_id=snapshot_id,
                files=(*taken.files, *later),
                filled=filling.id,
                filled_upto=filling.sequence,
            )
            try:
                self._replace(contract, fresh, found)
            except RaceLostError:
                continue
            self.store.delete(manifest.filling_name(contract.table, self.owner))
            return Receipt(fresh.sequence, filling.rows, sum(e.bytes for e in taken.files))
        raise OvertakenError(f"{where}: deliveries came again and again")

    def _taken(self, contract: Contract) -> tuple[Found | None, Manifest]:
        """What a filling has taken, with what it was read as; nothing where there is none, or somebody damaged it."""
        self._mark.once()
        name = manifest.filling_name(contract.table, self.owner)
        try:
            found = self.store.read_json(name)
            if found is None:
                return None, self._nothing(contract)
            return found, manifest.read(found, self.form.kind, self.owner, contract.table, self.store.url(name))
        except DamagedError as error:
            return Found({}, error.etag), self._nothing(contract)

    def _other_filling(self, contract: Contract) -> FillingTakenError:
        name = self.store.url(manifest.filling_name(contract.table, self.owner))
        return FillingTakenError(f"{name}: {contract.table} is filled by somebody else too", "It goes on there.")

    def _nothing(self, contract: Contract) -> Manifest:
        return Manifest(self.form.kind, self.owner, contract.table, contract.version)

    def _write(self, contract: Contract, rows: Iterator[pa.RecordBatch]) -> Iterator[Entry]:
        """One file a date, and more of one that has many rows or that others came between."""
        files: dict[int | None, _Open] = {}
        try:
            for batch in rows:
                begin = 0
                for end, day in _runs(contract, batch):
                    if day not in files and len(files) == self.config.max_dates:
                        yield from self._put_all(contract, files)
                    if day in files and files[day].rows >= FILE_ROWS:
                        yield from self._put_all(contract, {day: files[day]})
                        del files[day]
                    if day not in files:
                        files[day] = _Open(self.form, contract)
                    files[day].write(batch.slice(begin, end - begin))
                    begin = end
            yield from self._put_all(contract, files)
        finally:
            for file in files.values():
                file.close()

    def _put_all(self, contract: Contract, files: dict[int | None, _Open]) -> Iterator[Entry]:
        for day, file in files.items():
            yield self._put(contract, day, file)
            file.close()
        files.clear()

    def close(self) -> None:
        """See `Adapter.close`."""
        self.store.close()

    def _replace(self, contract: Contract, value: Manifest, found: Found | None) -> None:
        name = manifest.name(contract.table, self.owner)
        try:
            self.store.write_json(name, value.to_json(), instead_of=found)
        except RaceLostError:
            # It may have been this very one, whose answer was lost and which the client then sent again.
            if self.manifest(contract)[1] != value:
                raise
        except DestinationError:
            if self.manifest(contract)[1] != value:
                raise

    def _step(self, contract: Contract, after: int, upto: int, rows: RangeReader) -> tuple[int, list[Entry]]:
        """Write the files of as many rows as have at most `max_dates` dates; the `_sequence` that they reach."""
        files: dict[int | None, _Open] = {}
        reached = upto
        try:
            for batch in rows(after, upto):
                begin = 0
                for end, day in _runs(contract, batch):
                    if day not in files:
                        if len(files) == self.config.max_dates:
                            # Before this row: the next step begins with it.
                            reached = int(batch.column(SEQUENCE)[begin].as_py()) - 1
                            break
                        files[day] = _Open(self.form, contract)
                    files[day].write(batch.slice(begin, end - begin))
                    begin = end
                if reached != upto:
                    break
            return reached, [self._put(contract, day, file) for day, file in files.items()]
        finally:
            for file in files.values():
                file.close()

    def _put(self, contract: Contract, day: int | None, file: _Open) -> Entry:
        digest, size = file.finish()
        # A table without an event time has no dates: what was captured is one file a step.
        text = None if day is None else (date(1970, 1, 1) + timedelta(days=day)).isoformat()
        place = "" if text is None else f"date={text}/"
        name = (
            f"{manifest.folder(contract.table, self.owner)}/{place}"
            f"{file.first:020d}-{file.last:020d}-{digest[:12]}{self.form.suffix}"
        )
        self.store.put(name, file.stream)
        return Entry(self.store.url(name), text, file.rows, size, digest, file.first, file.last)


class _Open:
    """A file that is being written, in memory until it is large."""

    def __init__(self, form: Format, contract: Contract) -> None:
        self.stream: BinaryIO = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # type: ignore[assignment]  # noqa: SIM115 - closed by `close`
        self._writer = form.open(contract, self.stream)
        self.rows = 0
        self.first = self.last = 0

    def write(self, rows: pa.RecordBatch) -> None:
        if not rows.num_rows:
            return
        import pyarrow.compute as pc

        numbers = pc.min_max(rows.column(SEQUENCE)).as_py()
        self.first = min(self.first or numbers["min"], numbers["min"])
        self.last = max(self.last, numbers["max"])
        self.rows += rows.num_rows
        self._writer.write(rows)

    def finish(self) -> tuple[str, int]:
        """End the file: SHA-256 in hex and bytes."""
        self._writer.close()
        self.stream.seek(0)
        digest, size = hashlib.sha256(), 0
        while data := self.stream.read(_READ_BYTES):
            digest.update(data)
            size += len(data)
        self.stream.seek(0)
        return digest.hexdigest(), size

    def close(self) -> None:
        # One that was broken off is ended too: its writer would end it later, into a stream that is closed.
        self._writer.close()
        self.stream.close()


def _runs(contract: Contract, batch: pa.RecordBatch) -> Iterator[tuple[int, int | None]]:
    """(end, day) of each run of rows of one day; the loop is over runs, not rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if contract.event_time is None:
        yield batch.num_rows, None
        return
    days = batch.column(contract.event_time).cast(pa.date32(), safe=False).cast(pa.int32())
    encoded = pc.run_end_encode(days)
    yield from zip(encoded.run_ends.to_pylist(), encoded.values.to_pylist(), strict=True)
