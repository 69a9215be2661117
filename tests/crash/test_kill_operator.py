"""What an operator starts by hand is killed: `source prepare`, a rotation of keys, an upload half way.

The rest of the program goes on capturing meanwhile and afterwards: nothing is lost, no version lands twice.
"""

from __future__ import annotations

import json
import secrets
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import insert, select

from lakehouse.control.models import WarehouseDestination
from lakehouse.secrets import Vault, destination_place
from tests.crash_report import note_kill_from_outside
from tests.faults.proxy import Fault, HttpProxy
from tests.support import Lakehouse, host_tables, insert_events, local_variables, s3_variables

KEYS = {"v1": "hex:" + "1" * 64, "v2": "hex:" + "2" * 64}


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def in_a_bucket(hot_url: str, s3: Any, bucket: str) -> Iterator[tuple[Lakehouse, HttpProxy]]:
    host_tables(hot_url)
    with HttpProxy(s3.endpoint) as proxy:
        variables = s3_variables(hot_url, s3, bucket) | {
            "LAKEHOUSE_LAKE__S3__ENDPOINT": proxy.endpoint,
            "LAKEHOUSE_WORK__LEASE_SECONDS": "2",
        }
        lakehouse = Lakehouse(hot_url, variables)
        lakehouse.init()
        yield lakehouse, proxy
        lakehouse.close()


def change(hot: psycopg.Connection[Any], step: int) -> None:
    insert_events(hot, "org-a", 100 * step, 3)
    hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e5'")
    hot.execute("DELETE FROM ingested_events WHERE id = %s", [f"org-a-e{step}"])


@pytest.mark.parametrize("way", ["--apply", "--remove"])
def test_killed_in_source_prepare_while_windows_go_on(house: Lakehouse, way: str) -> None:
    prepare = ("source", "prepare", "--table", "events")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        house.backfill("events")
        if way == "--remove":
            house.run(*prepare, "--apply")
        for step, number in enumerate((1, 4, 9) if way == "--apply" else (1, 4), start=1):
            done = house.run(*prepare, way, failpoints=f"prepare.statement=kill@{number}", check=None)
            assert done.returncode == -signal.SIGKILL, (number, done.stdout, done.stderr)
            change(hot, step)
            house.sync_ok("events", reconcile=True)
            house.assert_equal("events")
        house.run(*prepare, way)
        if way == "--apply":
            house.reopen(CAPTURE__METHODS=json.dumps({"events": "trigger"}))
            house.sync_ok("events")
        change(hot, 8)
        house.sync_ok("events", reconcile=None if way == "--apply" else True)
    house.assert_equal("events")


def test_killed_in_a_rotation_of_keys(house: Lakehouse) -> None:
    house.reopen(SECRETS__KEYS=json.dumps(KEYS))
    vault = Vault(house.app.settings)
    with house.app.engine.begin() as connection:
        for number in range(4):
            identity = uuid.uuid4()
            text, version = vault.seal({"n": number}, destination_place("org-a", identity))
            connection.execute(
                insert(WarehouseDestination).values(
                    id=identity,
                    organization_id="org-a",
                    kind="POSTGRES_REPLICA",
                    name=f"d{number}",
                    encrypted_credentials=text,
                    token_key_version=version,
                )
            )
    for number in (1, 2):
        done = house.run("keys", "rotate", "--to", "v2", failpoints=f"keys.row_rotated=kill@{number}", check=None)
        assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    assert house.run_json("keys", "rotate", "--to", "v2")["complete"]
    with house.app.engine.connect() as connection:
        row = select(
            WarehouseDestination.id, WarehouseDestination.encrypted_credentials, WarehouseDestination.token_key_version
        ).where(WarehouseDestination.kind == "POSTGRES_REPLICA")
        opened = [vault.open(text, v, destination_place("org-a", i)) for i, text, v in connection.execute(row)]
    assert sorted(json.loads(o)["n"] for o in opened) == [0, 1, 2, 3]


def insert_large(hot: psycopg.Connection[Any], first: int, count: int) -> None:
    """Rows that do not compress: a data file of more than one part."""
    insert_events(hot, "org-a", first, count)
    for number in range(first, first + count):
        payload = json.dumps({"n": number, "bytes": secrets.token_hex(200_000)})
        hot.execute("UPDATE ingested_events SET payload = %s WHERE id = %s", [payload, f"org-a-e{number}"])


def test_killed_after_the_first_parts_of_an_upload(in_a_bucket: tuple[Lakehouse, HttpProxy]) -> None:
    house, _ = in_a_bucket
    with house.hot() as hot:
        house.backfill("events")
        insert_large(hot, 1, 60)
        done = house.run("sync", "--once", "--table", "events", failpoints="capture.file_begun=kill", check=None)
        assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e2'")
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events")
    assert len(house.versions("events", "org-a", "id")) == 60


@pytest.mark.parametrize(
    "what", [r"\.parquet", r"/metadata/.*\.avro", r"metadata\.json"], ids=["data", "manifest", "metadata"]
)
def test_killed_while_the_storage_has_half_of_it(in_a_bucket: tuple[Lakehouse, HttpProxy], what: str) -> None:
    house, proxy = in_a_bucket
    import re

    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        house.backfill("events")
        insert_events(hot, "org-a", 100, 10)
        fault = proxy.arm(Fault("hold", lambda r: r.text.startswith("PUT ") and re.search(what, r.text) is not None))
        program = house.start("sync", "--once", "--table", "events")
        try:
            assert fault.held.wait(60), program.poll()
        finally:
            program.kill()
            program.communicate()
        note_kill_from_outside()
        proxy.cut()
        proxy.calm()
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id IN ('org-a-e2', 'org-a-e101')")
    house.sync_ok("events", reconcile=True)
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events")
