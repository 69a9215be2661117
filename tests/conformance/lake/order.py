"""What is in the lake after landings, in whatever order, size and number they came."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from federation.kinds import DestinationStatus
from lakehouse import destinations, sync
from lakehouse.landing.commit import FencedError, Landed
from tests.conformance.copies.order import (
    archived_rows_stay_by_every_method,
    deletes_show_as_deleted,
    ranges_outlive_expiry_and_compaction,
)
from tests.conformance.lake.place import LakeStage, landings
from tests.conformance.stage import more_columns
from tests.support import insert_events

if TYPE_CHECKING:
    from pyiceberg.table import Table


def first_delivery_creates_what_it_needs(stage: LakeStage) -> None:
    assert stage.ranges() == [(0, 10)], "the backfill acknowledged it"
    assert len(stage.place.ids("events")) == 10
    stage.equal()
    # A table that was never landed is not there; its first landing makes it.
    assert set(stage.place.stored()) == {f"{stage.place.namespace}.events"}
    with stage.house.hot() as hot:
        hot.execute(
            "INSERT INTO siem_deliveries (id, organization_id, stream, payload, updated_at) "
            "VALUES ('d1', 'org-a', 'EVENTS', '{}', now())"
        )
    stage.house.backfill("siem_deliveries")
    assert stage.place.ids("siem_deliveries") == {"d1"}
    stage.house.assert_equal("siem_deliveries")


def repeated_delivery_changes_nothing(stage: LakeStage) -> None:
    stage.new_row()
    with landings() as landed:
        stage.delivered()
    before, ranges = stage.place.stored(), stage.ranges()
    (again,) = landed
    assert again().cursor.sequence == 11
    assert stage.place.stored() == before
    # Nor does a window in which nothing happened.
    stage.delivered()
    assert (stage.place.stored(), stage.ranges()) == (before, ranges)
    stage.equal()


def out_of_order_puts_no_older_version_over_a_newer(stage: LakeStage) -> None:
    """There is one order of landings: each is fenced by the one that it was read after."""
    with landings() as landed:
        for severity in ("HIGH", "LOW"):
            with stage.house.hot() as hot:
                hot.execute(f"UPDATE ingested_events SET severity = '{severity}' WHERE id = 'org-a-e1'")  # type: ignore[arg-type]
            stage.delivered()
    before = stage.place.stored()
    older, newer = landed
    with pytest.raises(FencedError, match="another program landed between"):
        older()
    newer()
    assert stage.place.stored() == before
    versions = stage.house.versions("events", "org-a")
    assert [v["severity"] for v in versions if v["id"] == "org-a-e1"] == ["INFO", "HIGH", "LOW"]
    stage.equal()


def an_added_column_arrives_without_a_break(stage: LakeStage) -> None:
    stage.house.reopen(CONTRACTS=json.dumps(["builtin", str(more_columns(stage.folder))]))
    with stage.house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text DEFAULT 'eu'")
        insert_events(hot, "org-a", 70, 1)
    stage.delivered()
    stage.equal()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET region = 'us' WHERE id = 'org-a-e70'")
    stage.delivered()
    stage.equal()
    regions = [(v["id"], v["region"]) for v in stage.house.versions("events", "org-a")]
    assert regions[:10] == [(i, None) for i, _ in regions[:10]], "what was landed before is as it was"
    assert regions.count(("org-a-e1", "eu")) == 1 and regions[-1] == ("org-a-e70", "us")


def small_steps_reach_the_same_end(stage: LakeStage) -> None:
    """A landing of more days than one commit may have comes in parts, and is one delivery."""
    stage.house.reopen(LANDING__MAX_PARTITIONS="1")
    before = stage.snapshots()
    with stage.house.hot() as hot:
        for number, day in ((70, "2026-04-01"), (71, "2026-04-02"), (72, "2026-04-03")):
            insert_events(hot, "org-a", number, 1, day=day)
    stage.delivered()
    assert (stage.snapshots() - before, stage.ranges()) == (3, [(0, 10), (10, 13)])
    stage.equal()


def one_that_is_new_or_far_behind_is_filled(stage: LakeStage) -> None:
    """From the hot database's current state, and not with each version that there was meanwhile."""
    app = stage.house.app
    destinations.set_status(app, stage.destination, DestinationStatus.PAUSED)
    with stage.house.hot() as hot:
        for _ in range(3):
            hot.execute("UPDATE ingested_events SET source = gen_random_uuid()::text WHERE id = 'org-a-e1'")
            stage.delivered()
        assert stage.ranges() == [(0, 10)], "a lake that is paused is not captured"
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
    destinations.set_status(app, stage.destination, DestinationStatus.ACTIVE)
    stage.house.sync_ok("events", reconcile=True)
    assert stage.ranges() == [(0, 10), (10, 12)]
    assert len(stage.house.versions("events", "org-a")) == 12
    stage.equal()


def two_workers_with_one_range(stage: LakeStage) -> None:
    """One whose lease ran out still lands what another has taken over: both at once, and it is there once."""
    land, gate, found = sync.land, threading.Barrier(2), []

    def one(table: Table, *share: Any, **options: Any) -> Landed:
        fresh = table.catalog.load_table(table.name())
        gate.wait(30)
        return land(fresh, *share, **options)

    def both(table: Table, *share: Any, **options: Any) -> Landed:
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(one, table, *share, most_partitions=options["most_partitions"])
            found.extend([one(table, *share, **options), other.result()])
        return found[0]

    stage.new_row()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync, "land", both)
        stage.delivered()
    mine, others = found
    assert mine == others
    assert (stage.snapshots(), stage.ranges()) == (2, [(0, 10), (10, 11)])
    assert len(stage.house.versions("events", "org-a")) == 11
    stage.equal()


CASES = (
    first_delivery_creates_what_it_needs,
    repeated_delivery_changes_nothing,
    out_of_order_puts_no_older_version_over_a_newer,
    deletes_show_as_deleted,
    archived_rows_stay_by_every_method,
    an_added_column_arrives_without_a_break,
    ranges_outlive_expiry_and_compaction,
    small_steps_reach_the_same_end,
    one_that_is_new_or_far_behind_is_filled,
    two_workers_with_one_range,
)
