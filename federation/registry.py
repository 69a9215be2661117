"""Opens a destination's adapter by its kind; what it needs is loaded then and not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from federation.config import FilesConfig, PostgresReplicaConfig, parse_config
from federation.kinds import DestinationKind
from federation.protocol import Adapter, DestinationError, Owner
from schemas.errors import Retry


@dataclass(frozen=True)
class Way:
    """How a target is reached, decided by whoever checks where tenants may lead us. Never printed.

    `storage`: pyiceberg's `s3.*` properties, with the proxy. `address`: the checked address of a database's host.
    """

    storage: Mapping[str, str] = field(default_factory=dict, repr=False)
    address: str | None = None
    answer_seconds: float = 60.0
    """A server that answers to nobody for so long is given up."""
    statement_seconds: float = 6 * 3600.0
    """And one that is there, but says nothing for so long."""
    never: Callable[[], Set[tuple[str, str]]] = field(default=frozenset, repr=False)
    """Databases that no replica may be, by `PostgresAdapter.identity`; asked whenever one is connected to."""


def open_adapter(
    kind: DestinationKind, config: Mapping[str, Any], credentials: Mapping[str, str], owner: Owner, way: Way
) -> Adapter:
    """The adapter of one destination; nothing is connected to yet.

    Raises:
        ConfigError: the stored config is not valid.
        DestinationError: this kind is not fed by deliveries.
    """
    parsed = parse_config(kind, dict(config))
    if isinstance(parsed, PostgresReplicaConfig):
        from federation.postgres.adapter import PostgresAdapter
        from federation.postgres.line import Patience

        parts = urlsplit(credentials["url"])
        server = (way.address or parts.hostname or "", parts.port or 5432)
        where = f"replica {parts.hostname}:{server[1]}{parts.path}"
        patience = Patience(way.answer_seconds, way.statement_seconds)
        return PostgresAdapter(parsed, credentials["url"], owner, where, server, patience, way.never)
    if isinstance(parsed, FilesConfig):
        from federation.files.adapter import FilesAdapter
        from federation.files.jsonl import JsonlFormat
        from federation.files.parquet import ParquetFormat
        from federation.files.store import Store

        form = ParquetFormat() if kind is DestinationKind.PARQUET_S3 else JsonlFormat()
        return FilesAdapter(parsed, form, Store(parsed.location, way.storage, way.answer_seconds), owner)
    raise DestinationError(f"{kind.value} is not fed by deliveries", retry=Retry.NEVER)


def target_of(kind: DestinationKind, config: Mapping[str, Any], credentials: Mapping[str, str]) -> str:
    """What a destination writes to, in one spelling and without secrets.

    Raises:
        ConfigError: the config is not valid.
    """
    parsed = parse_config(kind, dict(config))
    if isinstance(parsed, PostgresReplicaConfig):
        parts = urlsplit(credentials["url"])
        host = (parts.hostname or "localhost").lower().rstrip(".")
        return f"postgresql://{host}:{parts.port or 5432}{parts.path or '/'}/{parsed.schema_name}"
    if isinstance(parsed, FilesConfig):
        endpoint = urlsplit(parsed.endpoint).netloc.lower() if parsed.endpoint else ""
        return f"{parsed.location}/" + (f" at {endpoint}" if endpoint else "")
    raise DestinationError(f"{kind.value} has no target of its own", retry=Retry.NEVER)
