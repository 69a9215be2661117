"""`sync --once` where nothing changed loads almost nothing; whatever is not plainly quiet goes the ordinary way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg import sql

from lakehouse.control.database import newest_revision
from lakehouse.glance import nothing_to_do
from schemas.contract import BUILT_IN, load_contracts
from tests.support import Lakehouse, host_tables, insert_events, local_variables

HEAVY = ("pyiceberg", "pyarrow", "duckdb", "sqlalchemy", "alembic", "typer", "rich", "boto3", "jsonschema")


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    """Two organizations, events backfilled and one window on: a round has nothing to do."""
    host_tables(hot_url, ("org-a", "org-b"))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 50)
        insert_events(hot, "org-b", 1, 5)
    house.init()
    house.backfill("events")
    house.sync_ok("events")
    try:
        yield house
    finally:
        house.close()


def quiet(house: Lakehouse) -> bool:
    return nothing_to_do(house.app.settings, ["events"], house.clock) is not None


def test_a_round_with_nothing_to_do_loads_none_of_the_heavy_libraries(house: Lakehouse) -> None:
    code = (
        "import sys; sys.argv[1:] = ['sync', '--once', '--table', 'events', '--json']\n"
        "from lakehouse.cli import main; main()\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write('loaded: ' + ' '.join(loaded))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=house.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.split("loaded: ")[-1] == ""
    assert '"window": null' in done.stdout


def test_what_is_quiet_is_noted_and_the_position_stays(house: Lakehouse) -> None:
    query = "SELECT position::text, captured_at, polled_at FROM lakehouse.cursors ORDER BY organization_id"
    with house.hot() as hot:
        before = hot.execute(query).fetchall()
        assert quiet(house)
        after = hot.execute(query).fetchall()
    assert [row[0] for row in before] == [row[0] for row in after]
    assert all(now[1] > was[1] and now[2] > was[2] for was, now in zip(before, after, strict=True))


def test_a_commit_that_was_open_during_a_glance_is_captured(house: Lakehouse) -> None:
    with house.hot() as hot, house.hot() as late:
        late.execute("BEGIN")
        insert_events(late, "org-a", 1000, 3)
        assert quiet(house)
        late.execute("COMMIT")
        assert not quiet(house)
        hot.execute("SELECT 1")
    assert house.sync_ok("events").upserts == {"org-a": 3}
    assert quiet(house)
    house.assert_equal("events")


UNREST: dict[str, Callable[[Lakehouse], object]] = {
    "a row changed": lambda h: _sql(h, "UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-b-e2'"),
    "truncated": lambda h: _sql(h, "TRUNCATE ingested_events CASCADE"),
    "a column got a default": lambda h: _sql(h, "ALTER TABLE ingested_events ALTER source SET DEFAULT 'x'"),
    "a column is gone": lambda h: _sql(h, "ALTER TABLE ingested_events DROP COLUMN actor"),
    "keys are due to be compared": lambda h: setattr(h.clock, "offset", timedelta(seconds=901)),
    "the position stood too long": lambda h: _sql(
        h,
        "UPDATE lakehouse.cursors SET position = jsonb_set(position, '{xmin}', to_jsonb("
        "(position->>'xmin')::bigint - 20000000))",
    ),
    "a lake holds what is read": lambda h: _sql(
        h, "UPDATE lakehouse.cursors SET position = jsonb_set(position, '{repeats}', 'true')"
    ),
    "an organization is new": lambda h: _sql(
        h, "INSERT INTO organizations (id, name, slug, updated_at) VALUES ('org-n', 'n', 'n', now())"
    ),
    "one waits for a person": lambda h: _sql(
        h, "UPDATE lakehouse.cursors SET stopped = true WHERE organization_id = 'org-a'"
    ),
    "somebody works on the table": lambda h: _sql(
        h,
        "UPDATE lakehouse.tasks SET lease_owner = 'x', lease_expires_at = now() + interval '1 h' "
        "WHERE id = 'capture:events'",
    ),
    "a share waits": lambda h: _sql(
        h,
        "INSERT INTO lakehouse.warehouse_deliveries (id, organization_id, destination_id, table_name, status, "
        "attempts, sequence_after, sequence_upto, row_count) SELECT gen_random_uuid(), organization_id, id, 'events', "
        "'FAILED', 1, 900, 901, 1 FROM lakehouse.warehouse_destinations LIMIT 1",
    ),
    "another installation": lambda h: h.reopen(INSTALLATION="other"),
    "another warehouse": lambda h: h.reopen(LAKE__WAREHOUSE="file:///elsewhere"),
    "another catalog": lambda h: h.reopen(LAKE__CATALOG__URI="sqlite:////elsewhere.db"),
    "another method": lambda h: h.reopen(CAPTURE__METHOD="trigger"),
    "a newer schema": lambda h: _sql(h, "UPDATE lakehouse.alembic_version SET version_num = '9999'"),
    "a source that does not answer": lambda h: h.reopen(
        CONTROL__URL=h.hot_url, SOURCE__URL="postgresql://x:y@127.0.0.1:1/none"
    ),
}


def _sql(house: Lakehouse, statement: str) -> None:
    with house.hot() as hot:
        hot.execute(sql.SQL(statement))


@pytest.mark.parametrize("what", UNREST)
def test_what_is_not_plainly_quiet_goes_the_ordinary_way(house: Lakehouse, what: str) -> None:
    assert quiet(house)
    UNREST[what](house)
    assert not quiet(house)


def test_a_tombstone_is_not_quiet(house: Lakehouse) -> None:
    house.reopen(CAPTURE__METHOD="trigger")
    house.prepare("events")
    house.sync_ok("events")
    assert quiet(house)
    _sql(house, "DELETE FROM ingested_events WHERE id = 'org-a-e7'")
    assert not quiet(house)
    assert house.sync_ok("events").deletes == {"org-a": 1}
    assert quiet(house)
    house.assert_equal("events")


def test_the_newest_revision_is_what_alembic_says() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "lakehouse/control/migrations")
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()


def test_built_in_contracts_read_the_same_without_being_validated() -> None:
    assert load_contracts([BUILT_IN], validate_built_in=False) == load_contracts([BUILT_IN])
