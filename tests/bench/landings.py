"""`make bench`: many windows of one table with maintenance on; does a landing get dearer?

One organization, a real PostgreSQL and a real S3 server from the wheels, the catalog in PostgreSQL. Every window
brings new rows and changes one; keys are compared now and then; maintenance runs at its rhythm. Two times are taken of
each window: the landing (read the table again, compare the fence, commit) and the whole window (settle, capture,
stage, record, land, acknowledge). Of the landing also the processor time that this program spent, which depends less
on what else the machine does. Exit 1 if the median landing of the last 100 is above 1.2 times the first 100's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.landing import commit
from lakehouse.maintenance.garbage import list_files
from lakehouse.maintenance.run import maintain_table
from tests.support import Lakehouse, host_tables, insert_events, s3_variables

TARGET = 1.2


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


def bench(house: Lakehouse, arguments: argparse.Namespace) -> dict[str, Any]:
    """Land the windows and measure."""
    contract = house.app.contract("events")
    landings: list[float] = []
    processor: list[float] = []
    windows: list[float] = []
    upkeep: list[float] = []
    commit._commit = timed(commit._commit, landings, processor)
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 1000)
        house.backfill("events")
        landings.clear()
        processor.clear()
        for number in range(arguments.windows):
            # New rows move on through days, and one row of an old day changes at every window.
            insert_events(hot, "org-a", 10_000 + number * arguments.rows, arguments.rows, day="2026-03-01")
            hot.execute("UPDATE ingested_events SET severity = %s WHERE id = 'org-a-e1'", [["LOW", "HIGH"][number % 2]])
            began = time.perf_counter()
            house.sync_ok("events", reconcile=number % arguments.reconcile == arguments.reconcile - 1)
            windows.append(time.perf_counter() - began)
            if number % arguments.maintain == arguments.maintain - 1:
                began = time.perf_counter()
                result = maintain_table(house.app, contract, "org-a")
                upkeep.append(time.perf_counter() - began)
                assert not result.errors, result.errors
                if len(upkeep) % 4 == 1 and result.measured:
                    m = result.measured
                    sys.stderr.write(
                        f"{number + 1:5d} windows: landing {1000 * statistics.median(landings[-50:]):.0f} ms "
                        f"(processor {1000 * statistics.median(processor[-50:]):.0f} ms), window "
                        f"{1000 * statistics.median(windows[-50:]):.0f} ms, maintenance {upkeep[-1]:.1f} s; "
                        f"{m.snapshots} snapshots, {m.manifests} manifests, {m.data_files} data files, "
                        f"metadata {m.metadata_files} files {m.metadata_bytes / 1e6:.2f} MB\n"
                    )
    house.assert_equal("events")
    edge = min(100, arguments.windows // 2)

    def ratio(values: list[float]) -> dict[str, float]:
        first, last = statistics.median(values[:edge]), statistics.median(values[-edge:])
        return {"first_ms": round(first * 1000, 1), "last_ms": round(last * 1000, 1), "ratio": round(last / first, 3)}

    return {
        "windows": arguments.windows,
        "edge": edge,
        "landing": ratio(landings),
        "processor": ratio(processor),
        "window": ratio(windows),
        "maintenance_ms": round(statistics.median(upkeep) * 1000) if upkeep else None,
        "objects": len(list_files(house.lake_table("events", "org-a"))),
        "equal": True,
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=10, help="new rows a window")
    parser.add_argument("--maintain", type=int, default=50, help="windows between two runs of maintenance")
    parser.add_argument("--reconcile", type=int, default=100, help="windows between two comparisons of keys")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.windows < 20 or min(arguments.rows, arguments.maintain, arguments.reconcile) < 1:
        parser.error("--windows takes 20 or more, the others 1 or more")
    with EmbeddedPostgres() as postgres, EmbeddedS3() as s3:
        url = postgres.create_database("bench")
        host_tables(url, ("org-a",))
        house = Lakehouse(url, s3_variables(url, s3, s3.create_bucket("bench")))
        try:
            house.init()
            found = bench(house, arguments)
        finally:
            house.close()
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for name in ("landing", "processor", "window"):
            f = found[name]
            sys.stdout.write(
                f"{name:9s} median of the first {found['edge']}: {f['first_ms']} ms, of the last: {f['last_ms']} ms, "
                f"ratio {f['ratio']}\n"
            )
        sys.stdout.write(
            f"maintenance {found['maintenance_ms']} ms a run; {found['objects']} objects in the table's folder; "
            "hot and lake equal\n"
        )
    return 0 if found["landing"]["ratio"] <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
