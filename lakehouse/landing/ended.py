"""Which days of a lake table ended: the property `lakehouse.ended`, written in the commit that took their files.

One entry for each such commit: its id, the `_sequence` that the table stood at, when, and the days as ranges. Of a row
with an event time in such a day, a version with that `_sequence` or a lower one is not in the lake any more, and not
because it was deleted. What was in those days is told by the organization's table `_ended`, under the same id; an id
that is not in this property is of an ending that was prepared and did not happen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from lakehouse.duck import literal, quoted
from lakehouse.landing.cursor import CursorError
from schemas.contract import Contract

if TYPE_CHECKING:
    from pyiceberg.table import Table

ENDED_PROPERTY = "lakehouse.ended"
ENDED_SUMMARY = "lakehouse.ended"
"""On the snapshot: the ending's id."""
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Ending:
    """One commit that took whole days. `ranges`: first and last day of each, as days since 1970."""

    id: str
    sequence: int
    at: datetime
    ranges: tuple[tuple[int, int], ...]

    def holds(self, day: int) -> bool:
        """Whether this day ended with it."""
        return any(first <= day <= last for first, last in self.ranges)


def as_ranges(days: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Days as ranges, in order."""
    ranges: list[tuple[int, int]] = []
    for day in sorted(set(days)):
        if ranges and day == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return tuple(ranges)


def read_endings(table: Table) -> tuple[Ending, ...]:
    """Every ending of the table, oldest first.

    Raises:
        CursorError: the property cannot be read: changed by hand, or written by a newer program.
    """
    text = table.properties.get(ENDED_PROPERTY)
    if text is None:
        return ()
    where = ".".join(table.name())
    try:
        raw = json.loads(text)
        if raw["v"] == 1:
            return tuple(
                Ending(e["id"], e["sequence"], datetime.fromisoformat(e["at"]), tuple((a, b) for a, b in e["days"]))
                for e in raw["endings"]
            )
        fault = f"is of version {raw['v']}"
    except (KeyError, TypeError, ValueError) as error:
        raise CursorError(
            f"{where}: which days ended cannot be read: {error}", f"The property {ENDED_PROPERTY} was changed by hand."
        ) from error
    raise CursorError(f"{where}: its property {ENDED_PROPERTY} {fault}", "A newer program wrote it: upgrade this one.")


def ended_property(endings: Sequence[Ending]) -> dict[str, str]:
    """As a table property."""
    raw = {
        "v": 1,
        "endings": [
            {"id": e.id, "sequence": e.sequence, "at": e.at.astimezone(UTC).isoformat(), "days": e.ranges}
            for e in endings
        ],
    }
    return {ENDED_PROPERTY: json.dumps(raw, separators=(",", ":"))}


def in_ended_days(contract: Contract, endings: Iterable[Ending], *, alias: str = "") -> str:
    """SQL for DuckDB: the event time lies in a day that ended. False where there is none."""
    ranges = sorted({r for ending in endings for r in ending.ranges})
    if contract.event_time is None or not ranges:
        return "false"
    time = f"{alias}.{quoted(contract.event_time)}" if alias else quoted(contract.event_time)
    plain = contract[contract.event_time].type.name == "date"

    def day(number: int) -> str:
        text = (_EPOCH + timedelta(days=number)).isoformat()
        return f"DATE {literal(text)}" if plain else f"TIMESTAMPTZ {literal(text + ' 00:00:00+00')}"

    return "(" + " OR ".join(f"({time} >= {day(first)} AND {time} < {day(last + 1)})" for first, last in ranges) + ")"
