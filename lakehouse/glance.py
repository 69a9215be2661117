"""`lakehouse sync --once` where nothing changed: said within a few tenths of a second, by psycopg alone.

A round that has nothing to do spends most of its time on loading SQLAlchemy, Arrow and Iceberg. So the program looks
first: one statement asks the control tables whether they are this program's and everything in them is settled, and
each table's capture method whether a window would read or compare anything (`CaptureMethod.unchanged`, one snapshot a
table). What is not plainly quiet is left to the ordinary round, which looks at everything again: so is every error.

Positions stay where they are: the next window reads from there. Noted is only that these organizations were looked at
and up to when they are known to equal the source, and only where their cursor is still the one that was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from federation.kinds import DeliveryStatus, DestinationKind, DestinationStatus
from lakehouse.capture.position import Position
from lakehouse.capture.protocol import CaptureMethod, group_positions
from lakehouse.capture.source import Source
from lakehouse.clock import Clock, system_clock
from lakehouse.control.database import newest_revision
from lakehouse.landing.cursor import Quarantine, needs_comparison
from lakehouse.result import TableResult
from lakehouse.settings import Settings, method_of
from schemas.contract import Contract, load_contracts
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    import psycopg

_CONTROL = """
WITH wanted AS (
    SELECT l.organization_id, d.enabled_tables
    FROM lakes l JOIN warehouse_destinations d ON d.lake_id = l.id AND d.organization_id = l.organization_id
    WHERE d.kind = %(kind)s AND d.status <> %(paused)s AND l.stopped_at IS NULL
), members AS (
    SELECT t.name, w.organization_id, c.position, c.quarantine, c.captured_at,
           c.xmin::text AS version,
           coalesce(c.stopped OR c.attempts > 0 OR c.last_error IS NOT NULL, false) AS ill
    FROM unnest(%(tables)s::text[]) AS t(name)
    JOIN wanted w ON t.name = ANY(w.enabled_tables) OR '*' = ANY(w.enabled_tables)
    LEFT JOIN cursors c ON c.organization_id = w.organization_id AND c.table_name = t.name
)
SELECT (SELECT version_num FROM alembic_version),
       (SELECT id FROM installation),
       (SELECT coalesce(json_agg(json_build_object('organization', organization_id, 'kind', catalog_kind,
               'warehouse', warehouse, 'config', catalog_config)), '[]') FROM lakes),
       (SELECT coalesce(json_agg(json_build_object('table', name, 'organization', organization_id, 'position', position,
               'quarantine', quarantine, 'captured_at', captured_at, 'version', version, 'ill', ill)
               ORDER BY name, organization_id), '[]') FROM members),
       EXISTS (SELECT FROM warehouse_deliveries w JOIN warehouse_destinations d ON d.id = w.destination_id
               WHERE d.kind = %(kind)s AND w.table_name = ANY(%(tables)s) AND w.status <> %(delivered)s)
           OR EXISTS (SELECT FROM tasks WHERE table_name = ANY(%(tables)s)
                      AND (lease_owner IS NOT NULL OR last_error IS NOT NULL))
           OR EXISTS (SELECT FROM adoptions WHERE table_name = ANY(%(tables)s) AND reconciled_at IS NULL)
"""
_SEEN = """
UPDATE cursors SET captured_at = greatest(captured_at, %(at)s), polled_at = clock_timestamp()
WHERE table_name = %(table)s AND organization_id = ANY(%(organizations)s) AND xmin::text = ANY(%(versions)s)
"""


def nothing_to_do(
    settings: Settings, tables: Sequence[str] | None = None, clock: Clock = system_clock
) -> list[TableResult] | None:
    """What a round of these tables (default: all) would report, where it would do nothing; None: take the round."""
    import psycopg

    try:
        contracts = load_contracts(settings.contract_folders, validate_built_in=False)
        if not contracts.keys() >= {*(tables or ()), *settings.capture.methods}:
            return None
        with psycopg.connect(
            settings.control_url,
            autocommit=True,
            options=f"-csearch_path={settings.control.schema_name} -ctimezone=UTC",
            application_name="lakehouse control",
            connect_timeout=10,
        ) as control:
            return _look(settings, [contracts[t] for t in tables or contracts], control, clock)
    except (LakehouseError, psycopg.Error):
        # The round meets it too, and says it in full.
        return None


def _look(
    settings: Settings, contracts: list[Contract], control: psycopg.Connection[Any], clock: Clock
) -> list[TableResult] | None:
    row = control.execute(
        _CONTROL,
        {
            "kind": DestinationKind.ICEBERG_S3.value,
            "paused": DestinationStatus.PAUSED.value,
            "delivered": DeliveryStatus.DELIVERED.value,
            "tables": [c.table for c in contracts],
        },
    ).fetchone()
    assert row is not None  # noqa: S101 - the query has no FROM
    version, owner, lakes, members, unsettled = row
    if (version, owner, unsettled) != (newest_revision(), settings.installation, False):
        return None
    if not all(_where_we_write(settings, lake) for lake in lakes) or any(m["ill"] for m in members):
        return None
    source = Source(settings.source)
    results = []
    with source.catalog(bounded=True) as catalog:
        if settings.source.organizations_table is not None and (
            source.organizations_by(catalog).keys() - {lake["organization"] for lake in lakes}
        ):
            return None
        for contract in contracts:
            result = TableResult(contract.table)
            mine = [m for m in members if m["table"] == contract.table]
            result.waiting = [m["organization"] for m in mine if m["position"] is None]
            known = [m for m in mine if m["position"] is not None]
            if any(_left_quarantine(m) for m in known) and method_of(settings.capture, contract) == "trigger":
                # Keys are to be compared (`lakehouse.sync`).
                return None
            if known:
                result.captured_at = _method(settings, contract, source, clock).unchanged(
                    catalog,
                    contract,
                    group_positions({m["organization"]: Position.from_json(m["position"]) for m in known}),
                )
                if result.captured_at is None:
                    return None
                control.execute(
                    _SEEN,
                    {
                        "at": result.captured_at,
                        "table": contract.table,
                        "organizations": [m["organization"] for m in known],
                        "versions": [m["version"] for m in known],
                    },
                )
            results.append(result)
    return results


def _left_quarantine(member: Mapping[str, Any]) -> bool:
    if not member["quarantine"]:
        return False
    return needs_comparison(Quarantine.from_json(member["quarantine"]), Position.from_json(member["position"]))


def _where_we_write(settings: Settings, lake: Mapping[str, Any]) -> bool:
    """As `App.enrolled` asks: a lake without an address of its own is where the settings say."""
    from catalog.lake import CATALOG, OWN, catalog_identity

    if OWN in lake["config"]:
        return True
    ours = catalog_identity(settings.lake.catalog.kind, settings.lake.catalog.name, settings.catalog_uri)
    return (lake["kind"], lake["warehouse"], lake["config"].get(CATALOG, ours)) == (
        settings.lake.catalog.kind,
        settings.lake.warehouse,
        ours,
    )


def _method(settings: Settings, contract: Contract, source: Source, clock: Clock) -> CaptureMethod:
    if method_of(settings.capture, contract) == "trigger":
        from lakehouse.capture.trigger import TriggerCapture

        return TriggerCapture(source, settings.capture, clock)
    from lakehouse.capture.xmin import XminCapture

    return XminCapture(source, settings.capture, clock)
