"""How each peer is called: a first load of the table, a run that brings what changed, and where its rows then lie.

All write to the same S3 server as we do, and dlt and ingestr to Iceberg. A peer whose cursor is not kept anywhere is
given it on the command line (`since`), as a person would from a note.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from tests.bench import measure
from tests.bench.peers.environments import environment, requirement
from tests.bench.world import World

QUIET = {
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "ERROR",
    "INGESTR_DISABLE_TELEMETRY": "true",
    "DISABLE_TELEMETRY": "true",
}
"""Nothing of what is measured calls home."""
PROGRAMS = Path(__file__).parent


@dataclass(frozen=True)
class Place:
    """Where one load of one peer goes: a prefix in a bucket, and a local folder for what the peer itself keeps."""

    world: World
    bucket: str
    prefix: str
    folder: Path

    def arguments(self, url: str, since: str | None) -> dict[str, Any]:
        """What the peers' programs are told."""
        s3 = self.world.s3
        return {
            "url": url,
            "since": since,
            "bucket": self.bucket,
            "prefix": self.prefix,
            "endpoint": s3.endpoint,
            "region": s3.region,
            "key": s3.access_key,
            "secret": s3.secret_key,
            "folder": str(self.folder),
        }


class Peer(Protocol):
    """A program that brings a table out of PostgreSQL."""

    name: str
    keeps_cursor: bool

    def install(self) -> None:
        """Make it ready: what is measured afterwards includes no installation."""
        ...

    def load(self, url: str, place: Place, since: str | None = None) -> measure.Run:
        """All rows, or those whose `processed_at` is later than `since`; measured from process start to commit."""
        ...

    def relation(self, place: Place, ask: Callable[[str], Any]) -> str:
        """What it wrote, as DuckDB reads it. `ask`: a query's first value, of a DuckDB that can reach the bucket."""
        ...


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAKEHOUSE_", "PYTHON"))}
    return {**kept, **QUIET}


@dataclass
class Dlt:
    """dlt into Iceberg; it keeps its cursor in its pipeline's state."""

    form: str
    keeps_cursor: bool = True
    name: str = field(init=False)

    def __post_init__(self) -> None:
        what = "connectorx" if self.form == "connectorx" else "pyarrow, JSON cast to text"
        self.name = f"dlt {requirement('dlt')}, {what}"

    def install(self) -> None:
        environment("dlt")

    def load(self, url: str, place: Place, since: str | None = None) -> measure.Run:
        asked = place.arguments(url, since) | {"form": self.form}
        return measure.run(
            [str(environment("dlt") / "python"), str(PROGRAMS / "dlt_load.py"), json.dumps(asked)], _environment()
        )

    def relation(self, place: Place, ask: Callable[[str], Any]) -> str:
        metadata = f"s3://{place.bucket}/{place.prefix}/bench/events/metadata/*.metadata.json"
        newest = ask(f"SELECT max(file) FROM glob('{metadata}')")
        return f"iceberg_scan('{newest}')"


@dataclass
class Ingestr:
    """ingestr into Iceberg with a catalog in SQLite; it keeps no cursor for a database."""

    keeps_cursor: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"ingestr {requirement('ingestr')}"

    def install(self) -> None:
        environment("ingestr")

    def load(self, url: str, place: Place, since: str | None = None, strategy: str = "append") -> measure.Run:
        s3 = place.world.s3
        endpoint = urlsplit(s3.endpoint)
        options = {
            "bucket": place.bucket,
            "prefix": place.prefix,
            "endpoint": endpoint.netloc,
            "use_ssl": str(endpoint.scheme == "https").lower(),
            "access_key_id": s3.access_key,
            "secret_access_key": s3.secret_key,
            "region": s3.region,
        }
        target = f"iceberg+sqlite://{place.folder / 'catalog.db'}?" + "&".join(
            f"{k}={quote(v, safe='')}" for k, v in options.items()
        )
        command = [str(environment("ingestr") / "ingestr"), "ingest", "--yes", "--progress", "log"]
        command += ["--source-uri", f"{url}{'&' if '?' in url else '?'}sslmode=disable"]
        command += ["--source-table", "public.ingested_events", "--dest-uri", target, "--dest-table", "bench.events"]
        command += ["--no-load-timestamp", "--incremental-strategy", strategy]
        if since is not None:
            command += ["--incremental-key", "processed_at", "--interval-start", since]
        if strategy == "merge":
            command += ["--primary-key", "id"]
        return measure.run(command, _environment())

    def relation(self, place: Place, _ask: Callable[[str], Any]) -> str:
        with closing(sqlite3.connect(place.folder / "catalog.db")) as catalog:
            ((metadata,),) = catalog.execute(
                "SELECT metadata_location FROM iceberg_tables WHERE table_name = 'events' AND table_namespace = 'bench'"
            ).fetchall()
        return f"iceberg_scan('{metadata}')"


@dataclass
class DuckCopy:
    """DuckDB's COPY to a Parquet file: no table, no commit and no cursor, but the fastest common way to move rows."""

    keeps_cursor: bool = False
    name: str = field(init=False)
    _files: int = 0

    def __post_init__(self) -> None:
        self.name = f"DuckDB {requirement('duckdb')} `COPY` to Parquet, no table"

    def install(self) -> None:
        environment("duckdb")

    def load(self, url: str, place: Place, since: str | None = None) -> measure.Run:
        self._files += 1
        asked = place.arguments(url, since) | {
            "file": f"part-{self._files:05d}",
            "threads": len(os.sched_getaffinity(0)),
        }
        return measure.run(
            [str(environment("duckdb") / "python"), str(PROGRAMS / "duck_copy.py"), json.dumps(asked)], _environment()
        )

    def relation(self, place: Place, _ask: Callable[[str], Any]) -> str:
        return f"read_parquet('s3://{place.bucket}/{place.prefix}/*.parquet')"


def peers() -> list[Peer]:
    """All of them, installed."""
    found: list[Peer] = [Ingestr(), DuckCopy(), Dlt("connectorx"), Dlt("pyarrow")]
    for peer in found:
        peer.install()
    return found
