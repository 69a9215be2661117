"""What is there after deliveries, in whatever order, size and number they came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from federation.kinds import DestinationKind
from federation.protocol import GapError
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import deliver_now, resync
from lakehouse.maintenance.run import maintain_table
from tests.archiver import archive_rows, enable
from tests.conformance.stage import Stage, more_columns
from tests.support import insert_events


def first_delivery_creates_what_it_needs(stage: Stage) -> None:
    stage.delivered()
    assert len(stage.place.ids("events")) == 10
    stage.equal()


def repeated_delivery_changes_nothing(stage: Stage) -> None:
    stage.delivered()
    before = stage.place.stored()
    adapter = stage.adapter()
    contract = stage.house.app.contract("events")
    with range_reader(stage.house.app, open_lake_table(stage.house.app, contract, "org-a")) as rows:
        for piece in stage.pieces(0, 10):
            assert adapter.deliver(piece, rows).rows == 0
    adapter.close()
    assert stage.place.stored() == before


def out_of_order_puts_no_older_version_over_a_newer(stage: Stage) -> None:
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        stage.house.sync_ok("events")
    contract = stage.house.app.contract("events")
    adapter = stage.adapter()
    adapter.prepare(contract)
    with range_reader(stage.house.app, open_lake_table(stage.house.app, contract, "org-a")) as rows:
        early, late = stage.pieces(0, 10, 11)
        with pytest.raises(GapError):
            adapter.deliver(late, rows)
        adapter.deliver(early, rows)
        adapter.deliver(late, rows)
        adapter.deliver(early, rows)
    adapter.close()
    stage.delivered()
    stage.equal()


def deletes_show_as_deleted(stage: Stage) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e1', 'org-a-e50')")
        stage.house.sync_ok("events", reconcile=True)
        stage.delivered()
        assert len(stage.place.ids("events")) == 8
        stage.equal()
        insert_events(hot, "org-a", 1, 1)
        stage.house.sync_ok("events", reconcile=True)
    stage.delivered()
    assert len(stage.place.ids("events")) == 9
    stage.equal()


def archived_rows_stay_by_every_method(stage: Stage) -> None:
    stage.delivered()
    house = stage.house
    enable(house)
    house.sync_ok("events", reconcile=True)
    with house.hot() as hot:
        archive_rows(house, "events", "org-a", ["org-a-e1", "org-a-e50"])
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
        stage.delivered()
        assert len(stage.place.ids("events")) == 9
        stage.equal()
        house.run("source", "prepare", "--apply", "--table", "events")
        house.reopen(CAPTURE__METHODS='{"events": "trigger"}')
        house.sync_ok("events")
        archive_rows(house, "events", "org-a", ["org-a-e3", "org-a-e51"])
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e4'")
        assert house.sync_ok("events").deletes == {"org-a": 1}
    stage.delivered()
    assert stage.place.ids("events") >= {"org-a-e1", "org-a-e3", "org-a-e50", "org-a-e51"}
    assert len(stage.place.ids("events")) == 8
    stage.equal()


def an_added_column_arrives_without_a_break(stage: Stage) -> None:
    stage.delivered()
    stage.house.reopen(CONTRACTS=json.dumps(["builtin", str(more_columns(stage.folder))]))
    with stage.house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text DEFAULT 'eu'")
        insert_events(hot, "org-a", 70, 1)
    assert stage.parity().equal, "the contract has it, and nothing was landed yet"
    stage.house.sync_ok("events")
    stage.delivered()
    assert len(stage.place.ids("events")) == 11
    stage.equal()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET region = 'us' WHERE id = 'org-a-e70'")
    stage.house.sync_ok("events")
    stage.delivered()
    stage.equal()
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None
    stage.equal()


def ranges_outlive_expiry_and_compaction(stage: Stage) -> None:
    house = stage.house
    stage.delivered()
    with house.hot() as hot:
        for number in range(4):
            insert_events(hot, "org-a", 100 + number, 1)
            house.sync_ok("events")
    house.reopen(MAINTENANCE__KEEP_SNAPSHOTS="1", MAINTENANCE__KEEP_DAILY="0", MAINTENANCE__SETTLED_HOURS="0")
    done = maintain_table(house.app, house.app.contract("events"), "org-a")
    assert done.files_merged > 1 and not done.errors
    maintain_table(house.app, house.app.contract("events"), "org-a")
    assert len(house.lake_table("events", "org-a").snapshots()) == 1
    stage.delivered()
    assert len(stage.place.ids("events")) == 14
    stage.equal()


def small_steps_reach_the_same_end(stage: Stage) -> None:
    deliver_now(stage.house.app, [stage.destination], ["events"], step=3)
    stage.equal()
    # One that keeps no history is new, and filled at once.
    assert stage.ranges() == ([(0, 3), (3, 6), (6, 9), (9, 10)] if stage.every_version else [(0, 10)])


def one_that_is_new_or_far_behind_is_filled(stage: Stage) -> None:
    """From the lake's current state, and not with each version; one with a history gets them all."""
    house = stage.house
    house.reopen(DELIVER__FILL_BEHIND="2")
    with house.hot() as hot:

        def change(times: int) -> None:
            for _ in range(times):
                hot.execute("UPDATE ingested_events SET source = gen_random_uuid()::text WHERE id = 'org-a-e1'")
                house.sync_ok("events")

        change(2)
        stage.delivered()
        assert (stage.ranges(), stage.versions()) == ([(0, 12)], 12 if stage.every_version else 10)
        change(2)
        stage.delivered()
        assert (stage.ranges()[1:], stage.versions()) == ([(12, 14)], 14 if stage.every_version else 12)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
        change(2)
    stage.delivered()
    assert (stage.ranges()[2:], stage.versions()) == ([(14, 17)], 17 if stage.every_version else 9)
    assert len(stage.place.ids("events")) == 9
    stage.equal()


def two_workers_with_one_range(stage: Stage) -> None:
    contract = stage.house.app.contract("events")
    first, second = stage.adapter(), stage.adapter()
    first.prepare(contract)
    second.prepare(contract)
    app = stage.house.app
    with (
        range_reader(app, open_lake_table(app, contract, "org-a")) as rows,
        range_reader(app, open_lake_table(app, contract, "org-a")) as more,
    ):
        once: list[int] = []

        def meanwhile(after: int, upto: int) -> Iterator[Any]:
            if stage.place.kind is not DestinationKind.POSTGRES_REPLICA and not once:
                once.append(first.deliver(stage.pieces(0, 10)[0], more).rows)
            yield from rows(after, upto)

        # The slower one has the shorter range: what it writes last must not take back what the faster one brought.
        assert second.deliver(stage.pieces(0, 8)[0], meanwhile).sequence >= 8
        if not once:
            assert first.deliver(stage.pieces(0, 10)[0], more).rows == 2
    first.close()
    second.close()
    assert len(stage.place.ids("events")) == 10
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
