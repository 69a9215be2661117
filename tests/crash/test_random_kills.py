"""Programs are killed at random moments, for as long as `CRASH_SECONDS` says, while writers do all that they can.

Three programs as an operator leaves them, each started again when it was killed. In the end the tables are equal, no
version landed twice, and each key's versions are in the order in which they were committed.
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.crash.test_workers import QUICK
from tests.crash_report import note_kill_from_outside
from tests.property.world import World
from tests.property.writers import TABLES, Common
from tests.support import ORGANIZATIONS, Lakehouse, host_tables, local_variables

SECONDS = float(os.environ.get("CRASH_SECONDS", "20"))
PROGRAMS = 3


@pytest.fixture
def house(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(postgres_url)
    lakehouse = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path) | QUICK)
    lakehouse.init()
    names = ",".join(table.lake for table in TABLES)
    with lakehouse.app.engine.begin() as connection:
        connection.execute(text(f"UPDATE warehouse_destinations SET enabled_tables = '{{{names}}}'"))
    yield lakehouse
    lakehouse.close()


@pytest.mark.timeout(int(SECONDS) + 280)
def test_killed_at_random_while_everything_goes_on(house: Lakehouse, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    seed = os.environ.get("PROPERTY_SEED") or secrets.token_hex(4)
    choose = random.Random(seed)
    sys.stdout.write(f"PROPERTY_SEED={seed} CRASH_SECONDS={SECONDS:g}\n")
    common = Common(house.hot_url, seed, list(ORGANIZATIONS), pause=0.04, mass=(5, 50))
    world = World(house, common, rows=200, guests=False)
    world.begin(2)
    common.prepare.set()
    programs: list[subprocess.Popen[bytes] | None] = [None] * PROGRAMS
    kills = 0
    with world.running():
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                for place, program in enumerate(programs):
                    if program is None:
                        # Not a pipe: nobody reads their events, and a full one would hold them up.
                        with log.open("ab") as events:
                            programs[place] = subprocess.Popen(
                                house.command("run"), env=house.environment(), stdout=events, stderr=events
                            )
                    else:
                        assert program.poll() is None, log.read_text()[-4000:]
                # A program needs about two seconds until it does anything.
                common.stop.wait(choose.uniform(0.5, 4))
                killed = choose.randrange(PROGRAMS)
                if (program := programs[killed]) is not None:
                    program.kill()
                    program.wait()
                    note_kill_from_outside()
                    programs[killed] = None
                    kills += 1
        finally:
            for program in programs:
                if program is not None:
                    program.kill()
                    program.wait()
    assert kills > SECONDS / 10
    settle(house)
    versions = 0
    for table in TABLES:
        house.assert_equal(table.lake)
        versions += world.check_versions(table)
    sys.stdout.write(f"{kills} kills, {world.transactions} transactions, {versions} versions in the lake\n")


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
