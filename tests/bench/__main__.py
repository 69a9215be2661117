"""`make bench`: measures every part in one go, keeps the figures in docs/benchmarks.json and writes the document.

`--only PART` (repeatable) measures some and keeps the others' last figures; `--rows` and `--rounds` shorten all;
`--postgres URL` uses a server of yours instead of the embedded one (databases are made on it and dropped again).
Nothing of it is a test: a figure is what was measured, good or bad. Exit 1 only if a landing got dearer than its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psutil

from tests.bench import archive, backfill, deliver, document, freshness, goals, landings, start, windows
from tests.bench.peers import beside
from tests.bench.world import ROOT, World, open_world, scalar

FIGURES = ROOT / "docs" / "benchmarks.json"
Say = Callable[[str], None]


def _parts(arguments: argparse.Namespace, kept: dict[str, Any]) -> dict[str, Callable[[World, Say], dict[str, Any]]]:
    rows, rounds = arguments.rows, arguments.rounds
    return {
        "backfill": lambda world, say: backfill.run(world, rows, rounds, say),
        "peers": lambda world, say: beside.run(
            world, rows, rounds, say, explain="profile" not in kept.get("backfill", {})
        ),
        "start": lambda world, say: start.run(world, rows, rounds, say),
        "windows": lambda world, say: windows.run(world, rows * 5 // 2, rounds, say),
        "freshness": lambda world, say: freshness.run(world, min(rows, 100_000), arguments.seconds, say),
        "deliver": lambda world, say: deliver.run(world, rows // 10, rounds, say),
        "archive": lambda world, say: archive.run(world, rows // 10, rounds, arguments.lake_rows, say),
        "landings": lambda world, say: landings.run(world, arguments.windows, say),
    }


def machine(world: World) -> dict[str, Any]:
    """What the figures were measured on."""
    version = str(scalar(world.admin_url, "SHOW server_version")).split()[0]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "gigabytes": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgresql": version,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    names = ("backfill", "peers", "start", "windows", "freshness", "deliver", "archive", "landings")
    parser.add_argument("--only", action="append", choices=names, help="measure this part; repeat for more")
    parser.add_argument("--rows", type=int, default=2_000_000, help="events in the table")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--seconds", type=int, default=60, help="for how long freshness is probed")
    parser.add_argument("--windows", type=int, default=2000, help="how many landings")
    parser.add_argument(
        "--lake-rows",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[1_000_000, 2_000_000],
        help="sizes of the lake at which rows are proven; for the whole figure 1000000,10000000,50000000",
    )
    parser.add_argument("--postgres", help="URL of a superuser on a server that may be used for this")
    parser.add_argument("--no-document", action="store_true", help="print the figures and write nothing")
    arguments = parser.parse_args()
    if arguments.rows < 20_000 or min(arguments.rounds, arguments.seconds) < 1 or arguments.windows < 20:
        parser.error("--rows takes 20000 or more, --windows 20 or more, the others 1 or more")
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    with open_world(arguments.postgres) as world:
        for name, part in _parts(arguments, kept).items():
            if arguments.only and name not in arguments.only:
                continue
            sys.stderr.write(f"— {name}\n")
            began = time.monotonic()
            found = part(world, _say)
            world.drop()
            found["machine"] = machine(world) | {"minutes": round((time.monotonic() - began) / 60, 1)}
            kept[name] = found
            if not arguments.no_document:
                FIGURES.write_text(json.dumps(kept, indent=1) + "\n")
                document.write(kept)
    sys.stdout.write(document.text(kept))
    return 1 if "landings" in kept and goals.missed("landings", kept["landings"]) else 0


if __name__ == "__main__":
    sys.exit(main())
