"""Point 2, our side: one round from the start of the process to the commit, with 10,000 changed rows and with none."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import psycopg

from tests.bench import measure
from tests.bench.world import World, command, fill, lakehouse, organizations, program

CHANGED = 10_000


def change(url: str, share: int = CHANGED) -> None:
    """Change about so many rows, evenly over the table."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "WITH chosen AS (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n, count(*) OVER () AS of "
            "FROM ingested_events) x WHERE n %% greatest(1, of / %s) = 0 LIMIT %s) "
            "UPDATE ingested_events e SET processed_at = clock_timestamp(), processing_status = 'PROCESSED' "
            "FROM chosen WHERE e.id = chosen.id",
            [share, share],
        )


def run(world: World, rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Medians, by method."""
    url = world.database("start")
    organizations(url, 1)
    fill(url, rows)
    variables = world.variables(world.s3.create_bucket("bench-start"))
    lakehouse(variables, "init")
    lakehouse(variables, "backfill", "--table", "events")
    found: dict[str, Any] = {"rows": rows, "changed": CHANGED, "rounds": rounds, "methods": {}}
    for method in ("xmin", "trigger"):
        if method == "trigger":
            lakehouse(variables, "source", "prepare", "--apply", "--table", "events")
            variables["LAKEHOUSE_CAPTURE__METHOD"] = "trigger"
        # What the first window after a backfill or a change of method asks of the lake is not measured.
        lakehouse(variables, "sync", "--once", "--table", "events")
        arguments = command("sync", "--once", "--table", "events", "--json")
        nothing, some = [], []
        for _ in range(rounds):
            nothing.append(measure.run(arguments, program(variables)))
            change(url)
            some.append(measure.run(arguments, program(variables)))
            landed = sum(json.loads(some[-1].output)[0]["upserts"].values())
            if landed != CHANGED:
                raise RuntimeError(f"{landed} rows landed instead of {CHANGED}")
        lakehouse(variables, "verify", "--table", "events")
        found["methods"][method] = {
            "nothing_seconds": round(statistics.median(r.seconds for r in nothing), 2),
            "nothing_processor": round(statistics.median(r.processor for r in nothing), 2),
            "changed_seconds": round(statistics.median(r.seconds for r in some), 2),
            "changed_processor": round(statistics.median(r.processor for r in some), 2),
            "megabytes": round(max(r.megabytes for r in some)),
        }
        say(f"sync --once by {method}: {found['methods'][method]}")
    return found
