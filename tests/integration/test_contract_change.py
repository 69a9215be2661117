"""A column that a contract adds: the table gets it, rows are captured again, nothing else moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.contract import BUILT_IN
from schemas.errors import LakehouseError
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    contract = json.loads((BUILT_IN / "events" / "v1.json").read_text())
    write(tmp_path, contract)
    lakehouse = Lakehouse(
        hot_url,
        local_variables(hot_url, tmp_path) | {"LAKEHOUSE_CONTRACTS": f'["{tmp_path}/contracts"]'},
    )
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def write(folder: Path, contract: dict[str, object]) -> None:
    path = folder / "contracts" / "events" / "v1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contract))


def added(folder: Path) -> dict[str, object]:
    """The contract's next version: a text with a constant default, and a list, whose element has an id too."""
    contract = json.loads((folder / "contracts" / "events" / "v1.json").read_text())
    used = [c["id"] for c in contract["columns"]] + [c.get("element_id", 0) for c in contract["columns"]]
    first = max(used) + 1
    common = {"nullable": True, "description": "New.", "sensitivity": "internal", "since": "1.1"}
    contract["version"] = "1.1"
    contract["columns"] += [
        {"id": first, "name": "region", "type": "string", "source": "region", "source_type": "text", **common},
        {
            **{"id": first + 1, "element_id": first + 2, "name": "labels", "type": "list<string>"},
            **{"source": "labels", "source_type": "text[]", **common},
        },
    ]
    return contract


def test_an_added_column_arrives_for_every_row(house: Lakehouse, tmp_path: Path) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 6)
        house.backfill("events")
        # A constant default touches no row: no xmin changes.
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text DEFAULT 'eu', ADD COLUMN labels text[]")
        assert house.sync_ok("events").upserts == {}, "the contract does not export them yet"
        assert "region" in house.run("source", "check", "--table", "events").stdout
        write(tmp_path, added(tmp_path))
        house.reopen()
        hot.execute("UPDATE ingested_events SET labels = '{x,NULL}' WHERE id = 'org-a-e1'")
        assert house.sync_ok("events").upserts == {"org-a": 6}
        house.assert_equal("events")
        assert house.sync_ok("events").upserts == {}
        latest = {v["id"]: (v["region"], v["labels"]) for v in house.versions("events", "org-a")}
        assert latest["org-a-e1"] == ("eu", ["x", None])
        # A new organization's table is made with the same permanent ids.
        insert_events(hot, "org-b", 1, 2)
        house.sync_ok("events")
    fields = {f.name: f.field_id for f in house.lake_table("events", "org-a").schema().fields}
    assert fields == {f.name: f.field_id for f in house.lake_table("events", "org-b").schema().fields}


def test_an_older_program_does_not_write_a_newer_table(house: Lakehouse, tmp_path: Path) -> None:
    old = json.loads((tmp_path / "contracts" / "events" / "v1.json").read_text())
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text, ADD COLUMN labels text[]")
        write(tmp_path, added(tmp_path))
        house.reopen()
        house.backfill("events")
        insert_events(hot, "org-a", 1, 1)
        house.sync_ok("events")
        write(tmp_path, old)
        house.reopen()
        insert_events(hot, "org-a", 2, 1)
        error = house.sync("events").errors["org-a"]
    assert isinstance(error, LakehouseError)
    assert "region" in error.detail
    assert "newest contract" in error.hint
