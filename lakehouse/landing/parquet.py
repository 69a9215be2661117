"""Writes one Parquet data file and describes it to Iceberg.

zstd level 1 (level 3 takes half as long again for no smaller file); dictionaries only where values repeat; a
bloom filter on text keys; page statistics. Delta encodings are left out although they are faster: Iceberg's
vectorized Spark reader before 1.10 cannot read them, and every reader must.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.errors import lake_errors
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
    io: FileIO, contract: Contract, organization: str, rows: pa.Table, path: str, day: int | None
) -> StagedFile:
    """Write rows (one organization, one partition, sorted) as one Parquet file.

    Raises:
        StorageError: the storage is not there, refuses or is full; what was written is not referred to.
    """
    import pyarrow.parquet as pq

    with lake_errors(path), io.new_output(path).create(overwrite=False) as stream:
        with pq.ParquetWriter(stream, rows.schema, **_writer_options(contract, rows.num_rows)) as writer:
            writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        size = stream.tell()
        metadata = writer.writer.metadata
    sequence = rows[SEQUENCE]
    return StagedFile(
        organization=organization,
        path=path,
        rows=rows.num_rows,
        bytes=size,
        day=day,
        first_sequence=sequence[0].as_py(),
        last_sequence=sequence[-1].as_py(),
        metadata=metadata,
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

    from catalog.errors import StorageError

    metadata = file.metadata
    if metadata is None:
        source = table.io.new_input(file.path)
        with lake_errors(file.path):
            size = len(source)
            with source.open() as stream:
                metadata = pq.read_metadata(stream)
        if size != file.bytes or metadata.num_rows != file.rows:
            raise StorageError(
                f"{file.path}: has {size} bytes and {metadata.num_rows} rows, {file.bytes} and {file.rows} were staged",
                "Somebody changed it: run `lakehouse backfill --restart`; nothing of it was committed.",
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
