"""What a fault leaves behind, and who has to do something about it: nobody, a person, or whoever configured it."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from federation.kinds import DeliveryStatus
from federation.protocol import DestinationError, ForeignTargetError, Owner
from lakehouse import destinations
from lakehouse.deliver.parity import DifferenceError, parity
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import resync
from lakehouse.glance import nothing_to_do
from lakehouse.status import read_status
from schemas.errors import LakehouseError, Retry
from tests.conformance.stage import Stage, alter, connections
from tests.support import insert_events


def lost_reply_is_settled(stage: Stage) -> None:
    adapter = stage.adapter()
    contract = stage.house.app.contract("events")
    adapter.prepare(contract)
    with range_reader(stage.house.app, open_lake_table(stage.house.app, contract, "org-a")) as rows:
        # It took effect, and nobody knows: the outbox delivers the range once more.
        adapter.deliver(stage.pieces(0, 10)[0], rows)
    adapter.close()
    stage.delivered()
    stage.equal()


def crash_between_effect_and_acknowledgement(stage: Stage) -> None:
    done = stage.house.run("deliver", failpoints="delivery.delivered=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    before = stage.place.stored()
    with stage.house.app.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE warehouse_deliveries SET lease_expires_at = now() - interval '1 s'")
    stage.delivered()
    assert stage.place.stored() == before
    stage.equal()


def killed_before_it_was_compared(stage: Stage) -> None:
    """Whoever comes next compares: of one that was new all, of another one its range."""
    for _ in range(2):
        done = stage.house.run("deliver", failpoints="delivery.taken=kill", check=None)
        assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
        alter(stage)
        with stage.house.app.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE warehouse_deliveries SET lease_expires_at = now() - interval '1 s'")
        (error,) = stage.deliver()
        assert isinstance(error, DifferenceError) and "org-a-e3: content severity" in error.detail
        (result,) = resync(stage.house.app, stage.destination, ["events"])
        assert result.error is None, result.error
        stage.delivered()
        stage.equal()
        with stage.house.hot() as hot:
            hot.execute("UPDATE ingested_events SET severity = 'INFO', source = 'x' WHERE id = 'org-a-e3'")
        stage.house.sync_ok("events")


def a_half_failed_delivery_is_finished(stage: Stage) -> None:
    contract = stage.house.app.contract("events")
    adapter = stage.adapter()
    adapter.prepare(contract)
    with range_reader(stage.house.app, open_lake_table(stage.house.app, contract, "org-a")) as rows:

        def broken(after: int, upto: int) -> Iterator[Any]:
            yield from itertools.islice(rows(after, upto), 1)
            raise DestinationError("the storage broke off", retry=Retry.TIMED)

        with pytest.raises(LakehouseError, match="broke off"):
            adapter.deliver(stage.pieces(0, 10)[0], broken)
        assert adapter.standing(contract) < 10
    adapter.close()
    found = stage.parity()
    assert found.equal, "what there is of it is whole"
    stage.delivered()
    stage.equal()


def a_throttled_target_is_tried_again(stage: Stage) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    contract = stage.house.app.contract("events")
    lake = open_lake_table(stage.house.app, contract, "org-a")
    end = stage.place.throttle()
    adapter = stage.adapter()
    with range_reader(stage.house.app, lake) as rows, pytest.raises(DestinationError) as caught:
        adapter.deliver(stage.pieces(10, 11)[0], rows)
    adapter.close()
    (found,) = parity(stage.house.app, [dataclasses.replace(stage.destination, config=stage.place.config)], ["events"])
    end()
    assert caught.value.retry is Retry.TIMED, caught.value
    assert found.error is not None and found.error.retry is Retry.TIMED, found.error
    assert (found.equal, found.fault) == (False, None), "what could not be asked is no difference"
    stage.delivered()
    stage.equal()


def a_missing_grant_waits_for_a_person(stage: Stage) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    allow = stage.place.deny()
    (error,) = stage.deliver()
    assert error.retry is Retry.MANUAL, error
    allow()
    assert stage.parity().equal, "what was there is there still"
    stage.delivered()
    stage.equal()


def wrong_credentials_wait_for_a_person(stage: Stage) -> None:
    adapter = stage.adapter(stage.place.wrong)
    with pytest.raises(DestinationError) as caught:
        adapter.check()
    adapter.close()
    assert caught.value.retry is Retry.MANUAL
    assert "Canary" not in f"{caught.value} {caught.value.detail} {caught.value.hint}"


def a_foreign_mark_is_refused(stage: Stage) -> None:
    stage.delivered()
    stage.place.take_mark("events")
    before = stage.place.stored()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    (error,) = stage.deliver()
    assert isinstance(error, ForeignTargetError) and error.retry is Retry.NEVER and "org-z" in error.detail
    with pytest.raises(ForeignTargetError):
        destinations.reach(stage.house.app, stage.destination)
    assert stage.place.stored() == before


def a_place_is_one_destinations(stage: Stage) -> None:
    """Whoever else comes is refused, whatever it asks for. Of a destination that was removed it is the next one's."""
    stage.delivered()
    before = stage.place.stored()
    contract, here, ours = stage.house.app.contract("events"), stage.house.app.settings.installation, stage.destination
    for owner in (
        Owner("another", "org-a"),
        Owner(here, "org-b"),
        Owner(here, "org-a", shared=True),
        Owner(here, "org-a", destination="another", living=lambda identifier: identifier == str(ours.id)),
    ):
        for ask in ("check", "prepare", "standing", "filling"):
            adapter = stage.adapter_of(owner)
            with pytest.raises(ForeignTargetError):
                getattr(adapter, ask)(*([contract] if ask != "check" else []))
            adapter.close()
    assert stage.place.stored() == before
    heir = stage.adapter_of(Owner(here, "org-a", destination="another"))
    heir.check()
    heir.prepare(contract)
    assert heir.standing(contract) == 10
    heir.close()
    after = stage.place.stored()
    assert after != before, "it bears the name of the next one"
    stage.delivered()
    stage.equal()


def a_dead_destination_holds_up_nobody(stage: Stage) -> None:
    stage.delivered()
    stage.place.take_mark("events")
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    stage.deliver()
    (row,) = destinations.deliveries(stage.house.app, destination=str(stage.destination.id))
    assert row["status"] == DeliveryStatus.DEAD_LETTER.value
    assert destinations.find(stage.house.app, "there", "org-a").status == "error"
    (shown,) = read_status(stage.house.app).destinations
    assert (shown.name, shown.table, shown.state, shown.sequence, shown.lag) == (
        "there",
        "events",
        "needs a person",
        10,
        1,
    )
    assert shown.error is not None and "org-z" in shown.error
    assert shown.bound == (None if stage.every_version else 5_000_000)
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 71, 1)
    assert stage.house.sync_ok("events").upserts == {"org-a": 1}
    # Nor does a round that has nothing to do load what it does not need.
    assert nothing_to_do(stage.house.app.settings, ["events"]) is not None
    assert stage.deliver() == [], "given up: nothing is tried before a person says so"
    assert len(destinations.deliveries(stage.house.app, destination=str(stage.destination.id))) == 1
    # What nobody can deliver does not keep it from being removed.
    destinations.remove(stage.house.app, stage.destination)
    assert destinations.deliveries(stage.house.app, destination=str(stage.destination.id)) == []


def close_releases_whatever_happened(stage: Stage) -> None:
    contract = stage.house.app.contract("events")
    before = connections()
    for broken in (False, True):
        adapter = stage.adapter()
        adapter.prepare(contract)
        if broken:

            def rows(after: int, upto: int) -> Iterator[Any]:
                raise DestinationError("the lake broke off", retry=Retry.TIMED)
                yield

            with pytest.raises(LakehouseError, match="broke off"):
                adapter.deliver(stage.pieces(0, 10)[0], rows)
        adapter.close()
        adapter.close()
    wait = threading.Event()
    for _ in range(100):
        if connections() <= before:
            break
        wait.wait(0.05)
    assert connections() <= before
    stage.delivered()


CASES = (
    lost_reply_is_settled,
    crash_between_effect_and_acknowledgement,
    killed_before_it_was_compared,
    a_half_failed_delivery_is_finished,
    a_throttled_target_is_tried_again,
    a_missing_grant_waits_for_a_person,
    wrong_credentials_wait_for_a_person,
    a_foreign_mark_is_refused,
    a_place_is_one_destinations,
    a_dead_destination_holds_up_nobody,
    close_releases_whatever_happened,
)
