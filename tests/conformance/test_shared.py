"""Vendor-wide destinations: every organization's rows in one table, for the operator alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from federation.config import SHARED, parse_config
from federation.kinds import DestinationKind
from federation.protocol import ForeignTargetError, Owner
from federation.registry import open_adapter
from lakehouse import destinations
from lakehouse.deliver.parity import Parity, parity
from lakehouse.deliver.run import deliver_now, resync
from lakehouse.deliver.targets import way_to
from lakehouse.embedded.s3 import EmbeddedS3
from schemas.errors import LakehouseError
from tests.conformance.places import Files, Place, Replica, add_there
from tests.support import Lakehouse, host_tables, insert_events, s3_variables


@pytest.fixture
def house(hot_url: str, s3: EmbeddedS3, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a", "org-b"))
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.reopen(EGRESS__ALLOW='["127.0.0.1", "localhost"]', SECRETS__KEYS='{"v1": "hex:' + "ab" * 32 + '"}')
    lakehouse.init()
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 1, 6)
        insert_events(hot, "org-b", 1, 4)
    lakehouse.backfill("events")
    yield lakehouse
    lakehouse.close()


@pytest.fixture(params=SHARED, ids=lambda k: k.value)
def place(request: pytest.FixtureRequest, s3_server: EmbeddedS3) -> Place:
    if request.param is DestinationKind.POSTGRES_REPLICA:
        found: Place = request.getfixturevalue("replica")
        return found
    return Files(s3_server, s3_server.create_bucket(f"files-{secrets.token_hex(4)}"), request.param)


def add(house: Lakehouse, place: Place, organization: str | None, name: str = "all") -> destinations.Destination:
    return add_there(house, place.kind, place.config, place.credentials, organization=organization, name=name)


def counts(place: Place) -> dict[str, int]:
    """Rows of each organization, as a stranger would count them."""
    if isinstance(place, Replica):
        with psycopg.connect(place.admin, autocommit=True) as connection:
            table = sql.Identifier(place.schema, "events")
            query = sql.SQL("SELECT organization_id, count(*) FROM {} GROUP BY 1").format(table)
            return dict(connection.execute(query).fetchall())
    assert isinstance(place, Files)
    found: dict[str, int] = {}
    for key, body in place.stored().items():
        if key.endswith("_manifest.json"):
            manifest = json.loads(body)
            found[manifest["organization_id"]] = sum(f["rows"] for f in manifest["files"])
    return found


def compared(house: Lakehouse, destination: destinations.Destination) -> dict[str, Parity]:
    return {p.organization: p for p in parity(house.app, [destination], ["events"])}


def test_every_organization_is_in_one_table(house: Lakehouse, place: Place) -> None:
    shared = add(house, place, None)
    assert [r.error for r in deliver_now(house.app, [shared], ["events"])] == [None, None]
    assert counts(place) == {"org-a": 6, "org-b": 4}
    with house.hot() as hot:
        insert_events(hot, "org-b", 50, 2)
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-b-e2'")
    house.sync_ok("events", reconcile=True)
    assert [r.error for r in deliver_now(house.app, [shared], ["events"])] == [None, None]
    found = compared(house, shared)
    assert {o: (p.equal, p.rows, p.lag) for o, p in found.items()} == {"org-a": (True, 6, 0), "org-b": (True, 5, 0)}
    # One organization's fault is its own, and mended without the other's rows.
    if isinstance(place, Replica):
        with psycopg.connect(place.admin, autocommit=True) as connection:
            table = sql.Identifier(place.schema, "_events")
            connection.execute(sql.SQL("UPDATE {} SET severity = 'X' WHERE id = 'org-b-e3'").format(table))
        found = compared(house, shared)
        assert found["org-a"].equal and not found["org-b"].equal
        assert [(d.key["id"], d.columns) for d in found["org-b"].differences] == [("org-b-e3", ("severity",))]
    assert [r.error for r in resync(house.app, shared, ["events"])] == [None, None]
    assert all(p.equal for p in compared(house, shared).values())
    house.run("parity")
    assert {d["organization"] for d in house.run_json("destinations", "list")} == {"org-a", "org-b", None}


def test_it_is_nobodys_else(house: Lakehouse, place: Place) -> None:
    """One organization's own place is not all organizations', and the other way about; nor another installation's."""
    shared = add(house, place, None)
    deliver_now(house.app, [shared], ["events"])
    before = place.stored()
    with pytest.raises(LakehouseError, match="all organizations"):
        add(house, place, "org-a", "own")
    destinations.remove(house.app, shared)
    way = way_to(house.app, None, parse_config(place.kind, place.config), place.credentials)
    stranger = open_adapter(place.kind, place.config, place.credentials, Owner("another", "", shared=True), way)
    with pytest.raises(ForeignTargetError, match="installation tests"):
        stranger.check()
    stranger.close()
    assert place.stored() == before
    add(house, place, None)
    place.clear()
    destinations.remove(house.app, destinations.find(house.app, "all", None))
    own = add(house, place, "org-a", "own")
    assert [r.error for r in deliver_now(house.app, [own], ["events"])] == [None]
    destinations.remove(house.app, own)
    before = place.stored()
    for organization in (None, "org-b"):
        with pytest.raises(ForeignTargetError, match=r"one organization's|organization org-a"):
            add(house, place, organization)
    assert place.stored() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--vendor-wide", "--organization", "org-a", "--kind", "PARQUET_S3"),
            "either --organization or --vendor-wide",
        ),
        (("--kind", "PARQUET_S3"), "either --organization or --vendor-wide"),
        (("--vendor-wide", "--kind", "JSONL_S3", "--config", '{"location": "s3://bucket/p"}'), "is one organization's"),
        (("--vendor-wide", "--kind", "ICEBERG_S3"), "is one organization's"),
    ],
)
def test_what_cannot_be_vendor_wide(house: Lakehouse, arguments: tuple[str, ...], message: str) -> None:
    assert message in house.run("destinations", "add", "--name", "x", *arguments, check=2).stderr
