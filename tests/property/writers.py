"""Writers that do to two hot tables whatever PostgreSQL allows, and remember what they committed.

A key belongs to one writer, and to at most one of its open transactions, so the order in which a key's versions
are committed is known: each version carries a number that only grows. Shared keys are counted up in place by all.
`tests/property/world.py` stops them all for a moment to truncate a table, or to let an organization come or go.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

SHARED_KEYS = tuple(f"shared-{n}" for n in range(3))
FIRST_DAY = datetime(2026, 1, 1)  # noqa: DTZ001 - the host's columns have no time zone
LONG_AGO = datetime(2020, 1, 1)  # noqa: DTZ001


@dataclass(frozen=True, eq=False)
class HotTable:
    """A hot table as the writers see it. `stamp`: the column that says when a row changed, where there is one."""

    name: str
    lake: str
    event_time: str
    others: dict[str, str]
    stamp: str | None


EVENTS = HotTable(
    "ingested_events",
    "events",
    "occurred_at",
    {"integration_id": "int-org-a", "provider": "GITHUB", "event_type": "push", "source": "audit"},
    stamp=None,
)
DELIVERIES = HotTable("siem_deliveries", "siem_deliveries", "created_at", {"stream": "EVENTS"}, stamp="updated_at")
TABLES = (EVENTS, DELIVERIES)

# A PL/pgSQL function with an exception block writes in a subtransaction, which no snapshot lists.
BLOCK = """
CREATE FUNCTION set_number(target regclass, key text, number bigint, fails boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('UPDATE %s SET payload = jsonb_build_object(''n'', $1) WHERE id = $2', target) USING number, key;
    IF fails THEN RAISE EXCEPTION 'undone'; END IF;
EXCEPTION WHEN raise_exception THEN NULL;
END $$
"""

Key = tuple[HotTable, str]
Versions = dict[Key, tuple[str | None, int]]
"""Where each changed key stands: its organization (None: deleted), and its number."""


def event_time(key: str) -> datetime:
    """Of one key the same, but where an event comes back a day later."""
    return FIRST_DAY + timedelta(minutes=random.Random(key).randrange(2 * 24 * 60))


@dataclass
class Open:
    """A transaction that was left open, or prepared, until `deadline`."""

    deadline: float
    changes: Versions
    end: Callable[[bool], None]


class Keys:
    """A set from which one can be drawn without looking at all of them."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._places: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: Key) -> None:
        if key not in self._places:
            self._places[key] = len(self._keys)
            self._keys.append(key)

    def discard(self, key: Key) -> None:
        if (place := self._places.pop(key, None)) is not None:
            last = self._keys.pop()
            if last != key:
                self._keys[place] = last
                self._places[last] = place

    def draw(self, choose: random.Random) -> Key:
        return self._keys[choose.randrange(len(self._keys))]


@dataclass
class Common:
    """What all writers share. `pause`: the longest wait between two steps (s); `mass`: rows of one statement."""

    url: str
    seed: str
    organizations: list[str]
    pause: float
    mass: tuple[int, int]
    stop: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    """While it is not set, nobody begins a step."""
    prepare: threading.Event = field(default_factory=threading.Event)
    """While it is set, transactions are prepared too; while one is, no window can be pruned."""


@dataclass
class Writer:
    """One thread. `committed` holds every version that a snapshot may have seen."""

    number: int
    common: Common
    alive: dict[Key, str] = field(default_factory=dict)
    living: Keys = field(default_factory=Keys)
    gone: Keys = field(default_factory=Keys)
    committed: set[tuple[Key, int]] = field(default_factory=set)
    transactions: int = 0
    shared: int = 0
    done: dict[str, int] = field(default_factory=dict)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.common.seed}/{self.number}")
        self.url = self.common.url
        self.step = threading.Lock()
        """Held while a step is taken."""
        self.ticks = 0
        self.created = 0
        self.open: list[Open] = []
        self.known: set[str] = set()
        self.thread = threading.Thread(target=self._run, name=f"writer {self.number}")

    def seed_rows(self, count: int) -> None:
        """Rows of each table that are there before anything is read."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for table in TABLES:
                with self._transaction(connection, commits=1) as changes:
                    self._copy(connection, table, count, changes)

    def _run(self) -> None:
        try:
            with psycopg.connect(self.url, autocommit=True) as connection:
                while not self.common.stop.is_set():
                    if self.common.go_on.wait(0.1):
                        with self.step:
                            self._step(connection)
                    if self.common.pause:
                        self.common.stop.wait(self.random.uniform(0, self.common.pause))
                # What befalls everybody may just be ending them too.
                with self.step:
                    self.end_open(everything=True)
        except BaseException as error:  # handed to the test, which raises it
            self.error = error

    def _step(self, connection: psycopg.Connection[Any]) -> None:
        self.end_open()
        actions = {self._short: 10, self._savepoints: 5, self._block: 3, self._shared: 3, self._bulk: 1, self._mass: 1}
        if len(self.open) < 2:
            actions |= {self._long: 1, self._prepared: int(self.common.prepare.is_set())}
        action = self.random.choices(list(actions), list(actions.values()))[0]
        self.done[action.__name__] = self.done.get(action.__name__, 0) + 1
        action(connection)

    def apply(self, changes: Versions) -> None:
        """These were committed."""
        self.transactions += 1
        for key, (organization, number) in changes.items():
            self.committed.add((key, number))
            if organization is None:
                self.alive.pop(key, None)
                self.living.discard(key)
                self.gone.add(key)
            else:
                self.alive[key] = organization
                self.living.add(key)
                self.gone.discard(key)

    def vanished(self, which: Callable[[Key, str], bool]) -> None:
        """Somebody else removed these rows, for good."""
        self.apply({key: (None, self._tick()) for key, o in self.alive.items() if which(key, o)})

    @contextmanager
    def _transaction(self, connection: psycopg.Connection[Any], commits: float = 0.9) -> Iterator[Versions]:
        """What is added to the mapping counts if the transaction commits, with this probability."""
        changes: Versions = {}
        connection.execute("BEGIN")
        yield changes
        if self.random.random() < commits:
            connection.execute("COMMIT")
            self.apply(changes)
        else:
            connection.execute("ROLLBACK")

    def _short(self, connection: psycopg.Connection[Any]) -> None:
        with self._transaction(connection) as changes:
            self._change_some(connection, changes)

    def _savepoints(self, connection: psycopg.Connection[Any]) -> None:
        with self._transaction(connection) as changes:
            for _ in range(self.random.randint(1, 3)):
                connection.execute("SAVEPOINT here")
                inner = dict(changes)
                self._change_some(connection, inner)
                if self.random.random() < 0.5:
                    changes.update(inner)
                else:
                    connection.execute("ROLLBACK TO SAVEPOINT here")
            self._change_some(connection, changes)

    def _block(self, connection: psycopg.Connection[Any]) -> None:
        with self._transaction(connection) as changes:
            for _ in range(self.random.randint(1, 3)):
                if (key := self._pick(changes, alive=True)) is None:
                    return
                number, fails = self._tick(), self.random.random() < 0.4
                connection.execute("SELECT set_number(%s, %s, %s, %s)", [key[0].name, key[1], number, fails])
                if not fails:
                    changes[key] = (changes[key][0] if key in changes else self.alive[key], number)

    def _shared(self, connection: psycopg.Connection[Any]) -> None:
        table = self.random.choice(TABLES)
        stamp = sql.SQL(", updated_at = timezone('utc', clock_timestamp())") if table.stamp else sql.SQL("")
        connection.execute(
            sql.SQL(
                "UPDATE {} SET payload = jsonb_build_object('n', (payload->>'n')::bigint + 1){} WHERE id = %s"
            ).format(sql.Identifier(table.name), stamp),
            [self.random.choice(SHARED_KEYS)],
        )
        self.transactions += 1
        self.shared += 1

    def _bulk(self, connection: psycopg.Connection[Any]) -> None:
        with self._transaction(connection) as changes:
            self._copy(connection, self.random.choice(TABLES), self.random.randint(2, 20), changes)

    def _mass(self, connection: psycopg.Connection[Any]) -> None:
        """Many rows in one statement, all with one stamp: ties in one millisecond."""
        table = self.random.choice(TABLES)
        with self._transaction(connection) as changes:
            picked = (self._pick(changes, alive=True) for _ in range(self.random.randint(*self.common.mass)))
            keys = dict.fromkeys(k for k in picked if k is not None and k[0] is table)
            numbers = [self._tick() for _ in keys]
            stamp = sql.SQL(", updated_at = timezone('utc', clock_timestamp())") if table.stamp else sql.SQL("")
            hit = connection.execute(
                sql.SQL(
                    "UPDATE {} AS t SET payload = jsonb_build_object('n', v.n, 'skew', 0.0){} "
                    "FROM unnest(%s::text[], %s::bigint[]) AS v (id, n) WHERE t.id = v.id RETURNING t.id"
                ).format(sql.Identifier(table.name), stamp),
                [[name for _, name in keys], numbers],
            ).fetchall()
            for key, number in zip(keys, numbers, strict=True):
                if (key[1],) in hit:
                    changes[key] = (self.alive[key], number)
                else:
                    self._archived(key)

    def _copy(self, connection: psycopg.Connection[Any], table: HotTable, count: int, changes: Versions) -> None:
        rows = [self._new_row((table, self._new_key()), changes) for _ in range(count)]
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, rows[0]))
        )
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(list(row.values()))

    def _long(self, connection: psycopg.Connection[Any]) -> None:
        del connection
        own = psycopg.connect(self.url, autocommit=True)
        changes: Versions = {}
        own.execute("BEGIN")
        self._change_some(own, changes)

        def end(commit: bool) -> None:
            with own:
                self._change_some(own, changes, again=commit)
                own.execute("COMMIT" if commit else "ROLLBACK")

        self._leave_open(changes, end)

    def _prepared(self, connection: psycopg.Connection[Any]) -> None:
        name = f"{self.common.seed}/{self.number}/{self._tick()}"
        changes: Versions = {}
        connection.execute("BEGIN")
        self._change_some(connection, changes)
        connection.execute(sql.SQL("PREPARE TRANSACTION {}").format(name))

        def end(commit: bool) -> None:
            with psycopg.connect(self.url, autocommit=True) as other:
                other.execute(
                    sql.SQL("{} PREPARED {}").format(sql.SQL("COMMIT" if commit else "ROLLBACK"), sql.Literal(name))
                )

        self._leave_open(changes, end)

    def _leave_open(self, changes: Versions, end: Callable[[bool], None]) -> None:
        # Some longer than the three seconds by which a pruned window looks back.
        lasts = self.random.uniform(*self.random.choice([(0.1, 2), (0.1, 2), (4, 6)]))
        self.open.append(Open(time.monotonic() + lasts, changes, end))

    def end_open(self, *, everything: bool = False) -> None:
        for late in [o for o in self.open if everything or time.monotonic() >= o.deadline]:
            commit = self.random.random() < 0.8
            late.end(commit)
            self.open.remove(late)
            if commit:
                self.apply(late.changes)

    def _change_some(self, connection: psycopg.Connection[Any], changes: Versions, *, again: bool = True) -> None:
        """One to five changes; keys that are new to `changes` are taken unless another transaction has them."""
        for _ in range(self.random.randint(1, 5) if again else 0):
            key = self._pick(changes, alive=self.random.random() < 0.8)
            self._change(connection, key or (self.random.choice(TABLES), self._new_key()), changes)

    def _change(self, connection: psycopg.Connection[Any], key: Key, changes: Versions) -> None:
        table, name = key
        organization = changes[key][0] if key in changes else self.alive.get(key)
        if organization is None:
            self._insert(connection, key, changes)
            return
        kind = self.random.choices(["update", "move", "delete", "again", "rename"], [10, 1, 2, 2, 1])[0]
        if kind in ("delete", "again"):
            gone = connection.execute(
                sql.SQL("DELETE FROM {} WHERE id = %s").format(sql.Identifier(table.name)), [name]
            )
            if not gone.rowcount:
                self._archived(key)
                return
            changes[key] = (None, self._tick())
            if kind == "again":
                self._insert(connection, key, changes)
            return
        number = self._tick()
        if kind == "move":
            organization = self.random.choice(self.common.organizations)
        values = {"organization_id": organization, **self._content(table, number)}
        if table.stamp and self.random.random() < 0.1:
            values = {"organization_id": organization, "payload": f'{{"n": {number}}}'}  # by hand: nothing stamps it
        former = key
        if kind == "rename":
            key = (table, self._new_key())
            values |= {"id": key[1], table.event_time: event_time(key[1])}
        assignments = [sql.SQL("{} = {}").format(sql.Identifier(c), sql.Placeholder(c)) for c in values]
        changed = connection.execute(
            sql.SQL("UPDATE {} SET {} WHERE id = %(old)s").format(
                sql.Identifier(table.name), sql.SQL(", ").join(assignments)
            ),
            {**values, "old": name},
        )
        if not changed.rowcount:
            self._archived(former)
            return
        if key != former:
            changes[former] = (None, self._tick())
        changes[key] = (organization, number)

    def _archived(self, key: Key) -> None:
        """A row of ours is not there: the archive took it, whatever becomes of this transaction."""
        self.alive.pop(key, None)
        self.living.discard(key)
        self.gone.add(key)

    def _insert(self, connection: psycopg.Connection[Any], key: Key, changes: Versions) -> None:
        row = self._new_row(key, changes)
        connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(key[0].name),
                sql.SQL(", ").join(map(sql.Identifier, row)),
                sql.SQL(", ").join(map(sql.Placeholder, row)),
            ),
            row,
        )

    def _new_row(self, key: Key, changes: Versions) -> dict[str, Any]:
        table, name = key
        organization, number = self.random.choice(self.common.organizations), self._tick()
        changes[key] = (organization, number)
        moment = event_time(name)
        made: dict[str, Any] = {}
        if table is EVENTS:
            # Some are old at once, for whoever archives; and one that was there may come back another day.
            made = {"created_at": self.random.choice([LONG_AGO, datetime.now(UTC).replace(tzinfo=None)])}
            moment += timedelta(days=self.random.choice([0, 0, 1]) if name in self.known else 0)
        self.known.add(name)
        return {
            "id": name,
            "organization_id": organization,
            table.event_time: moment,
            **self._content(table, number),
            **made,
            **table.others,
        }

    def _content(self, table: HotTable, number: int) -> dict[str, Any]:
        """The payload with its number; where the table has a stamp, one by a clock that is mostly right."""
        if table.stamp is None:
            return {"payload": f'{{"n": {number}}}'}
        skew = self.random.choices([0.0, -2.0, 0.5, -5.0, 5.0, -3600.0], [16, 1, 1, 1, 1, 2])[0]
        # The transaction has begun: by a true clock, no stamp is older than it.
        stamp = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=skew)
        return {"payload": f'{{"n": {number}, "skew": {skew}}}', table.stamp: stamp}

    def _pick(self, changes: Versions, *, alive: bool) -> Key | None:
        """A key that this transaction may change: `alive`, or one that was there and is gone."""
        taken = [o.changes for o in self.open if o.changes is not changes]
        known = self.living if alive else self.gone
        for _ in range(8 if len(known) else 0):
            key = known.draw(self.random)
            usable = changes.get(key, ("", 0))[0] is not None if alive else key not in changes
            if usable and not any(key in other for other in taken):
                return key
        return None

    def _new_key(self) -> str:
        self.created += 1
        return f"{self.random.choice('abcdef')}-w{self.number}-{self.created}"

    def _tick(self) -> int:
        self.ticks += 1
        return self.ticks
