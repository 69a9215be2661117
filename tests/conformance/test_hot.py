"""A replica is never the hot database, also where its address came to lead there after it was added."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from federation.kinds import DeliveryStatus, DestinationKind
from federation.protocol import DestinationError
from lakehouse import destinations
from lakehouse.deliver.run import resync
from lakehouse.worker.worker import Worker
from schemas.errors import Retry
from tests.conformance.stage import Stage
from tests.support import insert_events

pytestmark = pytest.mark.parametrize("kind", [DestinationKind.POSTGRES_REPLICA], ids=lambda k: k.value)
NOBODY = "postgresql://u:p@127.0.0.1:1/gone"


@pytest.fixture
def behind(stage: Stage) -> Stage:
    """Everything but one row was delivered. The control tables stay where they are, wherever the hot database goes."""
    stage.house.reopen(CONTROL__URL=stage.house.hot_url)
    stage.delivered()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    return stage


def refused(ask: Callable[[], Any]) -> None:
    with pytest.raises(DestinationError, match="is the hot database itself") as caught:
        ask()
    assert caught.value.retry is Retry.NEVER


def is_refused_everywhere(stage: Stage) -> None:
    """Whoever opens it says so, nothing is written there, and nobody tries again before a person did something."""
    app, before = stage.house.app, stage.place.stored()
    (error,) = stage.deliver()
    assert isinstance(error, DestinationError) and error.retry is Retry.NEVER
    assert "is the hot database itself" in error.detail and "Nothing was written" in error.hint
    (row,) = destinations.deliveries(app, destination=str(stage.destination.id))
    assert (row["status"], row["attempts"]) == (DeliveryStatus.DEAD_LETTER.value, 1)
    assert not Worker(app, threading.Event()).once() and stage.deliver() == []
    refused(lambda: destinations.reach(app, stage.destination))
    refused(lambda: stage.adapter().prepare(app.contract("events")))
    (filled,) = resync(app, stage.destination, ["events"])
    assert "is the hot database itself" in str(filled.error)
    assert "is the hot database itself" in str(stage.parity().error)
    assert stage.place.stored() == before


def test_the_hot_database_came_to_be_where_it_is(behind: Stage) -> None:
    url = behind.house.variables["LAKEHOUSE_SOURCE__URL"]
    behind.house.reopen(SOURCE__URL=behind.place.admin)  # type: ignore[attr-defined]
    is_refused_everywhere(behind)
    behind.house.reopen(SOURCE__URL=url)
    behind.house.run("deliveries", "retry", "--all")
    behind.delivered()
    behind.equal()


def test_a_hot_database_that_does_not_answer_holds_up_no_delivery(behind: Stage) -> None:
    behind.house.reopen(SOURCE__URL=NOBODY)
    behind.delivered()
    behind.equal()


def test_one_that_does_not_answer_is_what_it_was_last(behind: Stage) -> None:
    adapter = behind.adapter()
    started, oid = adapter.identity()
    adapter.close()
    source = json.dumps({"started": started, "database_oid": int(oid)})
    with psycopg.connect(behind.house.hot_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE lakehouse.cursors SET position = jsonb_set(position, '{source}', position->'source' || %s::jsonb)",
            [source],
        )
    behind.house.reopen(SOURCE__URL=NOBODY)
    is_refused_everywhere(behind)
