"""A delivery is killed before its destination was asked, and after it took effect: each kind ends equal, once."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pyarrow as pa
import pytest

from federation.config import COPYING
from federation.kinds import DestinationKind
from lakehouse import destinations
from lakehouse.deliver.parity import parity
from lakehouse.deliver.ranges import RangeOf
from lakehouse.deliver.run import deliver_now, resync
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from tests.conformance.places import add_there, new_target
from tests.support import Lakehouse, host_tables, insert_events, s3_variables


@pytest.fixture
def house(hot_url: str, s3: EmbeddedS3, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.reopen(EGRESS__ALLOW='["127.0.0.1", "localhost"]', SECRETS__KEYS='{"v1": "hex:' + "ab" * 32 + '"}')
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@pytest.mark.parametrize("failpoint", ["delivery.claimed", "delivery.taken", "delivery.delivered"])
@pytest.mark.parametrize("kind", sorted(COPYING))
def test_killed_in_a_delivery(
    house: Lakehouse, postgres_server: EmbeddedPostgres, s3: EmbeddedS3, kind: DestinationKind, failpoint: str
) -> None:
    target = new_target(kind, postgres_server, s3)
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        house.backfill("events")
        there = add_there(house, kind, target.config, target.credentials)
        for step in (1, 2):
            done = house.run("deliver", failpoints=f"{failpoint}=kill", check=None)
            assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
            # Rows move on before the lease of the dead one runs out.
            insert_events(hot, "org-a", 100 * step, 3)
            hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e5'")
            hot.execute("DELETE FROM ingested_events WHERE id = %s", [f"org-a-e{step}"])
            house.sync_ok("events", reconcile=True)
            with house.app.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE warehouse_deliveries SET lease_expires_at = now() - interval '1 s'")
    assert [r.error for r in deliver_now(house.app, [there], ["events"]) if r.error] == []
    (found,) = parity(house.app, [there], ["events"])
    assert found.equal and found.lag == 0, (found, str(found.error))


@pytest.mark.parametrize(("failpoint", "left"), [("fill.taken", 4), ("fill.before_exchange", 0)])
@pytest.mark.parametrize("kind", sorted(COPYING))
def test_a_resync_that_was_killed_reads_what_is_left(
    house: Lakehouse,
    postgres_server: EmbeddedPostgres,
    s3: EmbeddedS3,
    kind: DestinationKind,
    failpoint: str,
    left: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten events of three days, in chunks of at most six; readers have what was there until it is done."""
    target = new_target(kind, postgres_server, s3)
    house.reopen(DELIVER__FILL_ROWS="6")
    with house.hot() as hot:
        for day, first in (("2026-01-01", 1), ("2026-03-02", 50), ("2026-03-03", 60)):
            insert_events(hot, "org-a", first, 6 if first == 1 else 2, day=day)
        house.backfill("events")
        there = add_there(house, kind, target.config, target.credentials)
        assert [r.error for r in deliver_now(house.app, [there], ["events"])] == [None]
        done = house.run("destinations", "resync", "there", failpoints=f"{failpoint}=kill", check=None)
        assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
        (progress,) = destinations.find(house.app, "there", "org-a").fillings
        assert (progress.rows, progress.of) == (10 - left, 10)
        if (kind, left) == (DestinationKind.POSTGRES_REPLICA, 4):
            assert house.run_json("destinations", "list")[-1]["fillings"][0]["rows"] == 6
        (found,) = parity(house.app, [there], ["events"])
        assert found.equal and (found.lag, found.rows) == (0, 10), (found, str(found.error))
        # What lands now is taken last; it changes rows that were taken.
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e5'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e6'")
        house.sync_ok("events", reconcile=True)
    read: list[int] = []
    rows = RangeOf._rows

    def counted(self: RangeOf, rest: str) -> Iterator[pa.RecordBatch]:
        for batch in rows(self, rest):
            read.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(RangeOf, "_rows", counted)
    (result,) = resync(house.app, there, ["events"])
    assert result.error is None, result.error
    assert sum(read) == left + 2, read
    assert destinations.find(house.app, "there", "org-a").fillings == []
    (found,) = parity(house.app, [there], ["events"])
    assert found.equal and (found.lag, found.rows) == (0, 9), (found, str(found.error))
