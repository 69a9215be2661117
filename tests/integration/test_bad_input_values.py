"""A value that the contract forbids stops one organization's table, names the row, and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.status import read_status
from schemas.errors import ContractViolation, LakehouseError
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
    """A value, where it stands, what the error says of it, and what takes its place in the end."""

    table: str
    column: str
    value: str
    says: str
    mended: str
    before: str = ""
    key_too: bool = False
    """It stands in the key of the lake's rows, so comparing keys meets it as well."""


SHAPE = "is an array of several dimensions or with another lower bound than 1"
TIME = "is infinite, or not in the years 1 to 9999"
NULL = "is null, the contract says it never is"
CASES = {
    "two-dimensions": Forbidden("findings", "remediation_steps", "'{{a,b},{c,d}}'", SHAPE, "'{a}'"),
    "lower-bound": Forbidden("findings", "remediation_steps", "'[0:1]={a,b}'", SHAPE, "NULL"),
    "infinity": Forbidden("findings", "resolved_at", "'infinity'", TIME, "NULL"),
    "minus-infinity": Forbidden("events", "processed_at", "'-infinity'", TIME, "NULL"),
    "year-10000": Forbidden("events", "processed_at", "'10000-01-01'", TIME, "'9999-12-31 23:59:59.999'"),
    "before-christ": Forbidden("events", "processed_at", "'0001-12-31 BC'", TIME, "'0001-01-01'"),
    "event-time": Forbidden("events", "occurred_at", "'infinity'", TIME, "'2026-01-02'", key_too=True),
    "not-a-number": Forbidden("baseline_scores", "score", "'NaN'", "is NaN or infinite", "0"),
    "null": Forbidden(
        *("events", "source", "NULL", NULL, "'mended'"), "ALTER TABLE ingested_events ALTER source DROP NOT NULL"
    ),
    "null-event-time": Forbidden(
        *("events", "occurred_at", "NULL", NULL, "'2026-01-02'"),
        "ALTER TABLE ingested_events ALTER occurred_at DROP NOT NULL",
        key_too=True,
    ),
}


@pytest.fixture
def house(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(postgres_url)
    lakehouse = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def add(hot: psycopg.Connection[Any], table: str, organization: str, *numbers: int) -> None:
    for number in numbers:
        hot.execute(INSERTS[table], {"id": f"{organization}-{number}", "o": organization})


def put(house: Lakehouse, hot: psycopg.Connection[Any], case: Forbidden, value: str, organization: str) -> None:
    name = house.app.contract(case.table).source_name
    hot.execute(f"UPDATE {name} SET {case.column} = {value} WHERE id = %s", [f"{organization}-2"])


def check_error(house: Lakehouse, case: Forbidden, errors: dict[str, LakehouseError]) -> None:
    """One organization's, naming the table, the organization, the row, the column, the reason and the remedy."""
    assert set(errors) == {"org-b"}
    error = errors["org-b"]
    assert isinstance(error, ContractViolation)
    name = house.app.contract(case.table).source_name
    assert f"{name}: organization org-b: row id='org-b-2': {case.column}: {case.says}" in error.detail
    assert "Mend the value in the source or the contract" in error.hint


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
        put(house, hot, case, case.value, "org-b")
        result = house.sync(case.table, reconcile=False)
        check_error(house, case, result.errors)
        assert result.upserts == {"org-a": 2}
        # It stays so, the others go on, keys are compared, and what was deleted meanwhile is not forgotten.
        add(hot, case.table, "org-a", 4)
        add(hot, case.table, "org-c", 1)
        hot.execute(f"DELETE FROM {house.app.contract(case.table).source_name} WHERE id IN ('org-a-1', 'org-b-1')")
        result = house.sync(case.table, reconcile=True)
        check_error(house, case, result.errors)
        assert (result.upserts, result.deletes) == ({"org-a": 1, "org-c": 1}, {"org-a": 1, "org-c": 0})
        house.assert_equal(case.table, "org-a", "org-c")
        assert [v["id"] for v in house.versions(case.table, "org-b")] == ["org-b-1"]
        (compared,) = house.compare(case.table, "org-b")
        assert not compared.equal and (case.says in str(compared.error)) == case.key_too, "verify sees it too"
        states = {t.organization: t for t in read_status(house.app).tables if t.table == case.table}
        assert states["org-a"].state == "current" and case.says in (states["org-b"].error or "")
        put(house, hot, case, case.mended, "org-b")
        result = house.sync_ok(case.table, reconcile=True)
        assert (result.upserts["org-b"], result.deletes["org-b"]) == (2, 1)
    house.assert_equal(case.table)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_a_backfill(house: Lakehouse, case: Forbidden) -> None:
    house.reopen(BACKFILL__RANGE_ROWS="2")
    with house.hot() as hot:
        if case.before:
            hot.execute(case.before)
        for organization in ("org-a", "org-b", "org-c"):
            add(hot, case.table, organization, 1, 2, 3)
        put(house, hot, case, case.value, "org-b")
        hot.execute(f"ANALYZE {house.app.contract(case.table).source_name}")
        result = house.backfill(case.table)
        assert result.read_ranges > 1
        check_error(house, case, result.errors)
        assert result.rows == {"org-a": 3, "org-c": 3}
        add(hot, case.table, "org-a", 4)
        add(hot, case.table, "org-b", 4)
        result_of_window = house.sync_ok(case.table, reconcile=False)
        assert (result_of_window.upserts, result_of_window.waiting) == ({"org-a": 1}, ["org-b"])
        house.assert_equal(case.table, "org-a", "org-c")
        assert house.versions(case.table, "org-b") == []
        put(house, hot, case, case.mended, "org-b")
        assert house.backfill(case.table).rows == {"org-b": 4}
        house.sync_ok(case.table, reconcile=True)
    house.assert_equal(case.table)


def test_the_command_shows_the_error_and_goes_on_with_other_tables(house: Lakehouse) -> None:
    case = CASES["infinity"]
    with house.hot() as hot:
        for table in ("events", "findings"):
            add(hot, table, "org-a", 1)
            add(hot, table, "org-b", 1)
            assert not house.backfill(table).errors
        for table in ("events", "findings"):
            add(hot, table, "org-a", 2)
            add(hot, table, "org-b", 2)
        put(house, hot, case, case.value, "org-b")
        chosen = ("--table", "findings", "--table", "events")
        done = house.run("sync", "--once", *chosen, check=1)
        where = "public.security_findings: organization org-b: row id='org-b-2': resolved_at: "
        assert f"error: findings: organization org-b: {where}{case.says}" in done.stderr
        assert "Mend the value in the source or the contract" in done.stderr
        house.assert_equal("events")
        house.assert_equal("findings", "org-a")
        listed = {r["table"]: r["errors"] for r in house.run_json("sync", "--once", *chosen, check=1)}
        assert list(listed["findings"]) == ["org-b"] and not listed["events"]
        put(house, hot, case, case.mended, "org-b")
        house.sync_ok("findings")
    house.assert_equal("findings")
