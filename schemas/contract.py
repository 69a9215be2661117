"""Reading and checking contracts.

A contract is `<folder>/<table>/v<major>.json`. Its shape is `contract.schema.json`; what JSON Schema cannot
say (a name that must exist, an id used twice) is checked here. Every fault names file and field, and all the
faults of a file come in one error.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from schemas.errors import ContractError
from schemas.types import LogicalType, parse_type

BUILT_IN = Path(__file__).parent
"""The folder of the contracts that come with the product."""

CHANGE_XID = "change_xid"
"""The column that `lakehouse source prepare` adds to a hot table; ours, so no contract needs to name it."""

FIRST_COLUMN_ID = 6
"""Ids below are the lake's own columns (`schemas.lake_columns`)."""

Sensitivity = Literal["public", "internal", "personal", "confidential"]
Retention = Literal["applies", "optional", "never"]


@dataclass(frozen=True)
class Column:
    """One exported column."""

    id: int
    name: str
    type: LogicalType
    nullable: bool
    source: str
    source_type: str
    description: str
    sensitivity: Sensitivity
    since: str
    element_id: int | None = None


@dataclass(frozen=True)
class NotExported:
    """A hot column that stays out of the lake, and why."""

    column: str
    reason: str


@dataclass(frozen=True)
class Watermark:
    """The timestamp that people read; `every_change` says that each insert and update stamps it."""

    column: str
    every_change: bool


@dataclass(frozen=True)
class States:
    """What a row's state says about its age: in `never_old`, and in a state that is in no list, it is in use; in
    `finished` it is not; `old_since_landing` no timestamp records."""

    column: str
    never_old: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    old_since_landing: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """Every state of which the contract says what it means."""
        return (*self.never_old, *self.settled)

    @property
    def settled(self) -> tuple[str, ...]:
        """States in which a row may be old."""
        return (*self.finished, *self.old_since_landing)


@dataclass(frozen=True)
class Contract:
    """The published definition of one table version."""

    table: str
    version: str
    title: str
    description: str
    provisional: bool
    source_schema: str
    source_table: str
    tenant: str
    primary_key: tuple[str, ...]
    event_time: str | None
    watermark: Watermark | None
    age_bounds: tuple[str, ...]
    retention: Retention
    columns: tuple[Column, ...]
    not_exported: tuple[NotExported, ...]
    states: States | None = None

    def __getitem__(self, name: str) -> Column:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> Mapping[str, Column]:
        return {column.name: column for column in self.columns}

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def minor(self) -> int:
        return int(self.version.split(".")[1])

    @property
    def source_name(self) -> str:
        """`schema.table` as people write it; quoted identifiers are the caller's business."""
        return f"{self.source_schema}.{self.source_table}"

    @property
    def identity(self) -> tuple[str, ...]:
        """Column names that identify a row in the lake: the raw event time first, so that filters prune."""
        head = (self.event_time,) if self.event_time and self.event_time not in self.primary_key else ()
        return (*head, *self.primary_key)

    def at(self, version: str) -> Contract:
        """This contract as it was at an earlier version of the same major: without the columns that came later.

        Raises:
            ContractError: another major, or a version that is newer than this.
        """
        major, minor = map(int, version.split("."))
        if major != self.major or minor > self.minor:
            raise ContractError(
                f"{self.table}: version {version} cannot be derived from {self.version}",
                "Name a folder with that contract (LAKEHOUSE_CONTRACTS), or use the newest program.",
            )
        kept = tuple(c for c in self.columns if int(c.since.split(".")[1]) <= minor)
        return replace(self, version=version, columns=kept)

    def unknown_columns(self, hot_columns: Iterable[str]) -> list[str]:
        """Hot columns that the contract neither exports nor lists as not exported.

        A row of a table with such a column must not be deleted: the lake would not hold all of it.
        """
        known = {c.source for c in self.columns} | {n.column for n in self.not_exported} | {CHANGE_XID}
        return sorted(set(hot_columns) - known)


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads((BUILT_IN / "contract.schema.json").read_text("utf-8")))


def load_contract(path: Path, *, validate: bool = True) -> Contract:
    """Read one contract file. `validate=False`: one that is known to be valid.

    Raises:
        ContractError: the file is missing, not JSON, or breaks the rules; each fault with its field.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ContractError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: not JSON: {error}") from error
    return parse_contract(raw, where=str(path), validate=validate)


def parse_contract(raw: Any, *, where: str, validate: bool = True) -> Contract:
    """Check a decoded contract and build it; `where` names it in errors. `validate=False` only builds it.

    Raises:
        ContractError: with every fault found, one a line.
    """
    if validate:
        faults = [
            f"{where}: {_field(error.absolute_path)}: {error.message}"
            for error in sorted(_validator().iter_errors(raw), key=lambda e: list(map(str, e.absolute_path)))
        ]
        if not faults:
            faults = [f"{where}: {fault}" for fault in _semantic_faults(raw)]
        if faults:
            raise ContractError("\n".join(faults), "Mend the fields named; `lakehouse contract check` reads it again.")
    return Contract(
        table=raw["table"],
        version=raw["version"],
        title=raw["title"],
        description=raw["description"],
        provisional=raw.get("provisional", False),
        source_schema=raw["source"]["schema"],
        source_table=raw["source"]["table"],
        tenant=raw["tenant"],
        primary_key=tuple(raw["primary_key"]),
        event_time=raw["event_time"],
        watermark=Watermark(**raw["watermark"]) if raw["watermark"] else None,
        age_bounds=tuple(raw["age_bounds"]),
        retention=raw["retention"],
        columns=tuple(
            Column(**{"since": f"{raw['version'].split('.')[0]}.0", **c, "type": parse_type(c["type"])})
            for c in raw["columns"]
        ),
        not_exported=tuple(NotExported(**n) for n in raw["not_exported"]),
        states=_states(raw.get("states")),
    )


_STATE_LISTS = ("never_old", "finished", "old_since_landing")


def _states(raw: dict[str, Any] | None) -> States | None:
    if raw is None:
        return None
    return States(raw["column"], *(tuple(raw.get(name, ())) for name in _STATE_LISTS))


def _field(path: Iterable[str | int]) -> str:
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out or "(top level)"


def _semantic_faults(raw: dict[str, Any]) -> Iterator[str]:
    columns = {c["name"]: c for c in raw["columns"]}
    yield from _duplicate_faults(raw["columns"])
    for field, names in {
        "tenant": [raw["tenant"]],
        "primary_key": raw["primary_key"],
        "event_time": [raw["event_time"]] if raw["event_time"] else [],
        "watermark.column": [raw["watermark"]["column"]] if raw["watermark"] else [],
        "age_bounds": raw["age_bounds"],
        "states.column": [raw["states"]["column"]] if "states" in raw else [],
    }.items():
        for name in names:
            if name not in columns:
                yield f"{field}: no exported column is named {name!r}"
            elif field in ("tenant", "primary_key", "event_time") and columns[name]["nullable"]:
                yield f"{field}: column {name!r} must not be nullable"
            elif field in ("event_time", "watermark.column", "age_bounds") and columns[name]["type"] not in (
                "timestamptz",
                "date",
            ):
                yield f"{field}: column {name!r} must be timestamptz or date, not {columns[name]['type']}"
            elif field in ("tenant", "primary_key") and columns[name]["type"] in ("json", "double"):
                yield f"{field}: column {name!r} of type {columns[name]['type']} cannot be compared exactly"
    if raw["tenant"] in columns and columns[raw["tenant"]]["type"] not in ("string", "integer", "long"):
        yield f"tenant: column {raw['tenant']!r} must be string, integer or long"
    labels = [label for name in _STATE_LISTS for label in raw.get("states", {}).get(name, ())]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        yield f"states: {label!r} is in more than one list"
    exported = {c["source"] for c in raw["columns"]}
    for index, item in enumerate(raw["not_exported"]):
        if item["column"] in exported:
            yield f"not_exported[{index}].column: {item['column']!r} is exported"


def _duplicate_faults(columns: list[dict[str, Any]]) -> Iterator[str]:
    ids: dict[int, str] = {}
    names: dict[str, int] = {}
    sources: dict[str, int] = {}
    for index, column in enumerate(columns):
        at = f"columns[{index}]"
        logical = parse_type(column["type"])
        if logical.is_list != ("element_id" in column):
            yield f"{at}.element_id: {'missing for a list' if logical.is_list else 'only a list has one'}"
        if logical.name == "decimal" and not 0 <= logical.scale <= logical.precision <= 38:
            yield f"{at}.type: {column['type']}: precision at most 38, scale at most the precision"
        for key in ("id", "element_id"):
            if key in column and (other := ids.setdefault(column[key], f"{at}.{key}")) != f"{at}.{key}":
                yield f"{at}.{key}: {column[key]} is already {other}"
        if names.setdefault(column["name"], index) != index:
            yield f"{at}.name: {column['name']!r} is already columns[{names[column['name']]}]"
        if sources.setdefault(column["source"], index) != index:
            yield f"{at}.source: {column['source']!r} is already columns[{sources[column['source']]}]"


def load_contracts(folders: Iterable[Path], *, validate_built_in: bool = True) -> dict[str, Contract]:
    """Every contract below the folders (`<table>/v<major>.json`), newest major of each table, by table name.

    A later folder replaces a table of an earlier one. Without `validate_built_in` the contracts that come with this
    package, which its own tests validate, are only read: their JSON Schema takes longer than the rest of a start.

    Raises:
        ContractError: a folder is missing or empty, or a contract is not valid (all faults of all files).
    """
    found: dict[str, Contract] = {}
    faults: list[str] = []
    for folder in folders:
        paths = sorted(folder.glob("*/v*.json"), key=lambda p: (p.parent.name, int(p.stem[1:] or 0)))
        if not paths:
            raise ContractError(
                f"{folder}: no contract found",
                "A contracts folder holds <table>/v1.json files; `lakehouse contract draft` writes one.",
            )
        for path in paths:
            try:
                contract = load_contract(path, validate=validate_built_in or folder != BUILT_IN)
            except ContractError as error:
                faults.append(error.detail)
                continue
            if contract.table != path.parent.name or f"v{contract.major}" != path.stem:
                faults.append(
                    f"{path}: table, version: says {contract.table} {contract.version}, "
                    f"the path says {path.parent.name} {path.stem}"
                )
            found[contract.table] = contract
    if faults:
        raise ContractError("\n".join(faults), "Mend the fields named; `lakehouse contract check` reads it again.")
    return found
