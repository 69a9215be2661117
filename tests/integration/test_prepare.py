"""`lakehouse source prepare`: complete, repeatable, interruptible, and undone without a trace."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.capture import installation
from lakehouse.capture.prepare import look
from tests.support import Lakehouse, host_tables, insert_events, local_variables

CATALOG = """
SELECT 'column', table_schema, table_name, column_name, data_type, column_default FROM information_schema.columns
WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
UNION ALL SELECT 'index', schemaname, tablename, indexname, indexdef, null FROM pg_indexes
WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), tgenabled::text, null
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function', pronamespace::regnamespace::text, proname, prosrc, proacl::text, null FROM pg_proc
WHERE pronamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
UNION ALL SELECT 'schema', nspname, null, null, null, null FROM pg_namespace WHERE nspname !~ '^pg_'
ORDER BY 1, 2, 3, 4
"""


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def catalog(house: Lakehouse) -> list[Any]:
    with house.hot() as hot:
        return [r for r in hot.execute(CATALOG).fetchall() if "lakehouse" not in (r[1], r[2])]


def faults(house: Lakehouse, table: str = "events") -> list[str]:
    contract = house.app.contract(table)
    with house.app.source.catalog() as connection:
        return installation.faults(contract, *look(connection, contract))


def test_apply_twice_then_remove_leaves_no_trace(house: Lakehouse) -> None:
    before = catalog(house)
    house.run("source", "prepare", "--apply")
    prepared = catalog(house)
    assert all(not faults(house, t) for t in house.app.contracts)
    generation = {}
    for _ in range(2):
        with house.app.source.catalog() as connection:
            _, found = look(connection, house.app.contract("events"))
        generation[found.generation] = True
        done = house.run_json("source", "prepare", "--apply")
        assert all(t["done"] and t["statements"] == [] for t in done["tables"]), done
    assert len(generation) == 1, "what is there is not touched"
    assert catalog(house) == prepared
    for table in house.run_json("source", "check")["tables"]:
        assert (table["prepared"], table["method"], table["warnings"]) == (True, "xmin", [])
    house.run("source", "prepare", "--remove", "--table", "events")
    assert faults(house) and not faults(house, "findings")
    house.run("source", "prepare", "--remove")
    assert catalog(house) == before
    assert "nothing to remove" in house.run("source", "prepare", "--remove").stdout


def test_what_is_printed_runs_in_psql(house: Lakehouse) -> None:
    before = catalog(house)
    printed = house.run("source", "prepare", "--print", "--table", "events").stdout
    assert catalog(house) == before, "printing changes nothing"
    assert 'changeXid Unsupported("xid8")?' in printed
    assert 'map: "ingested_events_change_xid_idx"' in printed
    # As psql does it: one statement after the other, each on its own.
    with house.hot() as hot:
        for statement in statements(printed):
            hot.execute(statement.encode())
    assert faults(house) == []
    assert "nothing to do" in house.run("source", "prepare", "--print", "--table", "events").stdout


def statements(script: str) -> list[str]:
    """What psql would send: split at semicolons outside of function bodies."""
    found, current, quoted = [], "", False
    for line in script.splitlines():
        if line.startswith("--"):
            continue
        quoted ^= line.count("$lakehouse$") % 2 == 1
        current += line + "\n"
        if line.endswith(";") and not quoted:
            found.append(current)
            current = ""
    return found


def test_exactly_one_of_the_three(house: Lakehouse) -> None:
    for options in ((), ("--print", "--apply"), ("--apply", "--remove")):
        assert "exactly one" in house.run("source", "prepare", *options, check=2).stderr
    said = house.run("source", "prepare", "--print", "--url", "postgresql://u:canary@h", check=2).stderr
    assert "--url" in said and "canary" not in said
    assert "no contract" in house.run("source", "prepare", "--print", "--table", "evnets", check=2).stderr


def test_only_the_owner_may(house: Lakehouse, hot_url: str) -> None:
    reader = "reader_" + hot_url.rpartition("_")[2]
    rest = hot_url.rpartition("@")[2]
    with house.hot() as hot:
        hot.execute(f"CREATE ROLE {reader} LOGIN PASSWORD 'x'".encode())
        hot.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}".encode())
        insert_events(hot, "org-a", 1, 3)
        house.variables |= {
            "LAKEHOUSE_SOURCE__URL": f"postgresql://{reader}:x@{rest}",
            "LAKEHOUSE_CONTROL__URL": hot_url,
            "LAKEHOUSE_CAPTURE__METHODS": '{"events": "trigger"}',
        }
        try:
            before = catalog(house)
            said = house.run("source", "prepare", "--apply", "--table", "events", check=1)
            assert "only its owner" in said.stderr and "LAKEHOUSE_SOURCE__OWNER_URL" in said.stderr
            assert catalog(house) == before
            house.run("source", "prepare", "--apply", "--table", "events", "--url", hot_url)
            # And by the setting; the reader was granted what it needs, and no more.
            house.reopen(SOURCE__OWNER_URL=hot_url)
            assert house.run_json("source", "prepare", "--apply", "--table", "events")["tables"][0]["statements"] == []
            house.backfill("events")
            house.sync_ok("events")
            hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
            assert house.sync_ok("events").deletes == {"org-a": 1}
            log = installation.log_table(house.app.contract("events")).as_string(None)
            hot.execute(f"REVOKE ALL ON {log} FROM {reader}".encode())
            assert "no right to read the tombstone log" in house.sync("events").errors[""].detail
            done = house.run_json("source", "prepare", "--apply", "--table", "events")
            assert all(s.startswith("GRANT") for s in done["tables"][0]["statements"])
            house.sync_ok("events")
        finally:
            house.close()
            hot.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}".encode())


def test_a_locked_table_is_tried_again_and_then_named(house: Lakehouse) -> None:
    before = catalog(house)
    options = ("source", "prepare", "--apply", "--table", "events", "--lock-timeout", "0.2", "--attempts")
    with psycopg.connect(house.hot_url, application_name="the host") as busy:
        insert_events(busy, "org-a", 1, 1)
        said = house.run(*options, "2", check=1).stderr
        assert "locked by others, 2 times" in said and "the host" in said
        assert catalog(house) == before
        program = house.start(*options, "100")
        with house.hot() as hot:
            wait_for(
                hot, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name ~ 'catalog'"
            )
        busy.rollback()
        out, err = program.communicate(timeout=60)
        assert program.returncode == 0, (out, err)
    assert faults(house) == []


def wait_for(hot: psycopg.Connection[Any], query: str) -> None:
    """Ask until there is a row."""
    deadline = time.monotonic() + 30
    while not hot.execute(query.encode()).fetchall():
        assert time.monotonic() < deadline, query


def test_an_invalid_index_is_made_again(house: Lakehouse) -> None:
    with house.hot() as hot, psycopg.connect(house.hot_url) as old:
        house.run("source", "prepare", "--apply", "--table", "events")
        hot.execute("DROP INDEX ingested_events_change_xid_idx")
        insert_events(old, "org-a", 1, 1)  # the build waits for this transaction
        program = house.start("source", "prepare", "--apply", "--table", "events")
        building = "FROM pg_stat_progress_create_index WHERE phase = 'waiting for writers before build'"
        wait_for(hot, f"SELECT {building}")
        # A second one finds the first at work.
        assert "another `lakehouse source prepare`" in house.run("source", "prepare", "--apply", check=2).stderr
        hot.execute(f"SELECT pg_terminate_backend(pid) {building}".encode())
        assert program.wait(timeout=60) == 2
        program.communicate()
        old.rollback()
        assert faults(house) == ["the index on change_xid is not valid"]
        house.variables["LAKEHOUSE_CAPTURE__METHOD"] = "trigger"
        (checked,) = house.run_json("source", "check", "--table", "events", check=1)["tables"]
        assert checked["ready"] is False and "source prepare" in checked["missing"][-1]
    done = house.run_json("source", "prepare", "--apply", "--table", "events")
    assert [s.split()[0] for s in done["tables"][0]["statements"]] == ["DROP", "CREATE"]
    assert faults(house) == []
    (checked,) = house.run_json("source", "check", "--table", "events")["tables"]
    assert (checked["ready"], checked["prepared"], checked["method"]) == (True, True, "trigger")


@pytest.mark.parametrize("way", ["--apply", "--remove"])
def test_killed_after_any_statement_and_run_again(house: Lakehouse, way: str) -> None:
    before = catalog(house)
    house.run("source", "prepare", "--apply", "--table", "events")
    whole = catalog(house)
    if way == "--apply":
        house.run("source", "prepare", "--remove", "--table", "events")
    count = len(house.run_json("source", "prepare", "--print", "--table", "events")["tables"][0]["statements"])
    options = ("source", "prepare", way, "--table", "events")
    killed = 0
    for n in (1, 2, 5, 9, 14, 20, count - 1, count) if way == "--apply" else (1, 4, 9):
        done = house.run(*options, failpoints=f"prepare.statement=kill@{n}", check=None)
        killed += done.returncode == -signal.SIGKILL
        state = catalog(house)
        assert state in (before, whole) or faults(house) == ["the index on change_xid is missing"], n
    assert killed >= 3
    house.run(*options)
    assert catalog(house) == (whole if way == "--apply" else before)


def test_a_function_of_an_older_program_is_replaced(house: Lakehouse) -> None:
    house.run("source", "prepare", "--apply", "--table", "events")
    house.reopen(CAPTURE__METHODS=json.dumps({"events": "trigger"}))
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        house.sync_ok("events")
        name = f"lakehouse_capture.{installation.slug(house.app.contract('events'))}_gone"
        hot.execute(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'".encode()
        )
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        assert "is not the one that this program makes" in house.sync("events").errors[""].detail
        house.run("source", "prepare", "--apply", "--table", "events")
        assert house.sync_ok("events").deletes == {"org-a": 1}
    house.assert_equal("events")


def test_what_the_host_built_on_the_column_is_named(house: Lakehouse) -> None:
    house.run("source", "prepare", "--apply", "--table", "events")
    with house.hot() as hot:
        hot.execute("CREATE VIEW v AS SELECT change_xid FROM ingested_events")
        assert "view v depends" in house.run("source", "prepare", "--remove", "--table", "events", check=1).stderr
    assert faults(house) == [], "nothing half done"


def test_removing_what_the_settings_still_use_is_said(house: Lakehouse) -> None:
    house.variables["LAKEHOUSE_CAPTURE__METHOD"] = "trigger"
    house.run("source", "prepare", "--apply", "--table", "events")
    done: subprocess.CompletedProcess[str] = house.run("source", "prepare", "--remove", "--table", "events")
    assert "the settings capture events by trigger" in done.stderr
