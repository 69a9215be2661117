"""A row that the lake cannot hold is quarantined whole, for as long as it is so; every other row lands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.quarantine import Entry, read_entries
from lakehouse.status import TableStatus, read_status
from tests.support import Lakehouse, host_tables, local_variables

INSERTS = {
    "events": "INSERT INTO ingested_events (id, organization_id, integration_id, provider, event_type, source, "
    "payload, occurred_at) VALUES (%(id)s, %(o)s, 'int-' || %(o)s, 'GITHUB', 'push', 'audit', '{}', '2026-01-01')",
    "findings": "INSERT INTO security_findings (id, organization_id, integration_id, dedupe_key, title, description, "
    "severity, risk_score, remediation_steps, evidence) VALUES (%(id)s, %(o)s, 'int-' || %(o)s, left(%(id)s, 99), 't', "
    "'d', 'LOW', 1, '{look,mend}', '{}')",
    "baseline_scores": "INSERT INTO baseline_scores (id, organization_id, baseline_key, baseline_version, control_key, "
    "score, passed, failed, not_applicable, computed_at) VALUES (%(id)s, %(o)s, 'cis', '1', 'c', 99.5, 1, 0, 0, "
    "'2026-01-01')",
}


@dataclass(frozen=True)
class Forbidden:
    """A value, where it stands, what is said of it, what takes its place in the end."""

    table: str
    column: str
    value: str
    says: str
    mended: str
    before: str = ""


SHAPE = "is an array of several dimensions or with another lower bound than 1"
TIME = "is infinite, or not in the years 1 to 9999"
NULL = "is null, the contract says it never is"
CASES = {
    "two-dimensions": Forbidden("findings", "remediation_steps", "'{{a,b},{c,d}}'", SHAPE, "'{a}'"),
    "lower-bound": Forbidden("findings", "remediation_steps", "'[0:1]={a,b}'", SHAPE, "NULL"),
    "infinity": Forbidden("findings", "resolved_at", "'infinity'", TIME, "NULL"),
    "minus-infinity": Forbidden("events", "processed_at", "'-infinity'", TIME, "NULL"),
    "year-10000": Forbidden("events", "processed_at", "'10000-01-01'", TIME, "'9999-12-31 23:59:59.999'"),
    "last-year": Forbidden("events", "processed_at", "'294276-12-31 23:59:59.999'", TIME, "NULL"),
    "before-christ": Forbidden("events", "processed_at", "'0001-12-31 BC'", TIME, "'0001-01-01'"),
    "first-year": Forbidden("events", "processed_at", "'4713-01-01 BC'", TIME, "NULL"),
    "event-time": Forbidden("events", "occurred_at", "'infinity'", TIME, "'2026-01-02'"),
    "not-a-number": Forbidden("baseline_scores", "score", "'NaN'", "is NaN or infinite, which no decimal holds", "0"),
    "null": Forbidden(
        *("events", "source", "NULL", NULL, "'mended'"), "ALTER TABLE ingested_events ALTER source DROP NOT NULL"
    ),
    "null-event-time": Forbidden(
        *("events", "occurred_at", "NULL", NULL, "'2026-01-02'"),
        "ALTER TABLE ingested_events ALTER occurred_at DROP NOT NULL",
    ),
}


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def add(hot: psycopg.Connection[Any], table: str, organization: str, *numbers: int) -> None:
    for number in numbers:
        hot.execute(INSERTS[table], {"id": f"{organization}-{number}", "o": organization})


def put(house: Lakehouse, hot: psycopg.Connection[Any], case: Forbidden, value: str, row: str = "org-b-2") -> None:
    name = house.app.contract(case.table).source_name
    hot.execute(f"UPDATE {name} SET {case.column} = {value} WHERE id = %s", [row])


def entries(house: Lakehouse, table: str, organization: str = "org-b", *, every: bool = False) -> list[Entry]:
    """The log of quarantined rows, as the lake has it."""
    opened = house.lake_table(table, organization)
    cursor = read_cursor(opened)
    log = cursor.quarantine if cursor else None
    return list(read_entries(opened.io, log, every=every, content=True))


def status_of(house: Lakehouse, table: str, organization: str = "org-b") -> TableStatus:
    return next(t for t in read_status(house.app).tables if (t.table, t.organization) == (table, organization))


def check_quarantined(house: Lakehouse, hot: psycopg.Connection[Any], case: Forbidden, row: str = "org-b-2") -> None:
    """The row's log entry says why and can make the row again; status, verify and the command show it."""
    (entry,) = entries(house, case.table)
    assert (entry.key, entry.faults) == ((row,), ((case.column, case.says),))
    check_content(house, hot, case.table, entry)
    assert (status_of(house, case.table).quarantined, status_of(house, case.table, "org-a").quarantined) == (1, 0)
    assert status_of(house, case.table).quarantined_first == f"row id='{row}': {case.column}: {case.says}"
    assert [c.quarantined for c in house.compare(case.table)] == [0, 1, 0]
    house.assert_equal(case.table)


def check_content(house: Lakehouse, hot: psycopg.Connection[Any], table: str, entry: Entry) -> None:
    """What is kept is the whole row: its texts, read by PostgreSQL, are the values again. And no secret more."""
    contract = house.app.contract(table)
    assert entry.content is not None
    kept = json.loads(entry.content)
    assert list(kept) == [c.name for c in contract.columns]
    same = " AND ".join(
        # The text too: arrays with other bounds are equal to none, and what is equal may look otherwise.
        f"h.{c.source} IS NOT DISTINCT FROM %({c.name})s::text::{c.source_type} "
        f"AND h.{c.source}::text IS NOT DISTINCT FROM %({c.name})s::text"
        for c in contract.columns
    )
    found = hot.execute(
        f"SELECT xmin::text::bigint FROM {contract.source_name} h WHERE {same}".encode(), kept
    ).fetchall()
    assert found == [(entry.xmin,)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_a_window(house: Lakehouse, case: Forbidden) -> None:
    with house.hot() as hot:
        if case.before:
            hot.execute(case.before)
        for organization in ("org-a", "org-b"):
            add(hot, case.table, organization, 1)
        assert not house.backfill(case.table).errors
        for organization in ("org-a", "org-b"):
            add(hot, case.table, organization, 2, 3)
        put(house, hot, case, case.value)
        result = house.sync_ok(case.table, reconcile=False)
        assert result.upserts == {"org-a": 2, "org-b": 1} and result.quarantined == {"org-b": 1}
        check_quarantined(house, hot, case)
        assert house.sync_ok(case.table, reconcile=False).snapshots == {}, "it is written once"
        # It stays so while others go on and keys are compared: it is there, and no delete of it.
        add(hot, case.table, "org-a", 4)
        add(hot, case.table, "org-c", 1)
        hot.execute(f"DELETE FROM {house.app.contract(case.table).source_name} WHERE id IN ('org-a-1', 'org-b-1')")
        result = house.sync_ok(case.table, reconcile=True)
        assert result.upserts == {"org-a": 1, "org-b": 0, "org-c": 1}
        assert result.deletes == {"org-a": 1, "org-b": 1, "org-c": 0}
        check_quarantined(house, hot, case)
        put(house, hot, case, case.mended)
        result = house.sync_ok(case.table, reconcile=True)
        assert (result.upserts["org-b"], result.deletes["org-b"]) == (1, 0)
        check_resolved(house, case.table, "mended")
    house.assert_equal(case.table)


def check_resolved(house: Lakehouse, table: str, how: str) -> None:
    assert entries(house, table) == []
    assert [e.event for e in entries(house, table, every=True)][-2:] == ["quarantined", how]
    assert (status_of(house, table).quarantined, status_of(house, table).quarantined_first) == (0, None)
    assert [c.quarantined for c in house.compare(table)] == [0, 0, 0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_a_backfill(house: Lakehouse, case: Forbidden) -> None:
    house.reopen(BACKFILL__RANGE_ROWS="2")
    with house.hot() as hot:
        if case.before:
            hot.execute(case.before)
        for organization in ("org-a", "org-b", "org-c"):
            add(hot, case.table, organization, 1, 2, 3)
        put(house, hot, case, case.value)
        hot.execute(f"ANALYZE {house.app.contract(case.table).source_name}")
        result = house.backfill(case.table)
        assert result.read_ranges > 1 and not result.errors
        assert result.rows == {"org-a": 3, "org-b": 2, "org-c": 3} and result.quarantined == {"org-b": 1}
        check_quarantined(house, hot, case)
        # The first window reads again what the backfill's snapshots may have missed: it is not written again.
        add(hot, case.table, "org-a", 4)
        assert house.sync_ok(case.table, reconcile=True).upserts == {"org-a": 1}
        check_quarantined(house, hot, case)
        put(house, hot, case, case.mended)
        assert house.sync_ok(case.table, reconcile=False).upserts == {"org-b": 1}
        check_resolved(house, case.table, "mended")
    house.assert_equal(case.table)
