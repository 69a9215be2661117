"""Old days leave the lake by policy: planned, stopped by what is hot or held, recorded, and no delete for anybody."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lakehouse.archive import holds
from lakehouse.archive.evidence import public_keys, verify
from lakehouse.archive.export import export_batches
from lakehouse.archive.installation import SCHEMA
from lakehouse.archive.records import content_digest
from lakehouse.cli.program import app as program
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.ended import ENDED_SUMMARY, Ending, as_ranges, ended_property, read_endings
from lakehouse.maintenance.expiry import kept_snapshots
from lakehouse.maintenance.references import References
from lakehouse.maintenance.run import maintain_table
from lakehouse.query import run_query
from lakehouse.recall.run import NothingFoundError
from lakehouse.retention.apply import Applied, apply
from lakehouse.retention.plan import TablePlan, cutoff, plan
from lakehouse.retention.policy import RetentionError, clear_retention, retentions, set_retention
from lakehouse.retention.records import read_days
from schemas.canonical import postgres_hash
from tests.cold import REFERENCES, allow, archive_once, archive_variables, old_events
from tests.integration.test_recall import bring, ids, put_tombstones
from tests.support import Lakehouse, host_tables, insert_events, local_variables

OLD = {"2016-01-01": (1, 3), "2016-01-02": (11, 2), "2017-05-05": (21, 1)}
"""Day: first number and count of its events."""


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    """Events of three old days, that the archive has taken, and of a young one; the lake knows all as alive."""
    host_tables(hot_url, ("org-a", "org-b"))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    house.init()
    with house.hot() as hot:
        for day, (first, count) in OLD.items():
            insert_events(hot, "org-a", first, count, day=day)
        insert_events(hot, "org-a", 31, 2, day="2026-01-01")
        house.backfill("events")
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
        assert read_cursor(house.lake_table("events", "org-a")).inventory is not None  # type: ignore[union-attr]
        hot.execute("DELETE FROM ingested_events WHERE occurred_at < '2018-01-01'")
    yield house
    house.close()


def retain(house: Lakehouse, years: int = 7) -> None:
    set_retention(house.app, "org-a", years, reason="as agreed", by="the officer")


def let_go(house: Lakehouse) -> Applied:
    """Apply; what it did to events, and no error."""
    (done,) = apply(house.app, "org-a", reason="yearly", by="me")
    assert done.table == "events" and done.error is None, done.error
    return done


def planned(house: Lakehouse) -> TablePlan:
    (found,) = plan(house.app, "org-a")
    assert found.table == "events" and found.error is None, found.error
    return found


def in_the_lake(house: Lakehouse) -> list[str]:
    rows = run_query(house.app, "SELECT id FROM events ORDER BY id", organization="org-a").to_pylist()
    return [row["id"] for row in rows]


def days(found: list[Any]) -> list[str]:
    return [str(d.date if hasattr(d, "date") else d.day) for d in found]


def audit(house: Lakehouse) -> list[tuple[Any, ...]]:
    with house.hot() as hot:
        return hot.execute(f"SELECT action, actor, reason, subject FROM {SCHEMA}.audit ORDER BY id").fetchall()  # type: ignore[arg-type]


def test_old_days_leave_and_capture_goes_on(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-b", 1, 1, day="2016-01-01")
    assert plan(house.app, "org-a") == []
    retain(house, 1)
    clear_retention(house.app, "org-a", reason="r", by="me")
    with pytest.raises(RetentionError, match="has no lake retention"):
        apply(house.app, "org-a", reason="r", by="me")
    retain(house)
    found = planned(house)
    assert (days(found.ends), found.versions, found.kept) == (list(OLD), 7, {})
    before = house.lake_table("events", "org-a")
    cursor = read_cursor(before)

    done = let_go(house)
    assert [(str(d.day), d.versions, d.rows) for d in done.days] == [
        ("2016-01-01", 4, 3), ("2016-01-02", 2, 2), ("2017-05-05", 1, 1),
    ]  # fmt: skip
    after = house.lake_table("events", "org-a")
    assert read_cursor(after) == cursor, "no cursor and no sequence is touched"
    assert in_the_lake(house) == ["org-a-e31", "org-a-e32"]
    assert [f.day for f in References(after).live()] == [(date(2026, 1, 1) - date(1970, 1, 1)).days]

    # The record in the lake itself, the property that confirms it, and the audit.
    (ending,) = read_endings(after)
    assert ending.ranges == ((16801, 16802), (17291, 17291)) and ending.sequence == cursor.sequence  # type: ignore[union-attr]
    assert read_days(house.app.lake("org-a")) == done.days
    assert {(d.ending, d.operator, d.reason, d.years) for d in done.days} == {(ending.id, "me", "yearly", 7)}
    assert audit(house)[-1][:3] == ("lake days ended", "me", "yearly")
    assert {k: audit(house)[-1][3][k] for k in ("days", "rows", "versions", "ending")} == {
        "days": 3, "rows": 6, "versions": 7, "ending": ending.id,
    }  # fmt: skip

    # What is gone is no delete, for anybody; windows land as before, also into a day that ended.
    assert house.sync_ok("events", reconcile=True).deletes.get("org-a", 0) == 0
    house.assert_equal("events", "org-a")
    with house.hot() as hot:
        insert_events(hot, "org-a", 41, 1, day="2016-01-01")
        insert_events(hot, "org-a", 51, 1, day="2026-01-02")
        house.sync_ok("events", reconcile=True)
        assert in_the_lake(house) == ["org-a-e31", "org-a-e32", "org-a-e41", "org-a-e51"]
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e41'")
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events", "org-a")
    assert in_the_lake(house) == ["org-a-e31", "org-a-e32", "org-a-e51"], "its delete was seen"


def test_many_days_go_in_several_commits(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lakehouse.retention.apply.COMMIT_DAYS", 2)
    retain(house)
    assert days(let_go(house).days) == list(OLD)
    first, second = read_endings(house.lake_table("events", "org-a"))
    assert (first.ranges, second.ranges) == (((16801, 16802),), ((17291, 17291),))
    assert [line[3]["days"] for line in audit(house) if line[0] == "lake days ended"] == [2, 1]
    assert house.sync_ok("events", reconcile=True).deletes.get("org-a", 0) == 0


def test_the_digest_is_what_the_rows_were(house: Lakehouse) -> None:
    contract = house.app.contract("events")
    with house.hot() as hot:
        # To be hashed by PostgreSQL.
        bring(house, where="occurred_at < '2018-01-01'")
        rows = hot.execute(
            f"SELECT occurred_at::date::text, id, {postgres_hash(contract)} FROM {SCHEMA}.recalled_events".encode()
        ).fetchall()
    retain(house)
    done = let_go(house)
    assert {str(d.day): d.content_sha256 for d in done.days} == {
        day: content_digest((key, row_hash) for on, key, row_hash in rows if on == day) for day in OLD
    }


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        ({}, list(OLD)),
        ({"table_name": "events"}, list(OLD)),
        ({"table_name": "findings"}, []),
        ({"table_name": "events", "row_keys": ["org-a-e12"]}, ["2016-01-02"]),
        ({"event_upto": datetime(2016, 1, 2, tzinfo=UTC)}, ["2016-01-01"]),
        ({"event_from": datetime(2016, 1, 2, 23, 59, tzinfo=UTC)}, ["2016-01-02", "2017-05-05"]),
        ({"event_from": datetime(2016, 1, 3, tzinfo=UTC), "event_upto": datetime(2017, 5, 5, tzinfo=UTC)}, []),
    ],
    ids=["organization", "table", "another table", "ids", "upto", "from", "between"],
)
def test_a_hold_stops_it(house: Lakehouse, held: dict[str, Any], kept: list[str]) -> None:
    retain(house)
    hold = holds.place(house.app, "org-a", reason="case 12", by="counsel", **held)
    found = planned(house)
    assert found.kept == {} if not kept else days(found.kept[f"hold {hold.id}: case 12"]) == kept
    assert days(found.ends) == [day for day in OLD if day not in kept]
    if kept != list(OLD):
        assert days(let_go(house).days) == [day for day in OLD if day not in kept]
    holds.release(house.app, hold.id, reason="closed", by="counsel")
    assert days(let_go(house).days if kept else []) == kept
    assert in_the_lake(house) == ["org-a-e31", "org-a-e32"]


def test_a_hold_that_is_placed_while_it_runs(house: Lakehouse, tmp_path: Path) -> None:
    """The plan saw none; under the lock there is one."""
    retain(house)
    marker = tmp_path / "recorded"
    running = house.start(
        "lake", "retention", "apply", "-o", "org-a", "--reason", "yearly", "--json",
        failpoints=f"retention.recorded=hold:{marker}@1",
    )  # fmt: skip
    while not marker.exists():
        assert running.poll() is None, running.communicate()
    hold = holds.place(house.app, "org-a", reason="just now", table_name="events", row_keys=["org-a-e1"], by="counsel")
    marker.unlink()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    (shown,) = json.loads(out)["tables"]
    assert [d["day"] for d in shown["days"]] == ["2016-01-02", "2017-05-05"]
    assert shown["kept"] == {f"hold {hold.id}: just now": ["2016-01-01"]}
    assert in_the_lake(house) == ["org-a-e1", "org-a-e2", "org-a-e3", "org-a-e31", "org-a-e32"]
    # Days of an attempt that was given up are in the record, and under no ending that happened.
    (ending,) = read_endings(house.lake_table("events", "org-a"))
    recorded = read_days(house.app.lake("org-a"))
    assert days([d for d in recorded if d.ending == ending.id]) == ["2016-01-02", "2017-05-05"]
    assert len(recorded) == 5


def test_a_hot_row_keeps_its_day(house: Lakehouse) -> None:
    retain(house)
    with house.hot() as hot:
        insert_events(hot, "org-a", 61, 1, day="2016-01-02 22:58")
        insert_events(hot, "org-b", 61, 1, day="2016-01-01")
    found = planned(house)
    assert (days(found.ends), {k: days(v) for k, v in found.kept.items()}) == (
        ["2016-01-01", "2017-05-05"], {"rows of it are hot": ["2016-01-02"]},
    )  # fmt: skip
    assert days(let_go(house).days) == ["2016-01-01", "2017-05-05"]
    house.sync_ok("events", reconcile=False)
    assert "org-a-e61" in in_the_lake(house)


def test_a_source_that_is_not_known_keeps_everything(house: Lakehouse) -> None:
    retain(house)
    with house.app.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cursors SET position = jsonb_set(position, '{source,timeline}', '\"99\"')")
    (reason,) = planned(house).kept
    assert reason.startswith("the source is not known to be the one")
    assert let_go(house).days == []
    assert len(in_the_lake(house)) == 8


def test_the_rows_can_be_read_as_long_as_the_plan_says(house: Lakehouse, tmp_path: Path) -> None:
    """Nothing more lands: the newest snapshots would keep the old files for ever."""
    retain(house)
    old = sorted((tmp_path / "warehouse").glob("org_org_2da/events/data/occurred_at_day=201*/*"))
    assert len(old) == 4
    done = let_go(house)
    until = done.plan.readable_until  # type: ignore[union-attr]
    assert until is not None
    contract = house.app.contract("events")

    for moment in (until - timedelta(minutes=20), until):
        house.clock.fixed = moment
        result = maintain_table(house.app, contract, "org-a")
        assert not result.errors, result.errors
    assert not any(path.exists() for path in old)
    house.clock.fixed = None
    assert in_the_lake(house) == ["org-a-e31", "org-a-e32"]
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events", "org-a")


def test_snapshots_from_before_days_ended_are_kept_by_day_alone() -> None:
    """However few have come since."""

    def snapshot(number: int, day: int, ended: bool = False) -> Any:
        at = datetime(2026, 1, day, number, tzinfo=UTC)
        properties = {ENDED_SUMMARY: "x"} if ended else {}
        return SimpleNamespace(
            snapshot_id=number,
            sequence_number=number,
            timestamp_ms=int(at.timestamp() * 1000),
            summary=SimpleNamespace(additional_properties=properties),
        )

    snapshots = [snapshot(1, 1), snapshot(2, 2), snapshot(3, 2), snapshot(4, 5), snapshot(5, 5)]
    tagged = SimpleNamespace(snapshots=snapshots, refs={"hold-1": SimpleNamespace(snapshot_id=1)})

    def kept(daily: int) -> set[int]:
        return kept_snapshots(tagged, 20, daily, datetime(2026, 1, 6, tzinfo=UTC))  # type: ignore[arg-type]

    assert kept(0) == {1, 2, 3, 4, 5}
    snapshots[3] = snapshot(4, 5, ended=True)
    assert kept(0) == {1, 4, 5}
    assert kept(5) == {1, 3, 4, 5}


def test_many_days_and_files_that_change_meanwhile(house: Lakehouse, tmp_path: Path) -> None:
    """A compaction between the plan and the commit: what was hashed is not there any more, and it is done again."""
    retain(house)
    marker = tmp_path / "recorded"
    running = house.start(
        "lake", "retention", "apply", "-o", "org-a", "--reason", "yearly",
        failpoints=f"retention.recorded=hold:{marker}@1",
    )  # fmt: skip
    while not marker.exists():
        assert running.poll() is None, running.communicate()
    house.clock.offset = timedelta(days=2)
    merged = maintain_table(house.app, house.app.contract("events"), "org-a")
    assert merged.files_merged == 2, merged
    marker.unlink()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, (out, err)
    assert in_the_lake(house) == ["org-a-e31", "org-a-e32"]
    (ending,) = read_endings(house.lake_table("events", "org-a"))
    mine = [d for d in read_days(house.app.lake("org-a")) if d.ending == ending.id]
    assert [(d.files, d.versions, d.rows) for d in mine] == [(1, 4, 3), (1, 2, 2), (1, 1, 1)]


def test_who_asks_for_what_has_left(house: Lakehouse) -> None:
    put_tombstones(house, {"org-a-e1": "2016-01-01 00:01+00"})
    assert ids(house, ids=("org-a-e1",)) == ["org-a-e1"]
    retain(house)
    let_go(house)
    with pytest.raises(NothingFoundError, match="org-a-e1: left the lake with its day, 2016-01-01, by the lake's"):
        ids(house, ids=("org-a-e1",))


def test_receipts_of_rows_that_have_left(hot_url: str, tmp_path: Path) -> None:
    """They have ended and are not missing; what is left of their batch is still compared, row by row."""
    host_tables(hot_url, ("org-a",))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path) | archive_variables(tmp_path))
    house.init()
    allow(house, "org-a")
    with house.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
        old_events(hot, "org-a", 1, 15)
        old_events(hot, "org-a", 16, 5, day="2020-02-01")
    house.backfill("events")
    assert archive_once(house, "events", "org-a", batch_rows=10).rows == 20
    export_batches(house.app, "org-a")
    retain(house, 5)
    holds.place(house.app, "org-a", reason="case", table_name="events", row_keys=["org-a-e16"], by="counsel")
    assert days(let_go(house).days) == ["2020-01-01"]
    keys = public_keys(house.app, [])
    result = verify(house.app, "org-a", keys, chain=True)
    assert result.faults == []
    assert (result.rows, result.ended, result.contents, result.keyed_hashes) == (20, 15, 5, 5)
    (note,) = result.notes
    assert note.startswith("15 rows of events left the lake at ") and ", by " in note
    # A row that is missing of a day that is there is missing still.
    for file in (tmp_path / "warehouse").glob("org_org_2da/events/data/occurred_at_day=2020-02-01/*"):
        rows = pq.read_table(file)
        pq.write_table(rows.filter(pc.not_equal(rows["id"], "org-a-e17")), file)
    found = verify(house.app, "org-a", keys)
    assert [(f.what, f.keys) for f in found.faults] == [("rows", ("org-a-e17",))]
    # And one of another content is another.
    for file in (tmp_path / "warehouse").glob("org_org_2da/events/data/occurred_at_day=2020-02-01/*"):
        rows = pq.read_table(file)
        odd = pc.if_else(pc.equal(rows["id"], "org-a-e18"), "HIGH", rows["severity"])
        pq.write_table(rows.set_column(rows.column_names.index("severity"), "severity", odd), file)
    found = verify(house.app, "org-a", keys)
    assert {(f.what, f.keys) for f in found.faults} == {("rows", ("org-a-e17",)), ("content", ("org-a-e18",))}
    # Whoever only says in the table's property that a day has left hides nothing.
    table = house.lake_table("events", "org-a")
    endings = read_endings(table)
    number = (date(2020, 2, 1) - date(1970, 1, 1)).days
    forged = Ending(str(uuid.uuid4()), endings[0].sequence, endings[0].at, as_ranges([number]))
    with table.transaction() as transaction:
        transaction.set_properties(ended_property([*endings, forged]))
    found = verify(house.app, "org-a", keys)
    assert any("2020-02-01" in f.detail and "_ended does not tell of it" in f.detail for f in found.faults)
    house.close()


def test_the_calendar() -> None:
    assert cutoff(datetime(2028, 2, 29, 12, tzinfo=UTC), 1) == date(2027, 2, 28)
    assert cutoff(datetime(2028, 2, 29, 12, tzinfo=UTC), 4) == date(2024, 2, 29)
    assert cutoff(datetime(2026, 12, 31, 23, 59, tzinfo=UTC), 7) == date(2019, 12, 31)
    assert as_ranges([5, 1, 2, 3, 9, 5]) == ((1, 3), (5, 5), (9, 9))


def test_the_program(house: Lakehouse) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(program, ["lake", "retention", *arguments], env=house.environment())

    assert "stay in the lake for ever" in run("plan", "-o", "org-a").stdout
    assert "7 years in the lake, from now on" in run("set", "-o", "org-a-slug", "--years", "7", "--reason", "r").stdout
    assert isinstance(run("set", "-o", "org-a", "--years", "0", "--reason", "r").exception, RetentionError)
    assert isinstance(run("set", "-o", "org-a", "--years", "9", "--reason", " ").exception, RetentionError)
    assert [r["years"] for r in json.loads(run("list", "--json").stdout)] == [7]
    shown = json.loads(run("plan", "-o", "org-a", "--json").stdout)
    assert [d["day"] for d in shown["tables"][0]["days"]] == list(OLD)
    said = run("plan", "-o", "org-a").stdout
    assert "would leave the lake" in said and "older snapshots show the rows until" in said
    assert "left the lake" in run("apply", "-o", "org-a", "--reason", "yearly", "--by", "me").stdout
    assert "7 years in the lake, until now" in run("clear", "-o", "org-a", "--reason", "r").stdout
    assert retentions(house.app) == {}
    assert isinstance(run("clear", "-o", "org-a", "--reason", "r").exception, RetentionError)
    assert [line[0] for line in audit(house)] == ["lake retention set", "lake days ended", "lake retention cleared"]
