"""All writers together, what befalls them all at once, and what must hold in the end.

Now and then everybody stops between two steps: a table is truncated, an organization comes, or goes with all its
rows. Beside the windows runs the keyset cursor that was asked for first; it must lose rows, or the run was too tame.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from lakehouse.control import store
from tests.property.writers import BLOCK, DELIVERIES, SHARED_KEYS, TABLES, Common, HotTable, Writer, event_time
from tests.support import ORGANIZATIONS, Lakehouse

GUEST = "org-d"
"""The organization that comes and goes."""


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


@dataclass
class World:
    """The hot database with its writers. `rows`: how many each writer has of a table when that is filled."""

    house: Lakehouse
    common: Common
    rows: int
    guests: bool = True
    """Whether an organization comes and goes."""
    writers: list[Writer] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    guest_is_there: bool = False
    error: BaseException | None = None

    def begin(self, count: int) -> None:
        """Rows that are there before anything is read; `count` writers that do nothing yet."""
        self.writers = [Writer(n, self.common) for n in range(count)]
        with self.house.hot() as hot:
            hot.execute("CREATE INDEX ON siem_deliveries (updated_at)")
            hot.execute(BLOCK)
            for table in TABLES:
                self._add_shared(hot, table, 0)
            for writer in self.writers:
                writer.seed_rows(self.rows)
            hot.execute("ANALYZE ingested_events, siem_deliveries")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Writers write, and things befall them, until the body ends. Raises what any of them met."""
        self.common.go_on.set()
        happens = threading.Thread(target=self._befall, name="befall")
        threads = [writer.thread for writer in self.writers]
        for thread in threads:
            thread.start()
        happens.start()
        try:
            yield
        finally:
            self.common.stop.set()
            happens.join()
            for thread in threads:
                thread.join()
        for error in (self.error, *(writer.error for writer in self.writers)):
            if error is not None:
                raise error

    @property
    def transactions(self) -> int:
        return sum(writer.transactions for writer in self.writers)

    @property
    def versions(self) -> int:
        return sum(len(writer.committed) + writer.shared for writer in self.writers)

    def _befall(self) -> None:
        choose = random.Random(f"{self.common.seed}/befall")
        try:
            while not self.common.stop.wait(choose.uniform(1, 5)):
                action = choose.choice([self._truncate, self._guest] if self.guests else [self._truncate])
                with self._standing_still():
                    action(choose)
        except BaseException as error:  # raised by `running`
            self.error = error

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        self.common.go_on.clear()
        try:
            with ExitStack() as stack:
                for writer in self.writers:
                    stack.enter_context(writer.step)
                for writer in self.writers:
                    writer.end_open(everything=True)
                yield
        finally:
            self.common.go_on.set()

    def count(self, what: str) -> None:
        """One more of these."""
        self.events[what] = self.events.get(what, 0) + 1

    def _truncate(self, choose: random.Random) -> None:
        table = choose.choice(TABLES)
        with self.house.hot() as hot:
            name = sql.Identifier(table.name)
            row = hot.execute(
                sql.SQL("SELECT max((payload->>'n')::bigint) FROM {} WHERE id = ANY(%s)").format(name),
                [list(SHARED_KEYS)],
            ).fetchone()
            hot.execute(sql.SQL("TRUNCATE {} CASCADE").format(name))
            for writer in self.writers:
                writer.vanished(lambda key, _: key[0] is table)
            self._add_shared(hot, table, row[0] + 1 if row else 0)
        for writer in self.writers:
            writer.seed_rows(self.rows // 4)
        self.count("truncate")

    def _guest(self, _: random.Random) -> None:
        with self.house.hot() as hot:
            if not self.guest_is_there:
                hot.execute(
                    "INSERT INTO organizations (id, name, slug, updated_at) VALUES (%s, 'Guest', 'guest', now())",
                    [GUEST],
                )
                self.common.organizations.append(GUEST)
            else:
                hot.execute("DELETE FROM organizations WHERE id = %s", [GUEST])
                self.common.organizations.remove(GUEST)
                for writer in self.writers:
                    writer.vanished(lambda _, organization: organization == GUEST)
        self.guest_is_there = not self.guest_is_there
        self.count("come" if self.guest_is_there else "go")

    @staticmethod
    def _add_shared(connection: psycopg.Connection[Any], table: HotTable, number: int) -> None:
        for key in SHARED_KEYS:
            values = {
                "id": key,
                "organization_id": ORGANIZATIONS[len(key) % 3],
                "payload": json.dumps({"n": number}),
                table.event_time: event_time(key),
                **table.others,
            } | ({table.stamp: datetime.now()} if table.stamp else {})  # noqa: DTZ005
            connection.execute(
                sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    sql.Identifier(table.name),
                    sql.SQL(", ").join(map(sql.Identifier, values)),
                    sql.SQL(", ").join(map(sql.Placeholder, values)),
                ),
                values,
            )

    def check_pruned(self, hot: psycopg.Connection[Any]) -> None:
        """Without an exact read, a window lacks only rows whose stamp is further off than its margin, or by hand."""
        self.house.sync_ok(DELIVERIES.lake, reconcile=False)
        held: dict[tuple[str, str], int] = {}
        for organization in self.common.organizations:
            for version in self.house.versions(DELIVERIES.lake, organization, "id, payload"):
                if version["payload"] is not None:
                    held[organization, version["id"]] = json.loads(version["payload"])["n"]
        for organization, key, payload in hot.execute("SELECT organization_id, id, payload FROM siem_deliveries"):
            if payload.get("skew", -3600) >= -2:
                assert held.get((organization, key)) == payload["n"], (organization, key, payload)

    def check_versions(self, table: HotTable) -> int:
        """Each key's numbers grow along `_sequence`, and none was rolled back. How many versions the lake has."""
        committed = {(key[1], number) for w in self.writers for key, number in w.committed if key[0] is table}
        total = 0
        known = {lake.organization_id for lake in store.lakes(self.house.app.engine)}
        for organization in known:
            highest: dict[str, int] = {}
            for version in self.house.versions(table.lake, organization, "id, _op, _sequence, payload"):
                total += 1
                if version["_op"] == "delete":
                    continue
                key, number = version["id"], json.loads(version["payload"])["n"]
                assert number > highest.get(key, -1), (organization, version, highest[key])
                assert key in SHARED_KEYS or (key, number) in committed, ("rolled back, or seen half", version)
                highest[key] = number
        return total
