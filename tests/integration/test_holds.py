"""Legal holds on a real database and lake: what they name, when they are in force, and what outlives the database."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from lakehouse.app import App
from lakehouse.archive import holds, mirror
from lakehouse.archive.installation import ArchiveError, connect, install, lock_organization
from lakehouse.archive.scope import hot_table
from lakehouse.duck import connect as duck
from lakehouse.duck import lake_relation
from lakehouse.maintenance.archive import keep_archive
from lakehouse.maintenance.run import MaintenanceResult, maintain_table
from schemas.errors import LakehouseError
from schemas.keys import python_key
from tests.support import Lakehouse, host_tables, insert_events, local_variables

FIRST, SECOND = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def lakehouse(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    made = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    made.init("org-a", "org-b")
    yield made
    made.close()


def named(lakehouse: Lakehouse, table: str, columns: str = "id") -> list[Any]:
    """The rows of a hot table that `held` says are held, as a delete batch would ask."""
    contract = lakehouse.app.contract(table)
    statement = sql.SQL("SELECT {} FROM {} AS t WHERE {} AND {} ORDER BY 1").format(
        sql.SQL(columns),  # type: ignore[arg-type]
        hot_table(contract),
        holds.held(contract, "t"),
        sql.SQL("%s"),
    )
    with lakehouse.hot() as connection:
        return [row[0] for row in connection.execute(statement, [True]).fetchall()]


def audit(lakehouse: Lakehouse) -> list[tuple[Any, ...]]:
    with lakehouse.hot() as connection:
        return connection.execute(
            "SELECT actor, action, organization_id, subject->>'hold', reason FROM lakehouse_archive.audit ORDER BY id"
        ).fetchall()


def test_a_hold_names_an_organization_a_table_ids_or_a_range_of_time(lakehouse: Lakehouse) -> None:
    with lakehouse.hot() as connection:
        for organization in ("org-a", "org-b"):
            insert_events(connection, organization, 1, 3, day="2026-01-01")
            insert_events(connection, organization, 11, 2, day="2026-01-02")
    app = lakehouse.app
    everything = [f"org-a-e{n}" for n in (1, 11, 12, 2, 3)]

    def only(hold: Any) -> list[Any]:
        found = named(lakehouse, "events")
        holds.release(app, hold.id, reason="done")
        return found

    assert only(holds.place(app, "org-a", reason="all")) == everything
    assert only(holds.place(app, "org-a-slug", reason="by slug", table_name="events")) == everything
    assert only(holds.place(app, "org-a", reason="other table", table_name="findings")) == []
    assert only(holds.place(app, "org-a", reason="ids", table_name="events", row_keys=["org-a-e2", "org-b-e1"])) == [
        "org-a-e2"
    ]
    # The first event is a minute after midnight; the end is exclusive.
    first = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    day = datetime(2026, 1, 2, tzinfo=UTC)
    assert only(holds.place(app, "org-a", reason="range", table_name="events", event_from=first, event_upto=day)) == [
        "org-a-e2",
        "org-a-e3",
    ]
    assert only(holds.place(app, "org-a", reason="until", event_upto=first)) == ["org-a-e1"]
    assert only(holds.place(app, "org-a", reason="from", event_from=day + timedelta(minutes=12))) == ["org-a-e12"]
    elsewhere = first.astimezone(datetime.strptime("+0200", "%z").tzinfo)
    assert only(holds.place(app, "org-a", reason="zone", table_name="events", event_upto=elsewhere)) == ["org-a-e1"]
    # Two at once: what either names is held.
    holds.place(app, "org-a", reason="one", table_name="events", row_keys=["org-a-e1"])
    holds.place(app, "org-b", reason="two", table_name="events", row_keys=["org-b-e3"])
    assert named(lakehouse, "events") == ["org-a-e1", "org-b-e3"]
    assert [h.reason for h in _active(lakehouse, "org-a")] == ["one"]
    assert holds.concerns(_active(lakehouse, "org-a")[0], "events")
    assert not holds.concerns(_active(lakehouse, "org-a")[0], "findings")


def _active(lakehouse: Lakehouse, organization: str) -> list[Any]:
    with connect(lakehouse.app) as connection:
        return holds.active(connection, organization)


RATES = """
CREATE TABLE "Rates %" (
    "tenant %" bigint NOT NULL, code text COLLATE "C" NOT NULL, day date NOT NULL, PRIMARY KEY ("tenant %", code, day)
);
INSERT INTO "Rates %" VALUES
    (1, 'a', '2026-01-01'), (1, 'a', '2026-01-02'), (1, 'a', 'infinity'), (2, 'a', '2026-01-02')
"""


@pytest.fixture
def rates(lakehouse: Lakehouse) -> dict[str, Any]:
    """Another host's table: no text key, a date as event time, names and a collation that need care."""
    columns = [
        ("tenant", "long", "tenant %", "bigint"),
        ("code", "string", "code", "text"),
        ("day", "date", "day", "date"),
    ]
    raw: dict[str, Any] = {
        "table": "rates", "version": "1.0", "title": "x", "description": "x",
        "source": {"schema": "public", "table": "Rates %"}, "tenant": "tenant",
        "primary_key": ["tenant", "code", "day"], "event_time": "day", "watermark": None,
        "age_bounds": ["day"], "retention": "applies", "not_exported": [],
        "columns": [
            {"id": 6 + n, "name": name, "type": kind, "nullable": False, "source": source, "source_type": own,
             "description": "x", "sensitivity": "internal"}
            for n, (name, kind, source, own) in enumerate(columns)
        ],
    }  # fmt: skip
    with lakehouse.hot() as connection:
        connection.execute(RATES)
        connection.execute("INSERT INTO organizations (id, name, slug, updated_at) VALUES ('1', 'x', 'one', now())")
    return raw


def use(lakehouse: Lakehouse, raw: dict[str, Any], folder: Path) -> None:
    (folder / "contracts" / "rates").mkdir(parents=True)
    (folder / "contracts" / "rates" / "v1.json").write_text(json.dumps(raw))
    lakehouse.reopen(CONTRACTS=json.dumps(["builtin", str(folder / "contracts")]))


def test_ids_of_any_key_are_named_by_their_text(lakehouse: Lakehouse, rates: dict[str, Any], tmp_path: Path) -> None:
    """A key of several columns is its canonical text, as it stands in tombstones."""
    use(lakehouse, rates, tmp_path)
    contract = lakehouse.app.contract("rates")
    key = python_key(contract, {"tenant": 1, "code": "a", "day": date(2026, 1, 1)})
    hold = holds.place(lakehouse.app, "1", reason="one", table_name="rates", row_keys=[key, "1:1,1:a,"])
    assert named(lakehouse, "rates", "day::text") == ["2026-01-01"]
    assert holds.unknown_ids(lakehouse.app, hold) == ["1:1,1:a,"]
    # Another organization's hold on the same text names nothing of the first one's.
    holds.place(lakehouse.app, "org-a", reason="x", table_name="rates", row_keys=[
        python_key(contract, {"tenant": 1, "code": "a", "day": date(2026, 1, 2)})
    ])  # fmt: skip
    assert named(lakehouse, "rates", "day::text") == ["2026-01-01"]


def test_ids_that_cannot_be_looked_up_are_held_all_the_same(lakehouse: Lakehouse) -> None:
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 1)
        connection.execute("DROP TABLE tenant_audit_logs CASCADE")
    hold = holds.place(lakehouse.app, "org-a", reason="x", table_name="audit_log", row_keys=["a"])
    assert holds.unknown_ids(lakehouse.app, hold) is None
    assert [h.id for h in _active(lakehouse, "org-a")] == [hold.id]


def test_a_date_is_a_whole_day(lakehouse: Lakehouse, rates: dict[str, Any], tmp_path: Path) -> None:
    use(lakehouse, rates, tmp_path)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    until = holds.place(lakehouse.app, "1", reason="until noon", event_upto=noon)
    assert named(lakehouse, "rates", "day::text") == ["2026-01-01"]
    holds.release(lakehouse.app, until.id, reason="x")
    holds.place(lakehouse.app, "1", reason="from noon", event_from=noon, event_upto=noon + timedelta(hours=13))
    assert named(lakehouse, "rates", "day::text") == ["2026-01-01", "2026-01-02"]
    holds.place(lakehouse.app, "1", reason="and on", event_from=noon)
    assert named(lakehouse, "rates", "day::text") == ["2026-01-01", "2026-01-02", "infinity"]


def test_a_table_without_event_time_is_held_whole_by_a_range_and_not_asked_for_one(
    lakehouse: Lakehouse, rates: dict[str, Any], tmp_path: Path
) -> None:
    use(lakehouse, rates | {"event_time": None}, tmp_path)
    spring = datetime(2026, 3, 1, tzinfo=UTC)
    with pytest.raises(ArchiveError, match="rates has no event time"):
        holds.place(lakehouse.app, "1", reason="x", table_name="rates", event_from=spring)
    holds.place(lakehouse.app, "1", reason="spring", event_from=spring, event_upto=spring + timedelta(days=1))
    assert named(lakehouse, "rates", "day::text") == ["2026-01-01", "2026-01-02", "infinity"]


def test_many_ids_are_looked_up_in_one_hash(lakehouse: Lakehouse) -> None:
    """Ten thousand ids in a hold must not be compared one by one with each row of a batch."""
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 10)
    holds.place(lakehouse.app, "org-a", reason="x", table_name="events", row_keys=[f"k{n}" for n in range(10_000)])
    condition = holds.held(lakehouse.app.contract("events"), "t")
    with lakehouse.hot() as connection:
        plan = connection.execute(
            sql.SQL("EXPLAIN SELECT FROM ingested_events AS t WHERE id = ANY(%s) AND NOT {}").format(condition), [["a"]]
        ).fetchall()
    assert "hashed" in str(plan)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"organization": "org-x"}, "no organization 'org-x'"),
    ({"table_name": "event"}, "no contract for a table 'event'"),
    ({"row_keys": ["a"]}, "ids without a table"),
    ({"table_name": "events", "row_keys": []}, "an id is empty"),
    ({"table_name": "events", "row_keys": ["a", ""]}, "an id is empty"),
    (
        {"table_name": "events", "row_keys": ["a"], "event_upto": datetime(2026, 1, 1, tzinfo=UTC)},
        "and a time range",
    ),
    (
        {"event_from": datetime(2026, 1, 2, tzinfo=UTC), "event_upto": datetime(2026, 1, 1, tzinfo=UTC)},
        "2026-01-02T00:00:00.000000.00:00 to 2026-01-01T.* is empty",
    ),
    ({"event_from": datetime(2026, 1, 1, tzinfo=UTC), "event_upto": datetime(2026, 1, 1, tzinfo=UTC)}, "is empty"),
    ({"event_from": datetime(2026, 1, 1)}, "without a time zone"),  # noqa: DTZ001 - that is the fault
    ({"reason": " \n"}, "needs a reason"),
]


def test_a_request_that_names_nothing_is_refused_and_changes_nothing(lakehouse: Lakehouse) -> None:
    for request, said in REFUSED:
        asked: dict[str, Any] = {"organization": "org-a", "reason": "litigation"} | request
        with pytest.raises(LakehouseError, match=said) as caught:
            holds.place(lakehouse.app, asked.pop("organization"), **asked)
        assert caught.value.hint, said
    assert holds.all_holds(lakehouse.app) == []


def test_a_hold_waits_for_the_batch_that_runs_and_stops_the_next(lakehouse: Lakehouse) -> None:
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 4)
    app = lakehouse.app
    install(app)
    contract = app.contract("events")
    delete = sql.SQL("DELETE FROM ingested_events AS t WHERE t.id = ANY(%s) AND NOT {} RETURNING t.id").format(
        holds.held(contract, "t")
    )
    placed: list[Any] = []
    place = threading.Thread(target=lambda: placed.append(holds.place(app, "org-a", reason="now", table_name="events")))
    with connect(app) as batch:
        with batch.transaction():
            lock_organization(batch, "org-a")
            assert batch.execute(delete, [["org-a-e1"]]).fetchall() == [("org-a-e1",)]
            place.start()
            waits_for_a_lock(lakehouse)
            assert placed == [] and holds.active(batch, "org-a") == []
            # Another organization's hold does not wait for it.
            holds.place(app, "org-b", reason="beside", table_name="events")
            assert batch.execute(delete, [["org-a-e2"]]).fetchall() == [("org-a-e2",)]
        place.join(30)
        assert [h.reason for h in placed] == ["now"], "it is in force once the batch ended"
        with batch.transaction():
            lock_organization(batch, "org-a")
            assert batch.execute(delete, [["org-a-e3", "org-a-e4"]]).fetchall() == []


def test_a_batch_that_waited_for_a_hold_sees_it(lakehouse: Lakehouse) -> None:
    """The other order: the hold has the lock and is not committed yet when the batch asks for it."""
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 2)
    app = lakehouse.app
    install(app)
    delete = sql.SQL("DELETE FROM ingested_events AS t WHERE t.id = ANY(%s) AND NOT {} RETURNING t.id").format(
        holds.held(app.contract("events"), "t")
    )
    gone: list[Any] = []

    def run_batch() -> None:
        with connect(app) as batch, batch.transaction():
            lock_organization(batch, "org-a")
            gone.extend(batch.execute(delete, [["org-a-e1", "org-a-e2"]]).fetchall())

    batch = threading.Thread(target=run_batch)
    with connect(app) as placing, placing.transaction():
        lock_organization(placing, "org-a")
        placing.execute(
            "INSERT INTO lakehouse_archive.holds (id, organization_id, table_name, row_keys, reason, placed_by) "
            "VALUES (%s, 'org-a', 'events', '{org-a-e1}', 'x', 'x')",
            [uuid.uuid4()],
        )
        batch.start()
        waits_for_a_lock(lakehouse)
    batch.join(30)
    assert gone == [("org-a-e2",)]


def test_a_lock_that_is_never_given_back_is_said_and_nothing_is_in_force(
    lakehouse: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "LOCK_SECONDS", 1)
    install(lakehouse.app)
    with connect(lakehouse.app) as batch, batch.transaction():
        lock_organization(batch, "org-a")
        with pytest.raises(ArchiveError, match="no hold was placed"):
            holds.place(lakehouse.app, "org-a", reason="now")
    assert holds.all_holds(lakehouse.app) == []


def test_placing_and_releasing_are_lines_of_the_audit(lakehouse: Lakehouse) -> None:
    hold = holds.place(
        lakehouse.app, "org-a", reason="  litigation\n 2026-114 ", by="eva", row_keys=["x"], table_name="events"
    )
    holds.release(lakehouse.app, str(hold.id), reason="settled", by="otto")
    assert audit(lakehouse) == [
        ("eva", "hold placed", "org-a", str(hold.id), "litigation 2026-114"),
        ("otto", "hold released", "org-a", str(hold.id), "settled"),
    ]
    with pytest.raises(ArchiveError, match="released already, by otto"):
        holds.release(lakehouse.app, hold.id, reason="again")
    with pytest.raises(ArchiveError, match="no hold"):
        holds.release(lakehouse.app, uuid.uuid4(), reason="x")
    with pytest.raises(ArchiveError, match="not the id of a hold"):
        holds.release(lakehouse.app, "org-a", reason="x")
    with pytest.raises(ArchiveError, match="needs a reason"):
        holds.release(lakehouse.app, hold.id, reason="")
    assert len(audit(lakehouse)) == 2


def test_the_audit_and_the_hold_commit_together(lakehouse: Lakehouse) -> None:
    install(lakehouse.app)
    with lakehouse.hot() as connection:
        connection.execute("ALTER TABLE lakehouse_archive.audit ADD CHECK (reason <> 'unwritable')")
    with pytest.raises(psycopg.errors.CheckViolation):
        holds.place(lakehouse.app, "org-a", reason="unwritable")
    assert holds.all_holds(lakehouse.app) == []


def test_the_lake_has_each_hold_and_release_once(lakehouse: Lakehouse) -> None:
    app = lakehouse.app
    first = holds.place(app, "org-a", reason="one", table_name="events", row_keys=["b", "a", "b"], by="eva")
    second = holds.place(
        app,
        "org-a",
        reason="two",
        event_from=datetime(2026, 1, 1, tzinfo=UTC),
        event_upto=datetime(2026, 2, 1, tzinfo=UTC),
    )
    holds.release(app, first.id, reason="settled", by="otto")
    assert mirrored(lakehouse) == [
        (str(first.id), "placed", "events", ["a", "b"], "one", "eva"),
        (str(second.id), "placed", None, None, "two", second.placed_by),
        (str(first.id), "released", "events", ["a", "b"], "settled", "otto"),
    ]
    assert mirrored_now(app) == 0
    assert mirror.read_holds(app.lake("org-a")) == {h.id: h for h in holds.all_holds(app)}
    assert [(one.hold.reason, one.mirrored) for one in holds.list_holds(app)] == [("two", True)]
    assert [(one.hold.reason, one.mirrored) for one in holds.list_holds(app, released=True)] == [
        ("one", True),
        ("two", True),
    ]


def test_programs_that_mirror_at_once_write_each_hold_once(lakehouse: Lakehouse) -> None:
    app = lakehouse.app
    install(app)
    made = [_insert(lakehouse, "org-a", f"r{n}") for n in range(3)]
    known = holds.all_holds(app)
    barrier = threading.Barrier(3)
    written: list[int] = []

    def write() -> None:
        barrier.wait()
        written.append(mirror.write_holds(app.lake("org-a"), known))

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(written) == [0, 0, 3]
    assert sorted(row[0] for row in mirrored(lakehouse)) == sorted(map(str, made))


def test_a_lake_that_does_not_answer_changes_nothing_and_gets_its_copy_later(
    lakehouse: Lakehouse, tmp_path: Path
) -> None:
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 2)
    lakehouse.backfill("events")
    (tmp_path / "catalog.db").rename(tmp_path / "away.db")
    (tmp_path / "catalog.db").mkdir()
    lakehouse.reopen()
    late: list[LakehouseError] = []
    hold = holds.place(lakehouse.app, "org-a", reason="now", table_name="events", warn=late.append)
    assert len(late) == 1 and named(lakehouse, "events") == ["org-a-e1", "org-a-e2"]
    (one,) = holds.list_holds(lakehouse.app)
    assert one.mirrored is None and one.error is not None
    (tmp_path / "catalog.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "catalog.db")
    lakehouse.reopen()
    (one,) = holds.list_holds(lakehouse.app)
    assert one.mirrored is False and one.error is None
    assert mirrored_now(lakehouse.app) == 1
    (one,) = holds.list_holds(lakehouse.app)
    assert one.mirrored is True
    assert tags(lakehouse) == {}
    maintain(lakehouse)
    assert tags(lakehouse).keys() == {f"hold-{hold.id}"}


def test_a_restored_database_gets_back_what_it_forgot(lakehouse: Lakehouse) -> None:
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 3)
    app = lakehouse.app
    kept = holds.place(app, "org-a", reason="kept", table_name="events", row_keys=["org-a-e1"], by="eva")
    over = holds.place(app, "org-a", reason="over", table_name="events", row_keys=["org-a-e2"])
    over = holds.release(app, over.id, reason="settled")
    held = holds.place(app, "org-a", reason="held", table_name="events", row_keys=["org-a-e3"])
    holds.release(app, held.id, reason="by somebody")
    holds.place(app, "org-b", reason="another's", table_name="events")
    with lakehouse.hot() as connection:
        # As of before the first two, and before the third's release.
        connection.execute("DELETE FROM lakehouse_archive.holds WHERE id = ANY(%s)", [[kept.id, over.id]])
        connection.execute("UPDATE lakehouse_archive.holds SET released_at = NULL, released_by = NULL")
    assert named(lakehouse, "events") == ["org-a-e3"]
    assert [h.id for h in holds.holds_on(app, "org-a", "events")] == [held.id, kept.id]
    assert holds.holds_on(app, "org-a", "findings") == []
    listed = {one.hold.reason: one.forgotten for one in holds.list_holds(app, "org-a")}
    assert listed == {"held": False, "kept": True}
    assert holds.restore_from_lake(app, "org-a") == [kept, over]
    assert named(lakehouse, "events") == ["org-a-e1", "org-a-e3"], "a release that only the lake has frees nothing"
    assert holds.restore_from_lake(app, "org-a") == []
    assert [line[1:4] for line in audit(lakehouse)[-2:]] == [
        ("hold restored", "org-a", str(kept.id)),
        ("hold restored", "org-a", str(over.id)),
    ]
    assert {h.id: h for h in holds.all_holds(app)}[kept.id] == kept


def test_a_database_that_never_knew_the_archive_still_has_the_lakes_holds(lakehouse: Lakehouse) -> None:
    hold = holds.place(lakehouse.app, "org-a", reason="kept", table_name="events")
    with lakehouse.hot() as connection:
        connection.execute("DROP SCHEMA lakehouse_archive CASCADE")
    assert holds.holds_on(lakehouse.app, "org-a", "events") == [hold]
    assert holds.all_holds(lakehouse.app) == [] and mirrored_now(lakehouse.app) == 0
    with pytest.raises(ArchiveError, match="never set up"):
        holds.restore_from_lake(lakehouse.app, "org-a")
    install(lakehouse.app)
    assert mirrored_now(lakehouse.app) == 0
    assert holds.all_holds(lakehouse.app) == [hold]


def test_an_organization_without_a_lake_can_be_held(lakehouse: Lakehouse) -> None:
    with lakehouse.hot() as connection:
        insert_events(connection, "org-c", 1, 1)
    late: list[LakehouseError] = []
    holds.place(lakehouse.app, "org-c", reason="early", warn=late.append)
    assert late == [] and named(lakehouse, "events") == ["org-c-e1"]
    assert [one.mirrored for one in holds.list_holds(lakehouse.app, "org-c")] == [None]
    lakehouse.app.enrol("org-c")
    assert mirrored_now(lakehouse.app) == 1
    assert [one.mirrored for one in holds.list_holds(lakehouse.app, "org-c")] == [True]
    # One that the host deleted is named by its lake.
    with lakehouse.hot() as connection:
        connection.execute("DELETE FROM ingested_events")
        connection.execute("DELETE FROM integration_connections")
        connection.execute("DELETE FROM organizations WHERE id = 'org-c'")
    holds.place(lakehouse.app, "org-c", reason="late")


def test_tags_keep_what_a_hold_saw_until_it_is_released(lakehouse: Lakehouse) -> None:
    lakehouse.reopen(MAINTENANCE__KEEP_SNAPSHOTS="1", MAINTENANCE__KEEP_DAILY="0", MAINTENANCE__GRACE_MINUTES="0")
    app = lakehouse.app
    early = holds.place(app, "org-a", reason="before anything landed")
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 2)
        lakehouse.backfill("events")
        assert tags(lakehouse) == {}
        maintain(lakehouse)
        seen = tags(lakehouse)[f"hold-{early.id}"]
        other = holds.place(app, "org-a", reason="another table", table_name="findings")
        ours = holds.place(app, "org-a", reason="this table", table_name="events")
        assert tags(lakehouse) == {f"hold-{early.id}": seen, f"hold-{ours.id}": seen}
        for number in range(3):
            insert_events(connection, "org-a", 10 + number, 1)
            lakehouse.sync_ok("events", reconcile=False)
    maintain(lakehouse)
    lakehouse.clock.offset = timedelta(hours=30)
    for _ in range(2):
        maintain(lakehouse)
    table = lakehouse.lake_table("events", "org-a")
    assert {s.snapshot_id for s in table.snapshots()} == {seen, table.current_snapshot().snapshot_id}
    assert sorted(table.scan(snapshot_id=seen).to_arrow().column("id").to_pylist()) == ["org-a-e1", "org-a-e2"]
    holds.release(app, ours.id, reason="over")
    assert tags(lakehouse).keys() == {f"hold-{early.id}"}
    holds.release(app, other.id, reason="over")
    holds.release(app, early.id, reason="over")
    assert tags(lakehouse) == {}
    maintain(lakehouse)
    table = lakehouse.lake_table("events", "org-a")
    assert [s.snapshot_id for s in table.snapshots()] == [table.current_snapshot().snapshot_id]


def test_nothing_expires_while_holds_cannot_be_looked_up(lakehouse: Lakehouse) -> None:
    lakehouse.reopen(MAINTENANCE__KEEP_SNAPSHOTS="1", MAINTENANCE__KEEP_DAILY="0")
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 2)
        lakehouse.backfill("events")
        for number in range(2):
            insert_events(connection, "org-a", 10 + number, 1)
            lakehouse.sync_ok("events", reconcile=False)
    before = {s.snapshot_id for s in lakehouse.lake_table("events", "org-a").snapshots()}
    lakehouse.reopen(ARCHIVE__URL="postgresql://nobody@127.0.0.1:1/none")
    result = maintain_table(lakehouse.app, lakehouse.app.contract("events"), "org-a")
    assert [type(e).__name__ for e in result.errors] == ["SourceError"] and result.measured is not None
    assert {s.snapshot_id for s in lakehouse.lake_table("events", "org-a").snapshots()} == before
    lakehouse.variables.pop("LAKEHOUSE_ARCHIVE__URL")
    lakehouse.reopen()
    assert maintain(lakehouse).snapshots_expired > 0


def test_the_commands_say_what_is_held_and_whether_the_lake_knows(lakehouse: Lakehouse) -> None:
    with lakehouse.hot() as connection:
        insert_events(connection, "org-a", 1, 1)
    placed = lakehouse.run_json(
        "hold", "place", "--organization", "org-a-slug", "--table", "events", "--id", "org-a-e1", "--id", "typo",
        "--reason", "litigation 2026-114", "--by", "eva",
    )  # fmt: skip
    assert placed["organization"] == "org-a" and placed["row_keys"] == ["org-a-e1", "typo"]
    assert placed["unknown_ids"] == ["typo"] and placed["lake_errors"] == []
    listed = lakehouse.run("hold", "list", "--organization", "org-a").stdout
    assert placed["id"] in listed and "litigation 2026-114" in listed and "events: org-a-e1, typo" in listed
    done = lakehouse.run("hold", "release", placed["id"], "--reason", "settled")
    assert placed["id"] in done.stdout
    (listed,) = lakehouse.run_json("hold", "list", "--all")
    assert listed["mirrored"] is True and listed["placed_by"] == "eva"
    assert listed["released_reason"] == "settled" and "@" in listed["released_by"]


def maintain(lakehouse: Lakehouse) -> MaintenanceResult:
    result = maintain_table(lakehouse.app, lakehouse.app.contract("events"), "org-a")
    assert not result.errors, [str(e) for e in result.errors]
    return result


def tags(lakehouse: Lakehouse) -> dict[str, int]:
    refs = lakehouse.lake_table("events", "org-a").metadata.refs
    return {name: ref.snapshot_id for name, ref in refs.items() if name != "main"}


def mirrored_now(app: App) -> int:
    """Rows that maintenance wrote, without a fault."""
    done, errors = keep_archive(app)
    assert errors == []
    return done["holds_mirrored"]


def mirrored(lakehouse: Lakehouse) -> list[tuple[Any, ...]]:
    """The lake's table, as anybody reads it."""
    location = lakehouse.lake_table("_holds", "org-a").metadata_location
    with duck([lakehouse.app.address_of("org-a")]) as engine:
        columns = "hold_id, action, table_name, row_keys, reason, actor"
        return engine.execute(f"SELECT {columns} FROM {lake_relation(location)} ORDER BY decided_at").fetchall()


def waits_for_a_lock(lakehouse: Lakehouse) -> None:
    """Until an archive's session waits for the organization's lock."""
    deadline = time.monotonic() + 30
    with lakehouse.hot() as connection:
        while time.monotonic() < deadline:
            found = connection.execute(
                "SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.datname = current_database() "
                "AND l.locktype = 'advisory' AND NOT l.granted"
            ).fetchone()
            if found is not None:
                return
    raise AssertionError("nobody waits")


def _insert(lakehouse: Lakehouse, organization: str, reason: str) -> uuid.UUID:
    made = uuid.uuid4()
    with lakehouse.hot() as connection:
        connection.execute(
            "INSERT INTO lakehouse_archive.holds (id, organization_id, reason, placed_by) VALUES (%s, %s, %s, 'x')",
            [made, organization, reason],
        )
    return made
