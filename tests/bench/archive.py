"""What it costs that rows leave with proof: beside a plain DELETE, and as the lake grows.

Speed: events of one organization are archived by `archive_all` (candidates, proof, batches, the lake's own record),
in turn with `DELETE … RETURNING id` of the same rows in the same batches from a copy of the table, each batch a
transaction of its own; both have the indexes that the archive asks for, so the host's keys cost both alike. A batch
is timed from BEGIN to the end of COMMIT.

Price: a slice of candidates is read and proven, nothing is deleted, while rows of other days are written straight into
the lake, one file a day (`tests.bench.bulk`). What is judged is the proof alone: planning files, reading, hashing.
Out of the largest of these lakes one row is brought back by its id, by a program that starts for it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg

from lakehouse.app import App
from lakehouse.archive.candidates import archive_source, read_slice
from lakehouse.archive.durable import Waiver, read_backing
from lakehouse.archive.gate import inspect
from lakehouse.archive.installation import connect
from lakehouse.archive.policy import enable
from lakehouse.archive.proof import prove
from lakehouse.archive.run import archive_all
from tests.bench import measure
from tests.bench.bulk import fill_lake
from tests.bench.world import World, command, fill, organizations
from tests.cold import REFERENCES, archive_variables
from tests.support import Lakehouse

PER_DAY = 50_000
"""Rows of one day in the lake that grows."""


def run(world: World, rows: int, rounds: int, sizes: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Rows archived and deleted, and the sizes of the lake at which rows are proven."""
    found: dict[str, Any] = {"rows": rows, "rounds": rounds, "speed": _speed(world, rows, rounds, say)}
    with tempfile.TemporaryDirectory(prefix="lakehouse-bench-") as folder:
        found["price"] = _price(world, min(rows, 200_000), rounds, sorted(sizes), Path(folder), say)
    return found


def _speed(world: World, rows: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    ours: list[float] = []
    plain: list[float] = []
    batches: list[float] = []
    size = 0
    for round_ in range(rounds):
        copy = _hot(world, f"plain{round_}", rows)
        with tempfile.TemporaryDirectory(prefix="lakehouse-bench-") as folder:
            url = _hot(world, f"archive{round_}", rows)
            house = _house(world, url, Path(folder), world.s3.create_bucket(f"bench-archive-{round_}"))
            try:
                size = house.app.settings.archive.batch_rows
                seen: list[float] = []
                house.app.events.add(
                    lambda e, seen=seen: seen.append(e["milliseconds"]) if e["event"] == "archive_batch" else None
                )
                began = time.perf_counter()
                result = archive_all(house.app, tables=["events"])
                ours.append(time.perf_counter() - began)
                (done,) = result.tables
                assert result.well and done.rows == rows, done
                batches += seen
            finally:
                house.close()
        plain.append(_plain(copy, size))
        say(f"archived {rows / ours[-1]:,.0f} rows/s, deleted {rows / plain[-1]:,.0f} rows/s")
        world.drop()
    batches.sort()
    return {
        "archived_per_second": round(rows / statistics.median(ours)),
        "deleted_per_second": round(rows / statistics.median(plain)),
        "ratio": round(statistics.median(plain) / statistics.median(ours), 3),
        "batch_rows": size,
        "batches": len(batches),
        "batch_p50_ms": round(statistics.median(batches)),
        "batch_p99_ms": round(batches[min(len(batches) - 1, len(batches) * 99 // 100)]),
        "batch_longest_ms": round(batches[-1]),
    }


def _hot(world: World, name: str, rows: int) -> str:
    """A database with so many old events, and the indexes without which nothing may go."""
    url = world.database(name)
    organizations(url, 1)
    fill(url, rows)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in REFERENCES:
            connection.execute(statement.encode())
    return url


def _house(world: World, url: str, folder: Path, bucket: str | None) -> Lakehouse:
    variables = world.variables(bucket or "") | {"LAKEHOUSE_SOURCE__URL": url} | archive_variables(folder)
    if bucket is None:
        variables |= {
            "LAKEHOUSE_LAKE__WAREHOUSE": f"file://{folder}/warehouse",
            "LAKEHOUSE_LAKE__CATALOG__URI": f"sqlite:///{folder}/catalog.db",
        }
    house = Lakehouse(url, variables)
    house.init()
    house.backfill("events")
    enable(house.app, "org-001", reason="measured")
    return house


def _plain(url: str, size: int) -> float:
    """Seconds that plain deletes of every row take, in batches of the same size and order."""
    with psycopg.connect(url, autocommit=True) as connection:
        ids = [r[0] for r in connection.execute("SELECT id FROM ingested_events ORDER BY occurred_at, id").fetchall()]
        began = time.perf_counter()
        for first in range(0, len(ids), size):
            gone = connection.execute(
                "DELETE FROM ingested_events WHERE id = ANY(%s) RETURNING id", [ids[first : first + size]]
            ).fetchall()
            assert len(gone) == len(ids[first : first + size])
        return time.perf_counter() - began


def _price(
    world: World, candidates: int, rounds: int, sizes: Sequence[int], folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    url = _hot(world, "price", candidates)
    house = _house(world, url, folder, None)
    marks: list[dict[str, Any]] = []
    try:
        held = 0
        for size in sizes:
            fill_lake(house.app, "org-001", size - candidates, per_day=PER_DAY, held=held, say=say)
            held = -(-(size - candidates) // PER_DAY) * PER_DAY
            measured = [_prove(house.app, candidates) for _ in range(rounds)]
            read, proof = (statistics.median(m[i] for m in measured) for i in (0, 1))
            marks.append(
                {
                    "lake_rows": held + candidates,
                    "files": len(house.lake_table("events", "org-001").inspect.files()),
                    "files_read": measured[-1][2],
                    "read_us": round(read / candidates * 1e6, 2),
                    "proof_us": round(proof / candidates * 1e6, 2),
                }
            )
            say(f"proof: {marks[-1]}")
        recalled = recall_one(house, rounds)
        say(f"recall of one id: {recalled}")
    finally:
        house.close()
    return {
        "candidates": candidates,
        "recall": recalled,
        "marks": marks,
        "ratio": round(marks[-1]["proof_us"] / marks[0]["proof_us"], 3),
    }


def recall_one(house: Lakehouse, rounds: int) -> dict[str, Any]:
    """Seconds and processor of a whole program that brings one row back by its id, from the middle of the lake."""
    files = house.lake_table("events", "org-001").inspect.files()
    path = sorted(files["file_path"].to_pylist())[len(files) // 2].removeprefix("file://")
    with duckdb.connect() as duck:
        ((key, moment),) = duck.execute(
            f"SELECT id, epoch_us(occurred_at) FROM read_parquet('{path}', hive_partitioning = false) "
            "ORDER BY id LIMIT 1 OFFSET 1000"
        ).fetchall()
    arguments = command(
        "recall", "--organization", "org-001", "--table", "events", "--id", key, "--reason", "measured",
        "--to", "table", "--json",
    )  # fmt: skip
    found: dict[str, Any] = {"files": len(files)}
    for name in ("without_tombstone", "with_tombstone"):
        if name == "with_tombstone":
            put_tombstone(house, key, datetime.fromtimestamp(moment / 1e6, UTC))
        runs = [measure.run(arguments, house.environment()) for _ in range(max(3, rounds))]
        assert all(json.loads(r.output)["rows"] == 1 for r in runs)
        found[name] = {
            "seconds": round(statistics.median(r.seconds for r in runs), 2),
            "processor": round(statistics.median(r.processor for r in runs), 2),
            "megabytes": round(max(r.megabytes for r in runs)),
        }
    return found


def put_tombstone(house: Lakehouse, key: str, moment: datetime) -> None:
    """As if the archive had taken this event."""
    with connect(house.app) as connection:
        connection.execute(
            "INSERT INTO lakehouse_archive.cold_storage_archive (organization_id, table_name, row_key, event_time, "
            "sequence, batch, delivered_to, snapshot_id, keyed_hash, hash_key, contract_version, policy, operator, "
            "archived_at) VALUES ('org-001', 'events', %s, %s, 1, 0, '{}', 1, '', '', '1.0', '', '', now())",
            [key, moment],
        )


def _prove(app: App, candidates: int) -> tuple[float, float, int]:
    """Seconds to read the candidates and to prove them, and the files that were read."""
    contract = app.contract("events")
    with connect(app) as connection, archive_source(app) as source:
        gate = inspect(connection, contract)
        row = connection.execute("SELECT now()").fetchone()
        assert row is not None
        began = time.perf_counter()
        found = read_slice(source, gate, "org-001", row[0], after=None, most=candidates)
        read = time.perf_counter() - began
        backing = read_backing(app.engine, "org-001", "events", (), Waiver("bench", "measured"))
        began = time.perf_counter()
        with prove(app, connection, gate, found, "org-001", row[0], backing) as proof:
            proven = time.perf_counter() - began
            assert proof.proven == candidates, proof
        return read, proven, proof.files
