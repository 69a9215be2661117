"""Point 5: many windows of one table with maintenance on; does a landing get dearer?

One organization, a real PostgreSQL and a real S3 server from the wheels, the catalog in PostgreSQL. Every window
brings new rows and changes one; keys are compared now and then; maintenance runs at its rhythm. Two times are taken of
each window: the landing (read the table again, compare the fence, commit) and the whole window (settle, capture,
stage, record, land, acknowledge). Of the landing also the processor time that this program spent, which depends less
on what else the machine does. The median landing of the last 100 is to stay within 1.2
times the first 100's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from lakehouse.landing import commit
from lakehouse.maintenance.garbage import list_files
from lakehouse.maintenance.run import maintain_table
from tests.bench import goals, profile
from tests.bench.steps import Spent, watching
from tests.bench.world import World
from tests.support import Lakehouse, host_tables, insert_events, s3_variables

MARKS = (1, 100, 1000, 2000)
"""After so many windows the landing is shown in the document: the median of the twenty around it."""
ROWS, MAINTAIN, RECONCILE = 10, 50, 100
"""New rows a window; windows between two runs of maintenance, and between two comparisons of keys."""


def timed(function: Callable[..., Any], into: list[float], processor: list[float]) -> Callable[..., Any]:
    """The same function; how long each call took, and how much processor time, in seconds, is appended."""

    def call(*arguments: Any, **options: Any) -> Any:
        began, spent = time.perf_counter(), time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            into.append(time.perf_counter() - began)
            processor.append(time.process_time() - spent)

    return call


def bench(house: Lakehouse, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Land the windows and measure."""
    contract = house.app.contract("events")
    landings: list[float] = []
    processor: list[float] = []
    windows: list[float] = []
    upkeep: list[float] = []
    curve: list[dict[str, Any]] = []
    shapes: dict[int, dict[str, int]] = {}
    edge = min(100, count // 2)
    spent: dict[str, dict[str, Spent]] = {}
    commit._commit = timed(commit._commit, landings, processor)
    with house.hot() as hot, watching() as steps:
        insert_events(hot, "org-a", 1, 1000)
        house.backfill("events")
        landings.clear()
        processor.clear()
        start = steps.copy()
        for number in range(count):
            # New rows move on through days, and one row of an old day changes at every window.
            insert_events(hot, "org-a", 10_000 + number * ROWS, ROWS, day="2026-03-01")
            hot.execute("UPDATE ingested_events SET severity = %s WHERE id = 'org-a-e1'", [["LOW", "HIGH"][number % 2]])
            began = time.perf_counter()
            house.sync_ok("events", reconcile=number % RECONCILE == RECONCILE - 1)
            windows.append(time.perf_counter() - began)
            if number + 1 in (*MARKS, count):
                shapes[number + 1] = shape(house)
            if number + 1 == edge:
                spent["first"] = steps.since(start)
            if number + 1 == count - edge:
                start = steps.copy()
            if number % MAINTAIN == MAINTAIN - 1:
                began = time.perf_counter()
                result = maintain_table(house.app, contract, "org-a")
                upkeep.append(time.perf_counter() - began)
                assert not result.errors, result.errors
                if result.measured:
                    m = result.measured
                    curve.append(
                        {
                            "windows": number + 1,
                            "landing_ms": round(1000 * statistics.median(landings[-50:]), 1),
                            "maintenance_s": round(upkeep[-1], 1),
                            "snapshots": m.snapshots,
                            "manifests": m.manifests,
                            "data_files": m.data_files,
                            "metadata_files": m.metadata_files,
                        }
                    )
                if result.measured and len(upkeep) % 4 == 0:
                    say(
                        f"{number + 1:5d} windows: landing {1000 * statistics.median(landings[-50:]):.0f} ms "
                        f"(processor {1000 * statistics.median(processor[-50:]):.0f} ms), window "
                        f"{1000 * statistics.median(windows[-50:]):.0f} ms, maintenance {upkeep[-1]:.1f} s; "
                        f"{m.snapshots} snapshots, {m.manifests} manifests, {m.data_files} data files, "
                        f"metadata {m.metadata_files} files {m.metadata_bytes / 1e6:.2f} MB"
                    )
    house.assert_equal("events")
    spent["last"] = steps.since(start)

    def ratio(values: list[float]) -> dict[str, float]:
        first, last = statistics.median(values[:edge]), statistics.median(values[-edge:])
        return {"first_ms": round(first * 1000, 1), "last_ms": round(last * 1000, 1), "ratio": round(last / first, 3)}

    found: dict[str, Any] = {
        "windows": count,
        "edge": edge,
        "landing": ratio(landings),
        "processor": ratio(processor),
        "window": ratio(windows),
        "maintenance_ms": round(statistics.median(upkeep) * 1000) if upkeep else None,
        "objects": len(list_files(house.lake_table("events", "org-a"))),
        "marks": [
            {
                "windows": n,
                "landing_ms": round(1000 * statistics.median(landings[max(0, n - 10) : n + 10]), 1),
                **shape_,
            }
            for n, shape_ in shapes.items()
        ],
        "curve": curve,
        "equal": True,
    }
    if goals.missed("landings", found):
        found["profiles"] = {where: profile.steps_json(of, edge) for where, of in spent.items()}
    return found


def shape(house: Lakehouse) -> dict[str, int]:
    """What a landing has to read and write again: how much the table's metadata holds now."""
    table = house.lake_table("events", "org-a")
    snapshot = table.current_snapshot()
    assert snapshot is not None and snapshot.summary is not None
    return {
        "snapshots": len(table.metadata.snapshots),
        "manifests": len(snapshot.manifests(table.io)),
        "data_files": int(snapshot.summary["total-data-files"]),
        "metadata_files": len(list_files(table, "metadata")),
    }


def run(world: World, windows: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Land so many windows of 11 rows each, with maintenance every 50 and keys compared every 100."""
    url = world.database("landings", tables=False)
    host_tables(url, ("org-a",))
    house = Lakehouse(url, s3_variables(url, world.s3, world.s3.create_bucket("bench-landings")))
    try:
        house.init()
        return bench(house, windows, say)
    finally:
        house.close()
