"""DuckDB over the lake's own files: how proof, queries and reconciliation read.

A connection is private and in memory; what does not fit spills into a temporary folder. Extensions come as
wheels and are loaded by path: nothing is downloaded, nothing is written into a home folder.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from schemas.errors import LakehouseError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MEMORY = "1GB"
_LOCK = threading.Lock()
EXTENSIONS = ("icu", "avro", "httpfs", "iceberg")  # iceberg needs avro and httpfs loaded before it


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


@contextmanager
def connect(storage: Mapping[str, str], *, private: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can read Iceberg tables; `storage` holds pyiceberg's `s3.*` properties.

    Connections of one process share one engine, so its memory is bounded once; temporary tables and registered
    streams are each connection's own. `private`: an engine of its own, for statements that make schemas.
    """
    if private:
        with tempfile.TemporaryDirectory(prefix="lakehouse-duckdb-") as spill, _open(storage, spill) as connection:
            yield connection
        return
    with _LOCK:
        engine = _shared(tuple(sorted(storage.items())))
    with engine.cursor() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@functools.cache
def _shared(storage: tuple[tuple[str, str], ...]) -> duckdb.DuckDBPyConnection:
    spill = tempfile.mkdtemp(prefix="lakehouse-duckdb-")
    atexit.register(shutil.rmtree, spill, ignore_errors=True)
    return _open(dict(storage), spill)


def _open(storage: Mapping[str, str], spill: str) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(
        config={
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "preserve_insertion_order": "false",
            # Proof reads what is stored now, not what this process read before.
            "enable_external_file_cache": "false",
        }
    )
    for name in EXTENSIONS:
        connection.execute(f"LOAD {literal(str(extension_path(name)))}")
    # After LOAD: the setting belongs to the icu extension.
    connection.execute("SET TimeZone = 'UTC'")
    if "s3.access-key-id" in storage or "s3.endpoint" in storage:
        connection.execute(_secret(storage))
    return connection


def _secret(storage: Mapping[str, str]) -> str:
    options = {"TYPE": "s3", "REGION": literal(storage.get("s3.region", "us-east-1"))}
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
    return f"CREATE SECRET lake ({', '.join(f'{k} {v}' for k, v in options.items())})"


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
