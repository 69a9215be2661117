"""What a fault leaves of a landing, and who has to do something about it."""

from __future__ import annotations

import signal
import threading

import psycopg
import pytest

from catalog.errors import OwnershipError, StorageError
from catalog.lake import Lake
from federation.kinds import DeliveryStatus, DestinationStatus
from lakehouse import destinations
from lakehouse.landing.parquet import StagedFileError
from lakehouse.status import read_status
from schemas.errors import LakehouseError, Retry
from tests.conformance.lake.place import LakeStage
from tests.conformance.stage import connections
from tests.faults.proxy import Fault, PostgresProxy
from tests.support import insert_events


def lost_reply_is_settled(stage: LakeStage) -> None:
    """The catalog committed, and its answer never came: the table is asked."""
    stage.new_row()
    before = stage.snapshots()
    with PostgresProxy(stage.house.hot_url) as proxy:
        stage.house.reopen(LAKE__CATALOG__URI=f"{proxy.url}?options=-csearch_path%3Dlakehouse")
        stage.house.app.recognize_catalog()
        fault = proxy.arm(
            Fault("drop_reply", lambda r: r.text == "COMMIT" and any("UPDATE iceberg_tables" in s for s in r.before))
        )
        errors = stage.deliver()
        assert fault.hits == 1
        assert all(e.retry is Retry.TIMED for e in errors), errors
        proxy.calm()
        stage.delivered()
        assert stage.snapshots() == before + 1
        stage.equal()
        stage.house.close()


def crash_between_effect_and_acknowledgement(stage: LakeStage) -> None:
    stage.new_row()
    done = stage.house.run("sync", "--once", "--table", "events", failpoints="landing.after_commit=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    before = stage.place.stored()
    (row,) = destinations.deliveries(stage.house.app, destination=str(stage.destination.id))
    assert (row["status"], row["sequence_upto"]) == (DeliveryStatus.PROCESSING.value, 11)
    stage.lease_runs_out()
    assert stage.house.sync_ok("events").settled == ["org-a"]
    assert stage.place.stored() == before
    stage.equal()


def killed_before_it_was_compared(stage: LakeStage) -> None:
    """Whoever takes a dead one's share over compares it with what was recorded before a commit."""
    stage.new_row()
    done = stage.house.run("sync", "--once", "--table", "events", failpoints="landing.before_commit=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    (staged,) = stage.place.staged("events")
    stage.place.alter(staged)
    stage.lease_runs_out()
    (error,) = stage.deliver()
    assert isinstance(error, StagedFileError), error
    assert staged not in stage.place.files("events")
    stage.delivered()
    stage.equal()


def a_half_failed_delivery_is_finished(stage: LakeStage) -> None:
    stage.house.reopen(LANDING__MAX_PARTITIONS="1")
    before = stage.snapshots()
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1, day="2026-04-01")
        insert_events(hot, "org-a", 71, 1, day="2026-04-02")
    done = stage.house.run("sync", "--once", "--table", "events", failpoints="landing.after_part=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    assert stage.snapshots() == before + 1
    assert len(stage.place.ids("events")) == 11, "what there is of it is whole days"
    stage.lease_runs_out()
    stage.delivered()
    assert stage.snapshots() == before + 2, "the part that was there is not landed again"
    assert len(stage.place.ids("events")) == 12
    stage.equal()


def a_throttled_target_is_tried_again(stage: LakeStage) -> None:
    stage.new_row()
    before = stage.place.stored()
    end = stage.place.throttle()
    (error,) = stage.deliver()
    end()
    assert error.retry is Retry.TIMED, error
    assert stage.place.stored() == before
    stage.delivered()
    stage.equal()


def a_missing_grant_waits_for_a_person(stage: LakeStage) -> None:
    stage.new_row()
    before = stage.place.stored()
    allow = stage.place.deny()
    (error,) = stage.deliver()
    assert isinstance(error, StorageError) and error.retry is Retry.MANUAL, error
    with pytest.raises(StorageError) as caught:
        destinations.reach(stage.house.app, stage.destination)
    assert caught.value.retry is Retry.MANUAL
    allow()
    assert stage.place.stored() == before and len(stage.place.ids("events")) == 10, "what was there is there still"
    stage.delivered()
    stage.equal()


def wrong_credentials_wait_for_a_person(stage: LakeStage) -> None:
    stage.new_row()
    (before,) = (v.get_secret_value() for v in [stage.house.app.settings.lake.s3.secret_access_key] if v is not None)
    stage.house.reopen(**stage.place.wrong)
    with pytest.raises(StorageError) as caught:
        destinations.reach(stage.house.app, stage.destination)
    (error,) = stage.deliver()
    for said in (caught.value, error):
        assert said.retry is Retry.MANUAL, said
        assert "Canary" not in f"{said} {said.detail} {said.hint}"
    stage.house.reopen(LAKE__S3__SECRET_ACCESS_KEY=before)
    stage.delivered()
    stage.equal()


def a_foreign_mark_is_refused(stage: LakeStage) -> None:
    stage.place.take_mark("events")
    before = stage.place.stored()
    stage.new_row()
    (error,) = stage.deliver()
    assert isinstance(error, OwnershipError) and error.retry is Retry.NEVER and "org-z" in error.detail
    with pytest.raises(OwnershipError):
        destinations.reach(stage.house.app, stage.destination)
    assert stage.place.stored() == before
    stage.place.give_back()
    stage.delivered()
    stage.equal()


def a_place_is_one_destinations(stage: LakeStage) -> None:
    """The namespace says whose it is; another organization's has another name, and all organizations' is none."""
    before, app = stage.place.stored(), stage.house.app
    lake = app.lake("org-a")
    stranger = Lake(lake.catalog, lake.address, "org-a", "another")
    for ask in (stranger.check, stranger.ensure):
        with pytest.raises(OwnershipError):
            ask()
    assert app.lake("org-b").namespace != lake.namespace
    for organization, said in (("org-a", "writes to .* already"), (None, "is one organization's")):
        with pytest.raises(LakehouseError, match=said):
            destinations.add(
                app,
                organization=organization,
                kind=stage.destination.kind,
                name="another",
                config={},
                tables=[],
                cadence_seconds=900,
                table_cadences={},
            )
    assert stage.place.stored() == before


def a_dead_destination_holds_up_nobody(stage: LakeStage) -> None:
    app = stage.house.app
    stage.second_organization()
    stage.place.take_mark("events")
    with stage.house.hot() as hot:
        insert_events(hot, "org-a", 70, 1)
        insert_events(hot, "org-b", 70, 1)
    result = stage.house.sync("events")
    assert (result.upserts, list(result.errors)) == ({"org-b": 1}, ["org-a"])
    stage.house.assert_equal("events", "org-b")
    shown = {t.organization: t for t in read_status(app).tables if t.table == "events"}
    assert (shown["org-a"].state, shown["org-b"].state) == ("needs a person", "current")
    assert "org-z" in str(shown["org-a"].error)
    # What nobody can land does not keep it from being removed, and what it was brought stays on record.
    destinations.remove(app, stage.destination)
    rows = destinations.deliveries(app, organization="org-a", all_of_them=True)
    assert {r["status"] for r in rows} == {DeliveryStatus.DELIVERED.value}
    assert "org-a" not in stage.house.sync("events").errors, "nobody asks for it any more"
    assert destinations.find(app, "lake", "org-b").status == DestinationStatus.ACTIVE.value


def close_releases_whatever_happened(stage: LakeStage) -> None:
    """Sessions of catalog, control tables and source; of the storage a client has a few, however often it is used."""
    counts = []
    for round_number in range(6):
        stage.house.reopen()
        stage.new_row(70 + round_number)
        allow = stage.place.deny() if round_number % 2 else lambda: None
        errors = stage.deliver()
        assert bool(errors) == bool(round_number % 2), errors
        allow()
        stage.house.app.close()
        stage.house.app.close()
        counts.append(_settled_connections(stage))
    # One left open by each round would be four more; the storage's client may keep one or two more than before.
    assert counts[5] < counts[1] + 4, counts
    stage.delivered()
    stage.equal()


def _settled_connections(stage: LakeStage) -> int:
    """What this process has open once no session of ours is left in the database."""
    wait = threading.Event()
    with psycopg.connect(stage.house.hot_url, autocommit=True) as connection:
        for _ in range(100):
            (left,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone() or (None,)
            if left == 0:
                return connections()
            wait.wait(0.05)
    raise LakehouseError(f"{left} sessions are left open")


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
