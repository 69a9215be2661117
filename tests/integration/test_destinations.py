"""Destinations and deliveries as an operator handles them, through the program; and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def test_what_is_added_edited_paused_and_removed_is_what_is_listed(house: Lakehouse) -> None:
    lake = ("lake", "--organization", "org-a")
    house.run("destinations", "remove", *lake)
    assert [d["organization"] for d in house.run_json("destinations", "list")] == ["org-b", "org-c"]
    (added,) = house.run_json(
        *("destinations", "add", "--organization", "org-a-slug", "--kind", "iceberg_s3", "--name", "again"),
        *("--table", "events", "--table", "findings", "--cadence", "5m", "--table-cadence", "events=10s"),
    )
    assert (added["organization"], added["tables"], added["cadence_seconds"], added["table_cadences"]) == (
        "org-a",
        ["events", "findings"],
        300,
        {"events": 10},
    )
    (edited,) = house.run_json(
        *("destinations", "edit", "again", "--organization", "org-a", "--name", "lake", "--table", "*"),
        *("--table-cadence", "events=default"),
    )
    assert (edited["name"], edited["tables"], edited["table_cadences"]) == ("lake", ["*"], {})
    assert "is reached and is ours" in house.run("destinations", "test", *lake).stdout
    house.run("destinations", "pause", *lake)
    assert house.run_json("destinations", "list", "--organization", "org-a")[0]["status"] == "paused"


def test_a_paused_lake_is_not_captured_and_goes_on_where_it_stands(house: Lakehouse) -> None:
    with house.hot() as hot:
        house.backfill("events")
        house.run("destinations", "pause", "lake", "--organization", "org-a")
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-b", 1, 3)
        assert house.sync_ok("events").upserts == {"org-b": 3}
        status = house.run_json("status", check=None)["tables"]
        assert {t["state"] for t in status if t["organization"] == "org-a"} == {"paused"}
        house.run("destinations", "resume", "lake", "--organization", "org-a")
        assert house.sync_ok("events").upserts == {"org-a": 3}
    house.assert_equal("events")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "ICEBERG_S3", "--name", "two"), "another ICEBERG_S3 destination writes to"),
        (("--kind", "ICEBERG_S3", "--name", "lake", "--config", '{"bucket": "x"}'), "bucket: Extra inputs"),
        (("--kind", "ICEBERG_S3", "--name", "x", "--config", "[]"), "--config must be a JSON object"),
        (("--kind", "ICEBERG_S3", "--name", "x", "--config", "{"), "--config is not JSON"),
        (("--kind", "ICEBERG_S3", "--name", "x", "--table", "nope"), "no contract for a table 'nope'"),
        (("--kind", "ICEBERG_S3", "--name", "x", "--cadence", "0s"), "--cadence 0s: not a length of time above zero"),
        (("--kind", "ICEBERG_S3", "--name", "x", "--table-cadence", "events=0s"), "not a length of time above zero"),
        (("--kind", "ICEBERG_S3", "--name", "x", "--table-cadence", "events"), "not TABLE=TIME"),
        (("--kind", "ORACLE", "--name", "x"), "no kind of destination is named 'ORACLE'"),
        (("--kind", "SNOWFLAKE", "--name", "x"), "does not deliver to SNOWFLAKE yet"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_half_done(
    house: Lakehouse, arguments: tuple[str, ...], message: str
) -> None:
    before = house.run_json("destinations", "list")
    done = house.run("destinations", "add", "--organization", "org-a", *arguments, check=2)
    assert message in done.stderr and "Traceback" not in done.stderr
    assert house.run_json("destinations", "list") == before


def test_a_share_that_a_person_must_look_at_is_shown_and_tried_again(house: Lakehouse) -> None:
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        with house.app.engine.begin() as control:
            # Another installation's mark: a permanent error, so it is given up at once.
            table = house.lake_table("events", "org-a")
            with table.transaction() as transaction:
                transaction.set_properties({"lakehouse.installation": "another"})
            del control
        house.reopen()
        assert "org-a" in house.sync("events").errors
        status = {t["organization"]: t for t in house.run_json("status", check=1)["tables"] if t["table"] == "events"}
        assert status["org-a"]["state"] == "needs a person" and "another" in status["org-a"]["error"]
        assert status["org-b"]["state"] == "current"
        with house.lake_table("events", "org-a").transaction() as transaction:
            transaction.set_properties({"lakehouse.installation": "tests"})
        done = house.run_json("deliveries", "retry", "--all")
        assert done["captures"] == [{"organization": "org-a", "table": "events"}] or len(done["deliveries"]) == 1
        house.reopen()
        house.sync_ok("events")
    house.assert_equal("events")
    rows = house.run_json("deliveries", "list", "--all", "--organization", "org-a")
    assert {r["status"] for r in rows} == {"DELIVERED"}
    shown = house.run_json("deliveries", "show", rows[0]["id"])
    assert shown["landing"]["status"] == "landed" and shown["window"]["table_name"] == "events"


def test_a_destination_with_work_under_way_is_not_removed(house: Lakehouse) -> None:
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        house.run("sync", "--once", "--table", "events", failpoints="landing.recorded=kill", check=None)
    done = house.run("destinations", "remove", "lake", "--organization", "org-a", check=2)
    assert "under way or wait" in done.stderr
    house.sync_ok("events")
    house.run("destinations", "remove", "lake", "--organization", "org-a")
    with house.app.engine.connect() as connection:
        kept = connection.scalar(
            text("SELECT count(*) FROM warehouse_deliveries WHERE organization_id = 'org-a' AND status = 'DELIVERED'")
        )
    assert kept == 1, "what was delivered stays on record"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("retry",), "say which"),
        (("retry", "not-an-id"), "is not an id"),
        (("retry", "00000000-0000-0000-0000-000000000000"), "neither failed nor were given up"),
        (("show", "00000000-0000-0000-0000-000000000000"), "no delivery"),
        (("list", "--status", "odd"), "no status has this name"),
        (("list", "--organization", "nobody"), "no organization 'nobody'"),
    ],
)
def test_deliveries_that_are_not_there(house: Lakehouse, arguments: tuple[str, ...], message: str) -> None:
    done = house.run("deliveries", *arguments, check=2)
    assert message in done.stderr and "Traceback" not in done.stderr
