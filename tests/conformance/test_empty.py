"""A table that was backfilled and has had no row yet is delivered, compared and filled anew like any other."""

from __future__ import annotations

import pytest

from federation.config import COPYING
from lakehouse import destinations
from lakehouse.deliver.parity import parity
from lakehouse.deliver.run import deliver_now, resync
from tests.conformance.stage import Stage

TABLE = "siem_deliveries"


def equal(stage: Stage, rows: int) -> None:
    (found,) = parity(stage.house.app, [stage.destination], [TABLE])
    assert found.equal and (found.lag, found.rows) == (0, rows), (found, str(found.error))


@pytest.mark.parametrize("kind", COPYING, ids=lambda k: k.value)
def test_a_table_without_a_row_is_equal(stage: Stage) -> None:
    app = stage.house.app
    stage.destination = destinations.edit(app, stage.destination, tables=["events", TABLE])
    stage.house.backfill(TABLE)
    assert deliver_now(app, [stage.destination], [TABLE]) == []
    equal(stage, 0)
    (filled,) = resync(app, stage.destination, [TABLE])
    assert filled.error is None, filled.error
    equal(stage, 0)
    with stage.house.hot() as hot:
        hot.execute(
            "INSERT INTO siem_deliveries (id, organization_id, stream, payload, updated_at) "
            "VALUES ('d1', 'org-a', 'EVENTS', '{}', now())"
        )
    stage.house.sync_ok(TABLE)
    (delivered,) = deliver_now(app, [stage.destination], [TABLE])
    assert delivered.error is None, delivered.error
    equal(stage, 1)
