"""Rows of `lakes`: which organizations have a lake of their own, and where catalogs are."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, or_, select, update

from catalog.lake import CATALOG, OWN
from federation.kinds import DestinationKind
from lakehouse.control.models import Backfill, Cursor, Lake, Landing, WarehouseDestination
from lakehouse.control.store import ALL_TABLES, lake_target

if TYPE_CHECKING:
    from sqlalchemy import Engine


def own_lakes(engine: Engine) -> dict[str, Lake]:
    """Lakes with an address of their own, by organization."""
    from sqlalchemy.orm import Session

    with Session(engine, expire_on_commit=False) as session:
        rows = session.scalars(select(Lake).where(Lake.catalog_config.has_key(OWN)))
        return {row.organization_id: row for row in rows}


def note_catalog(engine: Engine, organizations: Sequence[str], identity: str) -> None:
    """Write where the catalog of these organizations' (default) lakes is."""
    with engine.begin() as connection:
        connection.execute(
            update(Lake)
            .where(Lake.organization_id.in_(organizations), ~Lake.catalog_config.has_key(OWN))
            .values(catalog_config=Lake.catalog_config.op("||")(func.jsonb_build_object(CATALOG, identity)))
        )


def has_landed(engine: Engine, organization: str) -> bool:
    """Whether anything of this organization was read or is being read: its lake cannot be elsewhere any more."""
    with engine.connect() as connection:
        return bool(
            connection.scalar(
                select(
                    or_(
                        select(Cursor.table_name).where(Cursor.organization_id == organization).exists(),
                        select(Landing.table_name).where(Landing.organization_id == organization).exists(),
                        select(Backfill.id)
                        .where(Backfill.status == "running", Backfill.organizations.contains([organization]))
                        .exists(),
                    )
                )
            )
        )


def save_own_lake(
    engine: Engine,
    lake_id: uuid.UUID,
    organization: str,
    namespace: str,
    kind: str,
    config: dict[str, Any],
    warehouse: str,
    credentials: str | None,
    key_version: str | None,
    *,
    cadence_seconds: int,
) -> bool:
    """Write an organization's own lake, and the destination ICEBERG_S3 where it had no lake. True if it had none."""
    values = {
        "catalog_kind": kind,
        "catalog_config": config,
        "warehouse": warehouse,
        "encrypted_credentials": credentials,
        "token_key_version": key_version,
    }
    with engine.begin() as connection:
        changed = connection.execute(
            update(Lake)
            .where(Lake.id == lake_id, Lake.organization_id == organization)
            .values(**values, updated_at=func.now())
        )
        target = lake_target(warehouse, namespace)
        if changed.rowcount:
            connection.execute(
                update(WarehouseDestination)
                .where(
                    WarehouseDestination.lake_id == lake_id,
                    WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value,
                )
                .values(target=target, updated_at=func.now())
            )
            return False
        connection.execute(insert(Lake).values(id=lake_id, organization_id=organization, namespace=namespace, **values))
        connection.execute(
            insert(WarehouseDestination).values(
                id=uuid.uuid4(),
                organization_id=organization,
                kind=DestinationKind.ICEBERG_S3.value,
                name="lake",
                enabled_tables=[ALL_TABLES],
                target=target,
                cadence_seconds=cadence_seconds,
                lake_id=lake_id,
            )
        )
        return True
