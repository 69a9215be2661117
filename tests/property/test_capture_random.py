"""Windows under random writers: the lake ends as the table is, every version once, in the order of commits.

What landed goes on to destinations of every kind, which are delivered to, paused, filled anew and compared meanwhile
(tests/property/copies.py), and are equal in the end.

The database is the oracle. A run prints its seed; `PROPERTY_SEED` gives the same writers again (not the same
interleaving of their threads). `PROPERTY_SECONDS` says for how long windows follow them, `PROPERTY_TRANSACTIONS` and
`PROPERTY_VERSIONS` how much they must have committed by then. The keyset cursor that was asked for first runs beside
the windows: a run in which it lost nothing would not have seen us lose anything either.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lakehouse.backfill.run import backfill_table
from lakehouse.capture.tombstones import prune_tombstones
from lakehouse.control import store
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.worker.discover import discover
from tests.property.archive import Archiver
from tests.property.copies import VARIABLES, Copies
from tests.property.world import GUEST, Naive, World
from tests.property.writers import DELIVERIES, TABLES, Common, HotTable
from tests.support import ORGANIZATIONS, Inline, Lakehouse, host_tables, local_variables

WRITERS = 4
SECONDS = float(os.environ.get("PROPERTY_SECONDS", "15"))
TRANSACTIONS = int(os.environ.get("PROPERTY_TRANSACTIONS", "0"))
VERSIONS = int(os.environ.get("PROPERTY_VERSIONS", "0"))
METHODS = ("xmin", "trigger", "switching")


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path) | VARIABLES)
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


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


def prunes(house: Lakehouse, table: HotTable) -> bool:
    """Whether a window that does not compare keys would now be pruned."""
    positions = [c.position for c in store.cursors(house.app.engine, table.lake).values()]
    return table is DELIVERIES and all(p.bound is not None for p in positions)


def follow(house: Lakehouse) -> None:
    """As the scheduler does: whoever came gets a lake and a backfill, whoever went is stopped."""
    found = discover(house.app)
    assert not found.errors, found.errors
    for table in TABLES:
        known = store.cursors(house.app.engine, table.lake)
        if any(lake.organization_id not in known and not lake.stopped_at for lake in store.lakes(house.app.engine)):
            result = house.backfill(table.lake)
            assert not result.errors, result.errors


def rounds(house: Lakehouse, world: World, naive: Naive, copies: Copies, method: str, choose: random.Random) -> None:
    """Windows until the length that was asked for is reached; counts what it did in `world.events`.

    On a machine that is busy one round may take longer than a third of the time: the last third has one at least.
    """
    methods = {table.lake: "trigger" if method == "trigger" else "xmin" for table in TABLES}
    began, last = time.monotonic(), False
    with house.hot() as hot:
        while (now := progress(world, began)) < 1 or not last:
            table, reconcile = choose.choice(TABLES), choose.choice([None, None, False, False, True])
            settled, last = last, now > 2 / 3
            if last:
                reconcile = False  # no exact read mends what a window lost: `check_pruned` would see it
            if method == "switching":
                # The last third is both tables' under triggers alone.
                wanted = dict.fromkeys(methods, "trigger") if last else dict(methods)
                if not last and choose.random() < 0.3:
                    wanted[table.lake] = choose.choice(["trigger", "xmin"])
                if methods != wanted:
                    methods = wanted
                    world.count("changes of method")
                    house.reopen(CAPTURE__METHODS=json.dumps(methods))
                    if last and not settled:
                        for each in TABLES:
                            house.sync_ok(each.lake, reconcile=False)
            if method != "xmin" and choose.random() < 0.1:
                prune_tombstones(house.app)
            (world.common.prepare.set if now < 1 / 3 or choose.random() < 0.15 else world.common.prepare.clear)()
            if reconcile is False and prunes(house, table):
                world.count("pruned windows")
            house.sync_ok(table.lake, reconcile=reconcile)
            world.count("windows")
            naive.poll(hot)
            if choose.random() < 0.6:
                copies.act(choose)
            if choose.random() < 0.1:
                follow(house)
            if choose.random() < 0.1:
                house.reopen()


def progress(world: World, began: float) -> float:
    """From 0 to 1: the least of time, transactions and versions."""
    parts = [(time.monotonic() - began) / SECONDS]
    if TRANSACTIONS:
        parts.append(world.transactions / TRANSACTIONS)
    if VERSIONS:
        parts.append(world.versions / VERSIONS)
    return min(parts)


@pytest.mark.timeout(int(SECONDS) + 240 + TRANSACTIONS // 8)
@pytest.mark.parametrize("method", METHODS)
def test_random_writers_lose_nothing_and_double_nothing(
    house: Lakehouse, postgres_server: EmbeddedPostgres, s3: EmbeddedS3, tmp_path: Path, method: str
) -> None:
    seed = os.environ.get("PROPERTY_SEED") or secrets.token_hex(4)
    choose = random.Random(seed)
    chosen = settings(choose)
    if method != "xmin":
        # Over the cap keys are compared, which would mend what tombstones missed.
        chosen |= {"CAPTURE__MAX_SEEN": "10000", "LANDING__MAX_PARTITIONS": "500"}
        chosen |= {"CAPTURE__METHODS": json.dumps(dict.fromkeys([t.lake for t in TABLES], "xmin"))}
    say(f"PROPERTY_SEED={seed} PROPERTY_SECONDS={SECONDS:g} {chosen}")
    house.reopen(**chosen)
    large = bool(TRANSACTIONS or VERSIONS)
    common = Common(
        house.hot_url, seed, list(ORGANIZATIONS), pause=0.02 if large else 0.04, mass=(80, 500) if large else (5, 50)
    )
    world, naive = World(house, common, rows=1000 if large else 200), Naive()
    copies = Copies(house, postgres_server, s3, step=2 * world.rows)
    copies.add()
    archiver = Archiver(house, tmp_path, common.organizations, seed, prunes=method == "xmin")
    archiver.begin(GUEST)
    world.begin(WRITERS)
    if method != "xmin":
        # Before they begin: a writer's thread never ends the transactions that it leaves open while it waits.
        house.prepare(*(t.lake for t in TABLES))
    if method == "trigger":
        house.reopen(CAPTURE__METHODS=json.dumps(dict.fromkeys([t.lake for t in TABLES], "trigger")))
    common.prepare.set()
    with house.hot() as hot:
        with archiver.running(), world.running():
            for table in TABLES:
                result = house.backfill(table.lake, organizations=("org-a",))
                # A table that was just truncated may be one range.
                assert result.read_ranges > 1 or world.events.get("truncate"), result
                naive.poll(hot)
            house.sync_ok(DELIVERIES.lake)
            for table in TABLES:
                result = backfill_table(house.app, house.app.contract(table.lake), Slow())
                assert not result.errors, result
                assert result.read_ranges > 1 or world.events.get("truncate"), result
            rounds(house, world, naive, copies, method, choose)
        naive.poll(hot)
        follow(house)
        if method == "xmin":
            world.check_pruned(hot)
        else:
            # No comparison of keys has the last word: tombstones and change ids alone must have seen everything.
            for table in TABLES:
                house.sync_ok(table.lake, reconcile=False)
                house.assert_equal(table.lake, *common.organizations)
        for table in TABLES:
            house.sync_ok(table.lake, reconcile=True)
            assert house.sync_ok(table.lake, reconcile=False).upserts == {}
            house.assert_equal(table.lake, *common.organizations)
            say(f"{table.lake}: {world.check_versions(table)} versions in the lake")
        for organization in common.organizations:
            # By triggers too, a window that compares keys (as after a TRUNCATE) does not ask the log of deletes.
            copies.archived[organization] = archiver.check(hot, organization, sees_all=False)
        copies.finish(hot)
        lost, stamped = naive.lost(hot)
    done = {
        "transactions": world.transactions,
        "versions": world.versions,
        "windows": world.events["windows"],
        "archived": archiver.events["archived"],
        "deliveries": copies.events["deliveries"],
        "equal_destinations": copies.events["equal in the end"],
        "naive_lost": lost,
    }
    say(f"figures {json.dumps(done)}")
    say(f"{world.transactions} transactions, {world.versions} versions; {world.events}")
    say(f"destinations: {dict(copies.events)}")
    kept = sum(map(len, copies.archived.values()))
    say(f"archive: {archiver.events}; {kept} of them stay the latest state")
    assert kept > 0, "a run in which nothing is archived proves nothing of it"
    say(f"{[w.done for w in world.writers]}")
    say(f"the keyset cursor lost {lost} rows, {stamped} of them truly stamped")
    assert lost > 0, "a run in which the naive cursor loses nothing proves nothing: give it more seconds"
    assert method != "switching" or world.events.get("changes of method") or SECONDS < 5
