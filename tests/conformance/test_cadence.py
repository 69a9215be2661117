"""When a delivery is due by itself. Which ranges there are does not depend on the kind; it is asked of one."""

from __future__ import annotations

import pytest

from federation.kinds import DestinationKind
from lakehouse import destinations
from lakehouse.deliver.plan import STEP, plan_deliveries
from tests.conformance.stage import Stage
from tests.support import insert_events


@pytest.fixture
def kind() -> DestinationKind:
    return DestinationKind.PARQUET_S3


def _due(stage: Stage, delivered_ago: float, step: int = STEP) -> list[tuple[int, int]]:
    """The ranges that are planned by themselves so long after the last delivery; they are taken back."""
    deliveries = "warehouse_deliveries WHERE destination_id = %s AND status = "
    with stage.house.app.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE warehouse_deliveries SET delivered_at = clock_timestamp() - make_interval(secs => %s) "
            "WHERE destination_id = %s",
            (delivered_ago, stage.destination.id),
        )
    plan_deliveries(stage.house.app.engine, ["events"], behind=5_000_000, step=step)
    with stage.house.app.engine.begin() as connection:
        rows = connection.exec_driver_sql(
            f"DELETE FROM {deliveries}'PENDING' RETURNING sequence_after, sequence_upto", (stage.destination.id,)
        )
        return [(row[0], row[1]) for row in rows]


def _land(stage: Stage, first: int, count: int) -> None:
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", first, count)
    stage.house.sync_ok("events")


def test_what_landed_waits_for_the_cadence_of_its_table(stage: Stage) -> None:
    """The table's, where it has one, be it shorter or longer; else the destination's, 900 s here."""
    stage.delivered()
    assert _due(stage, 10_000) == [], "nothing landed"
    _land(stage, 70, 2)
    for own, cadence in ((None, 900), (60, 60), (3600, 3600), (None, 900)):
        destinations.edit(stage.house.app, stage.destination, table_cadences={"events": own})
        assert _due(stage, cadence - 30) == []
        assert _due(stage, cadence + 1) == [(10, 12)]


def test_a_whole_step_waits_for_no_cadence(stage: Stage) -> None:
    """What a paused destination missed is brought at once, step by step; the rest of it waits as usual."""
    stage.delivered()
    _land(stage, 70, 2)
    assert _due(stage, 0, step=3) == []
    _land(stage, 80, 1)
    assert _due(stage, 0, step=3) == [(10, 13)]
    assert _due(stage, 0, step=2) == [(10, 12)]
    assert _due(stage, 0) == []
