"""What differs between lake and hot database is found, named, and stays said until it is mended."""

from __future__ import annotations

import signal
from datetime import timedelta

from lakehouse.landing.parquet import StagedFileError
from lakehouse.retention.apply import apply as let_days_go
from lakehouse.retention.policy import set_retention
from lakehouse.status import read_status
from lakehouse.worker.plan import plan_parity
from tests.conformance.lake.place import LakeStage
from tests.support import insert_events


def _alter(stage: LakeStage) -> None:
    for key in stage.place.files("events"):
        if "2026-01-01" in key:
            stage.place.alter(key)


def _verified(stage: LakeStage, *, equal: bool) -> str:
    return stage.house.run("verify", "--table", "events", check=0 if equal else 1).stdout


def one_altered_value_is_named(stage: LakeStage) -> None:
    _alter(stage)
    (found,) = stage.house.compare("events", "org-a")
    assert not found.equal
    (difference,) = found.differences
    assert (difference.key["id"], difference.kind, difference.columns) == ("org-a-e3", "content", ("severity",))
    said = _verified(stage, equal=False)
    assert "org-a-e3" in said and "severity" in said


def a_delivery_is_compared_before_it_is_acknowledged(stage: LakeStage) -> None:
    """A share that lay there since its worker died is compared with what was recorded of it, and read again."""
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET source = 'x' WHERE id = 'org-a-e3'")
    done = stage.house.run("sync", "--once", "--table", "events", failpoints="landing.recorded=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    (staged,) = stage.place.staged("events")
    stage.place.alter(staged)
    stage.lease_runs_out()
    (error,) = stage.deliver()
    assert isinstance(error, StagedFileError), error
    stage.delivered()
    assert staged not in stage.place.files("events")
    assert {v["severity"] for v in stage.house.versions("events", "org-a")} == {"INFO"}
    stage.equal()


def a_difference_is_said_at_every_attempt(stage: LakeStage) -> None:
    """A share that is altered wherever it lies is refused each time, and read again instead of acknowledged."""
    seen: set[str] = set()
    for number in range(2):
        with stage.house.hot() as hot:
            hot.execute("UPDATE ingested_events SET source = %s WHERE id = 'org-a-e3'", [f"x{number}"])
        done = stage.house.run("sync", "--once", "--table", "events", failpoints="landing.recorded=kill", check=None)
        assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
        (staged,) = set(stage.place.staged("events")) - seen
        seen.add(staged)
        stage.place.alter(staged)
        stage.lease_runs_out()
        (error,) = stage.deliver()
        assert isinstance(error, StagedFileError), error
        assert staged not in stage.place.files("events")
        stage.delivered()
        assert {v["severity"] for v in stage.house.versions("events", "org-a")} == {"INFO"}
    stage.equal()


def parity_on_schedule_stands_until_it_is_mended(stage: LakeStage) -> None:
    """Copies are compared with the lake on a schedule. It is not its own copy: `verify` compares it with its source."""
    assert plan_parity(stage.house.app.engine, 0) == [], "nothing is fed by deliveries"
    _alter(stage)
    for number in (70, 71):
        assert "org-a-e3" in _verified(stage, equal=False)
        stage.new_row(number)
        stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET source = source WHERE id = 'org-a-e3'")
    stage.delivered()
    _verified(stage, equal=True)
    # What keeps it from landing stands in the status, round after round.
    stage.place.take_mark("events")
    for number in (72, 73):
        stage.new_row(number)
        stage.deliver()
        (shown,) = [t for t in read_status(stage.house.app).tables if t.table == "events"]
        assert shown.state == "needs a person" and "org-z" in str(shown.error)
    stage.place.give_back()
    stage.delivered()
    (shown,) = [t for t in read_status(stage.house.app).tables if t.table == "events"]
    assert (shown.state, shown.error) == ("current", None)
    stage.equal()


def days_that_left_the_lake_are_no_difference(stage: LakeStage) -> None:
    house = stage.house
    with house.hot() as hot:
        # As the archive leaves it: gone from the hot table, and no delete in the lake.
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e50', 'org-a-e51')")
    set_retention(house.app, "org-a", 1, reason="r", by="me")
    house.clock.offset = timedelta(days=800)
    (applied,) = let_days_go(house.app, "org-a", reason="r", by="me")
    assert [str(d.day) for d in applied.days] == ["2026-03-02"]
    assert len(stage.place.ids("events")) == 8
    stage.equal()
    with house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    assert house.sync_ok("events", reconcile=True).deletes.get("org-a", 0) == 0, "what has left is no delete"
    assert len(stage.place.ids("events")) == 9
    stage.equal()


CASES = (
    one_altered_value_is_named,
    a_delivery_is_compared_before_it_is_acknowledged,
    a_difference_is_said_at_every_attempt,
    parity_on_schedule_stands_until_it_is_mended,
    days_that_left_the_lake_are_no_difference,
)
