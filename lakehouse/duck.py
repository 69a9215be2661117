"""DuckDB over the lake's own files: how proof, queries and reconciliation read.

One engine a process reads every lake: its memory is bounded once. Each lake in a bucket has a secret of its own,
scoped to its warehouse, so that no lake is read with another's keys; a tenant's lake is reached through the egress
proxy that its secret names. Engines are in memory; what does not fit spills into a temporary folder. Extensions come
as wheels and are loaded by path: nothing is downloaded, nothing is written into a home folder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from catalog.lake import LakeAddress, nested
from lakehouse.spill import spill_folder
from schemas.contract import Column
from schemas.errors import LakehouseError
from schemas.types import LogicalType

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_memory = "1GB"
_LOCK = threading.Lock()
EXTENSIONS = ("icu", "avro", "httpfs", "iceberg")  # iceberg needs avro and httpfs loaded before it
FILES_ONLY = ("icu", "httpfs")
"""For who reads Parquet files that it names itself: iceberg and avro take longer to load than one file to read."""


def extension_path(name: str) -> Path:
    """Where the wheel put one of DuckDB's extensions.

    Raises:
        LakehouseError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    found = list(Path(spec.origin).parent.glob("extensions/*/*.duckdb_extension")) if spec and spec.origin else []
    if not found:
        raise LakehouseError(f"DuckDB's extension {name} is not installed", f"pip install duckdb-extension-{name}")
    return found[0]


def bound_memory(limit: str) -> None:
    """What engines of this process may use from now on, as DuckDB writes it (`1GB`)."""
    global _memory  # noqa: PLW0603 - one bound a process is the point
    with _LOCK:
        if limit != _memory:
            _memory = limit
            if _shared.cache_info().currsize:
                _shared().execute(f"SET memory_limit = {literal(limit)}")


@contextmanager
def connect(
    lakes: Iterable[LakeAddress], *, private: bool = False, extensions: tuple[str, ...] = EXTENSIONS
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can read these lakes' Iceberg tables.

    Connections of one process share one engine, so its memory is bounded once; temporary tables and registered
    streams are each connection's own. `private`: an engine of its own, for statements that make schemas, with these
    `extensions`.
    """
    if private:
        with tempfile.TemporaryDirectory(dir=spill_folder()) as spill, _open(spill, extensions) as connection:
            for lake in lakes:
                _admit(connection, lake)
            yield connection
        return
    with _LOCK:
        engine = _shared()
        for lake in lakes:
            _admit_shared(engine, lake)
    with engine.cursor() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


_admitted: dict[str, str] = {}


def _admit_shared(engine: duckdb.DuckDBPyConnection, lake: LakeAddress) -> None:
    # A lake's keys change when they are stored again or a proxy is started: its secret is then another.
    statement = _secret(lake) or ""
    if _admitted.get(lake.warehouse) != statement:
        # No two places lie in one another: such a one was removed, and its longer path would be taken for this one's.
        # Its own secret is replaced in one step: another thread may be reading with it.
        for other in [w for w in _admitted if nested(w, lake.warehouse) and not (w == lake.warehouse and statement)]:
            engine.execute(f"DROP SECRET IF EXISTS {_secret_name(other)}")
            del _admitted[other]
        _admit(engine, lake)
        _admitted[lake.warehouse] = statement


def _admit(connection: duckdb.DuckDBPyConnection, lake: LakeAddress) -> None:
    if (statement := _secret(lake)) is not None:
        connection.execute(statement)


@functools.cache
def _shared() -> duckdb.DuckDBPyConnection:
    return _open(str(spill_folder() / "shared"))


def confine(connection: duckdb.DuckDBPyConnection, folders: Iterable[str]) -> None:
    """From now on a private engine reads files below these folders (addresses) and no others, for good.

    For statements of which a part was written by a person. What it spills it may still write.
    """
    allowed = ", ".join(literal(plain_path(folder).rstrip("/") + "/") for folder in folders)
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _open(spill: str, extensions: tuple[str, ...] = EXTENSIONS) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(
        config={
            "memory_limit": _memory,
            "temp_directory": spill,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "preserve_insertion_order": "false",
            # Proof reads what is stored now, not what this process read before.
            "enable_external_file_cache": "false",
        }
    )
    for name in extensions:
        connection.execute(f"LOAD {literal(str(extension_path(name)))}")
    # After LOAD: the setting belongs to the icu extension.
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _secret(lake: LakeAddress) -> str | None:
    """The statement that gives DuckDB a lake's keys, for paths below its warehouse; None for the usual AWS chain."""
    storage = lake.storage
    if not lake.warehouse.startswith("s3://") or not storage.keys() & {"s3.access-key-id", "s3.endpoint"}:
        return None
    # The slash at the end: DuckDB compares scopes as plain prefixes.
    options = {
        "TYPE": "s3",
        "SCOPE": literal(f"{lake.warehouse}/"),
        "REGION": literal(storage.get("s3.region", "us-east-1")),
    }
    if key := storage.get("s3.access-key-id"):
        options["KEY_ID"] = literal(key)
        options["SECRET"] = literal(storage.get("s3.secret-access-key", ""))
    if token := storage.get("s3.session-token"):
        options["SESSION_TOKEN"] = literal(token)
    if endpoint := storage.get("s3.endpoint"):
        parts = urlsplit(endpoint)
        options["ENDPOINT"] = literal(parts.netloc + parts.path.rstrip("/"))
        options["USE_SSL"] = "true" if parts.scheme == "https" else "false"
        options["URL_STYLE"] = "'path'"
    if proxy := storage.get("s3.proxy-uri"):
        parts = urlsplit(proxy)
        options["HTTP_PROXY"] = literal(f"{parts.hostname}:{parts.port}")
        options["HTTP_PROXY_USERNAME"] = literal(parts.username or "")
        options["HTTP_PROXY_PASSWORD"] = literal(parts.password or "")
    name = _secret_name(lake.warehouse)
    return f"CREATE OR REPLACE SECRET {name} ({', '.join(f'{k} {v}' for k, v in options.items())})"


def _secret_name(warehouse: str) -> str:
    return f"lake_{hashlib.sha256(warehouse.encode()).hexdigest()[:16]}"


def literal(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def lake_relation(metadata_location: str) -> str:
    """SQL that reads a lake table's whole history, at exactly this metadata file."""
    return f"iceberg_scan({literal(plain_path(metadata_location))})"


def plain_path(location: str) -> str:
    """DuckDB takes s3:// as it is and files without a scheme."""
    return location.removeprefix("file://")


def arrow(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """Run a query and fetch its result as Arrow."""
    return connection.execute(query).to_arrow_table()


def column_type(column: Column) -> str:
    """The type of a column of the lake."""
    return type_name(column.type)


def type_name(kind: LogicalType) -> str:
    """The type of a column of the lake with this logical type."""
    if kind.name == "decimal":
        return f"DECIMAL({kind.precision},{kind.scale})"
    simple = {
        "string": "VARCHAR",
        "json": "JSON",
        "boolean": "BOOLEAN",
        "integer": "INTEGER",
        "long": "BIGINT",
        "double": "DOUBLE",
        "date": "DATE",
        "timestamptz": "TIMESTAMPTZ",
        "binary": "BLOB",
    }
    return f"{simple[kind.element]}[]" if kind.is_list else simple[kind.name]
