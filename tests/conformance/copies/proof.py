"""What differs is found, named, and stays said until it is mended."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from federation.kinds import DeliveryStatus, DestinationKind
from federation.protocol import Delivery
from lakehouse import destinations
from lakehouse.deliver import run
from lakehouse.deliver.parity import DifferenceError
from lakehouse.deliver.run import resync
from lakehouse.retention.apply import apply as let_days_go
from lakehouse.retention.policy import set_retention
from lakehouse.status import read_status
from lakehouse.worker.plan import plan_parity
from lakehouse.worker.worker import Worker
from schemas.errors import Retry
from tests.conformance.stage import Stage, alter
from tests.support import insert_events


def one_altered_value_is_named(stage: Stage) -> None:
    stage.delivered()
    alter(stage)
    found = stage.parity()
    assert not found.equal
    (difference,) = found.differences
    assert (difference.key["id"], difference.kind, difference.columns) == ("org-a-e3", "content", ("severity",))
    done = stage.house.run("parity", check=1)
    assert "org-a-e3" in done.stdout and "severity" in done.stdout


def a_delivery_is_compared_before_it_is_acknowledged(stage: Stage) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'INFO', source = 'x' WHERE id = 'org-a-e3'")
    stage.house.sync_ok("events")
    adapter = stage.adapter()
    deliver = type(adapter).deliver

    def altered(self: Any, delivery: Delivery, rows: Any) -> Any:
        receipt = deliver(self, delivery, rows)
        alter(stage)
        return receipt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(adapter), "deliver", altered)
        (error,) = stage.deliver()[:1]
    adapter.close()
    assert isinstance(error, DifferenceError) and error.retry is Retry.MANUAL
    assert "org-a-e3: content severity" in error.detail
    (row,) = destinations.deliveries(stage.house.app, destination=str(stage.destination.id))
    assert row["status"] in (DeliveryStatus.FAILED.value, DeliveryStatus.DEAD_LETTER.value)
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None
    stage.delivered()
    stage.equal()


def a_difference_is_said_at_every_attempt(stage: Stage) -> None:
    """An attempt that has nothing to write compares what the first one brought, until it is mended."""
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'INFO', source = 'x' WHERE id = 'org-a-e3'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
    stage.house.sync_ok("events", reconcile=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "failpoint", lambda name: alter(stage) if name == "delivery.taken" else None)
        (first,) = stage.deliver()
    for error in (first, *stage.deliver(), *stage.deliver()):
        assert isinstance(error, DifferenceError) and "org-a-e3: content severity" in error.detail
    stage.house.run("deliver", check=1)
    (row,) = destinations.deliveries(stage.house.app, destination=str(stage.destination.id))
    assert (row["status"], row["attempts"]) == (DeliveryStatus.FAILED.value, 4)
    with stage.house.app.engine.connect() as connection:
        known = connection.exec_driver_sql("SELECT table_name, detail FROM destination_differences").fetchall()
    assert [(table, "org-a-e3" in detail) for table, detail in known] == [("events", True)]
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    # Filled anew, it has no delete of what it was not filled with, and is asked for none.
    stage.delivered()
    stage.equal()


def parity_on_schedule_stands_until_it_is_mended(stage: Stage) -> None:
    stage.delivered()
    app = stage.house.app
    assert plan_parity(app.engine, 3600) == ["parity"] and plan_parity(app.engine, 3600) == []
    worker = Worker(app, threading.Event())
    assert worker.once()
    assert destinations.find(app, "there", "org-a").last_error is None
    assert plan_parity(app.engine, 3600) == [], "not before its time"
    alter(stage)
    assert plan_parity(app.engine, 0) == ["parity"] and worker.once()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    stage.delivered()
    assert [(d.state, d.lag) for d in read_status(app).destinations] == [("differs", 0)]
    said = destinations.find(app, "there", "org-a").last_error
    assert said is not None and "org-a-e3" in said and "severity" in said, said
    (result,) = resync(app, stage.destination, ["events"])
    assert result.error is None
    assert plan_parity(app.engine, 0) == ["parity"] and worker.once()
    assert destinations.find(app, "there", "org-a").last_error is None
    if stage.place.kind is DestinationKind.POSTGRES_REPLICA:
        shown = stage.house.run("status").stdout
        assert "no expiry waits for one" in shown and "there" in shown


def days_that_left_the_lake_are_no_difference(stage: Stage) -> None:
    stage.delivered()
    house = stage.house
    with house.hot() as hot:
        # As the archive leaves it: gone from the hot table, and no delete in the lake.
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e50', 'org-a-e51')")
    set_retention(house.app, "org-a", 1, reason="r", by="me")
    house.clock.offset = timedelta(days=800)
    (applied,) = let_days_go(house.app, "org-a", reason="r", by="me")
    assert [str(d.day) for d in applied.days] == ["2026-03-02"]
    found = stage.parity()
    assert (found.equal, found.rows, found.lake_rows, found.ended) == (True, 10, 8, 2), found
    with house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
        house.sync_ok("events", reconcile=True)
    stage.delivered()
    assert {"org-a-e50", "org-a-e70"} <= stage.place.ids("events"), "it keeps what it has"
    found = stage.parity()
    assert (found.equal, found.ended, found.differences) == (True, 2, [])
    alter(stage)
    found = stage.parity()
    assert (found.equal, [d.key["id"] for d in found.differences]) == (False, ["org-a-e3"])
    (result,) = resync(house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    assert "org-a-e50" not in stage.place.ids("events"), "filled anew, it is what the lake is"
    stage.equal()


CASES = (
    one_altered_value_is_named,
    a_delivery_is_compared_before_it_is_acknowledged,
    a_difference_is_said_at_every_attempt,
    parity_on_schedule_stands_until_it_is_mended,
    days_that_left_the_lake_are_no_difference,
)
