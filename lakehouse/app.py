"""The one module that wires the rest together: settings, contracts, databases, lakes."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from catalog.lake import CATALOG, OWN, Lake, LakeAddress, catalog_identity, open_catalog
from lakehouse.capture.source import Source
from lakehouse.capture.trigger import TriggerCapture
from lakehouse.capture.xmin import XminCapture
from lakehouse.clock import Clock, system_clock
from lakehouse.control.database import connect
from lakehouse.duck import bound_memory
from lakehouse.egress.guard import Guard
from lakehouse.observe.events import Events
from lakehouse.observe.redact import remember_settings
from lakehouse.outbox.lease import LeaseKeeper, owner_name
from lakehouse.secrets.keyring import Vault
from lakehouse.settings import Settings, method_of
from schemas.contract import Contract, load_contracts
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from sqlalchemy import Engine

    from lakehouse.capture.protocol import CaptureMethod
    from lakehouse.control.models import Lake as LakeRow
    from lakehouse.egress.proxy import EgressProxy, Passage

OWN_LAKES_SECONDS = 15.0
"""How long this program goes on with what it last read of which organizations have a lake of their own."""


class App:
    """What a command works with. Everything is opened when first used; safe to share between threads."""

    def __init__(self, settings: Settings, clock: Clock = system_clock) -> None:
        remember_settings(settings)
        self.settings = settings
        self.clock = clock
        self.source = Source(settings.source)
        self.events = Events()
        self.vault = Vault(settings)
        self.guard = Guard(settings.egress.allow)
        self._lock = threading.RLock()
        self._own: dict[str, LakeRow] = {}
        self._own_read = float("-inf")
        self._addresses: dict[str, tuple[object, LakeAddress]] = {}
        self._catalogs: dict[LakeAddress, Catalog] = {}
        self._proxy: EgressProxy | None = None
        bound_memory(settings.lake.duckdb_memory)

    @functools.cached_property
    def contracts(self) -> dict[str, Contract]:
        """Every contract by its table's name.

        Raises:
            LakehouseError: one is not valid, or the settings choose a method for a table that there is not.
        """
        contracts = load_contracts(self.settings.contract_folders, validate_built_in=False)
        if unknown := sorted(set(self.settings.capture.methods) - set(contracts)):
            raise LakehouseError(
                f"capture.methods (LAKEHOUSE_CAPTURE__METHODS) names {', '.join(unknown)}, which no contract knows",
                f"There are: {', '.join(sorted(contracts))}",
            )
        return contracts

    @functools.cached_property
    def engine(self) -> Engine:
        """The control database, checked.

        Raises:
            ControlError: see `lakehouse.control.database.connect`.
        """
        return connect(self.settings)

    @functools.cached_property
    def leases(self) -> LeaseKeeper:
        """Renews what this process has claimed; its owner's name is this application's."""
        return LeaseKeeper(
            self.engine,
            owner_name(),
            self.settings.work.lease_seconds,
            on_lost=lambda lease: self.events.emit("lease_lost", id=str(lease.id), generation=lease.generation),
        )

    @functools.cached_property
    def address(self) -> LakeAddress:
        """The default lake's address, from the settings."""
        lake = self.settings.lake
        storage = {
            "s3.endpoint": lake.s3.endpoint,
            "s3.region": lake.s3.region or ("us-east-1" if lake.s3.endpoint else None),
            "s3.access-key-id": lake.s3.access_key_id,
            "s3.secret-access-key": lake.s3.secret_access_key and lake.s3.secret_access_key.get_secret_value(),
            "s3.session-token": lake.s3.session_token and lake.s3.session_token.get_secret_value(),
            "s3.connect-timeout": "5",
            "s3.request-timeout": "60",
        }
        return LakeAddress(
            kind=lake.catalog.kind,
            name=lake.catalog.name,
            uri=self.settings.catalog_uri,
            warehouse=lake.warehouse,
            storage={k: v for k, v in storage.items() if v},
        )

    @property
    def catalog(self) -> Catalog:
        """The default lake's catalog."""
        return self._open_catalog(self.address)

    @property
    def proxy(self) -> EgressProxy:
        """The one way to endpoints that tenants gave; started when the first such lake is opened."""
        from lakehouse.egress.proxy import EgressProxy

        with self._lock:
            if self._proxy is None:
                self._proxy = EgressProxy(self.guard, self._passage)
            return self._proxy

    def _passage(self, passage: Passage) -> None:
        if passage.outcome != "passed":
            self.events.emit("egress", **vars(passage))

    def address_of(self, organization: str) -> LakeAddress:
        """Where an organization's lake is: its own, or the default.

        Raises:
            SecretError: its stored credentials do not open.
            EgressError: its endpoint or catalog leads where a tenant's must not.
        """
        from lakehouse.lakes import own_address, stored_credentials

        with self._lock:
            row = self._own_lakes().get(organization)
            if row is None:
                return self.address
            key = (row.id, row.warehouse, row.encrypted_credentials, repr(row.catalog_config))
            found = self._addresses.get(organization)
            if found is None or found[0] != key:
                credentials = stored_credentials(row, self.vault)
                found = (key, own_address(organization, row.catalog_config, row.warehouse, credentials, self))
                self._addresses[organization] = found
            return found[1]

    def addresses_of(self, organizations: Iterable[str]) -> list[LakeAddress]:
        """The addresses of these organizations' lakes, each once: what `lakehouse.duck.connect` is given."""
        found: list[LakeAddress] = []
        for organization in organizations:
            address = self.address_of(organization)
            if address not in found:
                found.append(address)
        return found

    def _own_lakes(self) -> dict[str, LakeRow]:
        from lakehouse.control.lakes import own_lakes

        if time.monotonic() - self._own_read > OWN_LAKES_SECONDS:
            self._own = own_lakes(self.engine)
            self._own_read = time.monotonic()
        return self._own

    def forget_lakes(self) -> None:
        """Read again which organizations have a lake of their own, when that is next asked."""
        with self._lock:
            self._own_read = float("-inf")

    def catalog_of(self, organization: str) -> Catalog:
        """The catalog of an organization's lake. Lakes of one catalog share its connections."""
        return self._open_catalog(self.address_of(organization))

    def _open_catalog(self, address: LakeAddress) -> Catalog:
        with self._lock:
            if address not in self._catalogs:
                same = (c for a, c in self._catalogs.items() if (a.kind, a.name, a.uri) == _catalog_key(address))
                self._catalogs[address] = open_catalog(address, beside=next(same, None))
            return self._catalogs[address]

    def close(self) -> None:
        """Close the databases' connections and the proxy. The application can be used again and opens them again."""
        if (leases := self.__dict__.pop("leases", None)) is not None:
            leases.close()
        self.source.close()
        with self._lock:
            engines = [
                self.__dict__.pop("engine", None),
                *[getattr(c, "engine", None) for c in self._catalogs.values()],
            ]
            proxy, self._proxy = self._proxy, None
            self._catalogs.clear()
            self._addresses.clear()
            self.forget_lakes()
        for engine in engines:
            if engine is not None:
                engine.dispose()
        if proxy is not None:
            proxy.close()

    def lake(self, organization: str) -> Lake:
        """The lake of one organization. Not checked yet.

        Raises:
            LakehouseError: see `address_of`, and the catalog's own errors.
        """
        address = self.address_of(organization)
        return Lake(self._open_catalog(address), address, organization, self.settings.installation)

    def enrol(self, organization: str) -> bool:
        """Make an organization's namespace, and its rows in the control tables. True if it had no lake before.

        Raises:
            LakehouseError: its catalog does not answer, or the namespace is another's.
        """
        from catalog.lake import encode_organization
        from lakehouse.control import lakes, store

        self.lake(organization).ensure()
        new = store.enrol(
            self.engine,
            organization,
            encode_organization(organization),
            self.address.kind,
            self.address.warehouse,
            cadence_seconds=self.settings.schedule.cadence_seconds,
        )
        if new:
            lakes.note_catalog(self.engine, [organization], self.catalog_identity)
        return new

    @functools.cached_property
    def catalog_identity(self) -> str:
        """Where the default lake's catalog is, without credentials."""
        return catalog_identity(self.address.kind, self.address.name, self.address.uri)

    def recognize_catalog(self) -> list[str]:
        """Note the default catalog's address at lakes that were enrolled under another one, or under none.

        Where something has landed it must be the same catalog under a new name: it has their namespaces. Returns them.

        Raises:
            LakehouseError: it is another catalog: every table would be read again from scratch.
        """
        from lakehouse.control import lakes, store

        changed = [
            row
            for row in store.lakes(self.engine)
            if OWN not in row.catalog_config and row.catalog_config.get(CATALOG) != self.catalog_identity
        ]
        for row in changed:
            landed = lakes.has_landed(self.engine, row.organization_id)
            if landed and not self.catalog.namespace_exists(row.namespace):
                before = row.catalog_config.get(CATALOG, "another catalog")
                raise LakehouseError(
                    f"organization {row.organization_id} has its tables in {before}; "
                    f"the settings name {self.catalog_identity}, which does not have them",
                    "Set LAKEHOUSE_LAKE__CATALOG__URI (LAKEHOUSE_CONTROL__URL where that is not set) back: "
                    "in another catalog every table would be read again from scratch.",
                )
        if changed:
            lakes.note_catalog(self.engine, [row.organization_id for row in changed], self.catalog_identity)
        return [row.organization_id for row in changed]

    def probe_storage(self, address: LakeAddress | None = None) -> None:
        """Write and delete an object in the warehouse, so that a bucket that is not there or refuses is known now.

        Raises:
            StorageError: with what to do.
        """
        import uuid

        from pyiceberg.io import load_file_io

        from catalog.errors import lake_errors
        from catalog.storage import FILE_IO

        probed = address or self.address
        warehouse = probed.warehouse
        io = load_file_io({"py-io-impl": FILE_IO, **probed.storage}, warehouse)
        path = f"{warehouse}/.lakehouse-probe-{uuid.uuid4().hex}"
        with lake_errors(warehouse):
            with io.new_output(path).create() as stream:
                stream.write(b"lakehouse")
            io.delete(path)

    def enrolled(self) -> list[str]:
        """Organizations that have a lake, by id. Reads again which of them have one of their own.

        Raises:
            LakehouseError: one has its lake elsewhere than the settings say: it would be read again from scratch.
        """
        from lakehouse.control import store

        rows = store.lakes(self.engine)
        with self._lock:
            self._own = {row.organization_id: row for row in rows if OWN in row.catalog_config}
            self._own_read = time.monotonic()
        for row in rows:
            if row.organization_id in self._own:
                continue
            if (row.catalog_kind, row.warehouse) != (self.address.kind, self.address.warehouse):
                raise LakehouseError(
                    f"organization {row.organization_id} has its lake at {row.warehouse} ({row.catalog_kind}), "
                    f"the settings say {self.address.warehouse} ({self.address.kind})",
                    "Set LAKEHOUSE_LAKE__WAREHOUSE back: a lake is not moved by changing its address.",
                )
            catalog = row.catalog_config.get(CATALOG, self.catalog_identity)
            if catalog != self.catalog_identity:
                raise LakehouseError(
                    f"organization {row.organization_id} has its tables in {catalog}, "
                    f"the settings name {self.catalog_identity}",
                    "Set LAKEHOUSE_LAKE__CATALOG__URI (LAKEHOUSE_CONTROL__URL where that is not set) back; if it is "
                    "the same catalog under a new address, run `lakehouse init`, which checks that and notes it.",
                )
        return [row.organization_id for row in rows]

    def newcomers(self) -> list[str]:
        """Organizations that the host lists and that have no lake yet; none where the host lists nobody."""
        from lakehouse.control import store

        if self.settings.source.organizations_table is None:
            return []
        return sorted(set(self.source.organizations()) - {lake.organization_id for lake in store.lakes(self.engine)})

    def method(self, contract: Contract) -> CaptureMethod:
        """How a table is captured, as the settings choose."""
        capture = self.settings.capture
        if method_of(capture, contract) == TriggerCapture.name:
            return TriggerCapture(self.source, capture, self.clock)
        return XminCapture(self.source, capture, self.clock)

    def contract(self, table: str) -> Contract:
        """One contract by its table's name.

        Raises:
            LakehouseError: there is none of that name.
        """
        if table not in self.contracts:
            raise LakehouseError(
                f"no contract for a table {table!r}", f"There are: {', '.join(sorted(self.contracts))}"
            )
        return self.contracts[table]


def _catalog_key(address: LakeAddress) -> tuple[str, str, str]:
    return address.kind, address.name, address.uri
