"""Point 4: from a commit in PostgreSQL to a committed snapshot, ten tables of one organization at a cadence of 1 s.

A program is left running (`lakehouse run`) while pgbench updates events. Beside it a prober touches one row after the
other in every table and notes when its commit returned. What it wrote is found in the lake by transaction id
(`_xmin`); a version is fresh when its landing was acknowledged, a moment after the snapshot was committed. All clocks
are this machine's.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from lakehouse.app import App
from lakehouse.demo.environment import settings_values
from lakehouse.demo.seed import seed
from lakehouse.duck import connect, lake_relation
from lakehouse.query import tenants
from lakehouse.settings import ExplicitSettings
from schemas.contract import Contract
from tests.bench import profile
from tests.bench.world import World, client, command, lakehouse, program

WARM_SECONDS = 10
PROBES = 5
"""Touched rows a second and table."""
_SCRIPT = """
UPDATE ingested_events SET severity = 'LOW'
WHERE id = (SELECT id FROM ingested_events ORDER BY id DESC OFFSET random() * 200 LIMIT 1);
"""


def run(world: World, rows: int, seconds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Quantiles of freshness in seconds, over all tables and of the slowest one."""
    url = world.database("freshness")
    seed(url, rows=rows, organizations=1)
    found: dict[str, Any] = {"rows": rows, "seconds": seconds, "methods": {}}
    for method in ("xmin", "trigger"):
        variables = world.variables(
            world.s3.create_bucket(f"freshness-{method}"),
            SCHEDULE__CADENCE_SECONDS="1",
            SCHEDULE__TICK_SECONDS="0.2",
            WORK__POLL_SECONDS="0.05",
            METRICS__LISTEN="",
        )
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS lakehouse CASCADE")
        lakehouse(variables, "init")
        lakehouse(variables, "backfill")
        if method == "trigger":
            lakehouse(variables, "source", "prepare", "--apply")
            variables["LAKEHOUSE_CAPTURE__METHOD"] = "trigger"
        lakehouse(variables, "sync", "--once")
        app = App(ExplicitSettings(**settings_values(variables)))
        try:
            with profile.beside(world) as servers:
                waits, units = _measure(app, url, variables, seconds)
        finally:
            app.close()
        lakehouse(variables, "sync", "--once")
        lakehouse(variables, "verify")
        every = sorted(w for each in waits.values() for w in each)
        slowest = max(waits, key=lambda table: _quantile(sorted(waits[table]), 0.99))
        found["methods"][method] = {
            "probes": len(every),
            "p50": round(statistics.median(every), 2),
            "p99": round(_quantile(every, 0.99), 2),
            "longest": round(every[-1], 2),
            "slowest_table": slowest,
            "slowest_p99": round(_quantile(sorted(waits[slowest]), 0.99), 2),
            "curve": [[round(_quantile(every, n / 100), 3), n] for n in range(101)],
            "units": units,
            "machine": servers,
        }
        shown = {k: v for k, v in found["methods"][method].items() if k not in ("curve", "units")}
        say(f"freshness by {method}: {shown}")
    return found


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _measure(
    app: App, url: str, variables: dict[str, str], seconds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """By table: seconds from a commit to its acknowledged landing. And what the program said of its own work."""
    contracts = [app.contract(name) for name in app.contracts]
    committed: dict[str, dict[int, float]] = {c.table: {} for c in contracts}
    with tempfile.TemporaryDirectory() as folder:
        script, log = Path(folder) / "pgbench.sql", Path(folder) / "events.jsonl"
        script.write_text(_SCRIPT)
        with log.open("wb") as events:
            running = subprocess.Popen(command("run"), env=program(variables), stdout=events, stderr=events)
        load = subprocess.Popen(
            [client("pgbench"), "-n", "-c", "2", "-R", "50", "-T", str(WARM_SECONDS + seconds), "-f", str(script), url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            threading.Event().wait(WARM_SECONDS)
            _probe(url, contracts, committed, seconds)
            load.terminate()
            _until_landed(app, max(t for each in committed.values() for t in each.values()), running, log)
        finally:
            load.terminate()
            load.wait()
            running.terminate()
            running.wait()
        units = _units(log)
    return {c.table: _waits(app, c, committed[c.table]) for c in contracts}, units


def _units(log: Path) -> dict[str, dict[str, float]]:
    """By kind of unit that the program reported while it ran: how many, and how long each took, in milliseconds."""
    took: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        if line.startswith("{") and "milliseconds" in (event := json.loads(line)):
            took.setdefault(event["event"], []).append(event["milliseconds"])
    return {
        kind: {
            "count": len(all_),
            "p50": round(statistics.median(all_), 1),
            "p99": round(_quantile(sorted(all_), 0.99), 1),
            "seconds": round(sum(all_) / 1000, 1),
        }
        for kind, all_ in sorted(took.items())
    }


def _until_landed(app: App, last: float, running: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until what was committed last has landed too."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if running.poll() is not None:
            raise RuntimeError(f"lakehouse run ended: {log.read_text()[-3000:]}")
        with app.engine.connect() as connection:
            (oldest, waiting) = connection.exec_driver_sql(
                "SELECT (SELECT min(captured_at) FROM cursors), (SELECT count(*) FROM landings WHERE status = 'staged')"
            ).one()
        if oldest.timestamp() > last and not waiting:
            return
        time.sleep(0.5)
    raise RuntimeError(f"not everything landed within 120 s: {log.read_text()[-3000:]}")


def _probe(url: str, contracts: list[Contract], committed: dict[str, dict[int, float]], seconds: int) -> None:
    keys: dict[str, list[Any]] = {}
    until = time.monotonic() + seconds
    number = 0
    with psycopg.connect(url, autocommit=True) as connection:
        for contract in contracts:
            key = sql.Identifier(contract[contract.primary_key[0]].source)
            table = sql.Identifier(contract.source_schema, contract.source_table)
            rows = connection.execute(sql.SQL("SELECT {key} FROM {} ORDER BY {key}").format(table, key=key)).fetchall()
            # Each row once: a version that another one replaces within a window never lands.
            keys[contract.table] = [row[0] for row in rows[: seconds * PROBES]]
            if len(rows) < seconds * PROBES:
                raise RuntimeError(f"{contract.table}: {len(rows)} rows are too few for {seconds} s")
        while time.monotonic() < until and number < seconds * PROBES:
            for contract in contracts:
                key = sql.Identifier(contract[contract.primary_key[0]].source)
                own = keys[contract.table]
                row = connection.execute(
                    sql.SQL("UPDATE {} SET {key} = {key} WHERE {key} = %s RETURNING xmin::text::bigint").format(
                        sql.Identifier(contract.source_schema, contract.source_table), key=key
                    ),
                    [own[number]],
                ).fetchone()
                if row is not None:
                    committed[contract.table][row[0]] = time.time()
            number += 1
            threading.Event().wait(1 / PROBES)


def _waits(app: App, contract: Contract, committed: dict[int, float]) -> list[float]:
    (tenant,) = tenants(app)
    with app.engine.connect() as connection:
        landed = {
            str(window): at.timestamp()
            for window, at in connection.exec_driver_sql(
                "SELECT window_id, landed_at FROM landings WHERE landed_at IS NOT NULL"
            )
        }
    table = app.lake(tenant.organization).catalog.load_table((tenant.namespace, contract.table))
    with connect([app.address_of(tenant.organization)]) as duck:
        rows = duck.execute(
            f"SELECT _xmin, _window FROM {lake_relation(table.metadata_location)} WHERE _op <> 'delete'"
        ).fetchall()
    waits = [landed[window] - committed[xmin] for xmin, window in rows if xmin in committed and window in landed]
    if len(waits) < len(committed) * 0.9:
        raise RuntimeError(f"{contract.table}: of {len(committed)} probes only {len(waits)} are in the lake")
    return waits
