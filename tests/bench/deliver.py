"""What a delivery costs: rows a second into each kind that copies, beside plain ways to write the same rows.

The lake holds events of one organization; each kind is filled from nothing by `lakehouse deliver`. Beside it: the same
columns by `COPY … FROM` into a bare table of the replica's server (from a file that `COPY … TO` wrote, so that only the
writing is measured), and the same rows from the lake's own files to Parquet and JSON Lines by DuckDB.
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

from lakehouse.app import App
from lakehouse.demo.environment import settings_values
from lakehouse.duck import connect, lake_relation
from lakehouse.query import tenants
from lakehouse.settings import ExplicitSettings
from tests.bench import measure
from tests.bench.world import World, client, command, fill, lakehouse, organizations, program

KINDS = ("POSTGRES_REPLICA", "PARQUET_S3", "JSONL_S3")


def run(world: World, rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Medians of the rounds, as rows a second."""
    found: dict[str, Any] = {"rows": rows, "rounds": rounds, "kinds": {}}
    url = world.database("deliver")
    organizations(url, 1)
    fill(url, rows)
    variables = world.variables(
        world.s3.create_bucket("bench-deliver"),
        EGRESS__ALLOW='["127.0.0.1", "localhost"]',
        SECRETS__KEYS='{"v1": "hex:' + "ab" * 32 + '"}',
    )
    lakehouse(variables, "init")
    lakehouse(variables, "backfill", "--table", "events")
    beside = {"COPY": lambda: _copy(world, url), **{f"DuckDB {k}": _duck(variables, k) for k in ("parquet", "json")}}
    for kind in KINDS:
        seconds, memory = [], []
        for round_ in range(rounds):
            name = f"{kind.lower()}-{round_}"
            _add(world, variables, kind, name)
            done = measure.run(command("deliver", "--destination", name), program(variables))
            seconds.append(done.seconds)
            memory.append(done.megabytes)
        lakehouse(variables, "parity", "--destination", name)
        found["kinds"][kind] = {
            "rows_per_second": round(rows / statistics.median(seconds)),
            "megabytes": round(max(memory)),
            "equal": True,
        }
        say(f"deliver {kind}: {found['kinds'][kind]}")
    for name, way in beside.items():
        seconds = [way() for _ in range(rounds)]
        found["kinds"][name] = {"rows_per_second": round(rows / statistics.median(seconds))}
        say(f"beside: {name}: {found['kinds'][name]}")
    return found


def _add(world: World, variables: dict[str, str], kind: str, name: str) -> None:
    if kind == "POSTGRES_REPLICA":
        kept = world.url
        config, credentials = (
            {"schema": "copy"},
            {"url": world.database(f"replica_{name.replace('-', '_')}", tables=False)},
        )
        world.url = kept
    else:
        bucket = world.s3.create_bucket(f"bench-{name.replace('_', '-')}")
        config = {"location": f"s3://{bucket}/files", "endpoint": world.s3.endpoint}
        credentials = {"access_key_id": world.s3.access_key, "secret_access_key": world.s3.secret_key}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as secret:
        secret.write(json.dumps(credentials))
        secret.flush()
        lakehouse(
            variables,
            *("destinations", "add", "--organization", "org-001", "--kind", kind, "--name", name),
            *("--config", json.dumps(config), "--table", "events", "--credentials-file", secret.name),
        )


def _copy(world: World, url: str) -> float:
    """Seconds of `COPY FROM` of the whole table into a bare one."""
    kept = world.url
    target = world.database(f"bare{time.monotonic_ns()}")
    world.url = kept
    with tempfile.NamedTemporaryFile(suffix=".copy") as file:
        _psql(url, f"\\copy public.ingested_events TO '{file.name}' (FORMAT binary)")
        _psql(target, "CREATE TABLE bare AS SELECT * FROM ingested_events WITH NO DATA")
        began = time.perf_counter()
        _psql(target, f"\\copy bare FROM '{file.name}' (FORMAT binary)")
        return time.perf_counter() - began


def _psql(url: str, statement: str) -> None:
    subprocess.run([client("psql"), url, "-qc", statement], check=True, capture_output=True)


def _duck(variables: dict[str, str], form: str) -> Callable[[], float]:
    """Writes the lake's rows to one local file; seconds."""

    def write() -> float:
        app = App(ExplicitSettings(**settings_values(variables)))
        try:
            (tenant,) = tenants(app)
            table = app.lake(tenant.organization).catalog.load_table((tenant.namespace, "events"))
            with tempfile.TemporaryDirectory() as folder, connect([app.address_of(tenant.organization)]) as duck:
                options = "FORMAT parquet, COMPRESSION zstd" if form == "parquet" else "FORMAT json, COMPRESSION gzip"
                began = time.perf_counter()
                duck.execute(
                    f"COPY (SELECT * FROM {lake_relation(table.metadata_location)}) "
                    f"TO '{Path(folder) / 'rows'}' ({options})"
                )
                return time.perf_counter() - began
        finally:
            app.close()

    return write
