"""Programs that archive are killed at each failpoint and at random moments, beside a workload that keeps a journal.

After each kill every id of the journal is either hot and equal to the journal, or tombstoned once, with a receipt that
verifies, a keyed hash of what the journal says and a version in the lake that equals it: never neither, never both.
`ARCHIVE_KILLS` says how many kills (20 unless it is set).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.archive.records import FIRST_CHAIN, chain_after, content_digest, tombstones_digest
from lakehouse.archive.seal import PublicKey, Sealer, read_signing_key, unseal
from lakehouse.duck import connect, lake_relation
from lakehouse.failpoints import NAMES
from lakehouse.maintenance.run import maintain_table
from lakehouse.recall.request import make_request
from lakehouse.recall.run import recall
from schemas.canonical import duckdb_hash, postgres_hash
from tests.cold import REFERENCES, allow, archive_variables, old_events, old_findings, tombstones
from tests.crash_report import LOG, note_kill_from_outside
from tests.support import Lakehouse, host_tables, local_variables

KILLS = int(os.environ.get("ARCHIVE_KILLS", "20"))
POINTS = [n for n in NAMES if n.startswith("archive.") and n not in ("archive.hold_placed", "archive.exported")]
TABLES = {"events": "ingested_events", "findings": "security_findings"}
_FORKS = multiprocessing.get_context("forkserver")
# Loading everything takes longer than what is to be killed.
_FORKS.set_forkserver_preload(["tests.crash.test_kill_archive", "lakehouse.archive.run", "pyiceberg.catalog.sql"])


def archive(variables: dict[str, str], failpoints: str, log: str) -> None:
    """What a program that archives does, in a process of its own."""
    from lakehouse.app import App
    from lakehouse.archive.run import archive_all
    from lakehouse.demo.environment import settings_values
    from lakehouse.settings import ExplicitSettings

    os.environ["LAKEHOUSE_FAILPOINTS"], os.environ["LAKEHOUSE_FAILPOINT_LOG"] = failpoints, log
    app = App(ExplicitSettings(**settings_values(variables)))
    try:
        result = archive_all(app)
    finally:
        app.close()
    assert result.well, (result.errors, [str(t.error) for t in result.tables])


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    variables = local_variables(hot_url, tmp_path) | archive_variables(tmp_path)
    variables |= {"LAKEHOUSE_ARCHIVE__BATCH_ROWS": "40", "LAKEHOUSE_ARCHIVE__PROOF_ROWS": "100"}
    variables |= {"LAKEHOUSE_MAINTENANCE__SETTLED_HOURS": "0", "LAKEHOUSE_MAINTENANCE__GRACE_MINUTES": "0"}
    lakehouse = Lakehouse(hot_url, variables)
    lakehouse.init()
    with lakehouse.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
    allow(lakehouse, "org-a")
    yield lakehouse
    lakehouse.close()


@dataclass
class Workload:
    """Writes old rows, and changes them while they are archived; `journal` has what was committed last of each."""

    house: Lakehouse
    choose: random.Random
    journal: dict[tuple[str, str], str] = field(default_factory=dict)
    number: int = 0
    refused: int = 0
    changed: int = 0

    def __post_init__(self) -> None:
        self.hashes = {t: postgres_hash(self.house.app.contract(t)) for t in TABLES}
        self.pause = threading.Lock()
        self.stop = threading.Event()

    def insert(self, hot: psycopg.Connection[Any], count: int) -> None:
        """Events of long ago, with a finding for some of them."""
        first, self.number = self.number + 1, self.number + count
        with hot.transaction():
            old_events(hot, "org-a", first, count, day=f"2020-0{self.choose.randint(1, 9)}-01")
            old_findings(hot, "org-a", first, count // 3, event=first, status=self.choose.choice(["RESOLVED", "OPEN"]))
            for table, source in TABLES.items():
                self._note(table, hot.execute(
                    f"SELECT id, {self.hashes[table]} FROM {source} WHERE id = ANY(%s)",  # type: ignore[arg-type]
                    [[f"org-a-{table[0]}{n}" for n in range(first, first + count)]],
                ).fetchall())  # fmt: skip

    def change(self, hot: psycopg.Connection[Any]) -> None:
        """One change to a row that may be about to leave."""
        n = self.choose.randint(1, max(1, self.number))
        table, change = self.choose.choice(
            [
                ("events", "UPDATE ingested_events SET severity = 'HIGH' WHERE id = %s"),
                ("events", "UPDATE ingested_events SET severity = 'INFO', payload = '{}' WHERE id = %s"),
                ("findings", "UPDATE security_findings SET status = 'OPEN', resolved_at = NULL WHERE id = %s"),
                (
                    "findings",
                    "UPDATE security_findings SET status = 'RESOLVED', resolved_at = detected_at WHERE id = %s",
                ),
                ("findings", "UPDATE security_findings SET risk_score = risk_score + 1 WHERE id = %s"),
            ]
        )
        try:
            with hot.transaction():
                done = hot.execute(
                    f"{change} RETURNING id, {self.hashes[table]}",  # type: ignore[arg-type]
                    [f"org-a-{table[0]}{n}"],
                ).fetchall()
        except psycopg.errors.ForeignKeyViolation:
            self.refused += 1
            return
        self.changed += len(done)
        self._note(table, done)

    def _note(self, table: str, rows: list[tuple[str, str]]) -> None:
        self.journal |= {(table, identifier): content for identifier, content in rows}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Changes go on while the body runs; `pause` holds them."""

        def work() -> None:
            with self.house.hot() as hot:
                while not self.stop.wait(0.002):
                    with self.pause:
                        self.change(hot)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()


def check(house: Lakehouse, work: Workload) -> int:
    """The invariant; how many rows have left."""
    sealer = Sealer(house.app)
    found = tombstones(house)
    gone = {(t.table, t.row_key): t for t in found}
    assert len(gone) == len(found), "a row has two tombstones"
    hot: dict[tuple[str, str], str] = {}
    with house.hot() as connection:
        for table, source in TABLES.items():
            rows = connection.execute(f"SELECT id, {work.hashes[table]} FROM {source}").fetchall()  # type: ignore[arg-type]
            hot |= {(table, identifier): content for identifier, content in rows}
        batches = connection.execute(
            "SELECT number, table_name, receipt, chain FROM lakehouse_archive.batches ORDER BY number"
        ).fetchall()
        lost = connection.execute("SELECT count(*) FROM security_findings WHERE event_id IS NULL").fetchone()
    assert lost == (0,), "a delete has changed a row that stays"
    assert not hot.keys() & gone.keys(), "both hot and tombstoned"
    assert hot.keys() | gone.keys() == work.journal.keys(), "neither hot nor tombstoned"
    assert {k: work.journal[k] for k in hot} == hot
    for key, tombstone in gone.items():
        assert sealer.keyed_hash(work.journal[key])[0] == tombstone.keyed_hash
    public = PublicKey(read_signing_key(house.app.settings.archive.signing_key_file).public_key())
    chain = FIRST_CHAIN
    for number, (stored, table, receipt, link) in enumerate(batches, start=1):
        sealed = unseal(receipt, {public.thumbprint: public})
        mine = [t for t in found if t.batch == number]
        assert (stored, sealed.number, sealed.previous, sealed.table) == (number, number, chain, table)
        assert sealed.rows == len(mine)
        assert sealed.tombstones_sha256 == tombstones_digest(mine)
        assert sealed.content_sha256 == content_digest((t.row_key, work.journal[t.table, t.row_key]) for t in mine)
        chain = chain_after(chain, receipt)
        assert link == chain
    assert {t.batch for t in found} == set(range(1, len(batches) + 1))
    return len(gone)


def check_lake(house: Lakehouse, work: Workload) -> None:
    """The lake has the version that each tombstone names, and it is the journal's."""
    for table in TABLES:
        contract = house.app.contract(table)
        with connect([house.app.address_of("org-a")]) as duck:
            relation = lake_relation(house.lake_table(table, "org-a").metadata_location)
            versions = duck.execute(f"SELECT id, _sequence, {duckdb_hash(contract)} FROM {relation}").fetchall()
        lake = {(identifier, sequence): content for identifier, sequence, content in versions}
        for tombstone in tombstones(house):
            if tombstone.table == table:
                assert lake[tombstone.row_key, tombstone.sequence] == work.journal[table, tombstone.row_key]


def check_recall(house: Lakehouse, work: Workload, folder: Path) -> None:
    """Every row that left is brought back as the journal has it: the digest is over each row's content."""
    for table in TABLES:
        ids = sorted(t.row_key for t in tombstones(house) if t.table == table)
        back = recall(
            house.app,
            make_request("org-a", house.app.contract(table), ids=ids),
            target="parquet",
            output=str(folder / f"{table}.parquet"),
            reason="the journal",
            by="the test",
        )
        assert not back.missing
        assert back.content_sha256 == content_digest((key, work.journal[table, key]) for key in ids)


@pytest.mark.timeout(180 + 15 * KILLS)
def test_killed_while_rows_leave(house: Lakehouse, tmp_path: Path) -> None:
    seed = os.environ.get("PROPERTY_SEED") or secrets.token_hex(4)
    sys.stdout.write(f"PROPERTY_SEED={seed} ARCHIVE_KILLS={KILLS}\n")
    choose = random.Random(seed)
    work = Workload(house, choose)
    with house.hot() as hot:
        work.insert(hot, 200)
    for table in TABLES:
        house.backfill(table)
    kills, runs, points = 0, 0, list(POINTS)
    with work.running(), house.hot() as hot:
        while kills < KILLS:
            if runs % 3 == 0:
                with work.pause:
                    work.insert(hot, 180)
                for table in TABLES:
                    house.sync_ok(table, reconcile=False)
            if runs % 15 == 14:
                for table in TABLES:
                    # Files that receipts name are merged with others.
                    assert not maintain_table(house.app, house.app.contract(table), "org-a").errors
            # Each point once, then any, on whichever pass; and moments that no point names.
            outside = not points and choose.random() < 0.3
            armed = (
                "" if outside else f"{points.pop() if points else choose.choice(POINTS)}=kill@{choose.randint(1, 3)}"
            )
            if armed and kills < len(POINTS):
                armed = armed.partition("@")[0]
            process = _FORKS.Process(target=archive, args=(house.variables, armed, os.environ[LOG]))
            process.start()
            if outside:
                process.join(choose.uniform(0.3, 1.5))
                if process.is_alive():
                    process.kill()
                    note_kill_from_outside()
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
            kills += process.exitcode == -signal.SIGKILL
            runs += 1
            with work.pause:
                gone = check(house, work)
    for table in TABLES:
        house.sync_ok(table, reconcile=False)
    archive(house.variables, "", os.environ[LOG])
    assert check(house, work) > gone / 2
    check_lake(house, work)
    check_recall(house, work, tmp_path)
    sys.stdout.write(
        f"{kills} kills in {runs} runs, {len(work.journal)} ids, {gone} gone, {work.changed} changes beside them\n"
    )
