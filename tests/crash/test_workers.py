"""Programs that are left running: killed at every point, stopped politely, asked for their figures."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support import Lakehouse, host_tables, insert_events, local_variables

POINTS = [
    "work.claimed",
    "capture.before_read",
    "capture.chunk_staged",
    "landing.recorded",
    "landing.before_commit",
    "landing.after_commit",
    "landing.acknowledged",
]
QUICK = {
    "LAKEHOUSE_CONTRACTS": '["builtin"]',
    "LAKEHOUSE_SCHEDULE__CADENCE_SECONDS": "1",
    "LAKEHOUSE_SCHEDULE__TICK_SECONDS": "0.2",
    "LAKEHOUSE_WORK__POLL_SECONDS": "0.1",
    "LAKEHOUSE_WORK__LEASE_SECONDS": "2",
    "LAKEHOUSE_WORK__RETRY_BASE_SECONDS": "0.5",
    "LAKEHOUSE_WORK__CONCURRENCY": "1",
    "LAKEHOUSE_METRICS__LISTEN": "",
}


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    with_only_events = local_variables(hot_url, tmp_path) | QUICK
    lakehouse = Lakehouse(hot_url, with_only_events)
    lakehouse.init()
    with lakehouse.app.engine.begin() as connection:
        # Ten tables would only make these tests slower.
        connection.execute(text("UPDATE warehouse_destinations SET enabled_tables = '{events}'"))
    yield lakehouse
    lakehouse.close()


def until(condition: Callable[[], bool], program: subprocess.Popen[str] | None = None, seconds: float = 90) -> None:
    """Wait until the condition holds; fail if the program ends or the time does."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert program is None or program.poll() is None, program.communicate()
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.1)


def landed(house: Lakehouse, identifier: str) -> Callable[[], bool]:
    def is_there() -> bool:
        if not house.app.catalog.table_exists(("org_org_2da", "events")):
            return False
        return any(v["id"] == identifier for v in house.versions("events", "org-a", "id, _sequence"))

    return is_there


def finish(program: subprocess.Popen[str]) -> tuple[int, str]:
    program.send_signal(signal.SIGTERM)
    _, stderr = program.communicate(timeout=60)
    return program.returncode, stderr


@pytest.mark.parametrize("failpoint", POINTS)
def test_a_worker_killed_anywhere_is_gone_on_from_by_another(house: Lakehouse, failpoint: str) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        house.backfill("events")
        insert_events(hot, "org-a", 100, 5)
        insert_events(hot, "org-b", 100, 5)
        first = house.start("run", failpoints=f"{failpoint}=kill")
        _, stderr = first.communicate(timeout=90)
        assert first.returncode == -signal.SIGKILL, stderr
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e100'")
        insert_events(hot, "org-a", 200, 1)
        second = house.start("run")
        try:
            until(landed(house, "org-a-e200"), second)
            status, stderr = finish(second)
        finally:
            second.kill()
        assert status == 0, stderr
    house.run("sync", "--once", "--table", "events", "--reconcile")
    house.assert_equal("events")


def test_a_program_finishes_what_it_is_in_when_it_is_asked_to_stop(house: Lakehouse, tmp_path: Path) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        insert_events(hot, "org-a", 100, 2)
    marker = tmp_path / "about to commit"
    program = house.start("run", failpoints=f"landing.before_commit=hold:{marker}@1")
    try:
        until(marker.exists, program)
        program.send_signal(signal.SIGTERM)
        marker.unlink()
        _, stderr = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 0, stderr
    events = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    assert [e["rows"] for e in events if e["event"] == "landing"] == [2]
    assert events[-1]["event"] == "stopped" and events[-1]["outcome"] == "ok"
    with house.app.engine.connect() as connection:
        held = connection.scalar(text("SELECT count(*) FROM tasks WHERE lease_owner IS NOT NULL"))
        assert (held, connection.scalar(text("SELECT count(*) FROM workers"))) == (0, 0)
    house.assert_equal("events")


def test_what_does_not_finish_inside_the_bound_is_left_to_others(house: Lakehouse, tmp_path: Path) -> None:
    house.variables["LAKEHOUSE_WORK__STOP_SECONDS"] = "1"
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 100, 2)
    marker = tmp_path / "hangs"
    program = house.start("run", failpoints=f"landing.before_commit=hold:{marker}@1")
    try:
        until(marker.exists, program)
        status, stderr = finish(program)
    finally:
        program.kill()
    assert status == 1 and "bound exceeded" in stderr
    house.run("sync", "--once", "--table", "events")
    house.assert_equal("events")


def test_worker_and_scheduler_apart_backfill_and_land(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        programs = [house.start("scheduler"), house.start("worker"), house.start("worker")]
        try:
            until(landed(house, "org-a-e1"), programs[1])
            insert_events(hot, "org-a", 100, 5)
            until(landed(house, "org-a-e100"), programs[2])
            ended = [finish(p) for p in programs]
        finally:
            for program in programs:
                program.kill()
        assert [status for status, _ in ended] == [0, 0, 0], ended
    house.assert_equal("events")


def test_prometheus_is_answered(house: Lakehouse) -> None:
    house.variables["LAKEHOUSE_METRICS__LISTEN"] = "127.0.0.1:0"
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        insert_events(hot, "org-a", 100, 2)
    program = house.start("run")
    try:
        assert program.stderr is not None
        line = next(line for line in program.stderr if "/metrics" in line)
        url = line[line.index("http://") :].strip()

        def body() -> str:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())

        until(lambda: 'lakehouse_landed_rows_total{op="upsert",table="events"} 2.0' in body(), program)
        text_ = body()
        for name in (
            'lakehouse_lag_seconds{organization="org-a",table="events"}',
            'lakehouse_units_total{outcome="ok",unit="window"}',
            "lakehouse_lease_losses_total 0.0",
            'lakehouse_workers{role="run"} 1.0',
            'lakehouse_takeovers{of="task"} 0.0',
        ):
            assert name in text_, text_
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=60)
    finally:
        program.kill()


def test_a_port_that_is_taken_is_said_at_the_start(house: Lakehouse) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        house.variables["LAKEHOUSE_METRICS__LISTEN"] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = house.run("run", check=2)
    assert "LAKEHOUSE_METRICS__LISTEN" in done.stderr and "Traceback" not in done.stderr
