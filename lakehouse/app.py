"""The one module that wires the rest together: settings, contracts, databases, lakes."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from catalog.lake import Lake, LakeAddress, open_catalog
from lakehouse.capture.source import Source
from lakehouse.capture.xmin import XminCapture
from lakehouse.clock import Clock, system_clock
from lakehouse.control.database import connect
from lakehouse.observe.events import Events
from lakehouse.observe.redact import remember_settings
from lakehouse.settings import Settings
from schemas.contract import Contract, load_contracts
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from sqlalchemy import Engine

    from lakehouse.capture.protocol import CaptureMethod


class App:
    """What a command works with. Everything is opened when first used; safe to share between threads."""

    def __init__(self, settings: Settings, clock: Clock = system_clock) -> None:
        remember_settings(settings)
        self.settings = settings
        self.clock = clock
        self.source = Source(settings.source)
        self.events = Events()
        self._lock = threading.Lock()

    @functools.cached_property
    def contracts(self) -> dict[str, Contract]:
        return load_contracts(self.settings.contract_folders)

    @functools.cached_property
    def engine(self) -> Engine:
        """The control database, checked.

        Raises:
            ControlError: see `lakehouse.control.database.connect`.
        """
        return connect(self.settings)

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
        # cached_property takes no lock since Python 3.12: two threads must not open two catalogs.
        with self._lock:
            return self._catalog

    @functools.cached_property
    def _catalog(self) -> Catalog:
        return open_catalog(self.address)

    def close(self) -> None:
        """Close the databases' connections. The application can be used again and opens them again."""
        for name in ("engine", "_catalog"):
            opened = self.__dict__.pop(name, None)
            engine = getattr(opened, "engine", opened)
            if engine is not None:
                engine.dispose()

    def lake(self, organization: str) -> Lake:
        """The lake of one organization. Not checked yet."""
        return Lake(self.catalog, self.address, organization, self.settings.installation)

    def probe_storage(self) -> None:
        """Write and delete an object in the warehouse, so that a bucket that is not there or refuses is known now.

        Raises:
            StorageError: with what to do.
        """
        import uuid

        from pyiceberg.io import load_file_io

        from catalog.errors import lake_errors

        warehouse = self.address.warehouse
        io = load_file_io({"py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO", **self.address.storage}, warehouse)
        path = f"{warehouse}/.lakehouse-probe-{uuid.uuid4().hex}"
        with lake_errors(warehouse):
            with io.new_output(path).create() as stream:
                stream.write(b"lakehouse")
            io.delete(path)

    def enrolled(self) -> list[str]:
        """Organizations that have a lake, by id.

        Raises:
            LakehouseError: one has its lake elsewhere than the settings say: it would be read again from scratch.
        """
        from lakehouse.control import store

        lakes = store.lakes(self.engine)
        for lake in lakes:
            if (lake.catalog_kind, lake.warehouse) != (self.address.kind, self.address.warehouse):
                raise LakehouseError(
                    f"organization {lake.organization_id} has its lake at {lake.warehouse} ({lake.catalog_kind}), "
                    f"the settings say {self.address.warehouse} ({self.address.kind})",
                    "Set LAKEHOUSE_LAKE__WAREHOUSE back: a lake is not moved by changing its address.",
                )
        return [lake.organization_id for lake in lakes]

    def newcomers(self) -> list[str]:
        """Organizations that the host lists and that have no lake yet; none where the host lists nobody."""
        from lakehouse.control import store

        if self.settings.source.organizations_table is None:
            return []
        return sorted(set(self.source.organizations()) - {lake.organization_id for lake in store.lakes(self.engine)})

    def method(self) -> CaptureMethod:
        """How tables are captured. `trigger` and `logical` will be chosen here."""
        return XminCapture(self.source, self.settings.capture, self.clock)

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
