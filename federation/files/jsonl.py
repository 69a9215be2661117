"""Rows as JSON Lines, gzip: one object a line, keys in the contract's order after the lake's own.

JSON columns are JSON, with exactly the text that the source printed (a line break between its tokens becomes a
space). Decimals are numbers with all their digits, timestamps ISO 8601 in UTC with microseconds, binary is base64.
What JSON has no number for (NaN, Infinity) is a string. The same rows always give the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable
from datetime import UTC
from typing import TYPE_CHECKING, Any, BinaryIO

from schemas.contract import Contract
from schemas.lake_columns import lake_fields
from schemas.types import LogicalType

if TYPE_CHECKING:
    import pyarrow as pa

LEVEL = 6


class JsonlFormat:
    """See `federation.files.adapter.Format`."""

    kind = "JSONL_S3"
    suffix = ".jsonl.gz"

    def open(self, contract: Contract, file: BinaryIO) -> JsonlWriter:
        return JsonlWriter(contract, file)


class JsonlWriter:
    """See `federation.files.adapter.Writer`."""

    def __init__(self, contract: Contract, file: BinaryIO) -> None:
        # No time and no name in the header: a step that is repeated gives the same bytes.
        self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=file, mtime=0)
        self._columns = [(c.name, json.dumps(c.name), _encoder(c.type)) for c in lake_fields(contract)]

    def write(self, rows: pa.RecordBatch) -> None:
        texts = [
            [f"{key}:{encode(v) if v is not None else 'null'}" for v in rows.column(name).to_pylist()]
            for name, key, encode in self._columns
        ]
        lines = "\n".join("{" + ",".join(row) + "}" for row in zip(*texts, strict=True))
        self._file.write(lines.encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _double(value: float) -> str:
    if math.isnan(value):
        return '"NaN"'
    if math.isinf(value):
        return '"Infinity"' if value > 0 else '"-Infinity"'
    return repr(value)


def _json(value: str) -> str:
    # A raw line break can stand between tokens only: inside of a string JSON wants it escaped.
    return value.replace("\r", " ").replace("\n", " ")


_ENCODERS: dict[str, Callable[[Any], str]] = {
    "string": _text,
    "boolean": lambda v: "true" if v else "false",
    "integer": str,
    "long": str,
    "double": _double,
    "decimal": lambda v: format(v, "f"),
    "date": lambda v: f'"{v.isoformat()}"',
    "timestamptz": lambda v: f'"{v.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")}Z"',
    "json": _json,
    "binary": lambda v: f'"{base64.b64encode(v).decode()}"',
}


def _encoder(kind: LogicalType) -> Callable[[Any], str]:
    if kind.name != "list":
        return _ENCODERS[kind.name]
    element = _ENCODERS[kind.element]
    return lambda values: "[" + ",".join("null" if v is None else element(v) for v in values) + "]"
