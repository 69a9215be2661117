"""Random rows of every type land, are changed, leave by the archive with proof, and come back equal.

PostgreSQL is the judge: the text of each value, kept before the rows left, is the text of what came back. A run prints
its seed; `PROPERTY_SEED` gives the same rows again.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from psycopg import sql

from lakehouse.archive.installation import SCHEMA
from lakehouse.archive.run import archive_all
from schemas.contract import Contract
from tests import everything
from tests.cold import allow, archive_variables, tombstones
from tests.integration.test_recall import bring
from tests.property.test_canonical_random import EVERY_TYPE, ROWS
from tests.support import Lakehouse, host_tables, local_variables

EXAMPLES = int(os.environ.get("PROPERTY_VALUES", "60"))
DAYS = 4
NAMES = [f'Value "{n}"' for n in range(len(EVERY_TYPE))]
"""The host's names, which need quoting on purpose."""


def contract_text() -> str:
    """A contract with every type that the archive may take."""
    columns = [
        ("id", "id", "string", "text", False),
        ("organization_id", "organization_id", "string", "text", False),
        ("happened_at", "happened_at", "timestamptz", "timestamp with time zone", False),
        ("created_at", "created_at", "timestamptz", "timestamp with time zone", False),
        *((f"v{n}", NAMES[n], kind, source, True) for n, (kind, source, _) in enumerate(EVERY_TYPE)),
    ]
    lists = [name for name, _, kind, _, _ in columns if kind.startswith("list")]
    return json.dumps(
        {
            "table": "anything",
            "version": "1.0",
            "title": "Anything",
            "description": "Anything.",
            "source": {"schema": "public", "table": "anything"},
            "tenant": "organization_id",
            "primary_key": ["id"],
            "event_time": "happened_at",
            "watermark": None,
            "age_bounds": ["happened_at", "created_at"],
            "retention": "applies",
            "columns": [
                {
                    "id": 6 + place,
                    **({"element_id": 6 + len(columns) + lists.index(name)} if name in lists else {}),
                    "name": name,
                    "type": kind,
                    "nullable": nullable,
                    "source": hot,
                    "source_type": source,
                    "description": name,
                    "sensitivity": "internal",
                }
                for place, (name, hot, kind, source, nullable) in enumerate(columns)
            ],
            "not_exported": [],
        }
    )


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    folder = tmp_path / "contracts" / "anything"
    folder.mkdir(parents=True)
    (folder / "v1.json").write_text(contract_text())
    variables = local_variables(hot_url, tmp_path) | archive_variables(tmp_path)
    house = Lakehouse(hot_url, variables | {"LAKEHOUSE_CONTRACTS": json.dumps(["builtin", str(folder.parent)])})
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(source))
        for name, (_, source, _) in zip(NAMES, EVERY_TYPE, strict=True)
    )
    with house.hot() as hot:
        hot.execute(
            sql.SQL(
                "CREATE TABLE anything (id text PRIMARY KEY, organization_id text NOT NULL, "
                "happened_at timestamptz NOT NULL, created_at timestamptz NOT NULL DEFAULT '2020-02-01', {})"
            ).format(columns)
        )
    house.init()
    yield house
    house.close()


def random_rows(text: str) -> list[tuple[Any, ...]]:
    """Rows of literals, a value or null of every type in each; the same for the same seed."""
    found: list[tuple[Any, ...]] = []

    @seed(text)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(ROWS)
    def gather(rows: list[tuple[Any, ...]]) -> None:
        found.extend(rows)

    gather()
    return found


def put(hot: psycopg.Connection[Any], choose: random.Random, rows: list[tuple[Any, ...]]) -> None:
    """Insert them, at random moments of a few old days; an id that is there gets the new values."""
    hot.execute("SET TIME ZONE 'UTC'")
    names = ["id", "organization_id", "happened_at", *NAMES]
    casts = [
        sql.SQL("%s{}::{}").format(sql.SQL("::text[]" if kind.startswith("list") else "::text"), sql.SQL(source))
        for kind, source, _ in EVERY_TYPE
    ]
    statement = sql.SQL(
        "INSERT INTO anything ({}) VALUES (%s, 'org-a', %s, {}) ON CONFLICT (id) DO UPDATE SET ({}) = ROW ({})"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(casts),
        sql.SQL(", ").join(map(sql.Identifier, NAMES)),
        sql.SQL(", ").join(sql.Identifier("excluded", name) for name in NAMES),
    )
    with hot.transaction(), hot.cursor() as cursor:
        cursor.executemany(
            statement,
            [
                (
                    f"r{n}",
                    f"2020-01-0{choose.randint(1, DAYS)} {choose.randint(0, 23)}:{choose.randint(0, 59)}+00",
                    *row,
                )
                for n, row in enumerate(rows)
            ],
        )


def test_random_rows_of_every_type_leave_and_come_back_equal(house: Lakehouse) -> None:
    text = os.environ.get("PROPERTY_SEED") or secrets.token_hex(4)
    # Shown by pytest when the test fails, and with `-s`.
    sys.stdout.write(f"PROPERTY_SEED={text} PROPERTY_VALUES={EXAMPLES}\n")
    choose, rows = random.Random(text), random_rows(text)
    contract = house.app.contract("anything")
    changed = rows[: len(rows) // 3]
    choose.shuffle(changed)
    with house.hot() as hot:
        put(hot, choose, rows)
        assert not house.backfill("anything").errors
        # A third of them are others in a second version, which is the one that leaves.
        put(hot, choose, changed)
    landed = house.sync_ok("anything")
    assert landed.upserts == {"org-a": len(changed)}
    with house.hot() as hot:
        everything.keep(hot, contract)
    allow(house, "org-a")
    (done,) = archive_all(house.app, tables=["anything"]).tables
    assert (done.state, done.rows, done.unproven, done.kept) == ("done", len(rows), [], {}), done
    assert len(tombstones(house)) == len(rows)

    back = bring(house, "anything", where="true")
    assert back.rows == len(rows)
    assert_equal(house, contract)


def assert_equal(house: Lakehouse, contract: Contract) -> None:
    """What came back is what was kept, to the last character of each value's text; the hot table is empty."""
    kept, back = sql.Identifier("kept_anything"), sql.Identifier(SCHEMA, "recalled_anything")
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c.source)) for c in contract.columns)
    with house.hot() as hot:
        for one, other in ((kept, back), (back, kept)):
            query = sql.SQL("SELECT {t} FROM {a} EXCEPT ALL SELECT {t} FROM {b}").format(t=texts, a=one, b=other)
            assert hot.execute(query).fetchall() == []
        assert hot.execute("SELECT count(*) FROM anything").fetchone() == (0,)
