"""Point 2: the same table in the same run by what people use, each result compared with the table.

A round is: a drain by one connection, `lakehouse backfill` by day, every peer, so that ratios are of one moment. What
each wrote in the last round is read back and compared, ours by `lakehouse verify`; what a peer changed is named by the
comparison. Peers write to the same S3 server, unpartitioned, as they do when nothing is asked of them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import backfill, goals, measure
from tests.bench.backfill import drain, once
from tests.bench.peers.compare import compare, reader, remember
from tests.bench.peers.kinds import Peer, Place, peers
from tests.bench.world import World, fill, lakehouse, organizations

OURS = "lakehouse backfill, by day"


def run(world: World, rows: int, rounds: int, say: Callable[[str], None], *, explain: bool = True) -> dict[str, Any]:
    """Medians of the rounds; `faster`: how many times as fast as the peer we were in the same round.

    `explain`: take a profile of ours if a goal is missed.
    """
    others = peers()
    url = world.database("peers")
    organizations(url, 1)
    fill(url, rows)
    bucket = world.s3.create_bucket("bench-peers")
    drains: list[float] = []
    runs: dict[str, list[measure.Run]] = {name: [] for name in (OURS, *(p.name for p in others))}
    with tempfile.TemporaryDirectory() as scratch:
        for round_ in range(rounds):
            drains.append(drain(url))
            variables = world.variables(bucket)
            variables["LAKEHOUSE_LAKE__WAREHOUSE"] += f"-{round_}"
            runs[OURS].append(once(world, variables, "events"))
            for number, peer in enumerate(others):
                place = _place(world, bucket, Path(scratch), f"round-{round_}-{number}")
                runs[peer.name].append(peer.load(url, place))
            for name, found in runs.items():
                say(
                    f"{name}: {rows / found[-1].seconds:,.0f} rows/s, {drains[-1] / found[-1].seconds:.2f} of the "
                    f"drain, {found[-1].processor / rows * 1e6:.1f} µs a row, {found[-1].megabytes:.0f} MB"
                )
        lakehouse(variables, "verify", "--table", "events", "--json")
        changed = _changes(world, url, others, bucket, Path(scratch), rounds - 1, say)
    table = {}
    for name, found in runs.items():
        table[name] = {
            "rows_per_second": round(rows / statistics.median(r.seconds for r in found)),
            "ratio": round(statistics.median(d / r.seconds for d, r in zip(drains, found, strict=True)), 3),
            "faster": round(
                statistics.median(r.seconds / o.seconds for o, r in zip(runs[OURS], found, strict=True)), 2
            ),
            "processor_us": round(statistics.median(r.processor for r in found) / rows * 1e6, 2),
            "megabytes": round(statistics.median(r.megabytes for r in found)),
            "changed": changed.get(name, "nothing"),
        }
    result = {"rows": rows, "rounds": rounds, "drain": round(rows / statistics.median(drains)), "ways": table}
    if explain and goals.missed("peers", result):
        result["profile"] = backfill.explain(world, rows, say, url)
    return result


def _place(world: World, bucket: str, scratch: Path, prefix: str) -> Place:
    folder = scratch / prefix
    folder.mkdir(exist_ok=True)
    return Place(world, bucket, prefix, folder)


def _changes(
    world: World,
    url: str,
    others: list[Peer],
    bucket: str,
    scratch: Path,
    round_: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """What each peer's last result lacks or has otherwise, in words."""
    found = {}
    with reader(world, scratch) as duck:

        def ask(query: str) -> Any:
            return (duck.execute(query).fetchone() or (None,))[0]

        columns = remember(duck, url)
        for number, peer in enumerate(others):
            place = _place(world, bucket, scratch, f"round-{round_}-{number}")
            found[peer.name] = compare(duck, columns, peer.relation(place, ask)).words()
            say(f"{peer.name} changed: {found[peer.name]}")
    return found
