"""Lakes in an organization's own bucket, beside the default one: added, used by every command, and kept apart."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select

from lakehouse.app import App
from lakehouse.control.database import migrate
from lakehouse.control.models import Cursor, Lake
from lakehouse.demo.environment import settings_values
from lakehouse.egress.guard import EgressError, Guard
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.lakes import LakeError, add_lake, catalog_identity, check_warehouse, parse_credentials, pinned
from lakehouse.settings import ExplicitSettings
from schemas.errors import LakehouseError
from tests.support import Lakehouse, host_tables, insert_events, s3_variables

KEY = "hex:" + "5" * 64


@pytest.fixture
def house(hot_url: str, s3: EmbeddedS3, bucket: str) -> Iterator[Lakehouse]:
    """Three organizations in the host, nobody enrolled; the S3 server is the one endpoint that is allowed."""
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.reopen(SECRETS__KEYS=json.dumps({"v1": KEY}), EGRESS__ALLOW=json.dumps([urlsplit(s3.endpoint).netloc]))
    migrate(lakehouse.app.settings).dispose()
    yield lakehouse
    lakehouse.close()


def keys(s3: EmbeddedS3) -> dict[str, str]:
    return {"access_key_id": s3.access_key, "secret_access_key": s3.secret_key}


@pytest.fixture
def own(s3_server: EmbeddedS3) -> str:
    """A customer's own bucket."""
    import secrets

    return s3_server.create_bucket(f"customer-{secrets.token_hex(4)}")


def credentials_file(folder: Path, s3: EmbeddedS3) -> str:
    file = folder / "keys.json"
    file.write_text(json.dumps(keys(s3)))
    return str(file)


def objects(s3: EmbeddedS3, bucket: str) -> list[str]:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name=s3.region,
    )
    return [o["Key"] for o in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_every_command_works_over_two_lakes(
    house: Lakehouse, s3: EmbeddedS3, bucket: str, own: str, tmp_path: Path
) -> None:
    added = house.run_json(
        "lake", "add", "--organization", "org-a", "--warehouse", f"s3://{own}/lake/",
        "--endpoint", s3.endpoint, "--credentials-file", credentials_file(tmp_path, s3),
    )  # fmt: skip
    assert added["new"] and added["warehouse"] == f"s3://{own}/lake"
    assert not [o for o in objects(s3, own) if "probe" in o]
    house.run("init")
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 20)
        # Worker processes, each lake with its own keys through the parent's proxy.
        (result,) = house.run_json("backfill", "--table", "events")
        assert result["rows"] == {"org-a": 20, "org-b": 20, "org-c": 0} and not result["errors"]
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 100, 5)
            hot.execute("DELETE FROM ingested_events WHERE id = %s", [f"{organization}-e3"])
    (result,) = house.run_json("sync", "--once", "--table", "events", "--reconcile")
    assert result["upserts"] == {"org-a": 6, "org-b": 6} or result["upserts"] == {"org-a": 5, "org-b": 5}, result
    verified = house.run_json("verify", "--table", "events")
    assert verified["equal"] and {t["organization"]: t["lake_rows"] for t in verified["tables"]} == {
        "org-a": 24,
        "org-b": 24,
        "org-c": 0,
    }
    counted = house.run_json(
        "query", "SELECT (SELECT count(*) FROM org_org_2da.events) a, (SELECT count(*) FROM org_org_2db.events) b"
    )
    assert counted == [{"a": 24, "b": 24}]
    recalled = house.run_json(
        "recall", "-o", "org-a", "--table", "events", "--where", "true", "--reason", "r", "--to", "csv",
        "--output", f"s3://{bucket}/recalled/a.csv",
    )  # fmt: skip
    assert recalled["rows"] == 24
    assert [o for o in objects(s3, bucket) if o.startswith("recalled/")] == [
        "recalled/a.csv", "recalled/a.csv.manifest.json",
    ], "read from the customer's bucket with its keys, written to the operator's with its own"  # fmt: skip
    assert [o for o in objects(s3, own) if o.startswith("lake/org_org_2da/events/data/")]
    assert not [o for o in objects(s3, own) if "org_org_2db" in o]
    assert not [o for o in objects(s3, bucket) if "org_org_2da" in o]
    assert house.app.proxy.counts["passed"] == 0
    house.assert_equal("events")
    assert house.app.proxy.counts["passed"] > 0 and house.app.proxy.counts["refused"] == 0
    listed = {row["organization"]: row for row in house.run_json("lake", "list")}
    assert (
        listed["org-a"]["own"] and listed["org-a"]["credentials"] == "stored" and listed["org-a"]["key_version"] == "v1"
    )
    assert not listed["org-b"]["own"] and listed["org-b"]["warehouse"] == f"s3://{bucket}/warehouse"
    assert s3.secret_key not in house.run("lake", "list").stdout + json.dumps(list(listed.values()))


def test_a_wrong_key_is_one_organizations_own_fault(house: Lakehouse, s3: EmbeddedS3, own: str) -> None:
    add_lake(house.app, "org-a", f"s3://{own}/lake", endpoint=s3.endpoint, credentials=keys(s3))
    house.init()
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
        house.backfill("events")
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 10, 3)
    house.reopen(SECRETS__KEYS=json.dumps({"v1": "hex:" + "6" * 64}))
    for reconcile in (False, True):
        result = house.sync("events", reconcile=reconcile)
        assert list(result.errors) == ["org-a"] and "under key v1: does not open" in result.errors["org-a"].detail
    house.reopen(SECRETS__KEYS=json.dumps({"v1": KEY}))
    house.sync_ok("events")
    house.assert_equal("events")


def test_keys_can_be_stored_again_and_rotated(house: Lakehouse, s3: EmbeddedS3, own: str) -> None:
    def row() -> Any:
        with house.app.engine.connect() as connection:
            return connection.execute(select(Lake.__table__).where(Lake.organization_id == "org-a")).one()

    where = f"s3://{own}/lake"
    add_lake(house.app, "org-a", where, endpoint=s3.endpoint, credentials=keys(s3))
    first = row()
    assert s3.secret_key not in str(first) and first.token_key_version == "v1"
    house.init()
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
    assert not house.backfill("events").errors
    again = add_lake(house.app, "org-a", where, endpoint=s3.endpoint, credentials=keys(s3))
    second = row()
    assert not again["new"] and second.id == first.id and second.encrypted_credentials != first.encrypted_credentials
    house.reopen(SECRETS__KEYS=json.dumps({"v1": KEY, "v2": "hex:" + "7" * 64}), SECRETS__KEY_VERSION="v2")
    assert house.run_json("keys", "rotate")["rotated"]["lakes"] == 1
    house.assert_equal("events", "org-a")


def refused(house: Lakehouse, says: str, *arguments: Any, **more: Any) -> None:
    """It is refused for this reason, and nothing is written."""
    with house.app.engine.connect() as connection:
        before = connection.execute(select(Lake.__table__).order_by(Lake.id)).all()
    with pytest.raises(LakehouseError, match=says):
        add_lake(house.app, *arguments, **more)
    with house.app.engine.connect() as connection:
        assert connection.execute(select(Lake.__table__).order_by(Lake.id)).all() == before


def test_what_is_refused(house: Lakehouse, s3: EmbeddedS3, bucket: str, own: str) -> None:
    good = {"endpoint": s3.endpoint, "credentials": keys(s3)}
    refused(house, "no organization nobody", "nobody", f"s3://{own}/x", **good)
    refused(house, "lie in one another", "org-a", f"s3://{bucket}/warehouse/inside", **good)
    refused(house, "lie in one another", "org-a", f"s3://{bucket}", **good)
    refused(house, "needs keys of its own", "org-a", f"s3://{own}/x", endpoint=s3.endpoint)
    for endpoint in ("https://localhost", "https://169.254.169.254", "https://2130706433", "http://[::1]:9000"):
        refused(house, "must be public|no host name", "org-a", f"s3://{own}/x", endpoint=endpoint, credentials=keys(s3))
    wrong = {"access_key_id": s3.access_key, "secret_access_key": "canary-wrong-key"}
    refused(house, "SIGNATURE|ACCESS_DENIED|403", "org-a", f"s3://{own}/x", endpoint=s3.endpoint, credentials=wrong)
    refused(house, "must look like", "org-a", f"file:///tmp/{own}", **good)
    house.reopen(SECRETS__KEYS="{}")
    if "APERIO_ENCRYPTION_KEY" not in __import__("os").environ:
        refused(house, "no encryption key v1", "org-a", f"s3://{own}/x", **good)


def test_an_organization_that_has_landed_is_not_moved(house: Lakehouse, s3: EmbeddedS3, own: str) -> None:
    good = {"endpoint": s3.endpoint, "credentials": keys(s3)}
    house.init()
    # Enrolled, nothing landed: it may move, and a program that still has the old address in mind writes nothing.
    stale = App(ExplicitSettings(**settings_values(house.variables)))
    stale.addresses_of(["org-b"])
    add_lake(house.app, "org-b", f"s3://{own}/b", **good)
    try:
        with pytest.raises(LakehouseError, match="lies at s3"):
            stale.lake("org-b").check()
        assert "org-b" in stale.enrolled() and stale.lake("org-b").address.warehouse == f"s3://{own}/b"
        stale.lake("org-b").check()
    finally:
        stale.close()
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-b", 1, 3)
    assert not house.backfill("events").errors
    house.assert_equal("events")
    refused(house, "is not moved|has tables at", "org-a", f"s3://{own}/a", **good)
    refused(house, "has tables at", "org-b", f"s3://{own}/elsewhere", **good)
    refused(house, "lie in one another", "org-c", f"s3://{own}/b/inside", **good)
    house.assert_equal("events")


def test_a_table_that_nobody_recorded_is_not_left_behind(house: Lakehouse, s3: EmbeddedS3, own: str) -> None:
    house.init("org-a")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
    house.backfill("events")
    with house.app.engine.begin() as connection:
        connection.execute(Cursor.__table__.delete())  # type: ignore[attr-defined]
    refused(house, "has tables at", "org-a", f"s3://{own}/a", endpoint=s3.endpoint, credentials=keys(s3))


def test_another_catalog_is_refused_and_the_same_under_another_name_is_not(house: Lakehouse, tmp_path: Path) -> None:
    house.init("org-a")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
    house.backfill("events")
    own = house.app.catalog_identity
    assert urlsplit(house.hot_url).password not in own and "schema lakehouse" in own
    house.reopen(LAKE__CATALOG__URI=f"sqlite:///{tmp_path}/other.db")
    done = house.run("init", check=2)
    assert "which does not have them" in done.stderr and own in " ".join(done.stderr.split())
    assert "has its tables in" in str(house.sync("events").errors[""])
    # The same database by another name of its host.
    schema = "options=-csearch_path%3Dlakehouse"
    house.reopen(LAKE__CATALOG__URI=house.hot_url.replace("127.0.0.1", "localhost") + f"?{schema}")
    assert "run `lakehouse init`" in house.sync("events").errors[""].hint
    house.run("init")
    house.sync_ok("events")
    house.assert_equal("events", "org-a")


def test_own_lakes_cost_one_question_not_one_each(house: Lakehouse, s3: EmbeddedS3, own: str) -> None:
    from sqlalchemy import event

    house.init()
    statements: list[str] = []
    event.listen(house.app.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    house.app.enrolled()
    began = time.monotonic()
    for _ in range(1000):
        house.app.address_of("org-a")
    assert len(statements) == 1 and time.monotonic() - began < 5


@pytest.mark.parametrize(
    "warehouse",
    [
        "s3://",
        "s3://B",
        "s3://bucket/../x",
        "s3://bucket//x",
        "s3://bucket/a*",
        "s3://k:canary@bucket/x",
        "https://x/y",
        "s3://bucket/x?y=z",
        "file:///",
        "file:///a/../b",
    ],
)
def test_warehouses_that_are_refused(warehouse: str) -> None:
    with pytest.raises(LakeError, match="must look like") as caught:
        check_warehouse(warehouse, local=True)
    assert "canary" not in str(caught.value)
    assert check_warehouse("s3://bucket/a/b/", local=False) == "s3://bucket/a/b"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "canary", '{"canary": 1}', '{"access_key_id": "canary-x"}', '{"access_key_id": "", "x": "canary-y"}'],
)
def test_credentials_that_are_refused(text: str) -> None:
    with pytest.raises(LakeError, match="the credentials file") as caught:
        parse_credentials(text)
    assert "canary-" not in str(caught.value)


def test_a_catalog_of_a_tenants_is_pinned() -> None:
    def resolver(host: str, port: int) -> list[str]:
        return {"db.test": ["8.8.8.8"], "home.test": ["10.0.0.1"]}[host]

    guard = Guard(resolver=resolver)
    uri = pinned("postgresql://u:p%40@db.test/cat?sslmode=require", guard)
    assert uri == "postgresql+psycopg://u:p%40@db.test/cat?sslmode=require&hostaddr=8.8.8.8"
    assert catalog_identity("sql", "n", uri) == "sql n at postgresql://db.test:5432/cat"
    for bad in ("postgresql://u@home.test/c", "postgresql://u@db.test/c?host=10.0.0.1", "postgresql://u@db.test/c?hostaddr=10.0.0.1",
                "postgresql:///c", "sqlite:////etc/x", "postgresql://u@db.test,home.test/c"):  # fmt: skip
        with pytest.raises(EgressError):
            pinned(bad, guard)
