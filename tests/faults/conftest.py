"""A lake in a bucket whose storage, catalog, control tables and source each stand behind a proxy of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from lakehouse.sync import TableResult
from schemas.errors import LakehouseError, Retry
from tests.faults.proxy import HttpProxy, PostgresProxy, Proxy
from tests.support import Lakehouse, host_tables, insert_events, s3_variables


@dataclass
class Proxied:
    """An installation, and the way to each server that it uses."""

    house: Lakehouse
    s3: HttpProxy
    catalog: PostgresProxy
    control: PostgresProxy
    source: PostgresProxy

    def __getitem__(self, name: str) -> Proxy:
        found: Proxy = getattr(self, name)
        return found

    def calm(self) -> None:
        for proxy in (self.s3, self.catalog, self.control, self.source):
            proxy.calm()

    def window(self, *, reconcile: bool | None = None) -> TableResult:
        """One window in a new application, as a new process would do it. Every error must be one that waits."""
        try:
            self.house.reopen()
            result = self.house.sync("events", reconcile=reconcile)
        except LakehouseError as error:
            result = TableResult("events", errors={"": error})
        for error in result.errors.values():
            assert error.retry is Retry.TIMED, (type(error), error)
        return result

    def settle(self) -> None:
        """Rounds until nothing is left of what went wrong; then hot and lake are the same."""
        for _ in range(8):
            result = self.window(reconcile=True)
            if not (result.errors or result.busy or result.landing):
                break
        else:
            raise AssertionError(result)
        self.house.assert_equal("events")


@pytest.fixture
def proxied(hot_url: str, s3: Any, bucket: str) -> Iterator[Proxied]:
    host_tables(hot_url)
    with ExitStack() as stack:
        enter = stack.enter_context
        catalog, control, source = (enter(PostgresProxy(hot_url)) for _ in range(3))
        storage = enter(HttpProxy(s3.endpoint))
        options = "?options=-csearch_path%3Dlakehouse"
        variables = s3_variables(source.url, s3, bucket) | {
            "LAKEHOUSE_LAKE__S3__ENDPOINT": storage.endpoint,
            "LAKEHOUSE_CONTROL__URL": control.url,
            "LAKEHOUSE_LAKE__CATALOG__URI": catalog.url + options,
            "LAKEHOUSE_WORK__LEASE_SECONDS": "2",
        }
        house = Lakehouse(hot_url, variables)
        stack.callback(house.close)
        house.init()
        yield Proxied(house, storage, catalog, control, source)


@pytest.fixture
def landed(proxied: Proxied) -> Proxied:
    """Two organizations with rows that were landed, and changes of every kind that were not."""
    house = proxied.house
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 30)
        house.backfill("events")
        insert_events(hot, "org-a", 100, 5)
        house.sync_ok("events", reconcile=True)
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 200, 20)
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id LIKE '%%-e2'")
        hot.execute("DELETE FROM ingested_events WHERE id LIKE '%%-e3'")
    return proxied
