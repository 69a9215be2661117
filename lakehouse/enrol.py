"""Gives an organization its lake: namespace, control rows, and the destination ICEBERG_S3 that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catalog.lake import encode_organization
from lakehouse.control import store

if TYPE_CHECKING:
    from lakehouse.app import App


def enrol(app: App, organization: str) -> bool:
    """Give an organization its namespace, lake and destination. True if it had none. Idempotent.

    Raises:
        LakehouseError: the lake does not answer, or is another's.
    """
    app.lake(organization).ensure()
    return store.enrol(
        app.engine,
        organization,
        encode_organization(organization),
        app.address.kind,
        app.settings.lake.warehouse,
        cadence_seconds=app.settings.schedule.cadence_seconds,
    )
