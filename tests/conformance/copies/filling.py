"""What was lost there is said, and is filled anew."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from federation.protocol import (
    Filling,
    FillingTakenError,
    GapError,
)
from lakehouse import destinations
from lakehouse.deliver.fill import Place as Filled
from lakehouse.deliver.fill import fill
from lakehouse.deliver.ranges import open_lake_table
from lakehouse.deliver.run import resync
from lakehouse.status import read_status
from schemas.errors import Retry
from tests.conformance.stage import Stage, alter
from tests.support import insert_events


def a_vanished_table_is_said(stage: Stage) -> None:
    stage.delivered()
    stage.place.vanish("events")
    found = stage.parity()
    assert not found.equal and found.error is not None and found.error.retry is Retry.MANUAL
    assert "resync" in found.error.hint


def a_cleared_target_is_a_gap(stage: Stage) -> None:
    stage.delivered()
    stage.place.clear()
    found = stage.parity()
    assert not found.equal and isinstance(found.error, GapError), "nothing there is not the lake's beginning"
    assert stage.place.stored() == {}, "looking makes nothing"
    stage.house.run("parity", check=1)
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    (error,) = stage.deliver()
    assert isinstance(error, GapError) and "resync" in error.hint


def a_resync_fills_it_again(stage: Stage) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events", reconcile=True)
    for harm in (lambda: stage.place.vanish("events"), lambda: alter(stage), stage.place.clear):
        harm()
        (result,) = resync(stage.house.app, stage.destination, ["events", "findings"])[:1]
        assert result.error is None, result.error
        assert len(stage.place.ids("events")) == 10
        stage.equal()
    stage.delivered()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 80, 1)
    stage.house.sync_ok("events")
    stage.delivered()
    stage.equal()


def a_resync_goes_on_beside_deliveries(stage: Stage) -> None:
    stage.delivered()
    house = stage.house
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
    house.sync_ok("events")
    stage.delivered()
    alter(stage)
    house.reopen(DELIVER__FILL_ROWS="4")
    contract = house.app.contract("events")
    lake = open_lake_table(house.app, contract, "org-a")
    adapter = stage.adapter()
    turns = itertools.count()

    def meanwhile() -> None:
        assert stage.parity().differences, "what was there is read all the while"
        if next(turns) != 1:
            return
        (progress,) = destinations.find(house.app, "there", "org-a").fillings
        assert (progress.table, progress.rows, progress.of) == ("events", 6 + adapter.every_version, 11)
        assert str(progress.reached).startswith("2026-01-01")
        (shown,) = read_status(house.app).destinations
        assert (shown.state, shown.filled) == ("filling", (progress.rows, 11))
        with house.hot() as hot:
            insert_events(hot, "org-a", 70, 1)
            hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e2'")
        house.sync_ok("events")
        stage.delivered()
        assert len(stage.place.ids("events")) == 11

    receipt, _ = fill(house.app, adapter, Filled(stage.destination.id, contract, "org-a", meanwhile))
    adapter.close()
    assert destinations.find(house.app, "there", "org-a").fillings == []
    assert (receipt.rows, receipt.sequence) == (10 + adapter.every_version, lake.sequence + 2)
    assert len(stage.place.ids("events")) == 11
    stage.equal()
    with house.hot() as hot:
        insert_events(hot, "org-a", 80, 1)
    house.sync_ok("events")
    stage.delivered()
    stage.equal()


def who_fills_beside_another_gives_way(stage: Stage) -> None:
    stage.delivered()
    contract = stage.house.app.contract("events")
    adapter = stage.adapter()
    begun = Filling("f", 10, contract.version, adapter.every_version, 10)
    assert adapter.take(contract, None, iter(()), lambda: begun) == begun == adapter.filling(contract)
    further = dataclasses.replace(begun, rows=1)
    adapter.take(contract, begun, iter(()), lambda: further)
    for late in (
        lambda: adapter.take(contract, begun, iter(()), lambda: begun),
        lambda: adapter.replace(contract, begun, 1),
    ):
        with pytest.raises(FillingTakenError) as caught:
            late()
        assert caught.value.retry is Retry.TIMED
    adapter.close()
    stage.equal()
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    stage.equal()


CASES = (
    a_vanished_table_is_said,
    a_cleared_target_is_a_gap,
    a_resync_fills_it_again,
    a_resync_goes_on_beside_deliveries,
    who_fills_beside_another_gives_way,
)
