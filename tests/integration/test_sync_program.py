"""`lakehouse sync --every` as a process: it goes on by itself and ends well when it is told to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_after_its_round(house: Lakehouse, tmp_path: Path, number: signal.Signals) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        insert_events(hot, "org-a", 10, 3)
        marker = tmp_path / "recorded"
        process = house.start(
            "sync", "--every", "100ms", "--table", "events", failpoints=f"landing.recorded=hold:{marker}@1"
        )
        wait_for(marker)
        process.send_signal(number)
        marker.unlink()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, ""), out
    assert [v["id"] for v in house.versions("events", "org-a")][-1] == "org-a-e12"
    house.assert_equal("events")


@pytest.mark.parametrize("every", ["0s", "-1s", "soon", "5"])
def test_a_period_that_is_none_is_refused(house: Lakehouse, every: str) -> None:
    done = house.run("sync", f"--every={every}", check=2)
    assert "Write 500ms, 5s, 2m, 1h or 30d" in done.stderr


def test_once_or_every_must_be_said(house: Lakehouse) -> None:
    assert "either --once or --every" in house.run("sync", check=2).stderr
    assert "no contract for a table 'nothing'" in house.run("sync", "--once", "--table", "nothing", check=2).stderr


def wait_for(path: Path) -> None:
    import threading

    for _ in range(600):
        if path.exists():
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"{path} was never made")
