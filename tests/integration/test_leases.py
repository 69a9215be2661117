"""Claims and leases on a real PostgreSQL: one owner at a time, and a stale one changes nothing."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from federation.kinds import DestinationKind
from lakehouse import destinations
from lakehouse.control import landings, store
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.outbox import deliveries, tasks
from lakehouse.outbox.lease import Lease, LeaseKeeper, LeaseLostError
from lakehouse.outbox.retry import Decision
from lakehouse.outbox.tasks import CAPTURE
from lakehouse.result import TableResult
from lakehouse.sync import LakeTables, capture_table, land_all
from tests.conformance.places import new_target
from tests.support import Lakehouse, host_tables, insert_events, local_variables

LANDING = (DestinationKind.ICEBERG_S3,)
EVENTS = ("events",)


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def run_out(house: Lakehouse, table: str) -> None:
    """Every lease in the table ran out a second ago."""
    with house.app.engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET lease_expires_at = clock_timestamp() - interval '1 s'"))


def staged_and_left(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> list[landings.StagedShare]:
    """A window of events is recorded and its worker vanishes before it lands anything."""
    left: list[landings.StagedShare] = []
    with monkeypatch.context() as patch:
        patch.setattr("lakehouse.sync.land_all", lambda *given: left.extend(given[3]))
        house.sync_ok("events")
    assert left
    return left


def test_every_task_is_claimed_once_by_whoever_comes(house: Lakehouse) -> None:
    tasks.make_due(house.app.engine, [("capture", f"t{n}") for n in range(40)])
    claimed: list[str] = []

    def work(owner: str) -> None:
        while (task := tasks.claim(house.app.engine, owner, 30, kinds=["capture"])) is not None:
            claimed.append(str(task.table))

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(f"t{n}" for n in range(40))


@pytest.mark.parametrize("who", ["fresh", "stale"], ids=["by another", "by itself"])
def test_a_stale_worker_can_neither_finish_nor_fail_a_task(house: Lakehouse, who: str) -> None:
    engine = house.app.engine
    tasks.make_due(engine, [("capture", "events")])
    stale = tasks.claim(engine, "stale", 30, kinds=["capture"])
    assert stale is not None and tasks.claim(engine, "other", 30, kinds=["capture"]) is None
    run_out(house, "tasks")
    fresh = tasks.claim(engine, who, 30, kinds=["capture"])
    assert fresh is not None and fresh.lease.generation == stale.lease.generation + 1
    assert not tasks.finish(engine, stale.lease)
    assert not tasks.fail(engine, stale.lease, Decision(1, "no"), 1800)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT lease_owner, last_error, takeovers FROM tasks")).one()
    assert tuple(row) == (who, None, 1)
    assert tasks.finish(engine, fresh.lease)


def test_a_stale_worker_records_no_window(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    # No renewal tells it in time: what it is about to write must.
    monkeypatch.setattr(LeaseKeeper, "renew", lambda _: None)
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        engine, app = house.app.engine, house.app
        task = tasks.claim_named(engine, app.leases.owner, 30, CAPTURE, "events")
        assert task is not None
        run_out(house, "tasks")
        other = tasks.claim_named(engine, "other", 30, CAPTURE, "events")
        assert other is not None
        result = TableResult("events")
        capture_table(app, app.contract("events"), task, result)
        assert isinstance(result.errors[""], LeaseLostError)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM windows")) == 0
            assert connection.scalar(text("SELECT lease_owner FROM tasks WHERE id = 'capture:events'")) == "other"
        tasks.finish(engine, other.lease)
        assert house.sync_ok("events").upserts == {"org-a": 3}
    house.assert_equal("events")


def test_a_share_left_behind_is_landed_by_another_and_its_first_owner_changes_nothing(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house.hot() as hot:
        house.backfill("events")
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
        left = staged_and_left(house, monkeypatch)
        # Nobody reads these organizations' next changes before this share is settled.
        insert_events(hot, "org-a", 50, 1)
        assert {m.organization: m.open for m in store.members(house.app.engine, "events")} == {
            "org-a": True,
            "org-b": True,
            "org-c": False,
        }
        app = house.app
        task = tasks.claim_named(app.engine, app.leases.owner, 30, CAPTURE, "events")
        assert task is not None
        meanwhile = TableResult("events")
        capture_table(app, app.contract("events"), task, meanwhile)
        assert (meanwhile.landing, meanwhile.errors, meanwhile.upserts) == (["org-a", "org-b"], {}, {})
        run_out(house, "warehouse_deliveries")
        result = house.sync_ok("events")
        assert sorted(result.settled) == ["org-a", "org-b"] and result.upserts["org-a"] == 4
        before = house.lake_table("events", "org-a").metadata_location
        # The first owner wakes up: local trust has not run out yet, and still nothing moves.
        again = TableResult("events")
        contract = house.app.contract("events")
        for item in left:
            item.lease.seconds = 1000
            item.lease.renewed(0)
            item.lease.deadline = float("inf")
        land_all(house.app, contract, LakeTables(house.app, contract), left, again)
        assert set(again.errors) == {"org-a", "org-b"} and not again.snapshots
        house.lake_table("events", "org-a").refresh()
        assert house.lake_table("events", "org-a").metadata_location == before
    house.assert_equal("events")


@pytest.mark.parametrize("by_itself", [False, True], ids=["by another", "by itself"])
def test_a_stale_worker_neither_fails_nor_abandons_a_delivery(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch, by_itself: bool
) -> None:
    engine = house.app.engine
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        (left,) = staged_and_left(house, monkeypatch)
    run_out(house, "warehouse_deliveries")
    who = left.lease.owner if by_itself else "fresh"
    (taken,) = deliveries.claim(engine, who, 30, kinds=LANDING, tables=EVENTS)
    assert (taken.attempts, taken.lease.generation) == (2, 2)
    assert not deliveries.fail(engine, left.lease, Decision(None, "no"))
    with pytest.raises(LeaseLostError):
        landings.abandon(engine, left.lease, left.window, "org-a", "events", None)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT status, lease_owner, takeovers FROM warehouse_deliveries")).one()
    assert tuple(row) == ("PROCESSING", who, 1)


def test_renewal_keeps_what_is_held_and_says_what_is_lost(house: Lakehouse) -> None:
    engine = house.app.engine
    tasks.make_due(engine, [("capture", "a"), ("capture", "b")])
    lost: list[Lease] = []
    keeper = LeaseKeeper(engine, "me", 30, on_lost=lost.append)
    first = tasks.claim(engine, "me", 30, kinds=["capture"])
    second = tasks.claim(engine, "me", 30, kinds=["capture"])
    assert first is not None and second is not None
    with keeper.holding(first.lease, second.lease):
        run_out(house, "tasks")
        keeper.renew()
        assert tasks.claim(engine, "other", 30, kinds=["capture"]) is None, "a renewed lease has not run out"
        run_out(house, "tasks")
        taken = tasks.claim(engine, "other", 30, kinds=["capture"])
        assert taken is not None
        keeper.renew()
    keeper.close()
    mine = {first.lease.id: first.lease, second.lease.id: second.lease}
    assert lost == [mine[taken.lease.id]] and not mine[taken.lease.id].alive
    with pytest.raises(LeaseLostError):
        mine[taken.lease.id].check()


def test_local_trust_ends_before_the_database_s(house: Lakehouse) -> None:
    lease = Lease("capture:x", "me", 1, 10)
    lease.renewed(asked_at=0.0)
    assert lease.deadline == 8.0 and not lease.alive


def test_an_organization_with_many_deliveries_does_not_hold_up_the_others(house: Lakehouse) -> None:
    engine = house.app.engine
    with engine.begin() as connection:
        of = dict(
            connection.execute(text("SELECT organization_id, id FROM warehouse_destinations")).all()  # type: ignore[arg-type]
        )
        rows = [("org-a", n, n) for n in range(50)] + [("org-b", 0, 1000), ("org-c", 0, 1001)]
        for organization, after, age in rows:
            connection.execute(
                text(
                    "INSERT INTO warehouse_deliveries (id, organization_id, destination_id, table_name, "
                    "sequence_after, sequence_upto, next_attempt_at) VALUES (:i, :o, :d, 'events', :a, :a + 1, "
                    "clock_timestamp() - interval '1 hour' + :age * interval '1 second')"
                ),
                {"i": uuid.uuid4(), "o": organization, "d": of[organization], "a": after, "age": age},
            )
    first = deliveries.claim(engine, "w", 30, kinds=LANDING, tables=EVENTS, limit=3)
    assert {d.organization for d in first} == {"org-a", "org-b", "org-c"}


def test_what_was_staged_is_finished_although_its_lake_is_paused(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        staged_and_left(house, monkeypatch)
        run_out(house, "warehouse_deliveries")
        house.run("destinations", "pause", "lake", "--organization", "org-a")
        insert_events(hot, "org-a", 10, 3)
        result = house.sync_ok("events")
        assert (result.settled, result.upserts) == (["org-a"], {"org-a": 3}), "and nothing new is begun"


def test_a_delivery_of_a_table_that_no_contract_knows_is_left_alone(
    house: Lakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        staged_and_left(house, monkeypatch)
    run_out(house, "warehouse_deliveries")
    assert deliveries.claim(house.app.engine, "w", 30, kinds=LANDING, tables=["findings"]) == []


def test_deliveries_that_are_claimed_at_once_are_kept_until_their_turn(
    house: Lakehouse, postgres_server: EmbeddedPostgres, s3: EmbeddedS3, tmp_path: Path
) -> None:
    house.reopen(
        EGRESS__ALLOW='["127.0.0.1"]', SECRETS__KEYS='{"v1": "hex:' + "ab" * 32 + '"}', WORK__LEASE_SECONDS="3"
    )
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
    house.backfill("events")
    place = new_target(DestinationKind.POSTGRES_REPLICA, postgres_server, s3)
    for name in ("first", "second"):
        target = place.within(name)
        destinations.add(
            house.app,
            organization="org-a",
            kind="POSTGRES_REPLICA",
            name=name,
            config=target.config,
            tables=EVENTS,
            cadence_seconds=900,
            table_cadences={},
            credentials=target.credentials,
        )
    marker = tmp_path / "the first one takes long"
    program = house.start("deliver", failpoints=f"delivery.claimed=hold:{marker}@1")
    try:
        while not marker.exists():
            assert program.poll() is None, program.communicate()
            threading.Event().wait(0.05)
        with house.app.engine.connect() as connection:
            # Longer than the lease that both of them were claimed with.
            connection.execute(text("SELECT pg_sleep(4)"))
        marker.unlink()
        stdout, stderr = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 0, (stdout, stderr)
    with house.app.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT status, attempts, takeovers FROM warehouse_deliveries WHERE window_id IS NULL")
        ).all()
    assert [tuple(row) for row in rows] == [("DELIVERED", 1, 0)] * 2
