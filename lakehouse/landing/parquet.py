"""Writes one Parquet data file and describes it to Iceberg.

zstd level 1 (level 3 takes half as long again for no smaller file); dictionaries only where values repeat; a
bloom filter on text keys; page statistics. Delta encodings are left out although they are faster: Iceberg's
vectorized Spark reader before 1.10 cannot read them, and every reader must.

A file's SHA-256 is taken while it is written and kept with its size: whoever commits a file that another process
staged reads it once (`check_staged`) and commits nothing if it is gone or is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.errors import StorageError, lake_errors
from catalog.objects import Writes
from lakehouse.failpoints import failpoint
from schemas.contract import Contract
from schemas.lake_columns import CAPTURED_AT, OP, SEQUENCE, WINDOW, XMIN, lake_fields
from schemas.types import LogicalType

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

ROW_GROUP_ROWS = 131_072
ROW_GROUP_BYTES = 64 * 1024 * 1024
"""Arrow bytes of one row group when rows come as a stream."""
_READ_BYTES = 8 * 1024 * 1024


class StagedFileError(StorageError):
    """A staged file is gone or changed: it is not committed, and its rows are read again."""


@dataclass(frozen=True)
class StagedFile:
    """A data file that lies in the lake's folder. `day`: partition value, days since 1970, None unpartitioned."""

    organization: str
    path: str
    rows: int
    bytes: int
    day: int | None
    first_sequence: int
    last_sequence: int
    sha256: str | None = None
    """Of the whole file, in hex; None for files that were staged before it was kept."""
    metadata: pq.FileMetaData | None = None

    def to_json(self) -> dict[str, Any]:
        """For the control tables; the Parquet footer is read again from the file itself."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "metadata"}


def _writer_options(contract: Contract, rows: int) -> dict[str, Any]:
    keys = {c.name for c in contract.columns if c.name in contract.primary_key and c.type == LogicalType("string")}
    repeating = {OP, WINDOW, CAPTURED_AT, contract.tenant} - keys
    for column in contract.columns:
        # `text` without a length is where long, distinct values live; enums and short names repeat.
        if column.type.name == "string" and column.source_type != "text" and column.name not in keys:
            repeating.add(column.name)
        if column.type.name in ("integer", "boolean") or column.type.is_list:
            repeating.add(f"{column.name}.list.element" if column.type.is_list else column.name)
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": sorted(repeating),
        "write_statistics": True,
        "write_page_index": True,
        "bloom_filter_options": {name: {"ndv": rows, "fpp": 0.01} for name in keys} or None,
        "store_schema": False,
    }


def write_data_file(
    io: Writes, contract: Contract, organization: str, rows: pa.Table, path: str, day: int | None
) -> StagedFile:
    """Write rows (one organization, one partition, sorted) as one Parquet file.

    Raises:
        StorageError: the storage is not there, refuses or is full; what was written is not referred to.
    """
    return write_stream(io, contract, organization, rows.schema, [rows], path, day, expected_rows=rows.num_rows)


def write_stream(
    io: Writes,
    contract: Contract,
    organization: str,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    path: str,
    day: int | None,
    *,
    expected_rows: int,
) -> StagedFile:
    """Write a stream of rows (one organization, one partition, sorted) as one Parquet file.

    Memory is one table's, so tables should be of a row group's size (`row_groups`). `expected_rows` sizes the
    bloom filters.

    Raises:
        StorageError: the storage is not there, refuses or is full; what was written is not referred to.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows, first, last = 0, None, None
    # Each name carries an id of its own; to ask first whether it is there would be two round trips a file.
    with lake_errors(path), io.new_output(path).create(overwrite=True) as stream:
        hashing = HashingStream(stream)
        with (
            pa.PythonFile(hashing, mode="w") as sink,
            pq.ParquetWriter(sink, schema, **_writer_options(contract, expected_rows)) as writer,
        ):
            for table in tables:
                if table.num_rows == 0:
                    continue
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                failpoint("capture.file_begun")
                rows += table.num_rows
                found = pc.min_max(table[SEQUENCE])
                first = min(x for x in (first, found["min"].as_py()) if x is not None)
                last = max(x for x in (last, found["max"].as_py()) if x is not None)
        metadata = writer.writer.metadata
    assert first is not None  # noqa: S101 - nobody writes a file without rows
    assert last is not None  # noqa: S101
    return StagedFile(
        organization=organization,
        path=path,
        rows=rows,
        bytes=hashing.size,
        day=day,
        first_sequence=first,
        last_sequence=last,
        sha256=hashing.sha256.hexdigest(),
        metadata=metadata,
    )


def row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Gather a stream of batches into tables of a row group's size: bounded in rows and in bytes."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


class HashingStream:
    """A stream that hashes and counts what is written through it. Closing it leaves the stream below open."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._stream.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """What is buffered goes out when the stream below is closed."""

    def close(self) -> None:
        self.closed = True


def check_staged(io: FileIO, file: StagedFile) -> None:
    """Read a staged file once and compare it with what was written: to be called before committing a file that
    another process staged.

    Raises:
        StagedFileError: the file is gone, or of another size or content.
        StorageError: the storage does not answer (to be tried again).
    """
    source = io.new_input(file.path)
    with lake_errors(file.path):
        if not source.exists():
            raise StagedFileError(
                f"{file.path}: is gone, {file.bytes} bytes were staged",
                "Nothing of it was committed; its rows are read again.",
            )
        digest = hashlib.sha256()
        size = 0
        with source.open() as stream:
            while data := stream.read(_READ_BYTES):
                digest.update(data)
                size += len(data)
    if size != file.bytes or (file.sha256 is not None and digest.hexdigest() != file.sha256):
        was = f"{file.bytes} bytes" + (f", SHA-256 {file.sha256[:12]}…" if file.sha256 else "")
        raise StagedFileError(
            f"{file.path}: has {size} bytes, SHA-256 {digest.hexdigest()[:12]}…; staged were {was}",
            "Somebody changed it: nothing of it was committed; its rows are read again.",
        )


def describe_data_file(table: Table, file: StagedFile) -> DataFile:
    """The file as a manifest entry, with the statistics that readers prune by.

    The footer is read back where the file was written by another process.

    Raises:
        StorageError: the file is gone or not the one that was staged.
    """
    import pyarrow.parquet as pq
    from pyiceberg.io.pyarrow import (
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    metadata = file.metadata
    if metadata is None:
        source = table.io.new_input(file.path)
        with lake_errors(file.path):
            size = len(source)
            with source.open() as stream:
                metadata = pq.read_metadata(stream)
        if size != file.bytes or metadata.num_rows != file.rows:
            raise StagedFileError(
                f"{file.path}: has {size} bytes and {metadata.num_rows} rows, {file.bytes} and {file.rows} were staged",
                "Somebody changed it: nothing of it was committed; its rows are read again.",
            )
    schema = table.schema()
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=metadata,
        stats_columns=compute_statistics_plan(schema, table.properties),
        parquet_column_mapping=parquet_path_to_id_mapping(schema),
    )
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=file.path,
        file_format=FileFormat.PARQUET,
        partition=Record() if file.day is None else Record(file.day),
        file_size_in_bytes=file.bytes,
        sort_order_id=None,
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def lake_rows(
    contract: Contract, share: pa.Table, *, op: str, first_sequence: int, captured_at: Any, window: str
) -> pa.Table:
    """Add the lake's own columns to rows of the contract (missing ones become null), in the lake's schema."""
    import pyarrow as pa

    from schemas.lake_columns import arrow_schema

    schema = arrow_schema(contract)
    count = share.num_rows
    own = {
        OP: pa.repeat(pa.scalar(op), count),
        SEQUENCE: pa.arange(first_sequence, first_sequence + count),
        CAPTURED_AT: pa.repeat(pa.scalar(captured_at, pa.timestamp("us", tz="UTC")), count),
        WINDOW: pa.repeat(pa.scalar(window), count),
        XMIN: share[XMIN] if XMIN in share.column_names else pa.nulls(count, pa.int64()),
    }
    columns = []
    for column, field in zip(lake_fields(contract), schema, strict=True):
        if column.name in own:
            columns.append(own[column.name])
        elif column.name in share.column_names:
            columns.append(share[column.name])
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.Table.from_arrays([pa.chunked_array(c) if isinstance(c, list) else c for c in columns], schema=schema)
