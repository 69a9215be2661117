"""Programs are killed at random moments, for as long as `CRASH_SECONDS` says, while writers do all that they can.

Three programs as an operator leaves them, each started again when it was killed: they capture, land, maintain, and feed
destinations of every kind, which somebody meanwhile pauses, resumes and fills anew. In the end the tables are equal, no
version landed twice, each key's versions are in the order in which they were committed, and every destination is equal.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from tests.crash.test_workers import QUICK
from tests.crash_report import note_kill_from_outside
from tests.property.copies import VARIABLES, Copies
from tests.property.world import World
from tests.property.writers import TABLES, Common
from tests.support import ORGANIZATIONS, Lakehouse, host_tables, local_variables

SECONDS = float(os.environ.get("CRASH_SECONDS", "20"))
PROGRAMS = 3


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    more = {"LAKEHOUSE_SCHEDULE__MAINTAIN_EVERY_SECONDS": "3"}
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path) | QUICK | VARIABLES | more)
    lakehouse.init()
    names = ",".join(table.lake for table in TABLES)
    with lakehouse.app.engine.begin() as connection:
        connection.execute(text(f"UPDATE warehouse_destinations SET enabled_tables = '{{{names}}}'"))
    yield lakehouse
    lakehouse.close()


@dataclass
class Program:
    """One `lakehouse run`, started as often as it was killed. It writes its events to `log`."""

    house: Lakehouse
    log: Path
    process: subprocess.Popen[bytes] | None = None
    spared: int = 0
    """It is not killed before it has finished so many units of work."""

    def keep_up(self, choose: random.Random) -> None:
        """Start it where it does not run; fail if it ended by itself."""
        if self.process is None:
            self.spared = choose.choice([0, 0, 1, 4, 12])
            # Not a pipe: nobody reads its events, and a full one would hold it up.
            with self.log.open("wb") as events:
                self.process = subprocess.Popen(
                    self.house.command("run"), env=self.house.environment(), stdout=events, stderr=events
                )
        assert self.process.poll() is None, self.log.read_text()[-4000:]

    def may_be_killed(self) -> bool:
        """Counted by what it did: on a busy machine it would never come to anything otherwise."""
        return self.process is not None and self.log.read_bytes().count(b'"outcome"') >= self.spared

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.mark.timeout(int(SECONDS) + 560)
def test_killed_at_random_while_everything_goes_on(
    house: Lakehouse, postgres_server: EmbeddedPostgres, s3: EmbeddedS3, tmp_path: Path
) -> None:
    seed = os.environ.get("PROPERTY_SEED") or secrets.token_hex(4)
    choose = random.Random(seed)
    sys.stdout.write(f"PROPERTY_SEED={seed} CRASH_SECONDS={SECONDS:g}\n")
    common = Common(house.hot_url, seed, list(ORGANIZATIONS), pause=0.04, mass=(5, 50))
    world = World(house, common, rows=200, guests=False)
    world.begin(2)
    copies = Copies(house, postgres_server, s3, step=400, alone=False)
    copies.add()
    for table in TABLES:
        house.backfill(table.lake, organizations=("org-a",))
    common.prepare.set()
    programs = [Program(house, tmp_path / f"program-{n}.jsonl") for n in range(PROGRAMS)]
    kills = 0
    with world.running():
        try:
            until = time.monotonic() + SECONDS
            # On a busy machine also until they have done enough to lose something.
            while time.monotonic() < until or kills <= SECONDS / 10 or landings(house) <= SECONDS / 4:
                for program in programs:
                    program.keep_up(choose)
                common.stop.wait(choose.uniform(0.5, 4))
                if choose.random() < 0.3:
                    copies.operate(choose)
                victim = choose.choice(programs)
                if victim.may_be_killed():
                    victim.kill()
                    note_kill_from_outside()
                    kills += 1
        finally:
            for program in programs:
                program.kill()
    settle(house)
    versions = 0
    for table in TABLES:
        house.assert_equal(table.lake)
        versions += world.check_versions(table)
    with house.hot() as hot:
        copies.finish(hot, wait=lambda: time.sleep(0.5))
    with house.app.engine.connect() as connection:
        delivered, takeovers = connection.execute(
            text("SELECT count(*) FILTER (WHERE window_id IS NULL), sum(takeovers) FROM warehouse_deliveries")
        ).one()
        windows = connection.scalar(text("SELECT count(*) FROM windows"))
    done = {
        "windows": windows,
        "deliveries": delivered,
        "equal_destinations": copies.events["equal in the end"],
    }
    sys.stdout.write(
        f"figures {json.dumps(done)}\n"
        f"{kills} kills, {world.transactions} transactions, {world.versions} versions, {versions} of them in the lake, "
        f"{landings(house)} landings, {delivered} deliveries, {takeovers} of both taken over\n"
        f"destinations: {dict(copies.events)}\n"
    )


def landings(house: Lakehouse) -> int:
    """How many shares of windows have landed."""
    with house.app.engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM landings WHERE status = 'landed'")))


def settle(house: Lakehouse) -> None:
    """What the dead left behind is landed, once their leases have run out."""
    house.reopen()
    for table in TABLES:
        for _ in range(60):
            house.backfill(table.lake)
            result = house.sync(table.lake, reconcile=True)
            if not (result.errors or result.busy or result.landing or result.waiting):
                break
            time.sleep(0.5)
        else:
            raise AssertionError(result)
