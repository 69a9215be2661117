"""What a lake lost is said. It is filled from the hot database, by a backfill, which is its only source."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from federation.protocol import DestinationError
from lakehouse.backfill.run import BackfillResult, backfill_table
from lakehouse.deliver.run import resync
from lakehouse.landing.commit import FencedError
from lakehouse.status import read_status
from schemas.errors import Retry
from tests.conformance.lake.place import LakeStage
from tests.support import Inline, insert_events


class _Meanwhile(Inline):
    """Does something before a range is read, under the snapshot that the backfill has taken already."""

    def __init__(self, what: Callable[[], None]) -> None:
        self.what = what

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        self.what()
        return super().submit(function, task)


def _cleared(stage: LakeStage) -> None:
    stage.place.clear()
    stage.new_row()
    (error,) = stage.deliver()
    assert isinstance(error, FencedError), error


def a_vanished_table_is_said(stage: LakeStage) -> None:
    before = stage.place.stored()
    bring_back = stage.place.vanish("events")
    (found,) = stage.house.compare("events", "org-a")
    assert not found.equal and found.error is not None and found.error.retry is Retry.MANUAL
    assert "bring it back from the bucket's versions" in found.error.hint
    stage.new_row()
    (error,) = stage.deliver()
    # A window that reads what maintenance has just replaced finds its file gone too: it is tried again.
    assert error.retry is Retry.TIMED and "cannot be read" in error.detail
    (shown,) = [t for t in read_status(stage.house.app).tables if t.table == "events"]
    assert shown.state == "error" and "cannot be read" in str(shown.error)
    assert stage.place.stored() == before
    bring_back()
    stage.delivered()
    stage.equal()


def a_cleared_target_is_a_gap(stage: LakeStage) -> None:
    """An empty lake is not the beginning of a new one: nothing lands in it before somebody fills it."""
    _cleared(stage)
    before = stage.place.stored()
    assert stage.house.sync_ok("events").waiting == ["org-a"]
    assert stage.house.versions("events", "org-a") == [] and stage.place.stored() == before
    (shown,) = [t for t in read_status(stage.house.app).tables if t.table == "events"]
    assert shown.state == "never backfilled"
    (found,) = stage.house.compare("events", "org-a")
    assert (found.equal, found.missing) == (False, 11)
    stage.house.run("verify", "--table", "events", check=1)


def a_resync_fills_it_again(stage: LakeStage) -> None:
    with pytest.raises(DestinationError, match="ICEBERG_S3 is not fed by deliveries"):
        resync(stage.house.app, stage.destination, ["events"])
    _cleared(stage)
    assert stage.house.backfill("events").rows == {"org-a": 11}
    assert len(stage.place.ids("events")) == 11
    stage.house.assert_equal("events", "org-a")
    stage.new_row(80)
    stage.delivered()
    assert len(stage.place.ids("events")) == 12
    stage.house.assert_equal("events", "org-a")


def a_resync_goes_on_beside_deliveries(stage: LakeStage) -> None:
    """Windows land the others' rows while a lake is filled; what was written meanwhile is in its first window."""
    stage.second_organization()
    _cleared(stage)
    landed: list[dict[str, int]] = []

    def meanwhile() -> None:
        with stage.house.hot() as hot:
            insert_events(hot, "org-a", 80, 1)
            insert_events(hot, "org-b", 80, 1)
            hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e2'")
            hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e5'")
        landed.append(stage.house.sync_ok("events").upserts)

    done = backfill_table(stage.house.app, stage.house.app.contract("events"), _Meanwhile(meanwhile))
    assert (done.rows, done.errors, landed) == ({"org-a": 11}, {}, [{"org-b": 1}])
    assert stage.house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
    assert len(stage.place.ids("events")) == 11
    stage.house.assert_equal("events")


def who_fills_beside_another_gives_way(stage: LakeStage) -> None:
    _cleared(stage)
    others: list[BackfillResult] = []
    second = _Meanwhile(lambda: others.append(stage.house.backfill("events")))
    done = backfill_table(stage.house.app, stage.house.app.contract("events"), second)
    assert [(o.busy, o.read_rows) for o in others] == [(True, 0)]
    assert done.rows == {"org-a": 11} and not done.busy
    assert stage.snapshots() == 1
    stage.house.assert_equal("events", "org-a")


CASES = (
    a_vanished_table_is_said,
    a_cleared_target_is_a_gap,
    a_resync_fills_it_again,
    a_resync_goes_on_beside_deliveries,
    who_fills_beside_another_gives_way,
)
