"""Point 3: one window of a running worker over a big table, by method, and what it costs the source.

The table has a stamped and indexed `updated_at`, as some of the host's tables have, so that one table serves every
method: `xmin` pruned by it, `xmin` unpruned (what the host's events would be), `trigger`. A window is what a worker
does with one due task: claim, capture, stage, record, land, acknowledge. Pages are those of the table and its indexes
that the source looked at during it (pg_statio), whether they were in memory or not.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from lakehouse.app import App
from lakehouse.demo.environment import settings_values
from lakehouse.outbox import tasks
from lakehouse.outbox.tasks import CAPTURE
from lakehouse.settings import ExplicitSettings
from lakehouse.worker.worker import Worker
from schemas.contract import BUILT_IN
from tests.bench import goals, profile, steps
from tests.bench.start import CHANGED
from tests.bench.world import World, client, fill, lakehouse, organizations

PGBENCH_SECONDS = 15
CADENCE = 2.0
METHODS = {
    "xmin, pruned": {"CAPTURE__METHOD": "xmin"},
    "xmin, unpruned": {"CAPTURE__METHOD": "xmin", "CAPTURE__PRUNE": "false"},
    "trigger": {"CAPTURE__METHOD": "trigger"},
}
_SCRIPT = """
\\set n random(1, {rows})
UPDATE ingested_events SET severity = 'LOW', updated_at = clock_timestamp() AT TIME ZONE 'utc'
WHERE id = 'c' || lpad(to_hex(:n), 10, '0') || substr(md5(:n::text), 1, 14);
"""


def stamped_contract(folder: Path) -> str:
    """A folder with the contract `events` of a table whose `updated_at` every change stamps."""
    raw = json.loads((BUILT_IN / "events" / "v1.json").read_text())
    raw.pop("$schema", None)
    raw["watermark"] = {"column": "updated_at", "every_change": True}
    stamp = {**next(c for c in raw["columns"] if c["name"] == "created_at"), "id": 20}
    raw["columns"].append({**stamp, "name": "updated_at", "source": "updated_at"})
    (folder / "events").mkdir()
    (folder / "events" / "v1.json").write_text(json.dumps(raw))
    return json.dumps(["builtin", str(folder)])


class OneTable:
    """A worker in this process, for windows of `events` one after the other."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.events: list[dict[str, Any]] = []
        self.app = App(ExplicitSettings(**settings_values(variables)))
        self.app.events.add(self.events.append)
        self.app.source.keep_sessions(1)  # as `Worker.start` does
        self.worker = Worker(self.app, threading.Event())
        # As after a while: nothing is loaded or connected for the first time.
        for _ in range(3):
            self.window()

    def window(self) -> float:
        """Make a window due and do it; seconds from the claim to the acknowledgement."""
        with self.app.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE cursors SET polled_at = NULL")
        tasks.make_due(self.app.engine, [(CAPTURE, "events")])
        began = time.perf_counter()
        if not self.worker.once():
            raise RuntimeError("the window was not due")
        seconds = time.perf_counter() - began
        if bad := [e for e in self.events if e.get("outcome") == "error"]:
            raise RuntimeError(str(bad))
        return seconds


def _pages(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "SELECT coalesce(heap_blks_read, 0) + coalesce(heap_blks_hit, 0) + coalesce(idx_blks_read, 0) "
        "+ coalesce(idx_blks_hit, 0) FROM pg_statio_user_tables WHERE relname = 'ingested_events'"
    ).fetchone()
    return int(row[0]) if row else 0


def _touch(connection: psycopg.Connection[Any], rows: int) -> None:
    step = max(1, rows // CHANGED)
    connection.execute(
        "UPDATE ingested_events SET severity = 'HIGH', updated_at = clock_timestamp() AT TIME ZONE 'utc' WHERE id = "
        "ANY(SELECT 'c' || lpad(to_hex(n), 10, '0') || substr(md5(n::text), 1, 14) FROM generate_series(%s::int, "
        "%s::int, %s::int) n)",
        [step, step * min(CHANGED, rows), step],
    )


def run(world: World, rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Medians by method, over a table of `rows` rows."""
    url = world.database("windows")
    organizations(url, 1)
    fill(url, rows)
    explained: dict[str, Any] = {}
    found: dict[str, Any] = {"rows": rows, "changed": min(CHANGED, rows), "rounds": rounds, "methods": {}}
    with tempfile.TemporaryDirectory() as folder, psycopg.connect(url, autocommit=True) as hot:
        hot.execute("ALTER TABLE ingested_events ADD COLUMN updated_at timestamp(3) NOT NULL DEFAULT '2026-01-01'")
        hot.execute("CREATE INDEX ON ingested_events (updated_at)")
        hot.execute("ANALYZE ingested_events")
        plain = world.variables(
            world.s3.create_bucket("bench-windows"),
            CONTRACTS=stamped_contract(Path(folder)),
            CAPTURE__RECONCILE_EVERY_SECONDS="86400",
        )
        lakehouse(plain, "init")
        lakehouse(plain, "backfill", "--table", "events")
        cost = {"no capture": _pgbench(url, rows)}
        for method, more in METHODS.items():
            variables = plain | {f"LAKEHOUSE_{k}": v for k, v in more.items()}
            if method == "trigger":
                lakehouse(plain, "source", "prepare", "--apply", "--table", "events")
            lakehouse(variables, "sync", "--once", "--table", "events")
            table = OneTable(variables)
            empty = [table.window() for _ in range(4 * rounds)]
            changed, capture, pages = [], [], []
            for _ in range(rounds):
                _touch(hot, rows)
                hot.execute("SELECT pg_stat_force_next_flush()")
                time.sleep(1.2)  # the server counts what a session did about a second later
                before = _pages(hot)
                table.events.clear()
                changed.append(table.window())
                capture += [e["milliseconds"] for e in table.events if e["event"] == "window"]
                time.sleep(1.2)
                pages.append(_pages(hot) - before)
                if sum(e.get("rows", 0) for e in table.events if e["event"] == "landing") != found["changed"]:
                    raise RuntimeError(f"{method}: another number of rows landed: {table.events}")
            if method == "trigger":
                cost["triggers, no capture"] = _pgbench(url, rows)
            cost[f"{method}, a window every {CADENCE:.0f} s"] = _pgbench(url, rows, table)
            explained[method] = _explain(table, hot, rows, rounds)
            table.app.close()
            found["methods"][method] = {
                "empty_ms": round(statistics.median(empty) * 1000, 1),
                "changed_ms": round(statistics.median(changed) * 1000),
                "capture_ms": round(statistics.median(capture)),
                "megabytes": round(statistics.median(pages) * 8192 / 1e6, 1),
            }
            say(f"window by {method}: {found['methods'][method]}")
        lakehouse(variables, "sync", "--once", "--table", "events")
        lakehouse(variables, "verify", "--table", "events")
    found["transactions"] = cost
    for goal in goals.missed("windows", found):
        kind = "empty" if goal.what == goals.EMPTY_WINDOW else "changed"
        found.setdefault("profiles", {}).setdefault(goal.row, {})[kind] = explained[goal.row][kind]
    return found


def _explain(table: OneTable, hot: psycopg.Connection[Any], rows: int, rounds: int) -> dict[str, Any]:
    """Steps of a window with changed rows, and of an empty one; a window's share."""
    table.window()  # what pgbench changed last
    with steps.watching() as watched:
        for _ in range(4 * rounds):
            table.window()
        empty = watched.copy()
        for _ in range(rounds):
            _touch(hot, rows)
            table.window()
    return {
        "empty": profile.steps_json(empty, 4 * rounds),
        "changed": profile.steps_json(watched.since(empty), rounds),
    }


def _pgbench(url: str, rows: int, table: OneTable | None = None) -> float:
    """Transactions a second of a workload that updates random rows, with or without windows beside it."""
    over = threading.Event()

    def windows() -> None:
        while table is not None and not over.is_set():
            over.wait(max(0.05, CADENCE - table.window()))

    capturing = threading.Thread(target=windows)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_SCRIPT.format(rows=rows))
        script.flush()
        capturing.start()
        try:
            done = subprocess.run(
                [
                    client("pgbench"),
                    "-n",
                    "-c",
                    "4",
                    "-T",
                    str(PGBENCH_SECONDS),
                    "-f",
                    script.name,
                    url,
                ],
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            over.set()
            capturing.join()
    match = re.search(r"tps = ([0-9.]+)", done.stdout)
    if match is None:
        raise RuntimeError(done.stdout + done.stderr)
    return round(float(match[1]))
