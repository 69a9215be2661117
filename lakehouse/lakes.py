"""Lakes of an organization's own: their addresses, and how one is added.

A row of `lakes` whose `catalog_config` says `own` has its own warehouse, and perhaps its own endpoint, keys and
catalog. What is secret of it (keys, the catalog's URL with its password) is sealed in `encrypted_credentials`; the
rest is in `catalog_config`. Storage is reached through the egress proxy, at the lake's own endpoint only; a catalog's
database is resolved, checked and pinned when it is opened.

`add_lake` writes nothing before every check passed: address, keys, overlap with other lakes, nothing landed yet,
an object written and deleted. Interrupted, it leaves at most an empty namespace; repeating it goes on.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from catalog.errors import CatalogError
from catalog.lake import CATALOG, OWN, LakeAddress, catalog_identity, encode_organization, nested, open_catalog
from catalog.lake import Lake as LakeNamespace
from lakehouse.egress.guard import EgressError, Guard
from lakehouse.observe.redact import remember_url
from lakehouse.secrets.keyring import Vault, lake_place
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.control.models import Lake
    from lakehouse.egress.proxy import EgressProxy

CREDENTIALS = ("access_key_id", "secret_access_key", "session_token", "catalog_uri")
_TIMEOUTS = {"s3.connect-timeout": "5", "s3.request-timeout": "60"}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_URI_OPTIONS = {"sslmode", "options", "connect_timeout"}


class LakeError(LakehouseError):
    """A lake cannot be added as asked. Nothing was written."""


def pinned(uri: str, guard: Guard) -> str:
    """A tenant's catalog URL for SQLAlchemy, its host resolved, checked and pinned; its name stays for TLS.

    Raises:
        EgressError: it leads where it must not, or says more than host, database, user and a few options.
    """
    parts = urlsplit(uri)
    host = parts.hostname
    if parts.scheme.split("+")[0] not in ("postgresql", "postgres") or not host or "," in parts.netloc:
        raise EgressError("the catalog's URL must look like postgresql://user:password@host:5432/database")
    options = parse_qsl(parts.query, keep_blank_values=True)
    if odd := sorted({key for key, _ in options} - _URI_OPTIONS):
        raise EgressError(
            f"catalog {host}: its URL has options that are not taken: {', '.join(odd)}",
            f"Only {', '.join(sorted(_URI_OPTIONS))}.",
        )
    address = guard.resolve(host, parts.port or 5432)[0]
    query = "&".join(f"{k}={quote(v, safe='')}" for k, v in [*options, ("hostaddr", address)])
    return urlunsplit(("postgresql+psycopg", parts.netloc, parts.path, query, ""))


def own_address(
    organization: str, config: Mapping[str, Any], warehouse: str, credentials: Mapping[str, str], app: App
) -> LakeAddress:
    """The address of an organization's own lake; its storage goes through the egress proxy.

    Raises:
        EgressError: its endpoint or catalog leads where it must not.
    """
    default = app.address
    storage: dict[str, str | None] = {}
    if warehouse.startswith("s3://"):
        endpoint, region = config.get("endpoint"), config.get("region")
        host, port = app.guard.check_url(endpoint) if endpoint else ("amazonaws.com", 443)
        storage = {
            "s3.endpoint": endpoint,
            "s3.region": region or ("us-east-1" if endpoint else default.storage.get("s3.region")),
            "s3.access-key-id": credentials.get("access_key_id"),
            "s3.secret-access-key": credentials.get("secret_access_key"),
            "s3.session-token": credentials.get("session_token"),
            "s3.proxy-uri": _proxy(app).admit(encode_organization(organization), [(host, port)]),
            **_TIMEOUTS,
        }
    uri = credentials.get("catalog_uri")
    if uri:
        remember_url(uri)
    return LakeAddress(
        kind=str(config.get("kind", default.kind)),
        name=str(config.get("name", default.name)),
        uri=pinned(uri, app.guard) if uri else default.uri,
        warehouse=warehouse,
        storage={k: v for k, v in storage.items() if v},
    )


def _proxy(app: App) -> EgressProxy:
    return app.proxy


def stored_credentials(row: Lake, vault: Vault) -> dict[str, str]:
    """What is sealed in a lake's row.

    Raises:
        SecretError: its key is missing or wrong.
    """
    if not row.encrypted_credentials:
        return {}
    opened = vault.open(row.encrypted_credentials, row.token_key_version, lake_place(row.organization_id, row.id))
    found: dict[str, str] = json.loads(opened)
    return found


def parse_credentials(text: str) -> dict[str, str]:
    """The credentials file of a lake: a JSON object with some of the known keys.

    Raises:
        LakeError: it is not; no value is repeated in the message.
    """
    known = f"A JSON object with some of: {', '.join(CREDENTIALS)}."
    try:
        found = json.loads(text)
    except ValueError:
        raise LakeError("the credentials file is not JSON", known) from None
    if not isinstance(found, dict) or not all(isinstance(v, str) and v for v in found.values()):
        raise LakeError("the credentials file is not an object of texts", known)
    if odd := sorted(set(found) - set(CREDENTIALS)):
        raise LakeError(f"the credentials file has unknown keys: {', '.join(odd)[:200]}", known)
    if ("access_key_id" in found) != ("secret_access_key" in found):
        raise LakeError("the credentials file has only one of access_key_id and secret_access_key", known)
    return found


def add_lake(
    app: App,
    organization: str,
    warehouse: str,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    credentials: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Give an organization a lake of its own, or store other credentials for the one it has.

    Returns what was done: organization, namespace, warehouse, endpoint, catalog, new.

    Raises:
        LakeError, EgressError, CatalogError, StorageError, SecretError: nothing was written.
    """
    from lakehouse.control import lakes as rows
    from lakehouse.control import store

    keys = dict(credentials or {})
    warehouse = check_warehouse(warehouse, local=app.address.warehouse.startswith("file://"))
    if endpoint and "access_key_id" not in keys:
        raise LakeError(
            f"the endpoint {urlsplit(endpoint).hostname} needs keys of its own",
            "Give --credentials-file: the operator's keys are not shown to another's endpoint.",
        )
    _check_organization(app, organization)
    known = {row.organization_id: row for row in store.lakes(app.engine)}
    _check_overlap(app, organization, warehouse, {o: row.warehouse for o, row in known.items()})
    old = known.get(organization)
    config: dict[str, Any] = {OWN: True, "name": app.address.name, "endpoint": endpoint, "region": region}
    config = {k: v for k, v in config.items() if v}
    address = own_address(organization, config, warehouse, keys, app)
    config[CATALOG] = catalog_identity(address.kind, address.name, keys.get("catalog_uri", address.uri))
    same = old is not None and (old.warehouse, old.catalog_config.get(CATALOG)) == (
        warehouse,
        config[CATALOG],
    )
    if not same and rows.has_landed(app.engine, organization):
        raise LakeError(
            f"organization {organization} has tables at {old.warehouse if old else 'another lake'}",
            "A lake is not moved by giving it another address: its history would stay behind.",
        )
    lake_id = old.id if old is not None else uuid.uuid4()
    sealed, version = app.vault.seal(keys, lake_place(organization, lake_id)) if keys else (None, None)
    app.probe_storage(address)
    catalog = open_catalog(address)
    try:
        if old is not None and not same:
            _leave(app, organization, known)
        new = rows.save_own_lake(
            app.engine,
            lake_id,
            organization,
            encode_organization(organization),
            address.kind,
            config,
            warehouse,
            sealed,
            version,
            cadence_seconds=app.settings.schedule.cadence_seconds,
        )
        LakeNamespace(catalog, address, organization, app.settings.installation).ensure()
    finally:
        app.forget_lakes()
        engine = getattr(catalog, "engine", None)
        if engine is not None:
            engine.dispose()
    return {
        "organization": organization,
        "namespace": encode_organization(organization),
        "warehouse": warehouse,
        "endpoint": endpoint,
        "catalog": config[CATALOG],
        "new": new,
    }


def _leave(app: App, organization: str, known: Mapping[str, Lake]) -> None:
    """Take down the empty namespace of the lake that an organization had; a stale program then finds none."""
    from pyiceberg.exceptions import NamespaceNotEmptyError, NoSuchNamespaceError

    before = app.lake(organization)
    try:
        before.check()
        before.catalog.drop_namespace(before.namespace)
    except (NoSuchNamespaceError, CatalogError):
        return
    except NamespaceNotEmptyError as error:
        raise LakeError(
            f"organization {organization} has tables at {known[organization].warehouse}",
            "A lake is not moved by giving it another address: its history would stay behind.",
        ) from error


def check_warehouse(warehouse: str, *, local: bool) -> str:
    """A warehouse as it is stored. `local`: folders are taken too (where the default lake is one).

    Raises:
        LakeError: it is no bucket or folder, or written so that it could be another's.
    """
    text = warehouse.rstrip("/")
    parts = urlsplit(text)
    segments = parts.path.split("/")[1:]
    odd = any(s in ("", ".", "..") or re.search(r"[\s*?\[\]{}%#'\"\\]", s) for s in segments)
    if parts.scheme == "file" and local and not parts.netloc and segments and not odd:
        return text
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or odd or parts.query or parts.fragment:
        raise LakeError(
            f"--warehouse {re.sub('//[^/]*@', '//', warehouse)[:200]}: must look like s3://bucket/prefix",
            "In plain characters, without credentials; folders only where the default lake is a folder.",
        )
    return text


def _check_organization(app: App, organization: str) -> None:
    encode_organization(organization)
    if app.settings.source.organizations_table is not None and organization not in app.source.organizations():
        raise LakeError(
            f"{app.settings.source.organizations_table} has no organization {organization}",
            "Give the id as it stands in the tenant column.",
        )


def _check_overlap(app: App, organization: str, warehouse: str, others: Mapping[str, str]) -> None:
    from lakehouse.control import store

    places = [("the default lake", app.address.warehouse), *((o, w) for o, w in others.items() if o != organization)]
    places += [(f"destination {d.name}", d.location) for d in store.file_places(app.engine)]
    for owner, place in places:
        if nested(warehouse, place):
            raise LakeError(
                f"--warehouse {warehouse} and {place} ({owner}) lie in one another",
                "Give each a prefix of its own: whoever may read one would read the other.",
            )
