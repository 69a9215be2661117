"""A lake with events of one organization, and a destination of the kind under test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from federation.kinds import DestinationKind
from lakehouse import destinations
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from tests.conformance.lake.place import LakeStage, OwnLake
from tests.conformance.places import Files, Place, Replica, add_there
from tests.conformance.stage import Stage
from tests.support import Lakehouse, host_tables, insert_events, s3_variables


@pytest.fixture
def house(hot_url: str, s3: EmbeddedS3, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.reopen(EGRESS__ALLOW='["127.0.0.1", "localhost"]', SECRETS__KEYS='{"v1": "hex:' + "ab" * 32 + '"}')
    lakehouse.init()
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 1, 6)
        insert_events(hot, "org-a", 50, 2, day="2026-03-02")
        insert_events(hot, "org-a", 60, 2, day="2026-03-03")
    lakehouse.backfill("events")
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def replica(postgres_server: EmbeddedPostgres) -> Iterator[Replica]:
    tag = secrets.token_hex(4)
    name, user = f"replica_{tag}", f"replicator_{tag}"
    admin = postgres_server.create_database(name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pass'").format(sql.Identifier(user)))
        connection.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(name), sql.Identifier(user))
        )
    parts = urlsplit(admin)
    yield Replica(urlunsplit(parts._replace(netloc=f"{user}:pass@{parts.hostname}:{parts.port}")), admin)
    postgres_server.drop_database(name)
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))


@pytest.fixture
def stage(kind: DestinationKind, house: Lakehouse, tmp_path: Path, request: pytest.FixtureRequest) -> Stage:
    place: Place
    if kind is DestinationKind.ICEBERG_S3:
        return LakeStage(house, OwnLake(house), destinations.find(house.app, "lake", "org-a"), tmp_path)
    if kind is DestinationKind.POSTGRES_REPLICA:
        place = request.getfixturevalue("replica")
    else:
        server = request.getfixturevalue("s3_server")
        place = Files(server, server.create_bucket(f"files-{secrets.token_hex(4)}"), kind)
    made = add_there(house, kind, place.config, place.credentials)
    return Stage(house, place, made, tmp_path)


@pytest.fixture
def there(stage: Stage) -> Iterator[psycopg.Connection[Any]]:
    """A stranger in the replica's schema, who may do everything there."""
    assert isinstance(stage.place, Replica)
    with psycopg.connect(stage.place.admin, autocommit=True) as connection:
        connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(stage.place.schema)))
        yield connection
