"""The quarantine over time: versions, moves, deletes, crashes, a lost control database; by xmin and by triggers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lakehouse.control import store
from lakehouse.landing import quarantine
from lakehouse.landing.cursor import Quarantine, read_cursor
from lakehouse.status import read_status
from schemas.errors import ContractViolation, LakehouseError
from tests.integration.test_bad_input_values import check_content, entries
from tests.support import Lakehouse, host_tables, insert_events, local_variables

ROW = "UPDATE ingested_events SET {} WHERE id = 'org-a-e2'"
BAD = ROW.format("processed_at = 'infinity'")
MOVED = ROW.format("processed_at = 'infinity', occurred_at = '2026-03-01'")
DELETED = "DELETE FROM ingested_events WHERE id = 'org-a-e2'"


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@pytest.fixture(params=["xmin", "trigger"])
def begun(request: pytest.FixtureRequest, house: Lakehouse) -> Lakehouse:
    """Three events of two organizations are in the lake, by either method."""
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
    if request.param == "trigger":
        house.run("source", "prepare", "--apply", "--table", "events")
        house.reopen(CAPTURE__METHOD="trigger")
    assert not house.backfill("events").errors
    house.sync_ok("events", reconcile=True)
    return house


def log_of(house: Lakehouse, organization: str = "org-a") -> Quarantine:
    cursor = read_cursor(house.lake_table("events", organization))
    assert cursor is not None and cursor.quarantine is not None
    return cursor.quarantine


def versions(house: Lakehouse) -> list[tuple[str, str]]:
    """What the lake holds of the row: operation and day."""
    found = house.versions("events", "org-a")
    return [(v["_op"], f"{v['occurred_at']:%m-%d}") for v in found if v["id"] == "org-a-e2"]


def latest(house: Lakehouse) -> list[str]:
    rows = house.run_json("query", "SELECT occurred_at FROM events WHERE id = 'org-a-e2'", "-o", "org-a")
    return [row["occurred_at"][5:10] for row in rows]


def events_of(house: Lakehouse) -> list[str]:
    return [e.event for e in entries(house, "events", "org-a", every=True)]


@pytest.mark.parametrize("change", [BAD, MOVED], ids=["bad", "moved"])
def test_the_lake_keeps_the_last_good_version(begun: Lakehouse, change: str) -> None:
    house = begun
    with house.hot() as hot:
        hot.execute(change)
        for reconcile in (False, True, True):
            # A window with nothing but such a row lands too: what is known of it is in the lake.
            result = house.sync_ok("events", reconcile=reconcile)
            assert not any(result.upserts.values()) and not any(result.deletes.values())
            assert versions(house) == [("upsert", "01-01")]
        assert latest(house) == ["01-01"]
        assert [c.quarantined for c in house.compare("events")] == [1, 0, 0]
        house.assert_equal("events")
        (entry,) = entries(house, "events", "org-a")
        check_content(house, hot, "events", entry)
        # Another version of it, as bad: both are kept, and one row is quarantined.
        hot.execute(ROW.format("source = 'other'"))
        (compared, *_) = house.compare("events")
        assert not compared.equal and not compared.quarantined, "the log holds another content"
        assert any(d.pending for d in compared.differences)
        house.sync_ok("events", reconcile=False)
        assert (log_of(house).open, events_of(house)) == (1, ["quarantined"] * 2)
        house.assert_equal("events")
        (entry,) = entries(house, "events", "org-a")
        check_content(house, hot, "events", entry)
        # Mended with another event time: the version of the old one goes, when keys are compared or a window later.
        hot.execute(ROW.format("processed_at = NULL, occurred_at = '2026-03-02'"))
        house.sync_ok("events", reconcile=False)
        assert events_of(house) == ["quarantined", "quarantined", "mended"]
        assert house.run_json("sync", "--once", "--table", "events")
        house.sync_ok("events", reconcile=True)
    # The trigger also says that the row left a place where the lake never held it; that deletes nothing.
    held = [version for version in versions(house) if version != ("delete", "03-01")]
    assert sorted(held) == [("delete", "01-01"), ("upsert", "01-01"), ("upsert", "03-02")]
    assert latest(house) == ["03-02"]
    house.assert_equal("events")


def test_by_triggers_a_mended_row_is_compared_in_the_next_round(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.run("source", "prepare", "--apply", "--table", "events")
        house.reopen(CAPTURE__METHOD="trigger")
        assert not house.backfill("events").errors
        house.sync_ok("events")
        hot.execute(MOVED)
        assert not house.sync_ok("events").reconciled
        hot.execute(ROW.format("processed_at = NULL"))
        result = house.sync_ok("events")
        assert not result.reconciled and result.upserts == {"org-a": 1}
    (result,) = house.run_json("sync", "--once", "--table", "events")
    assert result["reconciled"] and result["deletes"] == {"org-a": 1}, "a quiet round would have left it"
    house.assert_equal("events")
    (result,) = house.run_json("sync", "--once", "--table", "events")
    assert not result["reconciled"], "once"


@pytest.mark.parametrize("change", [BAD, MOVED, ROW.format("occurred_at = 'infinity'")], ids=["bad", "moved", "event"])
def test_a_quarantined_row_that_is_deleted_is_gone(begun: Lakehouse, change: str) -> None:
    house = begun
    with house.hot() as hot:
        hot.execute(change)
        house.sync_ok("events", reconcile=False)
        assert (log_of(house).open, versions(house)) == (1, [("upsert", "01-01")])
        house.sync_ok("events", reconcile=True)
        hot.execute(DELETED)
    # By a program: it must not take this for a quiet round.
    house.run("sync", "--once", "--table", "events", "--reconcile")
    house.sync_ok("events", reconcile=True)
    assert events_of(house) == ["quarantined", "gone"]
    assert versions(house)[-1][0] == "delete" and latest(house) == []
    assert len([v for v in versions(house) if v == ("delete", "01-01")]) == 1
    house.assert_equal("events")


def test_a_row_that_was_never_good_is_not_deleted_from_the_lake(begun: Lakehouse) -> None:
    house = begun
    with house.hot() as hot:
        insert_events(hot, "org-a", 9, 1)
        hot.execute("UPDATE ingested_events SET processed_at = '-infinity' WHERE id = 'org-a-e9'")
        house.sync_ok("events", reconcile=True)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e9'")
        house.sync_ok("events", reconcile=True)
    assert events_of(house) == ["quarantined", "gone"]
    upserts = [v for v in house.versions("events", "org-a") if v["id"] == "org-a-e9" and v["_op"] == "upsert"]
    assert upserts == []
    house.assert_equal("events")


def test_read_again_in_full_it_is_not_written_again(begun: Lakehouse) -> None:
    house = begun
    with house.hot() as hot:
        hot.execute(BAD)
        house.sync_ok("events")
        hot.execute("ALTER TABLE ingested_events ALTER source SET DEFAULT 'x'")
        result = house.sync_ok("events")
        assert result.notes and not any(result.upserts.values())
    assert events_of(house) == ["quarantined"]
    house.assert_equal("events")


def test_too_many_stop_their_organization(house: Lakehouse) -> None:
    house.reopen(CAPTURE__MAX_QUARANTINED="2")
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 5)
        hot.execute("UPDATE ingested_events SET processed_at = 'infinity' WHERE id IN ('org-b-e1', 'org-b-e2')")
        result = house.backfill("events")
        assert (result.rows, result.quarantined) == ({"org-a": 5, "org-b": 3, "org-c": 0}, {"org-b": 2})
        hot.execute("UPDATE ingested_events SET processed_at = 'infinity' WHERE id IN ('org-a-e3', 'org-b-e3')")
        result = house.sync("events")
        # Two of before and one more.
        assert set(result.errors) == {"org-b"} and isinstance(result.errors["org-b"], ContractViolation)
        assert "row id='org-b-e3': processed_at: is infinite" in result.errors["org-b"].detail
        assert "more than 2 rows hold what the lake cannot" in result.errors["org-b"].detail
        assert (log_of(house, "org-a").open, log_of(house, "org-b").open) == (1, 2)
        house.assert_equal("events", "org-a")
        assert not house.compare("events", "org-b")[0].equal
        # Three at once.
        hot.execute("UPDATE ingested_events SET processed_at = 'infinity' WHERE organization_id = 'org-a'")
        assert set(house.sync("events").errors) == {"org-a", "org-b"}
        hot.execute("UPDATE ingested_events SET processed_at = NULL")
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events")


def test_too_many_in_a_backfill(house: Lakehouse) -> None:
    house.reopen(CAPTURE__MAX_QUARANTINED="2", BACKFILL__RANGE_ROWS="2")
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 6)
        hot.execute("ANALYZE ingested_events")
        hot.execute("UPDATE ingested_events SET processed_at = 'infinity' WHERE organization_id = 'org-b'")
        result = house.backfill("events")
        assert result.read_ranges > 1
        assert set(result.errors) == {"org-b"} and "more than 2 rows" in result.errors["org-b"].detail
        assert result.rows == {"org-a": 6, "org-c": 0}
        hot.execute("UPDATE ingested_events SET processed_at = NULL")
        assert house.backfill("events").rows == {"org-b": 6}
        house.sync_ok("events")
    house.assert_equal("events")


@pytest.mark.parametrize(
    "failpoint", ["capture.chunk_staged", "landing.recorded", "landing.before_commit", "landing.after_commit"]
)
def test_killed_in_the_window_that_meets_it(house: Lakehouse, failpoint: str) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        house.sync_ok("events")
        hot.execute(BAD)
        insert_events(hot, "org-a", 7, 1)
        done = house.run("sync", "--once", "--table", "events", failpoints=f"{failpoint}=kill", check=None)
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)
        house.run("sync", "--once", "--table", "events")
        house.assert_equal("events")
        assert events_of(house) == ["quarantined"] and log_of(house).open == 1
        (entry,) = entries(house, "events", "org-a")
        check_content(house, hot, "events", entry)
        hot.execute(DELETED)
        done = house.run(
            *("sync", "--once", "--table", "events", "--reconcile"), failpoints=f"{failpoint}=kill", check=None
        )
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)
    house.run("sync", "--once", "--table", "events", "--reconcile")
    assert events_of(house) == ["quarantined", "gone"]
    house.assert_equal("events")


@pytest.mark.parametrize("failpoint", ["backfill.range_read", "backfill.range_done", "backfill.after_commit"])
def test_killed_in_the_backfill_that_meets_it(house: Lakehouse, failpoint: str) -> None:
    house.reopen(BACKFILL__RANGE_ROWS="2")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 6)
        hot.execute("ANALYZE ingested_events")
        hot.execute(BAD)
        done = house.run("backfill", "--table", "events", failpoints=f"{failpoint}=kill", check=None)
        assert done.returncode in (-signal.SIGKILL, 1), (done.returncode, done.stdout, done.stderr)
        house.run("backfill", "--table", "events")
        house.run("sync", "--once", "--table", "events")
        assert events_of(house) == ["quarantined"]
        (entry,) = entries(house, "events", "org-a")
        check_content(house, hot, "events", entry)
    house.assert_equal("events")


def test_the_lake_alone_knows_what_is_quarantined(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        hot.execute(BAD)
        house.sync_ok("events")
        house.app.engine.dispose()
        hot.execute("DROP SCHEMA lakehouse CASCADE")
    # The catalog is beside the lake: what was lost is all that the control tables knew.
    house.reopen()
    house.init()
    assert set(house.backfill("events").adopted) >= {"org-a"}
    (status,) = [t for t in read_status(house.app).tables if (t.table, t.organization) == ("events", "org-a")]
    assert (status.quarantined, status.quarantined_first) == (
        1,
        "row id='org-a-e2': processed_at: is infinite, or not in the years 1 to 9999",
    )
    house.assert_equal("events")
    with house.hot() as hot:
        hot.execute(ROW.format("processed_at = NULL"))
        house.sync_ok("events")
    assert events_of(house) == ["quarantined", "mended"]
    house.assert_equal("events")


def test_a_log_that_is_gone_stops_its_organization_only(house: Lakehouse) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
        house.backfill("events")
        hot.execute(BAD)
        house.sync_ok("events")
        path = Path(log_of(house).file.removeprefix("file://"))
        kept = path.read_bytes()
        path.unlink()
        insert_events(hot, "org-a", 7, 1)
        insert_events(hot, "org-b", 7, 1)
        result = house.sync("events")
        assert set(result.errors) == {"org-a"} and "is gone: it says which rows" in result.errors["org-a"].detail
        assert result.upserts == {"org-b": 1}
        compared = {c.organization: c for c in house.compare("events")}
        assert "is gone" in str(compared["org-a"].error) and compared["org-b"].equal
        path.write_bytes(kept)
        house.run("deliveries", "retry", "--all")
        house.sync_ok("events")
    house.assert_equal("events")


def test_a_log_that_was_changed_is_not_committed_by_another_process(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        house.sync_ok("events")
        hot.execute(BAD)
        done = house.run("sync", "--once", "--table", "events", failpoints="landing.recorded=kill", check=None)
        assert done.returncode == -signal.SIGKILL
        (path,) = Path(house.lake_table("events", "org-a").location().removeprefix("file://")).glob("quarantine/*")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        result = house.sync("events")
        assert "Somebody changed it" in str(result.errors["org-a"])
        house.sync_ok("events")
        assert Path(log_of(house).file.removeprefix("file://")) != path
        (entry,) = entries(house, "events", "org-a")
        check_content(house, hot, "events", entry)
    house.assert_equal("events")


def test_a_big_log_is_sealed_and_nothing_of_it_is_lost(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "SEAL_BYTES", 1)
    contents = []
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 4)
        house.backfill("events")
        hot.execute("UPDATE ingested_events SET processed_at = 'infinity' WHERE id IN ('org-a-e2', 'org-a-e3')")
        house.sync_ok("events")
        for number in range(5):
            hot.execute(ROW.format(f"source = 'source {number}'"))
            house.sync_ok("events")
            contents += [e.content for e in entries(house, "events", "org-a") if e.key == ("org-a-e2",)]
            assert len(entries(house, "events", "org-a")) == 2
        assert [json.loads(c or "")["source"] for c in contents] == [f"source {n}" for n in range(5)]
        log = log_of(house)
        assert log.sealed and log.entries < 7
        everything = entries(house, "events", "org-a", every=True)
        assert len({e.sequence for e in everything}) == len(everything) == 7
        assert [e.content for e in everything if e.key == ("org-a-e2",)][1:] == contents
        # Maintenance keeps what the cursor names, and takes what it no longer does.
        house.reopen(MAINTENANCE__ORPHAN_HOURS="0", MAINTENANCE__GRACE_MINUTES="0")
        for _ in range(2):
            house.run("maintain", "--table", "events")
    folder = Path(house.lake_table("events", "org-a").location().removeprefix("file://")) / "quarantine"
    assert {f"file://{p}" for p in folder.iterdir()} == set(log.files)
    house.assert_equal("events")


def test_the_commands_show_it(house: Lakehouse) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
        house.run("backfill", "--table", "events")
        hot.execute(ROW.format("processed_at = 'infinity', occurred_at = '0044-03-15 BC'"))
        assert "events: organization org-a: 1 rows are quarantined" in house.run("sync", "--once").stderr
    reason = "occurred_at: is infinite, or not in the years 1 to 9999; processed_at: is infinite, or not in the years"
    (row,) = house.run_json("quarantine", "list")
    assert (row["organization"], row["table"], row["key"], row["event"]) == (
        *("org-a", "events", "org-a-e2"),
        "quarantined",
    )
    assert row["reason"].startswith(reason) or reason.split("; ")[1] in row["reason"]
    assert {f["column"] for f in row["faults"]} == {"occurred_at", "processed_at"}
    assert house.run_json("quarantine", "list", "-o", "org-b") == []
    assert "org-a-e2" in house.run("quarantine", "list").stdout
    (shown,) = json.loads(house.run("quarantine", "show", "org-a-e2", "--table", "events").stdout)
    assert shown["content"]["occurred_at"] == "0044-03-15 00:00:00 BC" and shown["content"]["payload"] == '{"n": 2}'
    assert (
        "no row org-a-e9 is quarantined"
        in house.run(*("quarantine", "show", "org-a-e9", "--table", "events"), check=2).stderr
    )
    status = house.run("status")
    assert "quarantined: events: organization org-a: 1 rows that the lake cannot hold" in status.stderr
    verified = house.run("verify", "--table", "events")
    assert "1 rows are not compared: the lake cannot hold them" in verified.stderr
    assert house.run_json("verify", "--table", "events")["tables"][0]["quarantined"] == 1
    with house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
    house.run("verify", "--table", "events", check=1)


def test_what_is_remembered_of_it_is_what_the_lake_says(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        hot.execute(BAD)
        house.sync_ok("events")
        remembered: Any = store.cursors(house.app.engine, "events")["org-a"].quarantine
        assert remembered == log_of(house)
        log = Path(log_of(house).file.removeprefix("file://"))
        log.write_bytes(b"no parquet")
        with pytest.raises(LakehouseError, match="is damaged"):
            entries(house, "events", "org-a")
