"""Leases: who works on a row, since which claim, and how long that can be trusted.

The database decides, by its own clock. Locally trust ends earlier: at the start of the claim (or of the last
renewal) plus the lease less a margin, so that a process that was stopped for a while notices before it acts.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import String, bindparam, cast, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import INTERVAL

from lakehouse.control.models import Task, WarehouseDelivery, Worker
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Engine

MARGIN = 0.2
"""Part of a lease that is not trusted locally."""


class LeaseLostError(LakehouseError):
    """The lease ran out and somebody else took the row: nothing was changed."""

    retry = Retry.TIMED


def owner_name() -> str:
    """`host:pid:random`: unique among all workers that ever were."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(4)}"


def seconds(count: float) -> ColumnElement[object]:
    """An interval of so many seconds."""
    return cast(bindparam(None, f"{count} seconds", String), INTERVAL)


@dataclass
class Lease:
    """A claimed row of `tasks` (id is text) or `warehouse_deliveries` (id is a uuid)."""

    id: str | uuid.UUID
    owner: str
    generation: int
    seconds: float
    deadline: float = 0.0
    """By this process's monotonic clock."""
    lost: bool = False

    def renewed(self, asked_at: float) -> None:
        """The database extended it; `asked_at` is the monotonic time before it was asked."""
        self.deadline = asked_at + self.seconds * (1 - MARGIN)

    @property
    def alive(self) -> bool:
        return not self.lost and time.monotonic() < self.deadline

    def check(self) -> None:
        """Call before doing what only the owner may do.

        Raises:
            LeaseLostError: it can no longer be trusted.
        """
        if not self.alive:
            raise LeaseLostError(
                f"{self.id}: the lease of generation {self.generation} ran out",
                "Another worker goes on from here; nothing was changed.",
            )


def guard_task(connection: Connection, lease: Lease) -> None:
    """Lock the task's row for this transaction, if the lease still holds it.

    Raises:
        LeaseLostError: another worker has it.
    """
    held = connection.execute(
        select(Task.id)
        .where(Task.id == lease.id, Task.lease_owner == lease.owner, Task.lease_generation == lease.generation)
        .with_for_update()
    ).one_or_none()
    if held is None:
        lease.lost = True
        raise LeaseLostError(f"{lease.id}: another worker has taken it over", "Nothing was changed; it goes on there.")


@dataclass
class LeaseKeeper:
    """Renews what this process holds, every third of a lease, until it is given back. Also the heartbeat.

    A renewal that the database refuses marks the lease lost; one that does not get through is tried again until
    local trust ends by itself.
    """

    engine: Engine
    owner: str
    seconds: float
    role: str | None = None
    on_lost: Callable[[Lease], None] = lambda _: None
    _held: dict[int, Lease] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @contextmanager
    def holding(self, *leases: Lease) -> Iterator[None]:
        """Keep these leases alive during the body."""
        self.hold(leases)
        try:
            yield
        finally:
            self.drop(leases)

    def hold(self, leases: Sequence[Lease]) -> None:
        """Begin to renew these."""
        with self._lock:
            self._held |= {id(lease): lease for lease in leases}
            self._start()

    def enlist(self, role: str) -> None:
        """Write this program into the list of workers; renewals are its heartbeat from now on."""
        with self.engine.begin() as connection:
            connection.execute(insert(Worker).values(id=self.owner, role=role))
        with self._lock:
            self.role = role
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Renew nothing any more; what is held runs out by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.role is not None:
            with self.engine.begin() as connection:
                connection.execute(delete(Worker).where(Worker.id == self.owner))
            self.role = None

    def drop(self, leases: Sequence[Lease]) -> None:
        """Renew these no more."""
        with self._lock:
            for lease in leases:
                self._held.pop(id(lease), None)

    def _run(self) -> None:
        from sqlalchemy.exc import DBAPIError

        while not self._stop.wait(self.seconds / 3):
            try:
                self.renew()
            except DBAPIError:
                # The database does not answer: local trust runs out by itself if it stays so.
                continue

    def renew(self) -> None:
        """Renew everything that is held, in one transaction."""
        with self._lock:
            held = [lease for lease in self._held.values() if not lease.lost]
        asked_at = time.monotonic()
        with self.engine.begin() as connection:
            if self.role is not None:
                connection.execute(update(Worker).where(Worker.id == self.owner).values(seen_at=func.clock_timestamp()))
            kept: set[tuple[object, int]] = set()
            for model, kind in ((Task, str), (WarehouseDelivery, uuid.UUID)):
                mine = [(lease.id, lease.generation) for lease in held if isinstance(lease.id, kind)]
                if mine:
                    rows = connection.execute(
                        update(model)
                        .where(
                            model.lease_owner == self.owner, tuple_(model.id, model.lease_generation).in_(sorted(mine))
                        )
                        .values(lease_expires_at=func.clock_timestamp() + seconds(self.seconds))
                        .returning(model.id, model.lease_generation)
                    )
                    kept |= {(row.id, row.lease_generation) for row in rows}
        for lease in held:
            if (lease.id, lease.generation) in kept:
                lease.renewed(asked_at)
            else:
                with self._lock:
                    given_back = id(lease) not in self._held
                if not given_back:
                    lease.lost = True
                    self.on_lost(lease)
