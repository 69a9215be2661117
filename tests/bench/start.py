"""Point 2, incremental: one round from the start of the process to the commit, with 10,000 changed rows and with none.

Ours by both methods, beside what peers do for the same change of the same table, one after the other in every round.
Peers need a column that says what is new: `processed_at`, which the change stamps, with an index that only they use.
dlt keeps its cursor, after a first run that was given one; ingestr and DuckDB's `COPY` keep none and are given it every
time. What each holds afterwards is counted, and a row that came twice or not at all is named.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.bench import goals, measure, profile
from tests.bench.peers.compare import reader
from tests.bench.peers.kinds import Ingestr, Peer, Place, peers
from tests.bench.world import World, command, fill, lakehouse, organizations, program, scalar

CHANGED = 10_000
Say = Callable[[str], None]


def change(url: str, share: int = CHANGED) -> None:
    """Change about so many rows, evenly over the table."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "WITH chosen AS (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n, count(*) OVER () AS of "
            "FROM ingested_events) x WHERE n %% greatest(1, of / %s) = 0 LIMIT %s) "
            "UPDATE ingested_events e SET processed_at = clock_timestamp() AT TIME ZONE 'utc', "
            "processing_status = 'PROCESSED' FROM chosen WHERE e.id = chosen.id",
            [share, share],
        )


@dataclass
class _Runs:
    """What one way took, round by round."""

    nothing: list[measure.Run] = field(default_factory=list)
    some: list[measure.Run] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "nothing_seconds": round(statistics.median(r.seconds for r in self.nothing), 2),
            "nothing_processor": round(statistics.median(r.processor for r in self.nothing), 2),
            "changed_seconds": round(statistics.median(r.seconds for r in self.some), 2),
            "changed_processor": round(statistics.median(r.processor for r in self.some), 2),
            "megabytes": round(max(r.megabytes for r in self.some)),
        }


def run(world: World, rows: int, rounds: int, say: Say) -> dict[str, Any]:
    """Medians, by method and by peer."""
    others = peers()
    url = world.database("start")
    organizations(url, 1)
    fill(url, rows)
    bucket = world.s3.create_bucket("bench-start")
    variables = world.variables(bucket)
    lakehouse(variables, "init")
    lakehouse(variables, "backfill", "--table", "events")
    found: dict[str, Any] = {"rows": rows, "changed": CHANGED, "rounds": rounds, "methods": {}, "peers": {}}
    with tempfile.TemporaryDirectory() as scratch:
        beside = _Beside(world, url, bucket, Path(scratch), others)
        for method in ("xmin", "trigger"):
            if method == "trigger":
                lakehouse(variables, "source", "prepare", "--apply", "--table", "events")
                variables["LAKEHOUSE_CAPTURE__METHOD"] = "trigger"
            # What the first window after a backfill or a change of method asks of the lake is not measured.
            lakehouse(variables, "sync", "--once", "--table", "events")
            arguments = command("sync", "--once", "--table", "events", "--json")
            ours = _Runs()
            for _ in range(rounds):
                ours.nothing.append(measure.run(arguments, program(variables)))
                if method == "xmin":
                    beside.nothing()
                    beside.before_change()
                change(url)
                ours.some.append(measure.run(arguments, program(variables)))
                landed = sum(json.loads(ours.some[-1].output)[0]["upserts"].values())
                if landed != CHANGED:
                    raise RuntimeError(f"{landed} rows landed instead of {CHANGED}")
                if method == "xmin":
                    beside.changed()
            lakehouse(variables, "verify", "--table", "events")
            found["methods"][method] = ours.figures()
            say(f"sync --once by {method}: {found['methods'][method]}")
        for name, figures in beside.figures(rows, rounds).items():
            found["peers"][name] = figures
            say(f"beside: {name}: {figures}")
    for what in sorted({goal.what for goal in goals.missed("start", found)}, reverse=True):
        # By the method that was used last: a start costs the same by each.
        if what == goals.CHANGED_START:
            change(url)
        taken = profile.take(world, variables, CHANGED, "sync", "--once", "--table", "events", "--json")
        found.setdefault("profiles", {})[what.removeprefix("s, ")] = taken
    return found


class _Beside:
    """The peers' side of the rounds. A peer that fails is left out of the rest, with what it said."""

    def __init__(self, world: World, url: str, bucket: str, scratch: Path, others: list[Peer]) -> None:
        self.world, self.url, self.scratch, self.others = world, url, scratch, others
        self.places: dict[str, Place] = {}
        self.runs: dict[str, _Runs] = {}
        self.failures: dict[str, str] = {}
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE INDEX ON ingested_events (processed_at)")
        self.first = self.since = self._now()
        for number, peer in enumerate(others):
            folder = scratch / str(number)
            folder.mkdir()
            self.places[peer.name] = Place(world, bucket, f"peer-{number}", folder)
            self.runs[peer.name] = _Runs()
            self._attempt(peer, None)
            # The first run with a cursor makes state or plans; it is not measured.
            self._attempt(peer, self.since)

    def _now(self) -> str:
        """Later than every `processed_at` so far, to the millisecond, as the column has it."""
        found = scalar(
            self.url, "SELECT max(processed_at)::timestamp(3) + interval '1 millisecond' FROM ingested_events"
        )
        return str(found.isoformat(sep=" ", timespec="milliseconds"))

    def _attempt(self, peer: Peer, since: str | None) -> measure.Run | None:
        if peer.name in self.failures:
            return None
        try:
            return peer.load(self.url, self.places[peer.name], since)
        except RuntimeError as error:
            self.failures[peer.name] = " ".join(str(error).split())[-300:]
            return None

    def _all(self, since: str, into: Callable[[_Runs], list[measure.Run]]) -> None:
        for peer in self.others:
            # Who keeps a cursor is told the same every time.
            if (done := self._attempt(peer, self.first if peer.keeps_cursor else since)) is not None:
                into(self.runs[peer.name]).append(done)

    def nothing(self) -> None:
        """A run of each while nothing has changed."""
        self._all(self._now(), lambda runs: runs.nothing)

    def before_change(self) -> None:
        """Note where those that keep no cursor have to go on from."""
        self.since = self._now()

    def changed(self) -> None:
        """A run of each after the change."""
        self._all(self.since, lambda runs: runs.some)

    def figures(self, rows: int, rounds: int) -> dict[str, dict[str, Any]]:
        """Medians, and what is to be said of each."""
        found: dict[str, dict[str, Any]] = {}
        with reader(self.world, self.scratch) as duck:

            def ask(query: str) -> Any:
                return (duck.execute(query).fetchone() or (None,))[0]

            for peer in self.others:
                if peer.name in self.failures:
                    found[peer.name] = {"note": f"failed: {self.failures[peer.name]}"}
                    continue
                held = self._held(peer, ask)
                notes = []
                if (more := held - rows - rounds * CHANGED) != 0:
                    notes.append(f"{abs(more):,} rows {'too many' if more > 0 else 'were missed'}")
                notes.append("keeps a cursor" if peer.keeps_cursor else "keeps no cursor: given one every time")
                if isinstance(peer, Ingestr):
                    notes.append(self._without_cursor(peer, ask, held))
                found[peer.name] = self.runs[peer.name].figures() | {"note": "; ".join(n for n in notes if n)}
        return found

    def _held(self, peer: Peer, ask: Callable[[str], Any]) -> int:
        return int(ask(f"SELECT count(*) FROM {peer.relation(self.places[peer.name], ask)}"))

    def _without_cursor(self, peer: Peer, ask: Callable[[str], Any], held: int) -> str:
        """What a run without a cursor does to the table."""
        if self._attempt(peer, None) is None:
            return f"without it a run fails: {self.failures[peer.name]}"
        added = self._held(peer, ask) - held
        return f"a run without it appended {added:,} rows once more" if added else "a run without it added nothing"
