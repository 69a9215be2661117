"""Destinations of the writers' tables, handled at random as operators, workers and bad luck may, and proven in the end.

Each kind that copies has one of each of two organizations, both in one database or bucket, so that a row that moves
between organizations moves there too. Whatever is done, each is equal to the lake at the `_sequence` that it stands at,
at any moment; in the end that is where the lake stands, the replicas hold what the hot table holds, and no target was
anybody else's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import sql

from federation.kinds import DestinationKind, DestinationStatus
from federation.protocol import Delivery, ForeignTargetError
from lakehouse import destinations
from lakehouse.deliver.parity import parity
from lakehouse.deliver.plan import STEP
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import deliver_now, resync
from lakehouse.deliver.targets import adapter_of, credentials_of
from lakehouse.destinations import Destination
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.maintenance.run import maintain_all
from schemas.errors import LakehouseError, Retry
from tests.conformance.places import Target, new_target
from tests.property.writers import TABLES
from tests.support import Lakehouse

PLACES = (
    (DestinationKind.POSTGRES_REPLICA, ("org-a", "org-b")),
    (DestinationKind.PARQUET_S3, ("org-b", "org-c")),
    (DestinationKind.JSONL_S3, ("org-c", "org-a")),
)
VARIABLES = {
    "LAKEHOUSE_EGRESS__ALLOW": '["127.0.0.1", "localhost"]',
    "LAKEHOUSE_SECRETS__KEYS": '{"v1": "hex:' + "ab" * 32 + '"}',
    "LAKEHOUSE_DELIVER__FILL_BEHIND": "2000",
    # What the lake kept of its landings is gone soon: a range is read from whatever holds it.
    "LAKEHOUSE_MAINTENANCE__KEEP_SNAPSHOTS": "1",
    "LAKEHOUSE_MAINTENANCE__KEEP_DAILY": "0",
    "LAKEHOUSE_MAINTENANCE__SETTLED_HOURS": "0",
}
"""What an installation with such destinations has set."""
NAMES = tuple(table.lake for table in TABLES)


@dataclass
class Copies:
    """The destinations of one lakehouse. `step`: how many numbers of `_sequence` a small delivery brings.

    `alone`: nobody else delivers, so no error is any program's right.
    """

    house: Lakehouse
    postgres: EmbeddedPostgres
    s3: EmbeddedS3
    step: int
    alone: bool = True
    archived: dict[str, set[str]] = field(default_factory=dict)
    """By organization: ids of events that left the hot table and are shown all the same, once that is known."""
    events: Counter[str] = field(default_factory=Counter)
    targets: dict[str, Target] = field(default_factory=dict)
    _deck: list[Callable[[random.Random], None]] = field(default_factory=list)

    def add(self) -> None:
        """Add all of them; nothing is delivered yet."""
        for kind, organizations in PLACES:
            place = new_target(kind, self.postgres, self.s3)
            for organization in organizations:
                name = f"{kind.value} of {organization}"
                whole = not self.targets
                # Without a history, a replica that is new or far behind is filled as files are.
                keeps = {"history": whole} if "history" in place.config else {}
                self.targets[name] = place.within(organization, **keeps)
                destinations.add(
                    self.house.app,
                    organization=organization,
                    kind=kind.value,
                    name=name,
                    config=self.targets[name].config,
                    tables=NAMES,
                    cadence_seconds=1,
                    table_cadences={},
                    credentials=self.targets[name].credentials,
                )

    @property
    def whole(self) -> str:
        """The replica that is never filled from a latest state: it holds every delete, so the oldest may come late."""
        return next(iter(self.targets))

    def all(self) -> list[Destination]:
        """As they are stored now."""
        return [d for d in destinations.destinations(self.house.app) if d.name in self.targets]

    def act(self, choose: random.Random) -> None:
        """Do one thing to some of them. Every kind of thing has come before the first of them comes again."""
        if not self._deck:
            self._deck = [self._deliver] * 4 + [self._pause_or_resume, self._unacknowledged] * 2
            self._deck += [self._resync, self._maintain, self._compare]
            choose.shuffle(self._deck)
        self._deck.pop()(choose)

    def operate(self, choose: random.Random) -> None:
        """Do one thing that a person does while programs deliver."""
        choose.choice([self._deliver, self._pause_or_resume, self._resync])(choose)

    def _deliver(self, choose: random.Random) -> None:
        known = self.all()
        some = choose.sample(known, choose.randint(1, len(known)))
        results = deliver_now(
            self.house.app, some, choose.sample(NAMES, choose.randint(1, 2)), step=choose.choice([STEP, self.step])
        )
        paused = {d.name for d in some if d.status == DestinationStatus.PAUSED.value}
        assert not paused & {r.destination for r in results}, "a paused one was delivered to"
        self._well([r.error for r in results])
        self.events["deliveries"] += sum(r.deliveries for r in results)

    def _pause_or_resume(self, choose: random.Random) -> None:
        one = choose.choice(self.all())
        wanted = DestinationStatus.ACTIVE if one.status == DestinationStatus.PAUSED.value else DestinationStatus.PAUSED
        destinations.set_status(self.house.app, one, wanted)
        self.events[f"set {wanted.value}"] += 1

    def _resync(self, choose: random.Random) -> None:
        one = choose.choice([d for d in self.all() if d.name != self.whole])
        results = resync(self.house.app, one, choose.sample(NAMES, choose.randint(1, 2)))
        self._well([r.error for r in results])
        self.events["resyncs"] += len(results)

    def _maintain(self, choose: random.Random) -> None:
        for result in maintain_all(self.house.app, self.house.app.contract(choose.choice(NAMES))):
            self._well(result.errors)
            self.events["snapshots expired"] += result.snapshots_expired
            self.events["files merged"] += result.files_merged

    def _unacknowledged(self, choose: random.Random) -> None:
        """A delivery takes effect and nobody learns of it, or one that is there already comes once more."""
        one, contract = choose.choice(self.all()), self.house.app.contract(choose.choice(NAMES))
        assert one.organization is not None
        app, kind = self.house.app, DestinationKind(one.kind)
        lake = open_lake_table(app, contract, one.organization)
        keys = credentials_of(app, one.id)
        adapter = adapter_of(app, one.organization, kind, one.config, keys, destination=one.id)
        try:
            adapter.prepare(contract)
            stands, upto = adapter.standing(contract), choose.randint(1, max(1, lake.sequence))
            after = choose.randint(0, min(stands, upto))
            with range_reader(app, lake) as rows:
                receipt = adapter.deliver(Delivery("unacknowledged", contract, after, upto, lake.snapshot_id), rows)
        finally:
            adapter.close()
        assert receipt.sequence == max(stands, upto), (one.name, contract.table, after, upto, stands, receipt)
        assert receipt.rows == 0 or upto > stands, "what was there was written again"
        self.events["repeated" if upto <= stands else "unacknowledged"] += 1

    def _compare(self, choose: random.Random) -> None:
        for found in parity(self.house.app, [choose.choice(self.all())], NAMES):
            assert found.equal, (found, str(found.error))
            self.events["compared"] += 1

    def _well(self, errors: Sequence[LakehouseError | None]) -> None:
        """Beside other workers a race may be lost; what is said then is that it will be tried again."""
        for error in errors:
            if error is not None:
                assert not self.alone and error.retry is Retry.TIMED, (type(error), str(error))
                self.events["lost races"] += 1

    def finish(self, hot: psycopg.Connection[object], wait: Callable[[], None] | None = None) -> None:
        """Bring all up to the lake, which has kept one snapshot by now, and prove each.

        `wait` is called while others still hold deliveries.
        """
        # Expired and not merged: what is delivered now was added by snapshots that are gone.
        app = self.house.reopen(MAINTENANCE__SETTLED_HOURS="24")
        for table in NAMES:
            for result in maintain_all(app, app.contract(table)):
                assert not result.errors, result.errors
        for one in self.all():
            destinations.set_status(app, one, DestinationStatus.ACTIVE)
        results = deliver_now(app, self.all(), NAMES)
        while wait is not None and any(d.open_deliveries for d in self.all()):
            wait()
            results = deliver_now(app, self.all(), NAMES)
        assert not any(r.error for r in results), results
        self.events["deliveries"] += sum(r.deliveries for r in results)
        self.events["equal in the end"] = self._prove(self.all())
        for one in self.all():
            if one.kind == DestinationKind.POSTGRES_REPLICA.value:
                self._as_the_hot_table(hot, one)
                self._refuses_another(one)
            if one.name == self.whole:
                self._older_ones_come_late(one)

    def _prove(self, some: Sequence[Destination]) -> int:
        """How many tables of these were compared with the lake; each is equal, and stands where that does."""
        proofs = list(parity(self.house.app, some, NAMES))
        for proof in proofs:
            assert proof.equal and proof.lag == 0, (proof, proof.differences, str(proof.error))
        assert len(proofs) == len(NAMES) * len(some)
        return len(proofs)

    def _as_the_hot_table(self, hot: psycopg.Connection[object], one: Destination) -> None:
        """By a stranger's query, without anything of parity's."""
        target = self.targets[one.name]
        with psycopg.connect(target.credentials["url"]) as replica:
            for table in TABLES:
                shown = replica.execute(
                    sql.SQL("SELECT id, payload FROM {} ORDER BY id").format(
                        sql.Identifier(target.config["schema"], table.lake)
                    )
                ).fetchall()
                if table.lake == "events" and (kept := self.archived.get(one.organization)):
                    assert kept <= {key for key, _ in shown}, "what the archive took is shown"
                    shown = [row for row in shown if row[0] not in kept]
                wanted = hot.execute(
                    sql.SQL("SELECT id, payload FROM {} WHERE organization_id = %s ORDER BY id").format(
                        sql.Identifier(table.name)
                    ),
                    [one.organization],
                ).fetchall()
                assert shown == wanted, (one.name, table.lake, len(shown), len(wanted))

    def _older_ones_come_late(self, one: Destination) -> None:
        """Somebody sets the mark back, and the older half of the history is delivered over what is newer."""
        assert one.organization is not None
        app, target = self.house.app, self.targets[one.name]
        mark = sql.SQL("UPDATE {} SET sequence = %s").format(sql.Identifier(target.config["schema"], "_lakehouse"))
        for table in NAMES:
            contract = app.contract(table)
            lake = open_lake_table(app, contract, one.organization)
            kind, keys = DestinationKind(one.kind), target.credentials
            adapter = adapter_of(app, one.organization, kind, one.config, keys, destination=one.id)
            with psycopg.connect(target.credentials["url"], autocommit=True) as replica:
                where = sql.SQL(" WHERE table_name = {}").format(sql.Literal(table))
                replica.execute(mark + where, [0])
                with range_reader(app, lake) as rows:
                    adapter.deliver(Delivery("late", contract, 0, lake.sequence // 2, lake.snapshot_id), rows)
                replica.execute(mark + where, [lake.sequence])
            adapter.close()
        self._prove([one])

    def _refuses_another(self, one: Destination) -> None:
        """The database's other organization cannot be pointed at it: not by another spelling either."""
        target = self.targets[one.name]
        (other,) = {o for k, organizations in PLACES if k.value == one.kind for o in organizations} - {one.organization}
        url = target.credentials["url"].replace("127.0.0.1", "localhost")
        assert url != target.credentials["url"]
        with pytest.raises(ForeignTargetError):
            destinations.add(
                self.house.app,
                organization=other,
                kind=one.kind,
                name="a slip",
                config=target.config,
                tables=NAMES,
                cadence_seconds=900,
                table_cadences={},
                credentials={"url": url},
            )
