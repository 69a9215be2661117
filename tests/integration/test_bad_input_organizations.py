"""Ids of organizations as hosts have them: whatever they are made of, each has its own lake, from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest

from catalog.errors import CatalogError
from catalog.lake import encode_organization
from lakehouse.query import run_query
from schemas.errors import LakehouseError
from tests.support import Lakehouse, host_tables, insert_events, local_variables

TWINS = ["ACME", "acme", "ac-me", "ac_me", "ac_2dme", "acme ", "acmé", "acme\u0301"]
HOSTILE = [
    "o'clock",
    'say "so"',
    "a;DROP TABLE ingested_events;--",
    "back\\slash",
    "[bold]",
    "组织-💾",
    "550E8400-e29b-41d4-a716-446655440000",
    "x" * 200,
    "%s{}$1",
]


@pytest.fixture
def house(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    lakehouse = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path))
    yield lakehouse
    lakehouse.close()


def test_no_two_ids_share_a_namespace() -> None:
    names = {one: encode_organization(one) for one in [*TWINS, *HOSTILE, "org_a", "ORG_A", "_", "__", "_5f"]}
    for one, other in combinations(names, 2):
        assert names[one].casefold() != names[other].casefold(), (one, other)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") and len(name) <= 204 for name in names.values()
    )
    for impossible in ("", "x" * 201, "é" * 34):
        with pytest.raises(CatalogError, match="cannot name a namespace"):
            encode_organization(impossible)


def test_every_id_from_backfill_to_verify(house: Lakehouse) -> None:
    ids = TWINS + HOSTILE
    host_tables(house.hot_url, tuple(ids))
    house.init()
    with house.hot() as hot:
        for number, one in enumerate(ids):
            insert_events(hot, one, 1, number % 3 + 1)
        result = house.backfill("events")
        assert not result.errors
        assert result.rows == {one: number % 3 + 1 for number, one in enumerate(ids)}
        for one in ids:
            insert_events(hot, one, 100, 1)
        hot.execute("DELETE FROM ingested_events WHERE id LIKE '%e1'")
        result_of_window = house.sync_ok("events", reconcile=True)
        assert result_of_window.upserts == dict.fromkeys(ids, 1) == result_of_window.deletes
        house.assert_equal("events")
        for one in ids:
            assert {v["organization_id"] for v in house.versions("events", one, "organization_id")} == {one}
        # One row is changed under the lake's feet: `verify` names it, whatever its key is made of.
        hot.execute("UPDATE ingested_events SET actor = 'later' WHERE id LIKE '%e100'")
        for comparison in house.compare("events", *ids):
            assert [(d.kind, d.columns) for d in comparison.differences] == [("content", ("actor",))]
        house.sync_ok("events")


def counts(house: Lakehouse, query: str, organization: str | None = None) -> list[int]:
    return [row["n"] for row in run_query(house.app, query, organization=organization).to_pylist()]


def test_every_id_in_a_query(house: Lakehouse) -> None:
    host_tables(house.hot_url, tuple(HOSTILE))
    house.init()
    with house.hot() as hot:
        for number, one in enumerate(HOSTILE):
            insert_events(hot, one, 1, number + 1)
    assert not house.backfill("events").errors
    for number, one in enumerate(HOSTILE):
        prefixed = "events" if '"' in one else f'"{one}".events'
        query = f"SELECT count(*) AS n FROM events UNION ALL SELECT count(*) FROM {prefixed}"
        assert counts(house, query, one) == [number + 1, number + 1]
    one = "a;DROP TABLE ingested_events;--"
    (row,) = house.run_json("query", "SELECT count(*) AS n FROM events", "--organization", one)
    assert row == {"n": HOSTILE.index(one) + 1}


def test_a_quote_in_a_prefix(house: Lakehouse) -> None:
    two_organizations(house, 'say "so"', "org-a")
    assert counts(house, 'SELECT count(*) AS n FROM "say ""so""".events') == [3]


def test_ids_that_differ_in_case_are_not_mixed_in_a_query(house: Lakehouse) -> None:
    two_organizations(house, "Ac-ME", "ac-me")
    with suppress(LakehouseError):  # to say that the name is ambiguous would do, another's rows never
        assert counts(house, 'SELECT count(*) AS n FROM "Ac-ME".events') == [3]
    with suppress(LakehouseError):
        assert counts(house, 'SELECT count(*) AS n FROM "ac-me".events') == [1]


@pytest.mark.parametrize("label", ["b", "org_b"])
def test_a_slug_that_is_the_id_of_another_is_not_believed(house: Lakehouse, label: str) -> None:
    two_organizations(house, "a", "b")
    with house.hot() as hot:
        hot.execute("UPDATE organizations SET slug = %s WHERE id = 'a'", [label])
    with suppress(LakehouseError):
        assert counts(house, "SELECT count(*) AS n FROM events", label) == [1]
    with suppress(LakehouseError):
        assert counts(house, f"SELECT count(*) AS n FROM {label}.events") == [1]


def test_an_id_that_is_the_namespace_of_another_is_itself(house: Lakehouse) -> None:
    two_organizations(house, "org_b", "b")
    with suppress(LakehouseError):
        assert counts(house, "SELECT count(*) AS n FROM events", "org_b") == [3]
    with suppress(LakehouseError):
        assert counts(house, "SELECT count(*) AS n FROM events WHERE source <> 'b'", "org_org_5fb") == [3]
    with suppress(LakehouseError):  # SQL knows no ids before namespaces, so here the name may be either's, or nobody's
        assert counts(house, "SELECT count(*) AS n FROM org_b.events") == [1]


def test_a_slug_that_is_a_schema_of_duckdb_shows_nothing(house: Lakehouse) -> None:
    host_tables(house.hot_url, ("a", "b"))
    house.init()
    with house.hot() as hot:
        hot.execute("UPDATE organizations SET slug = 'main' WHERE id = 'b'")
        insert_events(hot, "b", 1, 1)
    assert not house.backfill("events", organizations=("b",)).errors
    # "a" has no table of events yet; the word brings the other's schema in.
    with suppress(LakehouseError):
        assert counts(house, "SELECT count(*) AS n FROM events WHERE source <> 'main'", "a") == [0]


def two_organizations(house: Lakehouse, first: str, second: str) -> None:
    """The first has three events, the second has one."""
    host_tables(house.hot_url, (first, second))
    house.init()
    with house.hot() as hot:
        insert_events(hot, first, 1, 3)
        insert_events(hot, second, 1, 1)
    assert not house.backfill("events").errors


def test_an_id_that_cannot_name_a_namespace_holds_up_nobody(house: Lakehouse) -> None:
    long = "x" * 201
    host_tables(house.hot_url, (long, "org-a"))
    done = house.run("init", check=1)
    said = "".join(done.stderr.split())
    assert f"organization{long}:organizationid'xxx" in said and "cannotnameanamespace" in said
    with house.hot() as hot:
        insert_events(hot, long, 1, 1)
        insert_events(hot, "org-a", 1, 1)
        assert house.backfill("events").rows == {"org-a": 1}
        insert_events(hot, "org-a", 2, 1)
        assert house.sync_ok("events").upserts == {"org-a": 1}
    house.assert_equal("events")
