"""Which rows a recall brings: by id, condition and time, as of a time, of old contracts; and what it refuses."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from lakehouse.archive.installation import SCHEMA, connect, install
from lakehouse.recall.request import RecallError, Target, make_request
from lakehouse.recall.run import NothingFoundError, Recalled, recall, recalls
from lakehouse.recall.select import choose, open_lake_table, opening
from schemas.contract import BUILT_IN
from schemas.errors import LakehouseError
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a", "org-b"))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    house.init()
    yield house
    house.close()


def bring(
    house: Lakehouse, table: str = "events", *, target: Target = "table", organization: str = "org-a", **asked: Any
) -> Recalled:
    """One recall, with a reason."""
    options = {k: asked.pop(k) for k in ("output", "expires") if k in asked}
    if "output" in options:
        options["output"] = str(options["output"])
    return recall(
        house.app,
        make_request(organization, house.app.contract(table), **asked),
        target=target,
        reason="because",
        by="an auditor",
        **options,
    )


def recalled(house: Lakehouse, name: str = "recalled_events", columns: str = "id") -> list[Any]:
    with house.hot() as hot:
        return hot.execute(f"SELECT {columns} FROM {SCHEMA}.{name} ORDER BY 1").fetchall()  # type: ignore[arg-type]


def put_tombstones(house: Lakehouse, ids: Mapping[str, str]) -> None:
    """Tombstones of events, by id with their event time, as a delete batch writes them."""
    install(house.app)
    with connect(house.app) as connection:
        for key, time in ids.items():
            connection.execute(
                f"INSERT INTO {SCHEMA}.cold_storage_archive (organization_id, table_name, row_key, event_time, "  # type: ignore[arg-type]
                "sequence, batch, delivered_to, snapshot_id, keyed_hash, hash_key, contract_version, policy, operator, "
                "archived_at) VALUES ('org-a', 'events', %s, %s, 1, 1, '{}', 1, 'x', 't1', '1.0', 'p', 'o', now())",
                [key, time],
            )


def ids(house: Lakehouse, **asked: Any) -> list[str]:
    """Ids that a request brings, read from a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        bring(house, target="jsonl", output=path, **asked)
        return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def at(hour: int) -> datetime:
    return datetime(2026, 6, 1, hour, tzinfo=UTC)


def test_as_of_a_time(house: Lakehouse) -> None:
    """A row that was changed, one that came later, one that was deleted: each as the lake knew it then."""
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.clock.fixed = at(1)
        house.backfill("events")
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e1'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        insert_events(hot, "org-a", 4, 1)
        house.clock.fixed = at(2)
        house.sync_ok("events", reconcile=True)
        # The archive takes a row: nothing of that is in the table's own history.
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e3'")
    house.clock.fixed = at(3)
    every = {"where": "true"}
    assert ids(house, **every) == ["org-a-e1", "org-a-e3", "org-a-e4"]
    assert ids(house, **every, as_of=at(2)) == ["org-a-e1", "org-a-e3", "org-a-e4"]
    assert ids(house, **every, as_of=at(1)) == ["org-a-e1", "org-a-e2", "org-a-e3"]
    assert ids(house, **every, as_of=at(0)) == []
    assert ids(house, where="severity = 'HIGH'") == ["org-a-e1"]
    assert ids(house, where="severity = 'HIGH'", as_of=at(1)) == [], "the condition is of the state at that time"
    assert ids(house, ids=("org-a-e2",), as_of=at(1)) == ["org-a-e2"]
    with pytest.raises(NothingFoundError, match=r"org-a-e2: deleted by 2026-06-01 02:00:00 UTC; --as-of"):
        ids(house, ids=("org-a-e2",))


def test_by_time_and_condition(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 5, day="2026-01-01 23:57")
        insert_events(hot, "org-b", 1, 5, day="2026-01-01 23:57")
        house.backfill("events")

    def moment(minute: int) -> datetime:
        return (
            datetime(2026, 1, 1, 23, 57 + minute, tzinfo=UTC)
            if minute < 3
            else datetime(2026, 1, 2, 0, minute - 3, tzinfo=UTC)
        )

    assert ids(house, event_from=moment(2), event_upto=moment(4)) == ["org-a-e2", "org-a-e3"]
    assert ids(house, event_from=moment(4)) == ["org-a-e4", "org-a-e5"]
    assert ids(house, event_upto=moment(2), where="id <> 'org-a-e1' -- not this one") == []
    assert ids(house, where="(payload->>'$.n')::int % 2 = 0 AND list_contains(['push'], event_type)") == [
        "org-a-e2",
        "org-a-e4",
    ]
    assert ids(house, where="organization_id = 'org-b'") == [], "another's rows are in another table"


def test_an_id_is_read_from_its_day_alone(house: Lakehouse, tmp_path: Path) -> None:
    """Files of other days may be gone: a row is found where its tombstone says, and only there."""
    with house.hot() as hot:
        for day in (1, 2, 3):
            insert_events(hot, "org-a", 10 * day, 3, day=f"2026-01-0{day}")
        house.backfill("events")
        hot.execute("DELETE FROM ingested_events")
    put_tombstones(house, {"org-a-e20": "2026-01-02 00:20+00", "org-a-e21": "2026-01-02 00:21+00"})
    data = tmp_path / "warehouse" / "org_org_2da" / "events" / "data"
    for day in (1, 3):
        for file in data.glob(f"occurred_at_day=2026-01-0{day}/*"):
            file.rename(file.with_suffix(".away"))
    assert ids(house, ids=("org-a-e21", "org-a-e20")) == ["org-a-e20", "org-a-e21"]
    with pytest.raises(LakehouseError, match="the lake's files cannot be read"):
        ids(house, ids=("org-a-e20", "org-a-e30"))
    for file in data.glob("*/*.away"):
        file.rename(file.with_suffix(".parquet"))
    assert ids(house, ids=("org-a-e20", "org-a-e30")) == ["org-a-e20", "org-a-e30"]


def test_a_tombstone_is_a_hint(house: Lakehouse) -> None:
    """One with another time, of a row that came back on another day: what the lake holds is what is brought."""
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        insert_events(hot, "org-a", 3, 1)
        hot.execute("UPDATE ingested_events SET occurred_at = '2026-02-02 02:02' WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
    put_tombstones(house, {"org-a-e1": "2020-05-05 00:00+00", "org-a-e2": "2026-01-01 00:02+00"})
    assert ids(house, ids=("org-a-e1",)) == ["org-a-e1"]
    assert ids(house, ids=("org-a-e2",)) == ["org-a-e2"]
    assert ids(house, ids=("org-a-e1", "org-a-e2", "org-a-e3")) == ["org-a-e1", "org-a-e2", "org-a-e3"]


def test_ids_that_are_not_there_are_listed(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 1)
        house.backfill("events")
    done = bring(house, ids=("org-a-e1", "nothing", "org-a-e1"))
    assert (done.rows, dict(done.missing)) == (1, {"nothing": "not in the lake"})
    with pytest.raises(NothingFoundError, match="nothing: not in the lake; it's nothing: not in the lake"):
        bring(house, ids=("nothing", "it's nothing"))
    assert recalled(house) == [("org-a-e1",)]


def test_keys_that_are_no_text(house: Lakehouse, tmp_path: Path) -> None:
    """A key of two columns is named by its canonical fields; a table without event times has no days to look in."""
    folder = tmp_path / "contracts" / "pairs"
    folder.mkdir(parents=True)
    columns = [
        ("organization_id", "string", "text"),
        ("number", "long", "bigint"),
        ("day", "date", "date"),
        ("word", "string", "text"),
    ]
    (folder / "v1.json").write_text(
        json.dumps(
            {
                "table": "pairs", "version": "1.0", "title": "Pairs", "description": "Pairs.",
                "source": {"schema": "public", "table": "pairs"}, "tenant": "organization_id",
                "primary_key": ["number", "day"], "event_time": None, "watermark": None, "age_bounds": [],
                "retention": "never", "not_exported": [],
                "columns": [
                    {"id": 6 + n, "name": name, "type": kind, "nullable": name == "word", "source": name,
                     "source_type": source, "description": name, "sensitivity": "internal"}
                    for n, (name, kind, source) in enumerate(columns)
                ],
            }
        )
    )  # fmt: skip
    with house.hot() as hot:
        hot.execute(
            "CREATE TABLE pairs (organization_id text, number bigint, day date, word text, PRIMARY KEY (number, day))"
        )
        hot.execute(
            "INSERT INTO pairs SELECT 'org-a', n, '2026-01-01'::date + n, 'w' || n FROM generate_series(1, 5) n"
        )
    house.reopen(CONTRACTS=json.dumps(["builtin", str(folder.parent)]))
    house.backfill("pairs")
    done = bring(house, "pairs", ids=("1:3,5:20457,", "1:9,5:20457,"))
    assert (done.rows, dict(done.missing)) == (1, {"1:9,5:20457,": "not in the lake"})
    assert recalled(house, "recalled_pairs", "number, word") == [(3, "w3")]
    with pytest.raises(RecallError, match="pairs has no event time"):
        bring(house, "pairs", event_from=at(1))


def test_rows_of_an_older_contract(house: Lakehouse, tmp_path: Path) -> None:
    """A row that was archived under 1.0 comes back as that: the column that came with 1.1 is null in it."""
    contract = json.loads((BUILT_IN / "events" / "v1.json").read_text())
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        before = bring(house, ids=("org-a-e1",))
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text")
        top = max(c.get("element_id", c["id"]) for c in contract["columns"])
        contract["columns"].append(
            {"id": top + 1, "name": "region", "type": "string", "nullable": True, "source": "region",
             "source_type": "text", "description": "Region.", "sensitivity": "internal", "since": "1.1"}
        )  # fmt: skip
        contract["version"] = "1.1"
        folder = tmp_path / "contracts" / "events"
        folder.mkdir(parents=True)
        (folder / "v1.json").write_text(json.dumps(contract))
        house.reopen(CONTRACTS=json.dumps(["builtin", str(folder.parent)]))
        # Nothing has landed under the new contract yet, and then something has.
        assert ids(house, where="region IS NULL") == ["org-a-e1", "org-a-e2"]
        insert_events(hot, "org-a", 3, 1)
        hot.execute("UPDATE ingested_events SET region = 'eu' WHERE id = 'org-a-e3'")
        house.sync_ok("events")
        assert len(house.versions("events", "org-a", "id")) == 3
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
    put_tombstones(house, {"org-a-e1": "2026-01-01 00:01+00"})
    for asked in ({"ids": ("org-a-e1", "org-a-e3")}, {"where": "id IN ('org-a-e1', 'org-a-e3')"}):
        assert ids(house, **asked) == ["org-a-e1", "org-a-e3"]
    after = bring(house, ids=("org-a-e1", "org-a-e3"))
    assert (before.contract, after.contract) == ("1.0", "1.1")
    assert after.changes == ("lakehouse_archive.recalled_events got the column region text",)
    assert recalled(house, columns="id, region") == [("org-a-e1", None), ("org-a-e1", None), ("org-a-e3", "eu")]


def test_a_condition_reads_nothing_else(house: Lakehouse, tmp_path: Path) -> None:
    """Not by its own grammar, and not where the engine runs it."""
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
    secret = tmp_path / "secret.txt"
    secret.write_text("org-a-e1")
    wanted = f"id = (SELECT content FROM read_text('{secret}'))"
    with pytest.raises(RecallError, match="a subquery is not allowed in it"):
        ids(house, where=wanted)
    assert [r.error for r in recalls(house.app)] == ["--where: a subquery is not allowed in it"], "it was written down"
    with opened(house) as connection, pytest.raises(duckdb.PermissionException, match="disabled by configuration"):
        connection.execute(f"SELECT content FROM read_text('{secret}')")


@contextmanager
def opened(house: Lakehouse) -> Iterator[duckdb.DuckDBPyConnection]:
    """The engine that conditions run in."""
    request = make_request("org-a", house.app.contract("events"), where="true")
    with (
        opening(house.app.address_of("org-a"), request, {}) as engine,
        choose(open_lake_table(house.app, request), request, {}, engine),
    ):
        yield engine.opened()


def test_a_condition_that_fails_says_so(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
    with pytest.raises(RecallError, match=r"--where: Conversion Error: Could not convert string 'push' to INT32"):
        ids(house, where="event_type::int = 1")
    assert ids(house, where="try_cast(event_type AS int) IS NULL") == ["org-a-e1", "org-a-e2"]


def test_what_is_not_asked_plainly_is_refused(house: Lakehouse) -> None:
    contract = house.app.contract("events")
    for asked, said in (
        ({}, "which rows are to be recalled was not said"),
        ({"ids": ("a",), "where": "true"}, "ids were given together with"),
        ({"ids": ("",)}, "an empty id"),
        ({"where": "  "}, "--where is empty"),
        ({"event_from": at(2), "event_upto": at(2)}, "is not before"),
    ):
        with pytest.raises(RecallError, match=said):
            make_request("org-a", contract, **asked)
    with pytest.raises(RecallError, match="events of org-a is not in the lake"):
        bring(house, where="true")
    assert [r.state for r in recalls(house.app)] == ["failed"]
