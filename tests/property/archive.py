"""The archive beside writers and windows: whatever is old at the moment leaves, by the real gate, while all goes on.

Some events are old from the day that they are made, so any of them may go once it has landed. Writers find out when a
change meets no row, and insert ids again that went, some with another event time. What really befell each row is
written down by a trigger of the host's own, which knows nothing of this product: that is what the lake is judged by.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from lakehouse.archive.run import archive_all
from lakehouse.duck import arrow, connect, lake_relation
from lakehouse.maintenance.archive import keep_archive
from schemas.errors import Retry
from tests.cold import REFERENCES, allow, archive_variables
from tests.support import Lakehouse

TABLE = "events"

# What left, by which transaction; of a TRUNCATE every row. And tombstones, before they are pruned.
JOURNAL = """
CREATE TABLE gone (n bigint GENERATED ALWAYS AS IDENTITY, organization_id text, id text, occurred_at timestamp,
                   xact xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE FUNCTION host_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO gone (organization_id, id, occurred_at) VALUES (OLD.organization_id, OLD.id, OLD.occurred_at);
    RETURN NULL;
END $$;
CREATE FUNCTION host_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO gone (organization_id, id, occurred_at) SELECT organization_id, id, occurred_at FROM ingested_events;
    RETURN NULL;
END $$;
CREATE TRIGGER host_gone AFTER DELETE ON ingested_events FOR EACH ROW EXECUTE FUNCTION host_gone();
CREATE TRIGGER host_changed AFTER UPDATE ON ingested_events FOR EACH ROW
    WHEN ((OLD.organization_id, OLD.id, OLD.occurred_at)
          IS DISTINCT FROM (NEW.organization_id, NEW.id, NEW.occurred_at)) EXECUTE FUNCTION host_gone();
CREATE TRIGGER host_emptied BEFORE TRUNCATE ON ingested_events EXECUTE FUNCTION host_emptied();
"""
TOMBSTONES = """
CREATE TABLE taken (organization_id text, id text, occurred_at timestamp, sequence bigint, xact xid8);
CREATE FUNCTION note_taken() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO taken VALUES
        (NEW.organization_id, NEW.row_key, NEW.event_time AT TIME ZONE 'UTC', NEW.sequence, NEW.xact);
    RETURN NULL;
END $$;
CREATE TRIGGER note_taken AFTER INSERT ON lakehouse_archive.cold_storage_archive
    FOR EACH ROW EXECUTE FUNCTION note_taken();
"""

Identity = tuple[str, str]
"""An id with its event time."""


@dataclass
class Archiver:
    """One thread that archives. `prunes`: it also prunes the tombstones that the lake has."""

    house: Lakehouse
    folder: Path
    organizations: list[str]
    seed: str
    prunes: bool
    events: dict[str, int] = field(default_factory=lambda: {"archived": 0, "batches": 0, "pruned": 0})
    error: BaseException | None = None

    def begin(self, *guests: str) -> None:
        """Policies, keys, indexes and the journal; before anybody writes."""
        allow(self.house, *self.organizations, *guests)
        with self.house.hot() as hot:
            hot.execute("UPDATE organizations SET data_retention_days = 1")
            hot.execute("ALTER TABLE organizations ALTER COLUMN data_retention_days SET DEFAULT 1")
            for statement in (*REFERENCES, JOURNAL, TOMBSTONES):
                hot.execute(statement)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Archive until the body ends; raises what was met."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop,), name="archive")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if self.error is not None:
            raise self.error

    def _run(self, stop: threading.Event) -> None:
        choose = random.Random(f"{self.seed}/archive")
        # A program of its own, and one of eight years later, for which every tombstone is old.
        variables = (
            self.house.variables
            | archive_variables(self.folder)
            | {
                "LAKEHOUSE_ARCHIVE__BATCH_ROWS": "40",
                "LAKEHOUSE_ARCHIVE__PROOF_ROWS": str(choose.choice([60, 1000])),
            }
        )
        now, later = (Lakehouse(self.house.hot_url, dict(variables)) for _ in range(2))
        later.clock.offset = timedelta(days=8 * 366)
        try:
            while not stop.wait(choose.uniform(0.2, 1.5)):
                self._round(now, choose.choice(self.organizations))
                if self.prunes and choose.random() < 0.3:
                    done, errors = keep_archive(later.app)
                    assert not errors, errors
                    self.events["pruned"] += done["tombstones_pruned"]
        except BaseException as error:
            self.error = error
        finally:
            now.close()
            later.close()

    def _round(self, house: Lakehouse, organization: str) -> None:
        result = archive_all(house.app, [organization], [TABLE])
        if (error := result.first_error) is not None and error.retry is not Retry.TIMED:
            raise error
        self.events["archived"] += sum(t.rows for t in result.tables)
        self.events["batches"] += sum(t.batches for t in result.tables)

    def check(self, hot: psycopg.Connection[Any], organization: str, *, sees_all: bool) -> set[str]:
        """What the lake shows beside the hot rows is what the archive took; the ids of that.

        `sees_all`: no delete goes unseen, as by comparing keys one does of an id that came back and went between two
        comparisons.
        """
        taken: dict[Identity, tuple[int, str]] = {}
        for key, moment, sequence, xact in hot.execute(
            "SELECT id, occurred_at::text, sequence, xact::text FROM taken "
            "WHERE organization_id = %s ORDER BY sequence",
            [organization],
        ):
            taken[key, moment] = sequence, xact
        last = {
            (key, moment): xact
            for key, moment, xact in hot.execute(
                "SELECT id, occurred_at::text, xact::text FROM gone WHERE organization_id = %s ORDER BY n",
                [organization],
            )
        }
        here = {
            (key, moment)
            for key, moment in hot.execute(
                "SELECT id, occurred_at::text FROM ingested_events WHERE organization_id = %s", [organization]
            )
        }
        versions = self._versions(organization)
        newest: dict[str, int] = {}
        shown: dict[Identity, bool] = {}
        content: dict[tuple[str, int], Any] = {}
        for v in versions:
            identity = v["id"], v["moment"]
            shown[identity] = v["_op"] == "upsert"
            if v["_op"] == "upsert":
                newest[v["id"]] = v["_sequence"]
                content[v["id"], v["_sequence"]] = v["payload"]
        keys_here = {key for key, _ in here}
        for identity, (sequence, xact) in taken.items():
            assert (identity[0], sequence) in content, ("the version that was proven is not there", identity, sequence)
            came_back = identity[0] in keys_here or newest[identity[0]] > sequence
            if identity not in here and last[identity] == xact and not came_back:
                assert shown[identity], ("archived, and shown as deleted", identity)
        beside = {identity for identity, alive in shown.items() if alive} - here
        for identity in beside:
            assert identity in taken, ("shown, neither hot nor archived", identity)
            sequence, xact = taken[identity]
            assert newest[identity[0]] == sequence, ("a later version of it is shown", identity)
            assert not sees_all or last[identity] == xact, ("the host deleted it, and it is shown", identity)
        return {key for key, _ in beside}

    def _versions(self, organization: str) -> list[dict[str, Any]]:
        table = self.house.lake_table(TABLE, organization)
        if table.current_snapshot() is None:
            return []
        with connect([self.house.app.address_of(organization)]) as duck:
            return arrow(
                duck,
                "SELECT id, strftime(occurred_at, '%Y-%m-%d %H:%M:%S') AS moment, _op, _sequence, payload "
                f"FROM {lake_relation(table.metadata_location)} ORDER BY _sequence",
            ).to_pylist()
