"""pyiceberg's SQL catalog, on PostgreSQL or SQLite. Source: py.iceberg.apache.org/configuration/#sql-catalog."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

    from catalog.lake import LakeAddress


def open_sql_catalog(address: LakeAddress, beside: Catalog | None = None) -> Catalog:
    """Open the catalog; its two tables are made if they are not there (on PostgreSQL the schema must be).

    `beside`: an open catalog at the same URI, whose pool of connections this one uses too.
    """
    from pyiceberg.catalog.sql import SqlCatalog

    from catalog.storage import FILE_IO

    if address.uri.startswith("sqlite:///"):
        Path(address.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    if address.warehouse.startswith("file:///"):
        Path(address.warehouse.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
    properties = {
        "uri": address.uri,
        "warehouse": address.warehouse,
        "pool_pre_ping": "true",
        "py-io-impl": FILE_IO,
        **address.storage,
    }
    if isinstance(beside, SqlCatalog):
        # Its constructor would open a pool of its own: with a lake for each customer, that is a pool for each.
        catalog = copy.copy(beside)
        catalog.properties = properties
        return catalog
    return SqlCatalog(address.name, **properties)
