"""Destinations as an operator handles them. Each function is one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from catalog.lake import nested
from federation.config import COPYING, SHARED, PostgresReplicaConfig, parse_config, parse_credentials, parse_kind
from federation.kinds import DeliveryStatus, DestinationKind, DestinationStatus
from federation.registry import target_of
from lakehouse.control.models import (
    Cursor,
    DestinationFilling,
    DestinationTable,
    Lake,
    WarehouseDelivery,
    WarehouseDestination,
)
from lakehouse.control.store import ALL_TABLES, file_places, lake_target
from lakehouse.secrets.keyring import destination_place
from lakehouse.standing import standings
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from lakehouse.app import App


NAME_LENGTH = 160
PARITY = "parity: "
"""So begins the last error of a destination that was found to differ; a delivery does not take it away."""


@dataclass(frozen=True)
class Progress:
    """How far a table is that is filled anew. `of`: versions that the lake held of it; rows are at most so many."""

    organization: str
    table: str
    rows: int
    of: int
    reached: str | None
    begun_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Destination:
    """A destination as `destinations list` shows it. Credentials are never part of it."""

    id: uuid.UUID
    organization: str | None
    kind: str
    name: str
    config: dict[str, Any]
    target: str | None
    tables: list[str]
    status: str
    cadence_seconds: int
    table_cadences: dict[str, int]
    has_credentials: bool
    open_deliveries: int
    last_delivery_at: Any
    last_error: str | None
    fillings: list[Progress]
    lag: int
    """Of the table that is furthest behind: numbers of `_sequence` that it has not got yet."""
    bound: int | None
    """The lag above which it is filled from the current state; None where it gets every version."""

    @property
    def shared(self) -> bool:
        """It is vendor-wide: every organization's rows, the operator's only."""
        return self.organization is None


def organizations_of(app: App, destination: Destination) -> list[str]:
    """Whose rows it gets: its own organization's, or where it is vendor-wide those of all that have any."""
    if destination.organization is not None:
        return [destination.organization]
    with app.engine.connect() as connection:
        return list(connection.scalars(select(Cursor.organization_id).distinct().order_by(Cursor.organization_id)))


def destinations(app: App, organization: str | None = None) -> list[Destination]:
    """Every destination (of one organization), by organization and name."""
    open_count = (
        select(func.count())
        .where(WarehouseDelivery.destination_id == WarehouseDestination.id, _open())
        .correlate(WarehouseDestination)
        .scalar_subquery()
    )
    query = select(WarehouseDestination.__table__, open_count.label("open")).order_by(
        WarehouseDestination.organization_id, WarehouseDestination.name
    )
    if organization is not None:
        query = query.where(WarehouseDestination.organization_id == organization)
    with app.engine.connect() as connection:
        rows = connection.execute(query).all()
        own = connection.execute(select(DestinationTable.__table__)).all()
        standing = standings(connection, list(app.contracts), app.settings.deliver.fill_behind, PARITY)
        filled = connection.execute(select(DestinationFilling.__table__).order_by(DestinationFilling.begun_at)).all()
    cadences: dict[uuid.UUID, dict[str, int]] = {}
    for row in own:
        if row.cadence_seconds is not None:
            cadences.setdefault(row.destination_id, {})[row.table_name] = row.cadence_seconds
    fillings: dict[uuid.UUID, list[Progress]] = {}
    for f in filled:
        progress = Progress(
            f.organization_id, f.table_name, f.row_count, f.of_rows, f.reached, f.begun_at, f.updated_at
        )
        fillings.setdefault(f.destination_id, []).append(progress)
    return [
        Destination(
            id=r.id,
            organization=r.organization_id,
            kind=r.kind,
            name=r.name,
            config=r.config,
            target=r.target,
            tables=r.enabled_tables,
            status=r.status,
            cadence_seconds=r.cadence_seconds,
            table_cadences=cadences.get(r.id, {}),
            has_credentials=r.encrypted_credentials is not None,
            open_deliveries=r.open,
            last_delivery_at=r.last_delivery_at,
            last_error=r.last_error,
            fillings=fillings.get(r.id, []),
            lag=max((s.lag for s in standing if s.destination == r.id), default=0),
            bound=next((s.bound for s in standing if s.destination == r.id), None),
        )
        for r in rows
    ]


def find(app: App, name: str, organization: str | None) -> Destination:
    """A destination by its id, or by its name within an organization.

    Raises:
        LakehouseError: there is none, or the name alone is several organizations'.
    """
    known = destinations(app, organization)
    found = [d for d in known if str(d.id) == name] or [d for d in known if d.name == name]
    if not found:
        of = f" of organization {organization}" if organization else ""
        raise LakehouseError(f"no destination {name!r}{of}", "`lakehouse destinations list` shows all.")
    if len(found) > 1:
        raise LakehouseError(
            f"{len(found)} organizations have a destination named {name!r}", "Say --organization, or give its id."
        )
    return found[0]


def add(
    app: App,
    *,
    organization: str | None,
    kind: str,
    name: str,
    config: Mapping[str, Any],
    tables: Sequence[str],
    cadence_seconds: int,
    table_cadences: Mapping[str, int],
    credentials: Mapping[str, str] | None = None,
) -> Destination:
    """Add a destination; it is active at once. One that is fed by deliveries is reached first, as a delivery would.

    Without an organization it is vendor-wide: every organization's rows, in one table, for the operator alone.

    Raises:
        LakehouseError: an unknown kind, table, organization or key of the config or credentials, a name or target that
            is taken, a target that is the hot database or the lake itself, is another's or does not answer.
    """
    from sqlalchemy.exc import IntegrityError

    name = _checked_name(name)
    chosen = parse_kind(kind)
    parsed = parse_config(chosen, dict(config))
    _check_tables(app, [*tables, *table_cadences])
    lake = None
    if organization is None:
        if chosen not in SHARED:
            raise LakehouseError(
                f"a {chosen.value} destination is one organization's",
                f"Vendor-wide can be: {', '.join(k.value for k in SHARED)}.",
            )
    else:
        with app.engine.connect() as connection:
            lake = connection.execute(select(Lake.__table__).where(Lake.organization_id == organization)).one_or_none()
        if lake is None:
            raise LakehouseError(f"organization {organization!r} has no lake", "Run `lakehouse init` first.")
    identifier = uuid.uuid4()
    keys = parse_credentials(chosen, dict(credentials or {}))
    if lake is None or chosen in COPYING:
        target = check_target(app, identifier, organization, chosen, config, keys, tables)
    else:
        target = lake_target(lake.warehouse, lake.namespace)
    sealed, version = app.vault.seal(keys, destination_place(organization, identifier)) if keys else (None, None)
    try:
        with app.engine.begin() as connection:
            connection.execute(
                insert(WarehouseDestination).values(
                    id=identifier,
                    organization_id=organization,
                    kind=chosen.value,
                    name=name,
                    config=parsed.model_dump(mode="json", by_alias=True),
                    encrypted_credentials=sealed,
                    **({"token_key_version": version} if version else {}),
                    target=target,
                    enabled_tables=list(tables) or [ALL_TABLES],
                    cadence_seconds=cadence_seconds,
                    lake_id=lake.id if lake is not None and chosen is DestinationKind.ICEBERG_S3 else None,
                )
            )
            _set_cadences(connection, identifier, table_cadences)
    except IntegrityError as error:
        if "target" in str(error.orig) or "_lake" in str(error.orig):
            raise LakehouseError(
                f"another {chosen.value} destination writes to {target} already",
                "Two destinations never share a target: edit that one (`lakehouse destinations list`).",
            ) from error
        if "organization_id" in str(error.orig):
            raise LakehouseError(
                f"{_whose(organization)} has a destination named {name!r} already", "Choose another --name."
            ) from error
        raise
    return find(app, str(identifier), organization)


def _whose(organization: str | None) -> str:
    return f"organization {organization}" if organization is not None else "the operator"


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > NAME_LENGTH or not name.isprintable():
        raise LakehouseError(f"a destination's name has 1 to {NAME_LENGTH} printable characters", "Say another --name.")
    return name


def edit(
    app: App,
    destination: Destination,
    *,
    name: str | None = None,
    tables: Sequence[str] | None = None,
    cadence_seconds: int | None = None,
    table_cadences: Mapping[str, int | None] | None = None,
    credentials: Mapping[str, str] | None = None,
) -> Destination:
    """Change what is given; a table's cadence of None goes back to the destination's.

    With other credentials the target is reached first, as a delivery would.

    Raises:
        LakehouseError: an unknown table or one that cannot be named there, a name or target that is taken, or
            credentials that do not work.
    """
    from sqlalchemy.exc import IntegrityError

    _check_tables(app, [*(tables or ()), *(table_cadences or ())])
    if tables is not None:
        _check_names(app, DestinationKind(destination.kind), destination.config, tables)
    values: dict[str, Any] = {"updated_at": func.now()}
    if name is not None:
        values["name"] = _checked_name(name)
    if credentials is not None:
        kind = DestinationKind(destination.kind)
        keys = parse_credentials(kind, dict(credentials))
        if kind not in COPYING:
            raise LakehouseError(f"{destination.name}: a {kind.value} destination has no credentials of its own")
        chosen = tables or destination.tables
        values["target"] = check_target(
            app, destination.id, destination.organization, kind, destination.config, keys, chosen
        )
        place = destination_place(destination.organization, destination.id)
        values["encrypted_credentials"], values["token_key_version"] = app.vault.seal(keys, place)
    if tables is not None:
        values["enabled_tables"] = list(tables) or [ALL_TABLES]
    if cadence_seconds is not None:
        values["cadence_seconds"] = cadence_seconds
    try:
        with app.engine.begin() as connection:
            connection.execute(
                update(WarehouseDestination).where(WarehouseDestination.id == destination.id).values(**values)
            )
            _set_cadences(connection, destination.id, table_cadences or {})
    except IntegrityError as error:
        if "target" in str(error.orig):
            raise LakehouseError(
                f"another {destination.kind} destination writes to {values['target']} already",
                "Two destinations never share a target.",
            ) from error
        raise LakehouseError(
            f"{_whose(destination.organization)} has a destination named {name!r} already", "Choose another."
        ) from error
    return find(app, str(destination.id), destination.organization)


def set_status(app: App, destination: Destination, status: DestinationStatus) -> None:
    """Pause or resume. What is under way when it is paused is finished; nothing new is begun."""
    with app.engine.begin() as connection:
        connection.execute(
            update(WarehouseDestination)
            .where(WarehouseDestination.id == destination.id)
            .values(status=status.value, updated_at=func.now())
        )


def remove(app: App, destination: Destination) -> None:
    """Remove a destination. What it was delivered stays, and so do the records of that; what waits for it is dropped.

    Raises:
        LakehouseError: a delivery of it is under way, or a landing waits.
    """
    row = WarehouseDelivery
    with app.engine.begin() as connection:
        if DestinationKind(destination.kind) in COPYING:
            # A range is in the lake still. Whoever holds one is not disturbed.
            connection.execute(
                delete(row).where(
                    row.destination_id == destination.id,
                    _open(),
                    or_(row.lease_owner.is_(None), row.lease_expires_at < func.clock_timestamp()),
                )
            )
        gone = connection.execute(
            delete(WarehouseDestination).where(
                WarehouseDestination.id == destination.id,
                ~select(WarehouseDelivery.id)
                .where(WarehouseDelivery.destination_id == destination.id, _open())
                .exists(),
            )
        )
    if not gone.rowcount:
        raise LakehouseError(
            f"{destination.name}: deliveries of it are under way or wait; nothing was removed",
            f"Pause it, and wait until `lakehouse deliveries list --destination {destination.id}` is empty.",
        )


def check_target(
    app: App,
    identifier: uuid.UUID,
    organization: str | None,
    kind: DestinationKind,
    config: Mapping[str, Any],
    credentials: Mapping[str, str],
    tables: Sequence[str],
) -> str:
    """What a destination that is fed by deliveries would write to, reached and found to be a place for it.

    Raises:
        LakehouseError: it and a lake or another destination lie in one another, it is the hot database or another's,
            cannot name a table, or does not answer.
    """
    from federation.files.adapter import FilesAdapter
    from lakehouse.deliver.targets import adapter_of

    target = target_of(kind, config, credentials)
    _check_names(app, kind, config, tables)
    adapter = adapter_of(
        app, organization, kind, config, credentials, destination=identifier, shared=organization is None
    )
    try:
        if isinstance(adapter, FilesAdapter):
            place = adapter.config.location
            with app.engine.connect() as connection:
                warehouses = set(connection.scalars(select(Lake.warehouse))) | {app.address.warehouse}
            for warehouse in sorted(warehouses):
                if nested(place, warehouse):
                    raise LakehouseError(
                        f"{place}/ and the lake at {warehouse} lie in one another",
                        "Give it a prefix of its own: maintenance removes from a lake what it does not know.",
                    )
            _check_overlap(app, identifier, kind, place, target)
        adapter.check()
    finally:
        adapter.close()
    return target


def _check_overlap(app: App, identifier: uuid.UUID, kind: DestinationKind, place: str, target: str) -> None:
    """No other destination's files lie there, or around it. One with the same target is told so where it is stored."""
    for other in file_places(app.engine):
        if other.id == identifier or (other.kind, other.target) == (kind.value, target):
            continue
        if nested(place, other.location):
            raise LakehouseError(
                f"{place}/ and {other.location}/ (destination {other.name}) lie in one another",
                "Give each destination a prefix of its own, also at another endpoint: files are read by their path.",
            )


def reach(app: App, destination: Destination) -> dict[str, Any]:
    """Reach the destination as a delivery would: open it, check whose it is, write and delete an object.

    Raises:
        LakehouseError: what does not work, and what to do.
    """
    kind = DestinationKind(destination.kind)
    if destination.organization is None or kind in COPYING:
        from lakehouse.deliver.targets import opened

        with opened(app, destination, destination.organization) as (adapter, _):
            adapter.check()
        return {"destination": str(destination.id), "target": destination.target, "well": True}
    lake = app.lake(destination.organization)
    lake.check()
    app.probe_storage(lake.address)
    return {"destination": str(destination.id), "target": destination.target, "well": True}


def _open() -> Any:
    return WarehouseDelivery.status != DeliveryStatus.DELIVERED.value


def _check_tables(app: App, names: Sequence[str]) -> None:
    for name in names:
        if name != ALL_TABLES:
            app.contract(name)


def _check_names(app: App, kind: DestinationKind, config: Mapping[str, Any], tables: Sequence[str]) -> None:
    """Nothing of these tables has a name that PostgreSQL would cut or another has; no table named means all of them."""
    parsed = parse_config(kind, dict(config))
    if not isinstance(parsed, PostgresReplicaConfig):
        return
    from federation.postgres.layout import Layout
    from federation.postgres.names import refuse_one_name

    every = ALL_TABLES in tables or not tables
    chosen = [contract for contract in app.contracts.values() if every or contract.table in tables]
    for contract in chosen:
        Layout(contract, parsed.schema_name, parsed.history)
    refuse_one_name([contract.table for contract in chosen], history=parsed.history)


def _set_cadences(connection: Connection, destination: uuid.UUID, cadences: Mapping[str, int | None]) -> None:
    for table, seconds in cadences.items():
        if seconds is None:
            connection.execute(
                delete(DestinationTable).where(
                    and_(DestinationTable.destination_id == destination, DestinationTable.table_name == table)
                )
            )
        else:
            row = upsert(DestinationTable).values(destination_id=destination, table_name=table, cadence_seconds=seconds)
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=["destination_id", "table_name"], set_={"cadence_seconds": seconds}
                )
            )


def deliveries(
    app: App,
    *,
    organization: str | None = None,
    table: str | None = None,
    destination: str | None = None,
    status: DeliveryStatus | None = None,
    all_of_them: bool = False,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Rows of the outbox, newest first; unless asked otherwise only those that are not delivered."""
    delivery = WarehouseDelivery
    query = select(delivery.__table__).order_by(delivery.created_at.desc(), delivery.id).limit(limit)
    if status is not None:
        query = query.where(delivery.status == status.value)
    elif not all_of_them:
        query = query.where(_open())
    for column, value in (
        (delivery.organization_id, organization),
        (delivery.table_name, table),
        (delivery.destination_id, uuid.UUID(destination) if destination else None),
    ):
        if value is not None:
            query = query.where(or_(column == value))
    with app.engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]
