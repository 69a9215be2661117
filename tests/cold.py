"""What tests of the cold tier stand on: a lakehouse whose rows are old, with keys, a policy, and a round by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from lakehouse.archive import candidates, durable, gate, proof
from lakehouse.archive.age import read_retention
from lakehouse.archive.batch import Batch, delete_batch
from lakehouse.archive.installation import connect, install
from lakehouse.archive.proof import Unproven
from lakehouse.archive.records import Tombstone
from lakehouse.archive.seal import Sealer, make_signing_key
from tests.support import Lakehouse, host_tables, local_variables

TOMBSTONE_KEY = "hex:" + "5a" * 32
OLD_DAY = "2020-01-01"
REFERENCES = (
    "CREATE INDEX ON security_findings (event_id)",
    "CREATE INDEX ON rule_runs (event_id)",
    "CREATE INDEX ON workflow_deliveries (finding_id)",
)
"""Indexes that the host lacks, and without which nothing may go."""


def archive_variables(folder: Path) -> dict[str, str]:
    """Keys, made in the folder."""
    key = folder / "signing.pem"
    if not key.exists():
        make_signing_key(key)
    return {
        "LAKEHOUSE_ARCHIVE__SIGNING_KEY_FILE": str(key),
        "LAKEHOUSE_ARCHIVE__TOMBSTONE_KEYS": json.dumps({"t1": TOMBSTONE_KEY}),
    }


def open_house(url: str, folder: Path, **more: str) -> Lakehouse:
    """An installation over the host's tables, with keys to archive by and the indexes that the archive asks for."""
    host_tables(url)
    house = Lakehouse(url, local_variables(url, folder) | archive_variables(folder) | more)
    house.init()
    with house.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
    return house


def hot_ids(house: Lakehouse, table: str = "ingested_events", organization: str = "org-a") -> set[str]:
    """Numbers of the rows that are hot, with their letter: e1, f7, …"""
    with house.hot() as hot:
        rows = hot.execute(f"SELECT id FROM {table} WHERE organization_id = %s", [organization]).fetchall()
    return {row[0].removeprefix(f"{organization}-") for row in rows}


def allow(house: Lakehouse, *organizations: str, optional: tuple[str, ...] = ()) -> None:
    """The archive's schema, and a policy for each organization."""
    install(house.app)
    with connect(house.app) as connection:
        for organization in organizations:
            connection.execute(
                "INSERT INTO lakehouse_archive.policies "
                "(organization_id, enabled, optional_tables, changed_by, reason) "
                "VALUES (%s, true, %s, 'tester', 'a test')",
                [organization, list(optional)],
            )


def old_events(
    connection: psycopg.Connection[Any], organization: str, first: int, count: int, *, day: str = OLD_DAY
) -> None:
    """Events `<organization>-e<number>` that happened, were created and processed long ago."""
    connection.execute(
        """
        INSERT INTO ingested_events (id, organization_id, integration_id, provider, event_type, source, payload,
                                     processing_status, occurred_at, processed_at, created_at)
        SELECT %(o)s || '-e' || n, %(o)s, 'int-' || %(o)s, 'GITHUB', 'push', 'audit', jsonb_build_object('n', n),
               'PROCESSED', at, at, at
        FROM generate_series(%(first)s::int, %(first)s::int + %(count)s::int - 1) n,
             LATERAL (SELECT %(day)s::timestamp + n * interval '1 minute') AS m (at)
        """,
        {"o": organization, "first": first, "count": count, "day": day},
    )


def old_findings(
    connection: psycopg.Connection[Any],
    organization: str,
    first: int,
    count: int,
    *,
    status: str = "RESOLVED",
    event: int | None = None,
    day: str = OLD_DAY,
) -> None:
    """Findings `<organization>-f<number>` of long ago; `event`: the number of the first one's event."""
    connection.execute(
        """
        INSERT INTO security_findings (id, organization_id, integration_id, event_id, dedupe_key, title, description,
                                       severity, status, risk_score, evidence, detected_at, resolved_at)
        SELECT %(o)s || '-f' || n, %(o)s, 'int-' || %(o)s, %(o)s || '-e' || (n - %(first)s::int + %(event)s::int),
               'd' || n, 't', 'd', 'LOW', %(status)s::"FindingStatus", 5, '{}', at,
               CASE WHEN %(status)s = 'RESOLVED' THEN at END
        FROM generate_series(%(first)s::int, %(first)s::int + %(count)s::int - 1) n,
             LATERAL (SELECT %(day)s::timestamp + n * interval '1 minute') AS m (at)
        """,
        {"o": organization, "first": first, "count": count, "status": status, "event": event, "day": day},
    )


@dataclass
class Round:
    """What a round by hand did."""

    batches: list[Batch] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    unproven: list[Unproven] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(b.rows for b in self.batches)


def archive_once(
    house: Lakehouse,
    table: str,
    organization: str,
    *,
    batch_rows: int = 10_000,
    most: int = 200_000,
    between: Any = None,
    waiver: durable.Waiver | None = None,
) -> Round:
    """One slice: read, prove, delete; `between` is called with the proof made and nothing locked."""
    app, done = house.app, Round()
    contract = app.contract(table)
    sealer = Sealer(app)
    with connect(app) as connection, candidates.archive_source(app) as source:
        found = gate.inspect(connection, contract)
        found.check()
        retention = read_retention(connection, app.settings.source, organization)
        rows = candidates.read_slice(source, found, organization, retention.cutoff, after=None, most=most)
        if not rows.rows.num_rows:
            return done
        backing = durable.read_backing(app.engine, organization, table, app.settings.archive.receipt_kinds, waiver)
        with proof.prove(app, connection, found, rows, organization, retention.cutoff, backing) as proven:
            done.kept.update(proven.kept)
            done.unproven = proven.unproven
            if between is not None:
                between()
            for part in proven.batches(batch_rows):
                batch = delete_batch(app, connection, contract, organization, part, sealer)
                done.batches.append(batch)
                done.kept.update(batch.kept)
    return done


def tombstones(house: Lakehouse, organization: str = "org-a") -> list[Tombstone]:
    """Those of the hot database."""
    with house.hot() as hot:
        rows = hot.execute(
            "SELECT organization_id, table_name, row_key, event_time, sequence, batch, delivered_to, snapshot_id, "
            "keyed_hash, hash_key, contract_version, policy, operator, archived_at "
            "FROM lakehouse_archive.cold_storage_archive WHERE organization_id = %s ORDER BY batch, row_key",
            [organization],
        ).fetchall()
    return [Tombstone(*row[:6], tuple(row[6]), *row[7:]) for row in rows]
