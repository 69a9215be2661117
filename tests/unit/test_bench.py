"""The benchmark's own instruments: a figure is worth what they are."""

from __future__ import annotations

import sys
import time

import duckdb
import pytest

from tests.bench import goals, measure, steps
from tests.bench.peers.compare import compare


@pytest.fixture
def duck() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE reference AS SELECT 'k' || n AS id, n AS size, '{\"a\": 1.50}' AS payload FROM range(5) r(n)"
    )
    return connection


def words(duck: duckdb.DuckDBPyConnection, query: str) -> str:
    return compare(duck, ["id", "size", "payload"], f"({query})").words()


def test_every_step_of_a_profile_is_a_function_of_the_program() -> None:
    for module, name, _, _ in steps.POINTS:
        assert callable(steps.resolve(module, name)[2])


def test_a_step_within_a_step_is_counted_once() -> None:
    watched = steps.Steps()
    with watched.step("outer"), watched.step("inner"):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
    assert watched.spent["inner"].processor >= 0.02
    assert watched.spent["outer"].processor < watched.spent["inner"].processor / 2


def test_an_equal_copy_is_said_to_change_nothing(duck: duckdb.DuckDBPyConnection) -> None:
    assert words(duck, "SELECT * FROM reference") == "nothing"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT * FROM reference WHERE id <> 'k3'", "1 rows missing"),
        ("SELECT * FROM reference UNION ALL SELECT 'k9', 9, '{}'", "1 rows not in the table"),
        ("SELECT * FROM reference UNION ALL SELECT * FROM reference WHERE id = 'k1'", "1 rows twice"),
        ("SELECT id, payload FROM reference", "column size missing"),
        ("SELECT *, 1 AS _load FROM reference", "adds _load"),
        ("SELECT id, size::DOUBLE AS size, payload FROM reference", "size: BIGINT became DOUBLE"),
        ("SELECT id, size + 1 AS size, payload FROM reference", "size: another value in 5 rows (0 became 1)"),
        (
            "SELECT id, size, replace(payload, ' ', '') AS payload FROM reference",
            "payload: JSON text rewritten in 5 rows, its values kept",
        ),
        (
            "SELECT id, size, replace(payload, '1.50', '1.5') AS payload FROM reference",
            "payload: JSON rewritten in 5 rows, with other values in all that were looked at (a 1.50 became 1.5)",
        ),
    ],
)
def test_what_a_copy_changed_is_named(duck: duckdb.DuckDBPyConnection, query: str, said: str) -> None:
    assert words(duck, query) == said


def test_a_goal_is_missed_on_the_wrong_side_of_its_bound_only() -> None:
    found = {"landing": {"ratio": 1.2}}
    assert goals.missed("landings", found) == []
    (judged,) = goals.missed("landings", {"landing": {"ratio": 1.21}})
    assert judged.words() == "≤ 1.2 times the first: **missed**"


def test_a_descendant_that_outlives_the_program_is_counted() -> None:
    # SIGPROF ends it after half a second of work.
    work = "import signal; signal.setitimer(signal.ITIMER_PROF, 0.5); sum(range(10**10))"
    started = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {work!r}]); print(1)"
    done = measure.run([sys.executable, "-ISc", started])
    assert done.output == "1\n"
    assert done.processor > 0.4
    with pytest.raises(RuntimeError, match="exit 3\nbad"):
        measure.run(["/bin/sh", "-c", "echo bad >&2; exit 3"])
    with pytest.raises(RuntimeError, match="nosuch"):
        measure.run(["/nosuch"])
