"""How fast rows leave: a bound on rows a second, and standbys that must not fall behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

LOOK_SECONDS = 0.2
"""How long a wait goes on before it is asked whether to stop."""


@dataclass(frozen=True)
class Lag:
    """What the server says of its standbys. `seconds`: None where there is none, or where it cannot be seen."""

    standbys: int
    seconds: float | None
    visible: bool


def read_lag(connection: psycopg.Connection[Any]) -> Lag:
    """How far the furthest standby is behind in replaying."""
    row = connection.execute(
        "SELECT count(*), max(extract(epoch FROM coalesce(replay_lag, '0')))::float8, "
        # Without this right the view shows that standbys are there, and nulls for the rest.
        "pg_has_role('pg_read_all_stats', 'USAGE') FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup'"
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate
    standbys, seconds, visible = row
    return Lag(standbys, seconds if visible else None, visible or not standbys)


class Throttle:
    """Called after each batch; waits as long as the settings ask for, and ends early when told to stop."""

    def __init__(
        self,
        rows_per_second: int,
        lag_seconds: float,
        should_stop: Callable[[], bool],
        emit: Callable[..., None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rows_per_second
        self._most = lag_seconds
        self._should_stop = should_stop
        self._emit = emit
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._said = False

    def after(self, connection: psycopg.Connection[Any], rows: int) -> None:
        """`rows` were deleted over `connection`."""
        if self._rate:
            self._free_at = max(self._free_at + rows / self._rate, self._clock())
            self._wait_until(self._free_at)
        if self._most:
            self._wait_for_standbys(connection)

    def _wait_for_standbys(self, connection: psycopg.Connection[Any]) -> None:
        waited = False
        while not self._should_stop():
            lag = read_lag(connection)
            if not lag.visible and not self._said:
                self._said = True
                self._emit(
                    "archive_lag_unknown",
                    standbys=lag.standbys,
                    hint="GRANT pg_read_all_stats to the user of LAKEHOUSE_ARCHIVE__URL, "
                    "or set LAKEHOUSE_ARCHIVE__REPLICA_LAG_SECONDS to 0",
                )
            if lag.seconds is None or lag.seconds <= self._most:
                return
            if not waited:
                waited = True
                self._emit("archive_waits", standbys=lag.standbys, lag_seconds=round(lag.seconds, 1))
            self._wait_until(self._clock() + 1)

    def _wait_until(self, moment: float) -> None:
        while (left := moment - self._clock()) > 0 and not self._should_stop():
            self._sleep(min(LOOK_SECONDS, left))
