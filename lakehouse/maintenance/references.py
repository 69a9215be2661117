"""What a lake table's metadata refers to: the files that must stay.

Manifests never change once they are written, so each is read once for as long as a `References` lives; asking again
after a commit reads only what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from catalog.errors import lake_errors
from lakehouse.landing.cursor import read_cursor
from schemas.lake_columns import CAPTURED_AT, SEQUENCE

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile, ManifestFile
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_THREADS = 8


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file of a snapshot. `day`: days since 1970, None unpartitioned. `captured_at`: of its newest row (1970 of
    records that have no such column)."""

    path: str
    bytes: int
    rows: int
    day: int | None
    spec_id: int
    captured_at: datetime
    first_sequence: int


class References:
    """Reads what a table's snapshots refer to. Not for several threads at once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        # Records of our own have none of the lake's columns; what they have under the same ids is something else.
        self._ids = {field.name: field.field_id for field in table.schema().fields}
        self._live: dict[str, list[LiveFile]] = {}
        self._lists: dict[str, list[ManifestFile]] = {}

    def of(self, snapshots: Iterable[Snapshot]) -> set[str]:
        """Manifest lists, manifests and data files that these snapshots refer to.

        Raises:
            CatalogError, StorageError: a manifest cannot be read.
        """
        found: set[str] = set()
        manifests: dict[str, ManifestFile] = {}
        for snapshot in snapshots:
            found.add(snapshot.manifest_list)
            manifests |= {m.manifest_path: m for m in self.manifests(snapshot)}
        self._read(manifests.values())
        for path in manifests:
            found.add(path)
            found.update(file.path for file in self._live[path])
        return found

    def everything(self) -> set[str]:
        """All that the table refers to now: snapshots' files, metadata, statistics, key inventory, quarantined rows."""
        metadata = self.table.metadata
        found = self.of(metadata.snapshots)
        found.add(self.table.metadata_location)
        found.update(entry.metadata_file for entry in metadata.metadata_log)
        found.update(file.statistics_path for file in metadata.statistics)
        found.update(file.statistics_path for file in metadata.partition_statistics)
        cursor = read_cursor(self.table)
        if cursor is not None and cursor.inventory is not None:
            found.add(cursor.inventory.file)
        if cursor is not None and cursor.quarantine is not None:
            found.update(cursor.quarantine.files)
        return found

    def live(self) -> list[LiveFile]:
        """The data files of the current snapshot."""
        snapshot = self.table.current_snapshot()
        if snapshot is None:
            return []
        manifests = self.manifests(snapshot)
        self._read(manifests)
        return [file for manifest in manifests for file in self._live[manifest.manifest_path]]

    def data_files(self, paths: set[str]) -> list[DataFile]:
        """Entries of the current snapshot for these paths, as Iceberg wants them to be named for a commit."""
        snapshot = self.table.current_snapshot()
        if snapshot is None:
            return []
        holding = [
            m for m in self.manifests(snapshot) if any(f.path in paths for f in self._live.get(m.manifest_path, ()))
        ]
        with lake_errors(self._where), ThreadPoolExecutor(_THREADS, thread_name_prefix="manifest") as pool:
            entries = pool.map(lambda m: m.fetch_manifest_entry(self.table.io), holding)
            return [e.data_file for part in entries for e in part if e.data_file.file_path in paths]

    def manifests(self, snapshot: Snapshot) -> list[ManifestFile]:
        """The manifests of one snapshot."""
        if snapshot.manifest_list not in self._lists:
            with lake_errors(self._where):
                self._lists[snapshot.manifest_list] = snapshot.manifests(self.table.io)
        return self._lists[snapshot.manifest_list]

    @property
    def _where(self) -> str:
        return ".".join(self.table.name())

    def _read(self, manifests: Iterable[ManifestFile]) -> None:
        missing = [m for m in manifests if m.manifest_path not in self._live]
        with lake_errors(self._where), ThreadPoolExecutor(_THREADS, thread_name_prefix="manifest") as pool:
            for manifest, files in zip(missing, pool.map(self._entries, missing), strict=True):
                self._live[manifest.manifest_path] = files

    def _entries(self, manifest: ManifestFile) -> list[LiveFile]:
        return [_live_file(entry.data_file, self._ids) for entry in manifest.fetch_manifest_entry(self.table.io)]


def _live_file(file: DataFile, ids: Mapping[str, int]) -> LiveFile:
    from pyiceberg.conversions import from_bytes
    from pyiceberg.types import LongType, TimestamptzType

    newest = (file.upper_bounds or {}).get(ids.get(CAPTURED_AT, -1))
    first = (file.lower_bounds or {}).get(ids.get(SEQUENCE, -1))
    micros = from_bytes(TimestamptzType(), newest) if newest is not None else 0
    return LiveFile(
        path=file.file_path,
        bytes=file.file_size_in_bytes,
        rows=file.record_count,
        day=file.partition[0] if len(file.partition) else None,
        spec_id=file.spec_id,
        captured_at=_EPOCH + timedelta(microseconds=int(micros)),
        first_sequence=int(from_bytes(LongType(), first)) if first is not None else 0,
    )
