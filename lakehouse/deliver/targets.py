"""A destination's adapter, opened with its credentials, by a way that is checked.

An endpoint or host that a tenant gave is resolved and checked as for lakes of their own: storage goes through the
egress proxy, a database's address is pinned. A destination without keys of its own uses the lake's, and then may name
no endpoint.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from federation.config import COPYING, FilesConfig, parse_config, parse_credentials
from federation.kinds import DestinationKind
from federation.protocol import Adapter, DestinationError, Owner
from federation.registry import Way, open_adapter
from lakehouse.secrets.keyring import destination_place
from schemas.errors import Retry

if TYPE_CHECKING:
    import uuid

    from lakehouse.app import App
    from lakehouse.destinations import Destination


def credentials_of(app: App, identifier: uuid.UUID) -> dict[str, str]:
    """What is sealed in a destination's row; nothing where it has none.

    Raises:
        SecretError: its key is missing or wrong.
    """
    from sqlalchemy import select

    from lakehouse.control.models import WarehouseDestination

    table = WarehouseDestination
    with app.engine.connect() as connection:
        row = connection.execute(
            select(table.organization_id, table.kind, table.encrypted_credentials, table.token_key_version).where(
                table.id == identifier
            )
        ).one()
    if row.encrypted_credentials is None:
        return {}
    place = destination_place(row.organization_id, identifier)
    opened = json.loads(app.vault.open(row.encrypted_credentials, row.token_key_version, place))
    return parse_credentials(DestinationKind(row.kind), opened)


def is_there(app: App, identifier: str) -> bool:
    """Whether there is a destination of this id; what no id can be is none's."""
    import uuid

    from sqlalchemy import select

    from lakehouse.control.models import WarehouseDestination

    try:
        wanted = uuid.UUID(identifier)
    except ValueError:
        return False
    query = select(WarehouseDestination.id).where(WarehouseDestination.id == wanted)
    with app.engine.connect() as connection:
        return connection.execute(query).one_or_none() is not None


def way_to(app: App, organization: str | None, config: Any, credentials: Mapping[str, str]) -> Way:
    """How the target is reached.

    Raises:
        EgressError: it leads where a tenant's must not.
        DestinationError: an endpoint without keys of its own.
    """
    deliver = app.settings.deliver
    if isinstance(config, FilesConfig):
        return Way(_storage(app, organization, config, credentials), None, deliver.answer_seconds)
    url = credentials["url"]
    parts = urlsplit(url)
    if parts.scheme.split("+")[0] not in ("postgresql", "postgres") or not parts.hostname or "," in parts.netloc:
        raise DestinationError(
            "the replica's url must look like postgresql://user:password@host:5432/database", retry=Retry.NEVER
        )
    address = app.guard.resolve(parts.hostname, parts.port or 5432)[0]
    return Way(
        address=address,
        answer_seconds=deliver.answer_seconds,
        statement_seconds=deliver.statement_seconds,
        never=functools.partial(hot_databases, app),
    )


def hot_databases(app: App) -> Set[tuple[str, str]]:
    """The hot database, by `Source.database`: no replica may be that, wherever its address leads by now.

    Deliveries need nothing of the hot database. Where it does not answer they go on, and what it was when the lake was
    last brought up to date is believed.
    """
    from sqlalchemy import select

    from lakehouse.capture.source import SourceError
    from lakehouse.control.models import Cursor

    try:
        return {app.source.database()}
    except SourceError:
        source = Cursor.position["source"]
        with app.engine.connect() as connection:
            rows = connection.execute(select(source["started"].astext, source["database_oid"].astext).distinct()).all()
        return {(str(row[0]), str(row[1])) for row in rows}


def _storage(app: App, organization: str | None, config: FilesConfig, credentials: Mapping[str, str]) -> dict[str, str]:
    from catalog.lake import encode_organization

    if not credentials:
        if config.endpoint is not None:
            raise DestinationError(
                f"the endpoint {urlsplit(config.endpoint).hostname} needs keys of its own",
                "Give --credentials-file: the operator's keys are not shown to another's endpoint.",
                retry=Retry.NEVER,
            )
        # The operator's own storage: no proxy.
        return dict(app.address.storage) | ({"s3.region": config.region} if config.region else {})
    host, port = app.guard.check_url(config.endpoint) if config.endpoint else ("amazonaws.com", 443)
    client = f"{encode_organization(organization) if organization else 'all'}.{urlsplit(config.location).netloc}"
    storage = {
        "s3.endpoint": config.endpoint,
        "s3.region": config.region or ("us-east-1" if config.endpoint else app.address.storage.get("s3.region")),
        "s3.access-key-id": credentials.get("access_key_id"),
        "s3.secret-access-key": credentials.get("secret_access_key"),
        "s3.session-token": credentials.get("session_token"),
        "s3.proxy-uri": app.proxy.admit(client, [(host, port)]),
    }
    return {k: v for k, v in storage.items() if v}


def adapter_of(
    app: App,
    organization: str | None,
    kind: DestinationKind,
    raw: Mapping[str, Any],
    credentials: Mapping[str, str],
    *,
    destination: uuid.UUID | None,
    shared: bool = False,
) -> Adapter:
    """The adapter of a destination for the rows of this organization. `shared`: it is vendor-wide.

    Without an organization it can be checked, and nothing else. Without the destination's id a target that a
    destination writes to is refused.

    Raises:
        LakehouseError: its config is not valid, or it leads where it must not.
    """
    if kind not in COPYING:
        raise DestinationError(f"{kind.value} is not fed by deliveries", retry=Retry.NEVER)
    config = parse_config(kind, dict(raw))
    living = functools.partial(is_there, app)
    owner = Owner(app.settings.installation, organization or "", shared, str(destination or ""), living)
    return open_adapter(kind, raw, credentials, owner, way_to(app, organization, config, credentials))


@contextmanager
def opened(app: App, destination: Destination, organization: str | None) -> Iterator[tuple[Adapter, dict[str, str]]]:
    """The adapter of a destination as it is stored, for an organization's rows, with its credentials; closed after.

    Raises:
        LakehouseError: see `adapter_of` and `credentials_of`.
    """
    keys = credentials_of(app, destination.id)
    kind = DestinationKind(destination.kind)
    adapter = adapter_of(
        app, organization, kind, destination.config, keys, destination=destination.id, shared=destination.shared
    )
    try:
        yield adapter, keys
    finally:
        adapter.close()
