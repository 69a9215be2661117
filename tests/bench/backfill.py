"""Point 1: how fast a table is read for the first time, beside what PostgreSQL gives away at all.

A *drain* is `COPY ingested_events TO STDOUT (FORMAT binary)` by psql into nothing: one connection, and two at once
with half of the table each. Our time is that of the program `lakehouse backfill` from start to end: imports,
reading, Parquet, upload and commit. Every round measures the drains and all forms, so that ratios are of one
moment; the lake is compared with the table, row by row, after the last round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from lakehouse.settings import CaptureSettings
from schemas.contract import BUILT_IN
from tests.bench import goals, measure, profile
from tests.bench.world import World, client, command, fill, lakehouse, organizations, program, scalar

Say = Callable[[str], None]
TABLE = "public.ingested_events"
TRIED = {
    "as it is": {},
    "one process": {"BACKFILL__WORKERS": "1"},
    "three processes": {"BACKFILL__WORKERS": "3"},
    "ranges of half the size": {"BACKFILL__RANGE_ROWS": "100000"},
    "chunks of twice the size": {"CAPTURE__CHUNK_BYTES": str(2 * CaptureSettings().chunk_bytes)},
    "one thread that writes": {"LANDING__THREADS": "1"},
}
"""Settings of a profile, each measured once."""


def drain(url: str, middle: str | None = None) -> float:
    """Seconds that one connection takes for the whole table; two connections if `middle` says where to halve it."""
    halves = [TABLE]
    if middle is not None:
        halves = [f"(SELECT * FROM {TABLE} WHERE id {side} '{middle}')" for side in ("<", ">=")]
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [client("psql"), url, "-qc", f"COPY {half} TO STDOUT (FORMAT binary)"], stdout=subprocess.DEVNULL
        )
        for half in halves
    ]
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError("psql failed")
    return time.perf_counter() - began


def flat_contracts(folder: Path) -> str:
    """A folder with the contract `events_flat`: the same table, not partitioned."""
    raw = json.loads((BUILT_IN / "events" / "v1.json").read_text())
    (folder / "events_flat").mkdir(parents=True, exist_ok=True)
    raw |= {"table": "events_flat", "event_time": None}
    raw.pop("$schema", None)
    (folder / "events_flat" / "v1.json").write_text(json.dumps(raw))
    return json.dumps(["builtin", str(folder)])


def once(world: World, variables: dict[str, str], table: str) -> measure.Run:
    """A new installation and one backfill of the table, measured as a process."""
    with psycopg.connect(world.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS lakehouse CASCADE")
    lakehouse(variables, "init")
    return measure.run(command("backfill", "--table", table, "--json"), program(variables))


def run(world: World, rows: int, rounds: int, say: Say) -> dict[str, Any]:
    """Measure every form. Figures are medians of the rounds."""
    found: dict[str, Any] = {"rows": rows, "rounds": rounds, "forms": {}}
    drains: list[float] = []
    twice: list[float] = []
    urls: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        contracts = flat_contracts(Path(folder))
        for count in (1, 100):
            url = urls[count] = world.database(f"backfill{count}")
            organizations(url, count)
            fill(url, rows, of=count)
            found["row_bytes"] = scalar(url, f"SELECT pg_relation_size('{TABLE}') / count(*) FROM {TABLE}")
            middle = scalar(url, f"SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY id) FROM {TABLE}")
            bucket = world.s3.create_bucket(f"backfill-{count}")
            for round_ in range(rounds):
                drains.append(drain(url))
                twice.append(drain(url, middle))
                for table in ("events", "events_flat"):
                    variables = world.variables(bucket, CONTRACTS=contracts)
                    variables["LAKEHOUSE_LAKE__WAREHOUSE"] += f"-{table}-{round_}"
                    done = once(world, variables, table)
                    form = found["forms"].setdefault(f"{table} {count}", {"ratios": [], "runs": []})
                    form["ratios"].append(drains[-1] / done.seconds)
                    form["runs"].append([done.seconds, done.processor, done.megabytes])
                    say(
                        f"backfill {table:11} of {count:3}: {rows / done.seconds:9,.0f} rows/s, "
                        f"{form['ratios'][-1]:.2f} of the drain, {done.processor / rows * 1e6:.1f} µs a row, "
                        f"{done.megabytes:.0f} MB"
                    )
                    if round_ == rounds - 1:
                        lakehouse(variables, "verify", "--table", table, "--json")
    for form in found["forms"].values():
        seconds, processor, megabytes = (statistics.median(x) for x in zip(*form.pop("runs"), strict=True))
        form |= {
            "rows_per_second": round(rows / seconds),
            "ratio": round(statistics.median(form.pop("ratios")), 3),
            "processor_us": round(processor / rows * 1e6, 2),
            "megabytes": round(megabytes),
            "equal": True,
        }
    found["drain"] = round(rows / statistics.median(drains))
    found["drain_two"] = round(rows / statistics.median(twice))
    if goals.missed("backfill", found):
        found["profile"] = explain(world, rows, say, urls[1])
    return found


def explain(world: World, rows: int, say: Say, url: str) -> dict[str, Any]:
    """Where the time goes, by day and for the one organization of that database; and what other settings would do."""
    world.url = url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS lakehouse CASCADE")
    bucket = world.s3.create_bucket("backfill-explain")
    drained = drain(url)
    variables = world.variables(bucket)
    lakehouse(variables, "init")
    found = profile.take(world, variables, rows, "backfill", "--table", "events", "--json")
    say(f"profile of a backfill: {found['machine']}")
    found["tried"] = {}
    for name, setting in TRIED.items():
        variables = world.variables(bucket, **setting)
        variables["LAKEHOUSE_LAKE__WAREHOUSE"] += f"-{len(found['tried'])}"
        done = once(world, variables, "events")
        found["tried"][name] = {
            "ratio": round(drained / done.seconds, 3),
            "processor_us": round(done.processor / rows * 1e6, 2),
            "megabytes": round(done.megabytes),
        }
        say(f"tried: {name}: {found['tried'][name]}")
    return found
