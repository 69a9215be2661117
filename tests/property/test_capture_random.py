"""Windows under random writers: the lake ends as the table is, every version once, in the order of commits.

The database is the oracle. A run prints its seed; `PROPERTY_SEED` gives the same writers again (not the same
interleaving of their threads), `PROPERTY_SECONDS` says for how long windows follow them. The keyset cursor that was
asked for first runs beside the windows: a run in which it lost nothing would not have seen us lose anything either.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.backfill.run import backfill_table
from lakehouse.capture.prepare import reader_of, run, work_for
from lakehouse.capture.tombstones import prune_tombstones
from lakehouse.control import store
from tests.property.writers import BLOCK, DELIVERIES, SHARED_KEYS, TABLES, HotTable, Writer, event_time
from tests.support import ORGANIZATIONS, Inline, Lakehouse, host_tables, local_variables

WRITERS = 4
ROWS_EACH = 200
SECONDS = float(os.environ.get("PROPERTY_SECONDS", "20"))


@pytest.fixture
def house(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(postgres_url)
    lakehouse = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@dataclass
class Naive:
    """`(updated_at, id) >` the last that was seen: what a timestamp alone can do."""

    last: tuple[datetime, str] = (datetime.min, "")  # noqa: DTZ901
    held: dict[str, int] = field(default_factory=dict)

    def poll(self, connection: psycopg.Connection[Any]) -> None:
        for stamp, key, number in connection.execute(
            "SELECT updated_at, id, (payload->>'n')::bigint FROM siem_deliveries "
            "WHERE (updated_at, id) > (%s, %s) ORDER BY 1, 2",
            self.last,
        ):
            self.held[key] = number
            self.last = (stamp, key)

    def lost(self, connection: psycopg.Connection[Any]) -> tuple[int, int]:
        """Rows whose last version never came; and those of them whose stamp was right when it was written."""
        rows = connection.execute(
            "SELECT id, (payload->>'n')::bigint, coalesce(payload->>'skew', '') = '0.0' FROM siem_deliveries"
        ).fetchall()
        lost = [honest for key, number, honest in rows if self.held.get(key) != number]
        return len(lost), sum(lost)


class Slow(Inline):
    """Ranges a while apart, so that a backfill reads them under several snapshots."""

    def submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        time.sleep(0.4)
        return super().submit(function, task)


def say(line: str) -> None:
    """Shown by pytest when the test fails, and with `-s`."""
    sys.stdout.write(f"{line}\n")


def settings(choose: random.Random) -> dict[str, str]:
    """Limits that are met in twenty seconds: they change the way, never the outcome."""
    return {
        "BACKFILL__RANGE_ROWS": str(choose.choice([200, 300])),
        "BACKFILL__SNAPSHOT_SECONDS": "1",
        "CAPTURE__RECONCILE_EVERY_SECONDS": str(choose.choice([0, 2, 900])),
        "CAPTURE__MAX_SEEN": str(choose.choice([0, 5, 10_000, 10_000])),
        "LANDING__MAX_PARTITIONS": str(choose.choice([1, 500, 500])),
    }


def add_shared_rows(connection: psycopg.Connection[Any]) -> None:
    for key in SHARED_KEYS:
        values = {"id": key, "o": ORGANIZATIONS[len(key) % 3], "at": event_time(key)}
        connection.execute(
            "INSERT INTO ingested_events (id, organization_id, integration_id, provider, event_type, source, payload, "
            "occurred_at) VALUES (%(id)s, %(o)s, 'int-org-a', 'GITHUB', 'push', 'audit', '{\"n\": 0}', %(at)s)",
            values,
        )
        connection.execute(
            "INSERT INTO siem_deliveries (id, organization_id, stream, payload, created_at, updated_at) "
            "VALUES (%(id)s, %(o)s, 'EVENTS', '{\"n\": 0}', %(at)s, timezone('utc', now()))",
            values,
        )


def prunes(house: Lakehouse, table: HotTable) -> bool:
    """Whether a window that does not compare keys would now be pruned."""
    positions = [c.position for c in store.cursors(house.app.engine, table.lake).values()]
    return table is DELIVERIES and all(p.bound is not None for p in positions)


def prepare_tables(house: Lakehouse) -> None:
    """As `source prepare --apply` does."""
    for table in TABLES:
        contract = house.app.contract(table.lake)
        with house.app.source.catalog() as connection:
            work = work_for(connection, contract, reader_of(house.app.source))
            run(connection, contract, work, lock_seconds=2, attempts=5)


def check_pruned(house: Lakehouse, hot: psycopg.Connection[Any]) -> None:
    """Without an exact read, a window lacks only rows whose stamp is further off than its margin, or by hand."""
    house.sync_ok(DELIVERIES.lake, reconcile=False)
    held: dict[tuple[str, str], int] = {}
    for organization in ORGANIZATIONS:
        for version in house.versions(DELIVERIES.lake, organization, "id, payload"):
            if version["payload"] is not None:
                held[organization, version["id"]] = json.loads(version["payload"])["n"]
    for organization, key, payload in hot.execute("SELECT organization_id, id, payload FROM siem_deliveries"):
        if payload.get("skew", -3600) >= -2:
            assert held.get((organization, key)) == payload["n"], (organization, key, payload)


def check_versions(house: Lakehouse, table: HotTable, writers: Sequence[Writer]) -> int:
    """Each key's numbers grow along `_sequence`, and none was rolled back. How many versions there are."""
    committed = {(key[1], number) for w in writers for key, number in w.committed if key[0] is table}
    total = 0
    for organization in ORGANIZATIONS:
        highest: dict[str, int] = {}
        for version in house.versions(table.lake, organization, "id, _op, _sequence, payload"):
            total += 1
            if version["_op"] == "delete":
                continue
            key, number = version["id"], json.loads(version["payload"])["n"]
            assert number > highest.get(key, -1), (organization, version, highest[key])
            assert key in SHARED_KEYS or (key, number) in committed, ("rolled back, or seen half", version)
            highest[key] = number
    return total


@pytest.mark.timeout(int(SECONDS) + 240)
@pytest.mark.parametrize("switching", [False, True], ids=["xmin", "switching"])
def test_random_writers_lose_nothing_and_double_nothing(house: Lakehouse, switching: bool) -> None:
    seed = os.environ.get("PROPERTY_SEED") or secrets.token_hex(4)
    choose = random.Random(seed)
    chosen = settings(choose)
    if switching:
        # Over the cap keys are compared, which would mend what tombstones missed.
        chosen |= {"CAPTURE__MAX_SEEN": "10000", "LANDING__MAX_PARTITIONS": "500"}
    say(f"PROPERTY_SEED={seed} PROPERTY_SECONDS={SECONDS:g} {chosen}")
    house.reopen(**chosen)
    stop, prepare = threading.Event(), threading.Event()
    writers = [Writer(n, house.hot_url, seed, stop, prepare) for n in range(WRITERS)]
    naive = Naive()
    with house.hot() as hot:
        hot.execute("CREATE INDEX ON siem_deliveries (updated_at)")
        hot.execute(BLOCK)
        add_shared_rows(hot)
        for writer in writers:
            writer.seed_rows(ROWS_EACH)
        hot.execute("ANALYZE ingested_events, siem_deliveries")
        if switching:
            # Before they begin: a writer's thread never ends the transactions that it leaves open while it waits.
            prepare_tables(house)
        count = pruned = 0
        prepare.set()
        try:
            for writer in writers:
                writer.thread.start()
            for table in TABLES:
                assert house.backfill(table.lake, organizations=("org-a",)).read_ranges > 1
                naive.poll(hot)
            house.sync_ok(DELIVERIES.lake)
            for table in TABLES:
                result = backfill_table(house.app, house.app.contract(table.lake), Slow())
                assert not result.errors and result.read_ranges > 1, result
            methods = {table.lake: "xmin" for table in TABLES}
            switches = 0
            began = time.monotonic()
            while (now := time.monotonic() - began) < SECONDS:
                table, reconcile = choose.choice(TABLES), choose.choice([None, None, False, False, True])
                if now > SECONDS * 2 / 3:
                    reconcile = False  # no exact read mends what a window lost: `check_pruned` would see it
                if switching:
                    # The last third is both tables' under triggers alone.
                    wanted = dict.fromkeys(methods, "trigger") if now > SECONDS * 2 / 3 else dict(methods)
                    if now <= SECONDS * 2 / 3 and choose.random() < 0.3:
                        wanted[table.lake] = choose.choice(["trigger", "xmin"])
                    if methods != wanted:
                        methods, switches = wanted, switches + 1
                        house.reopen(CAPTURE__METHODS=json.dumps(methods))
                        if now > SECONDS * 2 / 3:
                            for each in TABLES:
                                house.sync_ok(each.lake, reconcile=False)
                if switching and choose.random() < 0.1:
                    prune_tombstones(house.app)
                (prepare.set if now < SECONDS / 3 or choose.random() < 0.15 else prepare.clear)()
                pruned += reconcile is False and prunes(house, table)
                house.sync_ok(table.lake, reconcile=reconcile)
                count += 1
                naive.poll(hot)
                if choose.random() < 0.1:
                    house.reopen()
        finally:
            stop.set()
            for writer in writers:
                if writer.thread.ident is not None:
                    writer.thread.join()
        for writer in writers:
            if writer.error is not None:
                raise writer.error
        naive.poll(hot)
        if switching:
            # No comparison of keys has the last word: tombstones and change ids alone must have seen everything.
            for table in TABLES:
                house.sync_ok(table.lake, reconcile=False)
                house.assert_equal(table.lake)
            assert switches > 0 or SECONDS < 5
            say(f"{switches} changes of method")
        else:
            check_pruned(house, hot)
        for table in TABLES:
            house.sync_ok(table.lake, reconcile=True)
            assert house.sync_ok(table.lake, reconcile=False).upserts == {}
            house.assert_equal(table.lake)
            say(f"{table.lake}: {check_versions(house, table, writers)} versions in the lake")
        lost, stamped = naive.lost(hot)
    say(f"{count} windows, {pruned} of them pruned; {[w.done for w in writers]}")
    say(f"the keyset cursor lost {lost} rows, {stamped} of them truly stamped")
    assert lost > 0, "a run in which the naive cursor loses nothing proves nothing: give it more seconds"
