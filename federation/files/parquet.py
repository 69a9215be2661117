"""Rows as a Parquet file: zstd, dictionaries where a column repeats, no delta encodings (older readers lack them)."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from schemas.contract import Contract
from schemas.lake_columns import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetFormat:
    """See `federation.files.adapter.Format`."""

    kind = "PARQUET_S3"
    suffix = ".parquet"

    def open(self, contract: Contract, file: BinaryIO) -> ParquetWriter:
        return ParquetWriter(contract, file)


class ParquetWriter:
    """See `federation.files.adapter.Writer`."""

    def __init__(self, contract: Contract, file: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([f.remove_metadata() for f in arrow_schema(contract)])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd", compression_level=1)

    def write(self, rows: pa.RecordBatch) -> None:
        import pyarrow as pa

        columns = [rows.column(f.name).cast(f.type) for f in self._schema]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
