"""What each part is to reach. A goal names the row of the part's table that it is judged by, so that no figure is
compared twice; what was not measured is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

INGESTR, DLT = 1.4, 3.0
LANDING_RATIO = 1.2
ARCHIVED = "archived"
RECALLED = "recalled"
EMPTY_START, CHANGED_START = "s, nothing to do", "s, changed rows"
EMPTY_WINDOW, CHANGED_WINDOW = "ms, empty", "ms, changed rows"


@dataclass(frozen=True)
class Judged:
    """One goal beside what was measured."""

    part: str
    row: str
    what: str
    bound: float
    measured: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def words(self) -> str:
        """For a cell of the row's table."""
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.bound:g} {self.what}: {'met' if self.met else '**missed**'}"


def judge(figures: dict[str, Any]) -> list[Judged]:
    """Every goal of the parts that were measured."""
    return [goal for part, found in figures.items() if part in _PARTS for goal in _PARTS[part](found)]


def missed(part: str, found: dict[str, Any]) -> list[Judged]:
    """The goals of one part that it does not reach."""
    return [goal for goal in _PARTS[part](found) if not goal.met]


def of_row(part: str, found: dict[str, Any], row: str) -> str:
    """The goals of one row of a part's table, as a cell."""
    return "; ".join(goal.words() for goal in _PARTS[part](found) if goal.row == row)


def _backfill(found: dict[str, Any]) -> Iterator[Judged]:
    for form, f in found["forms"].items():
        if not form.startswith("events_flat"):
            yield Judged("backfill", form, "of the drain", 1.0, f["ratio"], at_most=False)
        yield Judged("backfill", form, "µs", 4.0, f["processor_us"], at_most=True)
        yield Judged("backfill", form, "MB", 600, f["megabytes"], at_most=True)


def _peers(found: dict[str, Any]) -> Iterator[Judged]:
    for name, f in found["ways"].items():
        for peer, bound in (("ingestr", INGESTR), ("dlt", DLT)):
            if name.startswith(peer):
                yield Judged("peers", name, "times as fast", bound, f["faster"], at_most=False)


def _start(found: dict[str, Any]) -> Iterator[Judged]:
    for method, m in found["methods"].items():
        yield Judged("start", method, EMPTY_START, 0.4, m["nothing_seconds"], at_most=True)
        yield Judged("start", method, CHANGED_START, 1.8, m["changed_seconds"], at_most=True)


def _windows(found: dict[str, Any]) -> Iterator[Judged]:
    for method, m in found["methods"].items():
        yield Judged("windows", method, EMPTY_WINDOW, 50, m["empty_ms"], at_most=True)
        yield Judged("windows", method, CHANGED_WINDOW, 400, m["changed_ms"], at_most=True)


def _freshness(found: dict[str, Any]) -> Iterator[Judged]:
    for method, m in found["methods"].items():
        yield Judged("freshness", method, "s, p99", 2.0, m["p99"], at_most=True)


def _landings(found: dict[str, Any]) -> Iterator[Judged]:
    yield Judged("landings", "landing", "times the first", LANDING_RATIO, found["landing"]["ratio"], at_most=True)


def _archive(found: dict[str, Any]) -> Iterator[Judged]:
    speed, price = found["speed"], found["price"]
    yield Judged("archive", ARCHIVED, "of a plain DELETE", 0.25, speed["ratio"], at_most=False)
    yield Judged("archive", ARCHIVED, "ms, p99 of a batch", 1000, speed["batch_p99_ms"], at_most=True)
    last = f"{price['marks'][-1]['lake_rows']:,} rows"
    yield Judged("archive", last, "times the smallest lake's", 1.5, price["ratio"], at_most=True)
    recalled = price["recall"]["with_tombstone"]["seconds"]
    yield Judged("archive", RECALLED, "s", 2.0, recalled, at_most=True)


_PARTS = {
    "backfill": _backfill,
    "peers": _peers,
    "start": _start,
    "windows": _windows,
    "freshness": _freshness,
    "archive": _archive,
    "landings": _landings,
}
