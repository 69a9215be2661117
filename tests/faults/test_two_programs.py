"""Who lost a lease, or never had one, commits nothing of it twice: slow uploads, and two programs on one table."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lakehouse.control.database import ControlError
from lakehouse.outbox.lease import LeaseLostError
from lakehouse.sync import TableResult
from schemas.errors import Retry
from tests.faults.proxy import Fault, HttpProxy, PostgresProxy
from tests.support import Lakehouse, host_tables, insert_events, s3_variables

SECONDS = 6.0


class Pair:
    """Two installations of the program over one lake: the first behind proxies, the second not."""

    def __init__(self, url: str, s3: Any, bucket: str, stack: ExitStack, *, own_control: bool) -> None:
        self.storage = stack.enter_context(HttpProxy(s3.endpoint))
        self.control = stack.enter_context(PostgresProxy(url))
        catalog = f"{url}?options=-csearch_path%3Dpublic"
        common = s3_variables(url, s3, bucket) | {
            "LAKEHOUSE_LAKE__CATALOG__URI": catalog,
            "LAKEHOUSE_WORK__LEASE_SECONDS": "1.5",
        }
        behind = {"LAKEHOUSE_LAKE__S3__ENDPOINT": self.storage.endpoint, "LAKEHOUSE_CONTROL__URL": self.control.url}
        self.first, self.second = Lakehouse(url, common | behind), Lakehouse(url, dict(common))
        if own_control:
            self.second.reopen(CONTROL__SCHEMA="another")
        for house in (self.first, self.second):
            stack.callback(house.close)
            house.init()


@pytest.fixture
def pair(hot_url: str, s3: Any, bucket: str) -> Iterator[Pair]:
    host_tables(hot_url)
    with ExitStack() as stack:
        yield Pair(hot_url, s3, bucket, stack, own_control=False)


@pytest.mark.parametrize(
    ("held", "at"),
    [(".parquet", "staging"), ("/metadata/", "committing")],
    ids=["while it stages", "while it commits"],
)
def test_a_lease_that_runs_out_during_a_slow_upload(pair: Pair, held: str, at: str) -> None:
    first, second = pair.first, pair.second
    with first.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        first.backfill("events")
        insert_events(hot, "org-a", 100, 5)
        slow = pair.storage.arm(Fault("hold", lambda r: r.text.startswith("PUT ") and held in r.text))
        results: list[TableResult] = []
        working = threading.Thread(target=lambda: results.append(first.sync("events")))
        working.start()
        try:
            assert slow.held.wait(60)
            # No renewal gets through any more; the other takes over what ran out.
            silent = pair.control.arm(Fault("cut_request", lambda _: True, times=None))
            hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e100'")
            taken = second.sync("events")
            assert not taken.errors and not taken.busy, taken
            assert second.sync("events", reconcile=True).errors == {}
            committed = len(second.lake_table("events", "org-a").snapshots())
            assert silent.hits > 0
            pair.control.calm()
        finally:
            pair.storage.calm()
            working.join()
    (result,) = results
    # Which of the two it meets first, when it comes back: a lease that is another's, or connections that were cut.
    assert result.errors and {type(e) for e in result.errors.values()} <= {LeaseLostError, ControlError}, result.errors
    assert len(second.lake_table("events", "org-a").snapshots()) == committed, "it committed after it lost its lease"
    second.sync_ok("events", reconcile=True)
    second.assert_equal("events")
    assert (at == "staging") == (not taken.settled), "who takes over a share lands it from where it lies"


@pytest.mark.parametrize("own_control", [False, True], ids=["one control", "a control of its own"])
def test_two_programs_write_one_table_for_a_while(hot_url: str, s3: Any, bucket: str, own_control: bool) -> None:
    """Leases keep them apart where they share their control tables; where they do not, the table's fence alone."""
    host_tables(hot_url)
    with ExitStack() as stack:
        pair = Pair(hot_url, s3, bucket, stack, own_control=own_control)
        houses = (pair.first, pair.second)
        with pair.first.hot() as hot:
            for organization in ("org-a", "org-b"):
                insert_events(hot, organization, 1, 10)
            for house in houses if own_control else houses[:1]:
                house.backfill("events")
            until = time.monotonic() + SECONDS
            results: list[TableResult] = []
            unknown: list[BaseException] = []

            def work(house: Lakehouse) -> None:
                try:
                    while time.monotonic() < until:
                        results.append(house.sync("events", reconcile=None))
                except BaseException as error:
                    unknown.append(error)

            threads = [threading.Thread(target=work, args=(house,)) for house in houses]
            for thread in threads:
                thread.start()
            number = 0
            while time.monotonic() < until:
                number += 1
                insert_events(hot, "org-a", 1000 * number, 3)
                insert_events(hot, "org-b", 1000 * number, 1)
                hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = %s", [f"org-a-e{1000 * number}"])
                hot.execute("DELETE FROM ingested_events WHERE id = %s", [f"org-a-e{1000 * number - 999}"])
                hot.execute("SELECT pg_sleep(0.02)")
            for thread in threads:
                thread.join()
        if unknown:
            raise unknown[0]
        errors = [e for r in results for e in r.errors.values()]
        assert all(e.retry is Retry.TIMED for e in errors), errors
        landed = sum(len(r.snapshots) for r in results)
        assert landed > 2 and (not own_control or errors), (landed, "they never met")
        for _ in range(6):
            if not pair.second.sync("events", reconcile=True).errors:
                break
        pair.second.sync_ok("events", reconcile=True)
        pair.second.assert_equal("events")
