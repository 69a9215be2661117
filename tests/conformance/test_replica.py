"""What only a replica has: other people's objects, native types, late versions, a server that holds other things."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from federation.kinds import DestinationKind
from federation.protocol import Delivery, DestinationError, ForeignTargetError
from lakehouse import destinations
from lakehouse.app import App
from lakehouse.archive import durable
from lakehouse.deliver import fill, run
from lakehouse.deliver.parity import DifferenceError
from lakehouse.deliver.plan import plan_deliveries
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import deliver_now, resync
from lakehouse.outbox import tasks
from lakehouse.worker.worker import Worker
from schemas.errors import LakehouseError, Retry
from tests.cold import REFERENCES, allow, archive_once, archive_variables, old_events
from tests.conformance.stage import Stage, add_another, more_columns
from tests.faults.proxy import Fault, PostgresProxy
from tests.support import insert_events


@pytest.fixture
def kind() -> DestinationKind:
    return DestinationKind.POSTGRES_REPLICA


def test_an_older_version_that_comes_late_changes_nothing(stage: Stage, there: psycopg.Connection[Any]) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        stage.house.sync_ok("events")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        stage.house.sync_ok("events", reconcile=True)
    stage.delivered()
    # Somebody set the mark back: all of the history is delivered once more, over what is newer.
    there.execute("UPDATE _lakehouse SET sequence = 0")
    contract = stage.house.app.contract("events")
    adapter = stage.adapter()
    with range_reader(stage.house.app, open_lake_table(stage.house.app, contract, "org-a")) as rows:
        adapter.deliver(Delivery("late", contract, 0, 10, 1), rows)
    adapter.close()
    assert there.execute("SELECT severity FROM events WHERE id = 'org-a-e1'").fetchall() == [("HIGH",)]
    assert there.execute("SELECT count(*) FROM events WHERE id = 'org-a-e2'").fetchall() == [(0,)]


def test_types_are_native_and_described(stage: Stage, there: psycopg.Connection[Any]) -> None:
    stage.delivered()
    types = dict(
        there.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'events'::regclass"
        ).fetchall()
    )
    assert types["payload"] == "jsonb" and types["occurred_at"] == "timestamp with time zone"
    assert there.execute("SELECT (payload->>'n')::int FROM events ORDER BY occurred_at LIMIT 1").fetchone() == (1,)
    comment = there.execute("SELECT col_description('events'::regclass, 1)").fetchone()
    assert comment is not None and comment[0]
    assert there.execute("SELECT count(*) FROM events_history").fetchone() == (10,)


def test_what_others_built_on_it_survives(stage: Stage, there: psycopg.Connection[Any]) -> None:
    stage.delivered()
    there.execute("CREATE VIEW mine AS SELECT severity, count(*) AS n FROM events GROUP BY 1")
    there.execute("CREATE INDEX mine_index ON _events (severity)")
    there.execute("ALTER TABLE _events ADD COLUMN theirs integer")
    stage.house.reopen(CONTRACTS=json.dumps(["builtin", str(more_columns(stage.folder))]))
    with stage.house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text DEFAULT 'eu'")
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    stage.delivered()
    assert there.execute("SELECT sum(n) FROM mine").fetchone() == (11,)
    assert there.execute("SELECT to_regclass('mine_index') IS NOT NULL").fetchone() == (True,)
    stage.equal()


def test_what_is_known_to_be_cleared_backs_no_archiving(
    stage: Stage, there: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, asked = stage.house, []

    def backing() -> durable.Backing:
        return durable.read_backing(house.app.engine, "org-a", "events", [DestinationKind.POSTGRES_REPLICA], None)

    house.variables |= archive_variables(stage.folder)
    house.reopen(ARCHIVE__RECEIPT_KINDS='["POSTGRES_REPLICA"]')
    allow(house, "org-a")
    with house.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
        old_events(hot, "org-a", 200, 5)
    house.sync_ok("events")
    stage.delivered()
    assert backing().sequence == 15
    there.execute("DELETE FROM _events")
    assert not stage.parity().equal
    assert (backing().sequence, backing().holding(1)) == (-1, ("ICEBERG_S3 lake",))
    assert archive_once(house, "events", "org-a").kept == {"no destination holds it": 5}
    (result,) = resync(house.app, stage.destination, ["events"])
    assert result.error is None and backing().sequence == 15
    # While it is filled anew, for whatever reason, nobody rests on it.
    monkeypatch.setattr(fill, "failpoint", lambda name: asked.append((name, backing().sequence)))
    resync(house.app, stage.destination, ["events"])
    assert asked and {sequence for _, sequence in asked} == {-1}
    assert backing().sequence == 15
    assert archive_once(house, "events", "org-a").rows == 5


@pytest.mark.parametrize(
    "harm",
    [
        "ALTER TABLE _events DROP COLUMN severity CASCADE",
        "CREATE TABLE nothing AS SELECT * FROM events WHERE false; CREATE OR REPLACE VIEW events AS TABLE nothing",
        "DROP VIEW events",
        "DROP INDEX _events_key",
    ],
)
def test_a_resync_mends_what_was_changed(stage: Stage, there: psycopg.Connection[Any], harm: str) -> None:
    stage.delivered()
    there.execute(harm)
    if "INDEX" not in harm:
        assert not stage.parity().equal
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    stage.equal()
    assert there.execute("SELECT count(severity) FROM events").fetchone() == (10,)
    assert there.execute("SELECT to_regclass('_events_key') IS NOT NULL").fetchone() == (True,)


def test_a_filling_leaves_a_strangers_table(stage: Stage, there: psycopg.Connection[Any]) -> None:
    house = stage.house
    stage.delivered()
    there.execute("CREATE TABLE _events_filling AS SELECT 'theirs' AS whose")
    (result,) = resync(house.app, stage.destination, ["events"])
    assert isinstance(result.error, ForeignTargetError) and "_events_filling is there" in result.error.detail
    there.execute("CREATE SCHEMA another")
    there.execute("GRANT ALL ON SCHEMA another TO PUBLIC")
    there.execute("CREATE TABLE another._events_filling AS SELECT 'theirs' AS whose")
    for (schema,) in there.execute("SELECT 'another' UNION SELECT current_schema()").fetchall():
        name = sql.Identifier(schema, "_events_filling")
        assert there.execute(sql.SQL("SELECT whose FROM {}").format(name)).fetchall() == [("theirs",)]
    # Before anything is made, too.
    (new,) = deliver_now(house.app, [add_another(stage, tables=["events"])], ["events"])
    assert isinstance(new.error, ForeignTargetError)
    assert there.execute("SELECT to_regclass('another._events') IS NULL").fetchone() == (True,)
    there.execute("DROP TABLE _events_filling")
    (result,) = resync(house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    stage.equal()


HARMS = (
    (
        "UPDATE events_history SET severity = 'LOW' WHERE id = 'org-a-e1' AND _sequence < 11",
        ("org-a-e1", "content", ("severity",)),
    ),
    (
        "UPDATE events_history SET _op = 'upsert' WHERE id = 'org-a-e2' AND _op = 'delete'",
        ("org-a-e2", "content", ("_op",)),
    ),
    ("DELETE FROM events_history WHERE id = 'org-a-e1' AND _sequence = 11", ("org-a-e1", "missing", ())),
    (
        "INSERT INTO events_history (_op, _sequence, _captured_at, _window, id, organization_id, occurred_at) "
        "VALUES ('upsert', 99, now(), 'w', 'org-a-e9', 'org-a', now())",
        ("org-a-e9", "extra", ()),
    ),
)


def test_one_altered_version_of_a_history_is_named_and_mended(stage: Stage, there: psycopg.Connection[Any]) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        stage.house.sync_ok("events")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        stage.house.sync_ok("events", reconcile=True)
    stage.delivered()
    found = stage.parity()
    assert found.equal and (found.rows, found.versions) == (9, 12), (found, str(found.error))
    for harm, wanted in HARMS:
        assert there.execute(harm).rowcount == 1
        found = stage.parity()
        assert not found.equal and found.rows == found.lake_rows
        (difference,) = found.differences
        assert (difference.key["id"], difference.kind, difference.columns) == wanted
        assert difference.aspect == "history"
        (result,) = resync(stage.house.app, stage.destination, ["events"])
        assert result.error is None, result.error
        stage.equal()
    counts = there.execute("SELECT count(*), count(*) FILTER (WHERE _op = 'delete') FROM events_history").fetchone()
    assert counts == (12, 1)


TRIGGER = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {} FOR EACH ROW {} EXECUTE FUNCTION refuse()
"""


@pytest.mark.parametrize(
    ("table", "condition", "said"),
    [
        ("_events", "WHEN (NEW._op = 'delete')", "range: occurred_at=.*, id=org-a-e2: missing"),
        ("events_history", "WHEN (NEW._op = 'delete')", "history: .*id=org-a-e2, _sequence=11: missing"),
    ],
    ids=["tombstone", "history"],
)
def test_a_delete_that_is_not_taken_is_seen_before_it_is_acknowledged(
    stage: Stage, there: psycopg.Connection[Any], table: str, condition: str, said: str
) -> None:
    """Somebody's trigger: the row would be shown for ever, and no version in the range would say so."""
    stage.delivered()
    there.execute(TRIGGER.format(table, condition))
    with stage.house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
    stage.house.sync_ok("events", reconcile=True)
    (error,) = stage.deliver()
    assert isinstance(error, DifferenceError) and re.search(said, error.detail), error


def test_a_deleted_row_that_a_view_shows_is_seen(stage: Stage, there: psycopg.Connection[Any]) -> None:
    stage.delivered()
    there.execute("CREATE TABLE kept AS TABLE _events; GRANT SELECT ON kept TO PUBLIC")
    shown = there.execute("SELECT pg_get_viewdef('events'::regclass)").fetchone()
    assert shown is not None and shown[0].count("FROM _events") == 1
    there.execute(f"CREATE OR REPLACE VIEW events AS {shown[0].replace('FROM _events', 'FROM kept')}")
    with stage.house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
    stage.house.sync_ok("events", reconcile=True)
    (error,) = stage.deliver()
    assert isinstance(error, DifferenceError) and "org-a-e2: missing" in error.detail, error


def test_a_resync_waits_for_no_reader(stage: Stage, there: psycopg.Connection[Any]) -> None:
    stage.delivered()
    with there.transaction():
        there.execute("SELECT count(*) FROM events")
        (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    stage.equal()


def test_what_cannot_be_mended_is_said(stage: Stage, there: psycopg.Connection[Any]) -> None:
    stage.delivered()
    there.execute("DROP VIEW events")
    there.execute("CREATE TABLE events (theirs text)")
    there.execute(
        sql.SQL("ALTER TABLE events OWNER TO {}").format(
            sql.Identifier(urlsplit(stage.place.credentials["url"]).username)
        )
    )
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is not None and result.error.retry is Retry.MANUAL
    assert '"events" is not a view' in result.error.detail and "drop what it names" in result.error.hint


def test_a_connection_that_is_refused_waits_for_a_person(stage: Stage) -> None:
    parts = urlsplit(stage.place.credentials["url"])
    for url in (
        urlunsplit(parts._replace(path="/nowhere")),
        urlunsplit(parts._replace(netloc=f"nobody:Canary@{parts.hostname}:{parts.port}")),
        urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.hostname}:{parts.port}")),
        urlunsplit(parts._replace(query="sslmode=require")),
    ):
        adapter = stage.adapter({"url": url})
        with pytest.raises(DestinationError) as caught:
            adapter.check()
        assert caught.value.retry is Retry.MANUAL, caught.value
    adapter = stage.adapter({"url": urlunsplit(parts._replace(netloc=f"u:p@{parts.hostname}:1"))})
    with pytest.raises(DestinationError) as caught:
        adapter.check()
    assert caught.value.retry is Retry.TIMED, caught.value


def test_a_replica_without_a_history_is_filled(stage: Stage, there: psycopg.Connection[Any]) -> None:
    house = stage.house
    house.reopen(DELIVER__FILL_BEHIND="2")
    with house.hot() as hot:
        for _ in range(3):
            hot.execute("UPDATE ingested_events SET source = gen_random_uuid()::text WHERE id = 'org-a-e1'")
            house.sync_ok("events")
    add_another(stage, tables=["events"])
    another = destinations.find(house.app, "another", "org-a")
    stage.destination = another
    deliver_now(house.app, [another], ["events"], step=4)
    assert stage.ranges() == [(0, 13)]
    assert there.execute("SELECT count(*), min(_sequence) FROM another._events").fetchone() == (10, 2)
    assert there.execute("SELECT to_regclass('another.events_history') IS NULL").fetchone() == (True,)
    stage.equal()
    with house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
        for _ in range(2):
            hot.execute("UPDATE ingested_events SET source = gen_random_uuid()::text WHERE id = 'org-a-e1'")
            house.sync_ok("events")

    def broken(name: str) -> None:
        if name == "delivery.taken":
            raise DestinationError("it broke off", retry=Retry.TIMED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "failpoint", broken)
        (result,) = deliver_now(house.app, [another], ["events"])
        assert result.error is not None and "broke off" in result.error.detail
    # The next attempt finds it filled, without the delete that the range holds.
    (result,) = deliver_now(house.app, [another], ["events"])
    assert (result.error, stage.ranges()) == (None, [(0, 13), (13, 16)])
    assert there.execute("SELECT count(*), min(_sequence) FROM another._events").fetchone() == (9, 3)
    stage.equal()


def test_a_history_is_no_history_where_it_was_not_kept(stage: Stage) -> None:
    house = stage.house

    def anew(number: int, *, history: bool) -> list[LakehouseError]:
        with house.hot() as hot:
            hot.execute("UPDATE ingested_events SET source = %s WHERE id = 'org-a-e1'", [f"source {number}"])
        house.sync_ok("events")
        destinations.remove(house.app, stage.destination)
        stage.destination = add_another(stage, config={"schema": "another", "history": history}, tables=["events"])
        return stage.deliver()

    for round_ in (0, 4):
        assert anew(round_ + 1, history=False) == []
        stage.equal()
        (error,) = anew(round_ + 2, history=True)
        assert "kept no history" in error.detail and error.retry is Retry.NEVER
        found = stage.parity()
        assert not found.equal and "kept no history" in (found.fault or "")
        (result,) = resync(house.app, stage.destination, ["events"])
        assert result.error is None, result.error
        stage.delivered()
        stage.equal()
        assert stage.parity().versions == 10 + round_ + 2
        assert anew(round_ + 3, history=True) == []
        stage.equal()
        assert anew(round_ + 4, history=False) == []


def test_a_destination_that_hangs_takes_one_place(stage: Stage) -> None:
    """Of two: what the lake is for goes on in the other."""
    house = stage.house
    house.backfill("audit_log")
    with house.hot() as hot:
        hot.execute(
            "INSERT INTO tenant_audit_logs (id, organization_id, action, target_type, target_id) "
            "VALUES ('a1', 'org-a', 'login', 'user', 'u1')"
        )
    house.sync_ok("audit_log")
    with PostgresProxy(stage.place.credentials["url"]) as proxy:
        destinations.edit(house.app, stage.destination, tables=["*"], credentials={"url": proxy.url})
        app = house.reopen(WORK__CONCURRENCY="2", WORK__POLL_SECONDS="0.05")
        fault = proxy.arm(Fault("hold", lambda request: request.text == "(connect)", times=None))
        assert len(plan_deliveries(app.engine, ["events", "audit_log"], behind=100, early=True)) == 2
        stop = threading.Event()
        worker = Worker(app, stop)
        worker.start()
        assert fault.held.wait(30)
        with house.hot() as hot:
            insert_events(hot, "org-a", 70, 1)
        tasks.make_due(app.engine, [(tasks.CAPTURE, "events")])
        for _ in range(600):
            if landed(app) == 11:
                break
            stop.wait(0.05)
        assert landed(app) == 11 and fault.hits == 1
        stop.set()
        proxy.calm()
        worker.join(time.monotonic() + 30)
    destinations.edit(house.app, stage.destination, credentials=stage.place.credentials)
    stage.delivered()
    stage.equal()


def landed(app: App) -> int:
    with app.engine.connect() as connection:
        found: int = connection.exec_driver_sql("SELECT sequence FROM cursors WHERE table_name = 'events'").scalar_one()
    return found
