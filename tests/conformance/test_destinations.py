"""One suite for every kind of destination: kind × case. A kind without a place, or a case that one skips, fails."""

from __future__ import annotations

import dataclasses
import itertools
import json
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from federation.config import COPYING
from federation.kinds import DeliveryStatus, DestinationKind
from federation.protocol import (
    Delivery,
    DestinationError,
    Filling,
    FillingTakenError,
    ForeignTargetError,
    GapError,
)
from lakehouse import destinations
from lakehouse.deliver import run as deliver_run
from lakehouse.deliver.fill import Place as Filled
from lakehouse.deliver.fill import fill
from lakehouse.deliver.parity import DifferenceError, Parity, parity
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import deliver_now, resync
from lakehouse.deliver.targets import adapter_of
from lakehouse.destinations import Destination
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.glance import nothing_to_do
from lakehouse.maintenance.run import maintain_table
from lakehouse.retention.apply import apply as let_days_go
from lakehouse.retention.policy import set_retention
from lakehouse.status import read_status
from lakehouse.worker.plan import plan_parity
from lakehouse.worker.worker import Worker
from schemas.contract import BUILT_IN
from schemas.errors import LakehouseError, Retry
from tests.archiver import archive_rows, enable
from tests.conformance.places import Files, Place, Replica
from tests.support import Lakehouse, host_tables, insert_events, s3_variables


@dataclass
class Stage:
    """A lake with events of one organization, and a destination of the kind under test."""

    house: Lakehouse
    place: Place
    destination: Destination
    folder: Path

    def deliver(self) -> list[LakehouseError]:
        """Bring it up to date; the errors that were met."""
        results = deliver_now(self.house.app, [self.destination], ["events"])
        errors = [r.error for r in results if r.error is not None]
        assert not [e for e in errors for secret in self.place.credentials.values() if secret in str(e)]
        return errors

    def delivered(self) -> None:
        assert self.deliver() == []

    def parity(self) -> Parity:
        (found,) = parity(self.house.app, [self.destination], ["events"])
        return found

    def equal(self) -> None:
        found = self.parity()
        assert found.equal and found.lag == 0, (found, str(found.error))

    def adapter(self, credentials: dict[str, str] | None = None) -> Any:
        keys = self.place.credentials if credentials is None else credentials
        return adapter_of(self.house.app, "org-a", self.place.kind, self.place.config, keys)

    @property
    def every_version(self) -> bool:
        return bool(self.place.config.get("history"))

    def versions(self) -> int:
        """How many are there, as a stranger would count them."""
        place = self.place
        if isinstance(place, Files):
            return len(place.rows("events"))
        assert isinstance(place, Replica)
        with psycopg.connect(place.admin, autocommit=True) as connection:
            name = sql.Identifier(place.schema, "events_history")
            ((count,),) = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchall()
            return int(count)

    def ranges(self) -> list[tuple[int, int]]:
        """What was delivered, by the outbox."""
        rows = destinations.deliveries(self.house.app, destination=str(self.destination.id), all_of_them=True)
        assert {r["status"] for r in rows} <= {DeliveryStatus.DELIVERED.value}
        return sorted((r["sequence_after"], r["sequence_upto"]) for r in rows)

    def pieces(self, *bounds: int) -> list[Delivery]:
        contract = self.house.app.contract("events")
        pairs = itertools.pairwise(bounds)
        return [Delivery(f"d{a}", contract, a, b, 1) for a, b in pairs]


@pytest.fixture
def house(hot_url: str, s3: EmbeddedS3, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.reopen(EGRESS__ALLOW='["127.0.0.1", "localhost"]', SECRETS__KEYS='{"v1": "hex:' + "ab" * 32 + '"}')
    lakehouse.init()
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 1, 6)
        insert_events(hot, "org-a", 50, 2, day="2026-03-02")
        insert_events(hot, "org-a", 60, 2, day="2026-03-03")
    lakehouse.backfill("events")
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def replica(postgres_server: EmbeddedPostgres) -> Iterator[Replica]:
    tag = secrets.token_hex(4)
    name, user = f"replica_{tag}", f"replicator_{tag}"
    admin = postgres_server.create_database(name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'pass'").format(sql.Identifier(user)))
        connection.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(name), sql.Identifier(user))
        )
    parts = urlsplit(admin)
    yield Replica(urlunsplit(parts._replace(netloc=f"{user}:pass@{parts.hostname}:{parts.port}")), admin)
    postgres_server.drop_database(name)
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))


@pytest.fixture
def stage(kind: DestinationKind, house: Lakehouse, tmp_path: Path, request: pytest.FixtureRequest) -> Stage:
    place: Place
    if kind is DestinationKind.POSTGRES_REPLICA:
        place = request.getfixturevalue("replica")
    else:
        server = request.getfixturevalue("s3_server")
        place = Files(server, server.create_bucket(f"files-{secrets.token_hex(4)}"), kind)
    made = destinations.add(
        house.app,
        organization="org-a",
        kind=kind.value,
        name="there",
        config=place.config,
        tables=["events"],
        cadence_seconds=900,
        table_cadences={},
        credentials=place.credentials,
    )
    return Stage(house, place, made, tmp_path)


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


def wrong_credentials_wait_for_a_person(stage: Stage) -> None:
    adapter = stage.adapter(stage.place.wrong)
    with pytest.raises(DestinationError) as caught:
        adapter.check()
    adapter.close()
    assert caught.value.retry is Retry.MANUAL
    assert "Canary" not in f"{caught.value} {caught.value.detail} {caught.value.hint}"


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
    end()
    assert caught.value.retry is Retry.TIMED, caught.value
    stage.delivered()
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


def more_columns(folder: Path) -> Path:
    """A folder with the next version of the contract of events: one more column."""
    contract = json.loads((BUILT_IN / "events" / "v1.json").read_text())
    contract["version"] = "1.1"
    number = max(c.get(k, 0) for c in contract["columns"] for k in ("id", "element_id")) + 1
    column = {"id": number, "name": "region", "source": "region", "type": "string", "source_type": "text"}
    contract["columns"].append(
        column | {"nullable": True, "description": "New.", "sensitivity": "internal", "since": "1.1"}
    )
    (folder / "events").mkdir()
    (folder / "events" / "v1.json").write_text(json.dumps(contract))
    return folder


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


def connections() -> int:
    """Connections that this process has open, of which it is the one that connected or that was connected to."""
    import psutil

    return sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process().net_connections("tcp"))


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


def one_altered_value_is_named(stage: Stage) -> None:
    stage.delivered()
    alter(stage)
    found = stage.parity()
    assert not found.equal
    (difference,) = found.differences
    assert (difference.key["id"], difference.kind, difference.columns) == ("org-a-e3", "content", ("severity",))
    done = stage.house.run("parity", check=1)
    assert "org-a-e3" in done.stdout and "severity" in done.stdout


def a_delivery_is_compared_before_it_is_acknowledged(stage: Stage) -> None:
    stage.delivered()
    with stage.house.hot() as hot:
        hot.execute("UPDATE ingested_events SET severity = 'INFO', source = 'x' WHERE id = 'org-a-e3'")
    stage.house.sync_ok("events")
    adapter = stage.adapter()
    deliver = type(adapter).deliver

    def altered(self: Any, delivery: Delivery, rows: Any) -> Any:
        receipt = deliver(self, delivery, rows)
        alter(stage)
        return receipt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(adapter), "deliver", altered)
        (error,) = stage.deliver()[:1]
    adapter.close()
    assert isinstance(error, DifferenceError) and error.retry is Retry.MANUAL
    assert "org-a-e3: content severity" in error.detail
    (row,) = destinations.deliveries(stage.house.app, destination=str(stage.destination.id))
    assert row["status"] in (DeliveryStatus.FAILED.value, DeliveryStatus.DEAD_LETTER.value)
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None
    stage.delivered()
    stage.equal()


def parity_on_schedule_stands_until_it_is_mended(stage: Stage) -> None:
    stage.delivered()
    app = stage.house.app
    assert plan_parity(app.engine, 3600) == ["parity"] and plan_parity(app.engine, 3600) == []
    worker = Worker(app, threading.Event())
    assert worker.once()
    assert destinations.find(app, "there", "org-a").last_error is None
    assert plan_parity(app.engine, 3600) == [], "not before its time"
    alter(stage)
    assert plan_parity(app.engine, 0) == ["parity"] and worker.once()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
    stage.house.sync_ok("events")
    stage.delivered()
    assert [(d.state, d.lag) for d in read_status(app).destinations] == [("differs", 0)]
    said = destinations.find(app, "there", "org-a").last_error
    assert said is not None and "org-a-e3" in said and "severity" in said, said
    (result,) = resync(app, stage.destination, ["events"])
    assert result.error is None
    assert plan_parity(app.engine, 0) == ["parity"] and worker.once()
    assert destinations.find(app, "there", "org-a").last_error is None
    if stage.place.kind is DestinationKind.POSTGRES_REPLICA:
        shown = stage.house.run("status").stdout
        assert "no expiry waits for one" in shown and "there" in shown


def alter(stage: Stage) -> None:
    """Change one value of one row there, as somebody with the right tools would."""
    place = stage.place
    if isinstance(place, Replica):
        with psycopg.connect(place.admin, autocommit=True) as connection:
            name = sql.Identifier(place.schema, "_events")
            connection.execute(sql.SQL("UPDATE {} SET severity = 'CRITICAL' WHERE id = 'org-a-e3'").format(name))
        return
    assert isinstance(place, Files)
    import gzip

    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for file in place.manifest("events")["files"]:
        key = file["path"].removeprefix(f"s3://{place.bucket}/")
        body = place.stored()[key]
        if place.kind is DestinationKind.JSONL_S3:
            lines = gzip.decompress(body).decode().splitlines()
            changed = [
                line.replace('"severity":"INFO"', '"severity":"CRITICAL"') if '"org-a-e3"' in line else line
                for line in lines
            ]
            if changed != lines:
                place.put(key, gzip.compress(("\n".join(changed) + "\n").encode()))
        else:
            table = pq.read_table(pa.BufferReader(body))
            mine = pc.equal(table["id"], "org-a-e3")
            sink = pa.BufferOutputStream()
            index = table.column_names.index("severity")
            values = pc.if_else(mine, "CRITICAL", table["severity"])
            pq.write_table(table.set_column(index, table.schema.field(index), values), sink)
            place.put(key, sink.getvalue().to_pybytes())


def days_that_left_the_lake_are_no_difference(stage: Stage) -> None:
    stage.delivered()
    house = stage.house
    with house.hot() as hot:
        # As the archive leaves it: gone from the hot table, and no delete in the lake.
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e50', 'org-a-e51')")
    set_retention(house.app, "org-a", 1, reason="r", by="me")
    house.clock.offset = timedelta(days=800)
    (applied,) = let_days_go(house.app, "org-a", reason="r", by="me")
    assert [str(d.day) for d in applied.days] == ["2026-03-02"]
    found = stage.parity()
    assert (found.equal, found.rows, found.lake_rows, found.ended) == (True, 10, 8, 2), found
    with house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
        house.sync_ok("events", reconcile=True)
    stage.delivered()
    assert {"org-a-e50", "org-a-e70"} <= stage.place.ids("events"), "it keeps what it has"
    found = stage.parity()
    assert (found.equal, found.ended, found.differences) == (True, 2, [])
    alter(stage)
    found = stage.parity()
    assert (found.equal, [d.key["id"] for d in found.differences]) == (False, ["org-a-e3"])
    (result,) = resync(house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    assert "org-a-e50" not in stage.place.ids("events"), "filled anew, it is what the lake is"
    stage.equal()


CASES: tuple[Callable[[Stage], None], ...] = (
    first_delivery_creates_what_it_needs,
    repeated_delivery_changes_nothing,
    lost_reply_is_settled,
    crash_between_effect_and_acknowledgement,
    out_of_order_puts_no_older_version_over_a_newer,
    deletes_show_as_deleted,
    archived_rows_stay_by_every_method,
    a_foreign_mark_is_refused,
    wrong_credentials_wait_for_a_person,
    a_missing_grant_waits_for_a_person,
    a_throttled_target_is_tried_again,
    an_added_column_arrives_without_a_break,
    close_releases_whatever_happened,
    a_dead_destination_holds_up_nobody,
    a_vanished_table_is_said,
    a_cleared_target_is_a_gap,
    a_resync_fills_it_again,
    a_resync_goes_on_beside_deliveries,
    who_fills_beside_another_gives_way,
    ranges_outlive_expiry_and_compaction,
    small_steps_reach_the_same_end,
    one_that_is_new_or_far_behind_is_filled,
    a_half_failed_delivery_is_finished,
    two_workers_with_one_range,
    one_altered_value_is_named,
    a_delivery_is_compared_before_it_is_acknowledged,
    parity_on_schedule_stands_until_it_is_mended,
    days_that_left_the_lake_are_no_difference,
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", COPYING, ids=lambda k: k.value)
def test_conformance(stage: Stage, case: Callable[[Stage], None]) -> None:
    assert stage.place.real
    case(stage)


def test_no_cell_is_empty(request: pytest.FixtureRequest) -> None:
    collected = {item.name for item in request.session.items}
    if not any(name.startswith("test_conformance[") for name in collected):
        pytest.skip("only this test was asked for")
    wanted = {f"test_conformance[{kind.value}-{case.__name__}]" for kind in COPYING for case in CASES}
    if request.config.option.keyword or any("::" in a for a in request.config.args):
        wanted &= collected
    assert wanted <= collected


def test_the_module_has_every_case() -> None:
    names = {c.__name__ for c in CASES}
    written = {n for n, f in globals().items() if callable(f) and getattr(f, "__module__", "") == __name__}
    helpers = {"alter", "connections", "more_columns", "house", "replica", "stage", "Stage"} | {
        n for n in written if n.startswith("test_")
    }
    assert written - helpers == names
    assert deliver_run.COPYING == COPYING
