"""What a replica is refused for, and what is said then: before anything is sent."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from federation.kinds import DestinationKind
from federation.protocol import DestinationError, ForeignTargetError
from lakehouse import destinations
from lakehouse.deliver.run import deliver_now
from schemas.contract import BUILT_IN
from schemas.errors import LakehouseError, Retry
from tests.conformance.places import Replica
from tests.conformance.stage import Stage, add_another
from tests.support import insert_events


@pytest.fixture
def kind() -> DestinationKind:
    return DestinationKind.POSTGRES_REPLICA


def test_a_strangers_table_is_not_touched(stage: Stage, there: psycopg.Connection[Any]) -> None:
    assert isinstance(stage.place, Replica)
    there.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(stage.place.schema)))
    user = stage.place.url.split("//")[1].split(":")[0]
    there.execute(
        sql.SQL("GRANT ALL ON SCHEMA {} TO {}").format(sql.Identifier(stage.place.schema), sql.Identifier(user))
    )
    there.execute("CREATE TABLE events (theirs text)")
    (error,) = stage.deliver()
    assert "bears no mark" in error.detail
    assert there.execute("SELECT count(*) FROM events").fetchone() == (0,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "schema: Field required"),
        ({"schema": "x", "shema": "y"}, "shema: Extra inputs"),
        ({"schema": "é" * 32}, "63 bytes"),
        ({"schema": ""}, "63 bytes"),
        ({"schema": "pg_catalog"}, "PostgreSQL's own"),
        ({"location": "s3://b/p"}, "schema: Field required"),
    ],
)
def test_a_config_that_is_refused(stage: Stage, config: dict[str, Any], message: str) -> None:
    with pytest.raises(LakehouseError, match=message):
        add_another(stage, config=config)


def contracts(stage: Stage, *names: str) -> None:
    """Tables of these names, each as events is."""
    for name in names:
        (stage.folder / name).mkdir()
        contract = json.loads((BUILT_IN / "events" / "v1.json").read_text()) | {"table": name}
        (stage.folder / name / "v1.json").write_text(json.dumps(contract))
    stage.house.reopen(CONTRACTS=json.dumps(["builtin", str(stage.folder)]))


def test_two_tables_that_need_one_name_are_refused_at_once(stage: Stage) -> None:
    house = stage.house
    always = ("events_filling", "events_key", "events_pkey", "events_sequence")
    contracts(stage, *always, "events_history", "lakehouse", "lakehouse_filling", "lakehouse_all_pkey")
    pairs = {name: f"_{name} would be what both" for name in always}
    for table, message in (pairs | {"events_history": "events_history would be what both"}).items():
        config = {"schema": "another", "history": table == "events_history"}
        for tables in ([table, "events"], ["events", table]):
            with pytest.raises(DestinationError, match=message) as caught:
                add_another(stage, tables=tables, config=config)
            assert caught.value.retry is Retry.NEVER
        destinations.remove(house.app, add_another(stage, tables=[table], config=config))
    for table in ("lakehouse", "lakehouse_filling", "lakehouse_all_pkey"):
        with pytest.raises(DestinationError, match=f"both {table} and our marks"):
            add_another(stage, tables=[table])
    made = add_another(stage, tables=["events", "events_history"])
    with pytest.raises(DestinationError, match="_events_key would be what both"):
        destinations.edit(house.app, made, tables=["events", "events_key"])
    # One that was taken out left its things there; what they are called is not said to be a stranger's.
    stage.delivered()
    adapter = stage.adapter()
    with pytest.raises(DestinationError, match="both events_filling and events") as caught:
        adapter.prepare(house.app.contract("events_filling"))
    adapter.close()
    assert not isinstance(caught.value, ForeignTargetError) and caught.value.retry is Retry.NEVER


def test_a_name_that_a_replica_would_cut_is_refused_at_once(stage: Stage) -> None:
    long = "t" * 63
    contracts(stage, long)
    for tables in ([], ["*"], [long]):
        with pytest.raises(LakehouseError, match="more than 63 bytes"):
            add_another(stage, tables=tables)
    made = add_another(stage, tables=["events"])
    for tables in (["*"], ["events", long], ["events", "*"]):
        with pytest.raises(LakehouseError, match="more than 63 bytes"):
            destinations.edit(stage.house.app, made, tables=tables)
    assert destinations.edit(stage.house.app, made, tables=["findings"]).tables == ["findings"]


def test_a_user_that_cannot_load_is_refused_at_once(stage: Stage, there: psycopg.Connection[Any]) -> None:
    name = sql.Identifier(urlsplit(stage.place.credentials["url"]).path.strip("/"))
    there.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(name))
    with pytest.raises(DestinationError, match="no temporary tables") as caught:
        add_another(stage)
    assert caught.value.retry is Retry.MANUAL


def test_one_replica_by_two_spellings_is_one_destinations(stage: Stage) -> None:
    house, place = stage.house, stage.place
    url = place.credentials["url"]
    other = {"url": url.replace("127.0.0.1", "localhost")}
    assert other["url"] != url
    # Both are added before anything bears a mark.
    second = add_another(stage, config=place.config, credentials=other, tables=["events"])
    stage.delivered()
    before = place.stored()
    (result,) = deliver_now(house.app, [second], ["events"])
    assert isinstance(result.error, ForeignTargetError) and str(stage.destination.id) in result.error.detail
    with pytest.raises(ForeignTargetError, match="however its host is spelled"):
        destinations.reach(house.app, second)
    destinations.remove(house.app, second)
    with pytest.raises(ForeignTargetError):
        add_another(stage, config=place.config, credentials=other)
    assert place.stored() == before
    destinations.remove(house.app, stage.destination)
    stage.destination = add_another(stage, config=place.config, credentials=other, tables=["events"])
    stage.delivered()
    stage.equal()


BAD_URLS = (
    "postgresql://u:Canary/x@127.0.0.1:5432/db",
    "postgresql://u:Canary#x@127.0.0.1:5432/db",
    "postgresql://u:12?Canary@127.0.0.1:5432/db",
    "postgresql://u:Canary@x@127.0.0.1:5432/db",
    "postgresql://u:Can%zzary@127.0.0.1:5432/db",
    "postgresql://u:Canary@127.0.0.1:abc/db",
    "postgresql://u:Canary@127.0.0.1:99999/db",
    "postgresql://u:Canary@[::1/db",
    "postgresql://u:Canary@127.0.0.1,10.0.0.1/db",
    "postgresql://u:Canary@127.0.0.1/db%00",
    "postgresql://u:Canary@127.0.0.1/db?hostaddr=10.0.0.1",
    "postgresql://u:Canary@127.0.0.1/db?passfile=/etc/passwd",
    "host=127.0.0.1 password=Canary",
)


def test_targets_that_are_refused(stage: Stage) -> None:
    for changes, message in (
        ({"config": stage.place.config}, "writes to .* already"),
        ({"credentials": {"url": stage.house.hot_url}}, "the hot database itself"),
        ({"credentials": {}}, "lack url"),
        ({"credentials": {"url": "x", "password": "Canary"}}, "unknown keys: password"),
        ({"credentials": {"postgresql://u:Canary@h/x": "x"}}, "unknown keys: one that is no name"),
        ({"config": {"schema": "another", "history": "yes"}}, "history: Input should be a valid boolean"),
        ({"credentials": {"url": "postgresql://u:Canary@10.0.0.1/x"}}, "must be public"),
        ({"name": "x" * 161}, "1 to 160 printable"),
        ({"name": "x\0y"}, "1 to 160 printable"),
        *(({"credentials": {"url": url}}, "the url of a POSTGRES_REPLICA destination") for url in BAD_URLS),
    ):
        with pytest.raises(LakehouseError, match=message) as caught:
            add_another(stage, **changes)
        assert "Canary" not in str(caught.value)
    for location, message in (
        (stage.house.app.address.warehouse + "/org_x", "lie in one another"),
        ("s3://b/../x", "must look like"),
        ("s3://b", "must look like"),
        ("https://b/x", "must look like"),
    ):
        with pytest.raises(LakehouseError, match=message):
            add_another(stage, kind="PARQUET_S3", config={"location": location}, credentials={})
    for config, message in (
        ({"region": "eu; '--"}, "region: .* looks like eu-central-1"),
        ({"endpoint": ""}, "endpoint: .* looks like https"),
        ({"max_dates": True}, "max_dates: Input should be a valid integer"),
    ):
        with pytest.raises(LakehouseError, match=message):
            add_another(stage, kind="JSONL_S3", config={"location": "s3://b/x", **config}, credentials={})
    assert [d.name for d in destinations.destinations(stage.house.app)] == ["lake", "there"]


def test_one_that_can_only_be_read_is_refused(stage: Stage, there: psycopg.Connection[Any]) -> None:
    user = urlsplit(stage.place.credentials["url"]).username
    there.execute(sql.SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(sql.Identifier(user or "")))
    with pytest.raises(LakehouseError, match="only reading is possible there"):
        destinations.reach(stage.house.app, stage.destination)


def test_a_table_that_it_has_not_is_named(stage: Stage) -> None:
    house = stage.house
    for arguments, said in (
        (("destinations", "resync", "there", "--table", "findings"), "there has no table findings"),
        (("destinations", "resync", "there", "--table", "nosuch"), "nosuch"),
        (("parity", "--table", "findings"), "no destination with this table"),
    ):
        done = house.run(*arguments, check=2)
        assert said in done.stderr, done.stderr


def test_other_credentials_are_tried_before_they_are_stored(stage: Stage) -> None:
    stage.delivered()
    with pytest.raises(DestinationError, match="refused"):
        destinations.edit(stage.house.app, stage.destination, credentials=stage.place.wrong)
    stage.delivered()
    with psycopg.connect(stage.place.admin, autocommit=True) as connection:  # type: ignore[attr-defined]
        user = sql.Identifier(urlsplit(stage.place.credentials["url"]).username or "")
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 'another'").format(user))
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    (error,) = stage.deliver()
    assert error.retry is Retry.MANUAL
    given = stage.folder / "keys.json"
    given.write_text(json.dumps({"url": stage.place.credentials["url"].replace(":pass@", ":another@")}))
    stage.house.run("destinations", "edit", "there", "--credentials-file", str(given))
    stage.delivered()
    stage.equal()
