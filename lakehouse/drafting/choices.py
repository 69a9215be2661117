"""What a contract must decide and the catalog does not say: tenant, event time, watermark, age.

Each choice leaves a note, unless a person made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lakehouse.drafting import vocabulary as known
from lakehouse.drafting.catalog import HotColumn, HotTable
from lakehouse.drafting.names import lake_names, words
from lakehouse.drafting.types import Mapped, map_type
from schemas.errors import LakehouseError

_TENANT_TYPES = ("string", "integer", "long")


@dataclass
class Subject:
    """A table while its contract is drafted: the lake name and type of each column, and the notes so far."""

    table: HotTable
    lake: dict[str, str] = field(init=False)
    types: dict[str, Mapped] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        columns = self.table.columns
        self.lake = lake_names(columns)
        self.types = {c.name: map_type(c, in_key=c.name in self.table.primary_key) for c in columns}

    def type_of(self, column: HotColumn) -> str:
        return self.types[column.name].type

    def is_time(self, column: HotColumn) -> bool:
        return self.type_of(column) in ("timestamptz", "date")

    def may_be_tenant(self, column: HotColumn) -> bool:
        return column.not_null and self.type_of(column) in _TENANT_TYPES

    def named(self, name: str, option: str) -> HotColumn:
        """The column of that hot or lake name.

        Raises:
            LakehouseError: there is none; the hint lists what there is.
        """
        for column in self.table.columns:
            if name in (column.name, self.lake[column.name]):
                return column
        raise LakehouseError(
            f"{self.table.quoted} has no column {name!r} ({option})",
            f"It has {', '.join(c.name for c in self.table.columns)}.",
        )


def choose_tenant(subject: Subject, wanted: str | None) -> HotColumn:
    """The column that names the organization.

    Raises:
        LakehouseError: none is found, or the wanted one may be null or has a type that cannot be one.
    """
    table = subject.table
    if wanted is not None:
        column = subject.named(wanted, "--tenant")
        if not subject.may_be_tenant(column):
            raise LakehouseError(
                f"{table.quoted}: {column.name!r} ({column.source_type}) cannot be the tenant: "
                "it must be NOT NULL, and text, a uuid or a whole number",
                "Name another column with --tenant.",
            )
        return column
    named = [c for c in table.columns if subject.lake[c.name] in known.TENANT_NAMES]
    fit = sorted(filter(subject.may_be_tenant, named), key=lambda c: _tenant_rank(subject.lake[c.name], c))
    if not fit:
        why = f" ({', '.join(c.name for c in named)}: may be null, or of another type)" if named else ""
        raise LakehouseError(
            f"{table.quoted}: no column tells which tenant a row belongs to{why}",
            "Name it with --tenant COLUMN. Where only a parent table knows the tenant, add the column first: "
            "rows that do not name theirs cannot be kept apart.",
        )
    if fit[1:]:
        subject.notes.append(
            f"Tenant: {fit[0].name} was preferred to {', '.join(c.name for c in fit[1:])}; "
            "--tenant COLUMN chooses another."
        )
    return fit[0]


def _tenant_rank(name: str, column: HotColumn) -> tuple[bool, int, int]:
    # The customers of an organization are more often its rows than its owners: last, whatever it refers to.
    table = words(column.reference[1])[-1:] if column.reference else ()
    refers = 0 if table and table[0].startswith(name.removesuffix("_id")[:3]) else 1 if column.reference else 2
    return name == "customer_id", refers, known.TENANT_NAMES.index(name)


def choose_event_time(subject: Subject, wanted: str | None) -> HotColumn | None:
    """The timestamp whose day partitions the lake table and that never changes for a key.

    Raises:
        LakehouseError: the wanted one may be null or is no time.
    """
    table, notes = subject.table, subject.notes
    if wanted is not None:
        column = subject.named(wanted, "--event-time")
        if not column.not_null or not subject.is_time(column):
            raise LakehouseError(
                f"{table.quoted}: {column.name!r} ({column.source_type}) cannot be the event time: "
                "it must be NOT NULL, and a timestamp or a date",
                "Name another column with --event-time.",
            )
        if known.MOVES & set(words(column.name)):
            notes.append(
                f"Event time: {column.name} sounds as if it changes; each change moves the row to another "
                "partition, as a delete and an upsert."
            )
        return column
    times = [c for c in table.columns if c.not_null and subject.is_time(c) and not c.generated]
    ranked = sorted((rank, c.number, c) for c in times if (rank := _event_rank(subject, c)))
    if not ranked:
        seen = f" Possible: {', '.join(c.name for c in times)}." if times else ""
        notes.append(
            "Event time: none was found that surely never changes for a key, so the lake table is not "
            f"partitioned; --event-time COLUMN names one.{seen}"
        )
        return None
    chosen = ranked[0][2]
    unindexed = "" if chosen.indexed else " It has no index."
    notes.append(f"Event time: {chosen.name}, a guess; it must never change for a key.{unindexed}")
    return chosen


def _event_rank(subject: Subject, column: HotColumn) -> tuple[int, int, bool, bool] | None:
    """Smallest is best; None for a time that may change. One in the key changes only as another row does."""
    name = subject.lake[column.name]
    in_key = column.name in subject.table.primary_key
    moves = (known.MOVES | known.AHEAD | known.BIRTH) & set(words(column.name))
    listed = name in known.EVENT_NAMES
    if not in_key and (moves or not (listed or column.defaults_to_now)):
        return None
    place = known.EVENT_NAMES.index(name) if listed else len(known.EVENT_NAMES)
    return (0 if in_key else 1), place, not column.defaults_to_now, not column.indexed


def choose_watermark(
    subject: Subject, exported: list[HotColumn], event_time: HotColumn | None
) -> dict[str, Any] | None:
    """The timestamp that people read as "how far", as a contract writes it."""
    times = {subject.lake[c.name]: c for c in exported if subject.is_time(c) and not c.generated}
    if updated := _first(known.UPDATED_NAMES, times):
        return {"column": subject.lake[updated.name], "every_change": _stamped(subject, updated)}
    created = _first(known.CREATED_NAMES, times) or event_time
    if created is None:
        subject.notes.append("Watermark: none; nothing says how far a window got, and each reads the whole table.")
        return None
    subject.notes.append(
        f"Watermark: {created.name}, only for people to read: updates do not stamp it, "
        "so every window reads the whole table."
    )
    return {"column": subject.lake[created.name], "every_change": False}


def _first(names: tuple[str, ...], among: dict[str, HotColumn]) -> HotColumn | None:
    return next((among[name] for name in names if name in among), None)


def _stamped(subject: Subject, column: HotColumn) -> bool:
    """Whether every insert and update seems to stamp the column; the reason becomes a note."""
    if not column.not_null or column.base == "date":
        why = "a date is too coarse" if column.not_null else "it may be null"
        subject.notes.append(f"Watermark: {column.name}; {why}, so it is not taken to prune windows.")
        return False
    trigger = next((s.name for s in subject.table.stamps if column.name.lower() in s.body.lower()), None)
    subject.notes.append(
        f"Watermark: {column.name} is taken to be stamped by every insert and update, because "
        f"{f'trigger {trigger} seems to' if trigger else 'its name says so'}. This is a guess: "
        "set every_change to false if any statement leaves it alone."
        f"{'' if trigger else _unstamped(subject)}"
        f"{'' if column.indexed else ' Without an index on it a window still reads the whole table.'}"
    )
    return True


def _unstamped(subject: Subject) -> str:
    follow = [c.name for c in subject.table.columns if c.follows_reference]
    if not follow:
        return ""
    return f" A foreign key sets {', '.join(follow)} to null unstamped: only the sweep sees that."


def age_bounds(subject: Subject, exported: list[HotColumn]) -> Iterator[HotColumn]:
    """Every time that is not ahead: one too many only keeps a row longer, one ahead would keep it for ever."""
    for column in exported:
        if subject.is_time(column) and not (known.AHEAD | known.BIRTH) & set(words(column.name)):
            yield column
