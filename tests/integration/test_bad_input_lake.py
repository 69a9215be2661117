"""A lake that is not there, refuses, or is another's: who cannot land waits, the others go on, nothing is lost."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from catalog.errors import OwnershipError, StorageError
from catalog.lake import Lake
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from tests.s3_gate import S3Gate
from tests.support import Lakehouse, host_tables, insert_events, local_variables, s3_variables

EVERYBODY = ("org-a", "org-b", "org-c")


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def filled(house: Lakehouse, *organizations: str) -> Lakehouse:
    """Each with rows that were backfilled and rows that no window has seen."""
    add(house, 1, *organizations)
    assert not house.backfill("events").errors
    house.sync_ok("events", reconcile=True)
    add(house, 100, *organizations)
    return house


def add(house: Lakehouse, first: int, *organizations: str) -> None:
    with house.hot() as hot:
        for organization in organizations:
            insert_events(hot, organization, first, 3)


def check(errors: dict[str, LakehouseError], organizations: tuple[str, ...], says: str, hint: str) -> None:
    """These organizations have this error, nobody else has any."""
    assert set(errors) == set(organizations), errors
    for error in errors.values():
        assert says in error.detail and hint in error.hint, (error.detail, error.hint)


# --- the catalog ---


def test_a_catalog_database_that_is_not_there(postgres_server: EmbeddedPostgres, house: Lakehouse) -> None:
    name = f"catalog_{os.urandom(4).hex()}"
    url = f"{postgres_server.url()[: -len('/postgres')]}/{name}"
    house.reopen(LAKE__CATALOG__URI=url)
    where, hint = f'database "{name}" does not exist', "LAKEHOUSE_LAKE__CATALOG__URI"
    done = house.run("init", check=1)
    assert " ".join(done.stderr.split()).count(where) == 3 and hint in done.stderr and "Traceback" not in done.stderr
    postgres_server.create_database(name)
    try:
        house.run("init")
        filled(house, "org-a", "org-b")
        house.close()
        with house.hot() as hot:
            hot.execute(f"ALTER DATABASE {name} RENAME TO {name}_away")
        result = house.sync("events", reconcile=False)
        check(result.errors, ("org-a", "org-b"), where, hint)
        assert urlsplit(url).password not in str(result.errors)
        with house.hot() as hot:
            hot.execute(f"ALTER DATABASE {name}_away RENAME TO {name}")
        assert house.sync_ok("events").upserts == {"org-a": 3, "org-b": 3}
        house.assert_equal("events")
    finally:
        house.close()
        postgres_server.drop_database(name)
        postgres_server.drop_database(f"{name}_away")


@pytest.mark.parametrize("place", ["namespace", "table"])
@pytest.mark.parametrize("mark", ["organization_id", "lakehouse.installation"])
def test_a_lake_of_another_organization_or_installation(house: Lakehouse, place: str, mark: str) -> None:
    filled(house, "org-a", "org-b")
    before = len(house.lake_table("events", "org-b").snapshots())
    ours = {"organization_id": "org-b", "lakehouse.installation": "tests"}[mark]
    put_mark(house, place, mark, "another")
    for reconcile in (False, True):
        result = house.sync("events", reconcile=reconcile)
        says = f"its {mark} is 'another', ours is {ours!r}: it is another's, and nothing was written"
        check(result.errors, ("org-b",), says, "the warehouse and catalog in [lake]")
        assert isinstance(result.errors["org-b"], OwnershipError) and result.errors["org-b"].retry is Retry.NEVER
        assert result.upserts == ({"org-a": 3} if reconcile is False else {})
    assert len(house.lake_table("events", "org-b").snapshots()) == before
    house.assert_equal("events", "org-a", "org-c")
    assert says in str(house.compare("events", "org-b")[0].error), "nor is it read"
    denied = house.run("query", "SELECT count(*) FROM events", "--organization", "org-b", check=2)
    assert says in denied.stderr
    put_mark(house, place, mark, ours)
    assert house.sync_ok("events").upserts == {"org-b": 3}
    house.assert_equal("events")


def put_mark(house: Lakehouse, place: str, mark: str, value: str) -> None:
    if place == "namespace":
        house.app.catalog.update_namespace_properties("org_org_2db", updates={mark: value})
    else:
        with house.lake_table("events", "org-b").transaction() as transaction:
            transaction.set_properties({mark: value})


def test_a_second_installation_over_the_same_lake(house: Lakehouse) -> None:
    filled(house, "org-a")
    second = Lakehouse(house.hot_url, dict(house.variables))
    with closing(second):
        second.reopen(INSTALLATION="second")
        done = second.run("sync", "--once", "--table", "events", check=None)
        assert done.returncode != 0
        assert "belongs to installation 'tests', the settings say 'second'" in done.stderr
        assert "LAKEHOUSE_INSTALLATION" in done.stderr and "LAKEHOUSE_CONTROL__SCHEMA" in done.stderr
        second.reopen(CONTROL__SCHEMA="second")
        done = second.run("init", check=1)
        assert " ".join(done.stderr.split()).count("its lakehouse.installation is 'tests', ours is 'second'") == 3
        assert second.run_json("status")["tables"] == []
    assert house.sync_ok("events").upserts == {"org-a": 3}
    house.assert_equal("events")


def test_control_tables_that_are_gone(house: Lakehouse) -> None:
    filled(house, "org-a", "org-b")
    with house.hot() as hot:
        hot.execute("DROP SCHEMA lakehouse CASCADE")
    house.close()
    for command in (("backfill",), ("status",)):
        done = house.run(*command, check=2)
        assert "schema 'lakehouse': there are no control tables\n  Run `lakehouse init`." in done.stderr
        assert "Traceback" not in done.stderr
    house.init()
    result = house.backfill("events")
    assert (result.adopted, result.read_rows) == (["org-a", "org-b"], 0), "the lake remembers"
    assert house.sync_ok("events").upserts == {"org-a": 3, "org-b": 3}
    house.assert_equal("events")


def test_control_tables_that_are_gone_in_sync(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("DROP SCHEMA lakehouse CASCADE")
    done = house.run("sync", "--once", check=2)
    assert "schema 'lakehouse': there are no control tables\n  Run `lakehouse init`." in done.stderr
    assert "Traceback" not in done.stderr


def test_control_tables_that_go_while_the_program_runs(house: Lakehouse) -> None:
    filled(house, "org-a")
    with house.hot() as hot:
        hot.execute("ALTER SCHEMA lakehouse RENAME TO away")
        try:
            assert house.sync("events").errors[""].hint
        finally:
            hot.execute("ALTER SCHEMA away RENAME TO lakehouse")
    house.sync_ok("events")
    house.assert_equal("events")


def test_a_landing_whose_process_died_is_delivered_once(house: Lakehouse) -> None:
    filled(house, "org-a")
    house.reopen(CAPTURE__MAX_SEEN="0")
    with psycopg.connect(house.hot_url) as old:
        old.execute("SELECT pg_current_xact_id()")  # so that the list of seen transactions is not empty
        add(house, 200, "org-a")
        done = house.run("sync", "--once", "--table", "events", failpoints="landing.after_commit=kill", check=None)
        assert done.returncode == -signal.SIGKILL
        assert house.sync_ok("events").settled == ["org-a"]
    house.assert_equal("events")
    with house.hot() as hot:
        assert hot.execute("SELECT status, row_count FROM lakehouse.landings").fetchall() == [("landed", 6)]
        delivered = hot.execute("SELECT sequence_after, sequence_upto FROM lakehouse.warehouse_deliveries ORDER BY 1")
        assert delivered.fetchall() == [(0, 3), (3, 9)]


# --- the storage ---


def test_a_bucket_that_is_not_there(hot_url: str, s3: EmbeddedS3, bucket: str) -> None:
    host_tables(hot_url)
    with S3Gate(s3.endpoint) as gate:
        variables = s3_variables(hot_url, s3, bucket) | {"LAKEHOUSE_LAKE__S3__ENDPOINT": gate.endpoint}
        with closing(Lakehouse(hot_url, variables)) as house:
            gate.refuse(404, "NoSuchBucket")
            house.init()
            add(house, 1, "org-a")
            result = house.backfill("events")
            check(result.errors, EVERYBODY, "events: ", "Create the bucket, or set LAKEHOUSE_LAKE__WAREHOUSE")
            assert all(bucket in e.detail for e in result.errors.values()), "the bucket is named"
            gate.let_through()
            filled(house, "org-b")
            gate.refuse(404, "NoSuchBucket")
            result = house.sync("events", reconcile=False)
            check(result.errors, ("org-b",), "org_org_2db.events: ", "")
            assert bucket in result.errors["org-b"].detail and result.errors["org-b"].hint
            gate.let_through()
            assert house.sync_ok("events").upserts == {"org-b": 3}
            house.assert_equal("events")


@pytest.mark.parametrize(
    "answer", [(503, "SlowDown"), (500, "InternalError"), (403, "AccessDenied")], ids=lambda a: a[1]
)
def test_a_storage_that_refuses_for_a_while(hot_url: str, s3: EmbeddedS3, bucket: str, answer: tuple[int, str]) -> None:
    host_tables(hot_url)
    with S3Gate(s3.endpoint) as gate:
        variables = s3_variables(hot_url, s3, bucket) | {"LAKEHOUSE_LAKE__S3__ENDPOINT": gate.endpoint}
        with closing(Lakehouse(hot_url, variables)) as house:
            house.init()
            filled(house, "org-a", "org-b")
            gate.refuse(*answer)
            result = house.sync("events", reconcile=False)
            check(result.errors, ("org-a", "org-b"), ".events: ", "")
            assert all(isinstance(e, StorageError) and e.hint for e in result.errors.values())
            gate.let_through()
            assert house.sync_ok("events").upserts == {"org-a": 3, "org-b": 3}
            house.assert_equal("events")


def test_a_wrong_secret(hot_url: str, s3: EmbeddedS3, bucket: str) -> None:
    host_tables(hot_url)
    wrong = "canary-not-the-secret"
    with closing(Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))) as house:
        house.init()
        filled(house, "org-a")
        house.reopen(LAKE__S3__SECRET_ACCESS_KEY=wrong)
        result = house.sync("events", reconcile=False)
        check(result.errors, ("org-a",), "org_org_2da.events: ", "")
        assert isinstance(result.errors["org-a"], StorageError) and result.errors["org-a"].hint
        done = house.run("sync", "--once", "--table", "events", check=1)
        assert wrong not in done.stdout + done.stderr + str(result.errors)
        house.reopen(LAKE__S3__SECRET_ACCESS_KEY=s3.secret_key)
        assert house.sync_ok("events").upserts == {"org-a": 3}
        house.assert_equal("events")


def test_a_wrong_secret_names_its_setting(hot_url: str, s3: EmbeddedS3, bucket: str) -> None:
    host_tables(hot_url)
    with closing(Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))) as house:
        house.init()
        filled(house, "org-a")
        house.reopen(LAKE__S3__SECRET_ACCESS_KEY="wrong")
        assert "SECRET_ACCESS_KEY" in house.sync("events").errors["org-a"].hint


def test_a_storage_that_is_down_and_one_that_hangs(hot_url: str) -> None:
    host_tables(hot_url)
    with EmbeddedS3() as s3:
        variables = s3_variables(hot_url, s3, s3.create_bucket("lake"))
        with closing(Lakehouse(hot_url, variables)) as house:
            house.init()
            filled(house, "org-a")
            for number, (stop, start) in enumerate([(s3.kill, s3.start), (s3.pause, s3.resume)]):
                stop()
                house.reopen()
                hasten(house)
                result = house.sync("events", reconcile=False)
                check(result.errors, ("org-a",), "NETWORK_CONNECTION", "LAKEHOUSE_LAKE__S3__ENDPOINT")
                assert result.errors["org-a"].retry is Retry.TIMED
                start()
                assert house.sync_ok("events").upserts == {"org-a": 3}
                add(house, 200 + 10 * number, "org-a")
            house.sync_ok("events", reconcile=True)
            house.assert_equal("events")


def test_a_lake_that_does_not_answer_is_asked_once_a_round(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(house, "org-a", "org-b")
    asked: Counter[str] = Counter()

    def silent(lake: Lake, contract: Contract) -> Any:
        asked[lake.organization_id] += 1
        raise StorageError("minutes later: no answer", retry=Retry.TIMED)

    with monkeypatch.context() as patch:
        patch.setattr("lakehouse.sync.ensure_table", silent)
        assert set(house.sync("events", reconcile=True).errors) == set(EVERYBODY)
    assert asked == dict.fromkeys(EVERYBODY, 1), "each time the source's snapshot is held until the storage times out"
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events")


def hasten(house: Lakehouse) -> None:
    """A second instead of sixty until a storage that does not answer is given up."""
    shorter: dict[str, Any] = {"s3.connect-timeout": "1", "s3.request-timeout": "1"}
    house.app.address = dataclasses.replace(house.app.address, storage={**house.app.address.storage, **shorter})


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to every folder")
def test_a_folder_that_is_read_only(house: Lakehouse, tmp_path: Path) -> None:
    filled(house, "org-a", "org-b")
    folders = [p for p in (tmp_path / "warehouse" / "org_org_2db").rglob("*") if p.is_dir()]
    for folder in folders:
        folder.chmod(0o500)
    result = house.sync("events", reconcile=False)
    check(result.errors, ("org-b",), "Permission denied", "")
    assert result.upserts == {"org-a": 3}
    for folder in folders:
        folder.chmod(0o700)
    assert house.sync_ok("events").upserts == {"org-b": 3}
    house.assert_equal("events")


def test_a_folder_that_is_not_one(house: Lakehouse, tmp_path: Path) -> None:
    filled(house, "org-a", "org-b")
    data = tmp_path / "warehouse" / "org_org_2db" / "events" / "data"
    data.rename(data.with_name("away"))
    data.write_text("a file where a folder was")
    result = house.sync("events", reconcile=False)
    check(result.errors, ("org-b",), str(data), "Look at the storage's own message")
    assert result.upserts == {"org-a": 3}
    data.unlink()
    data.with_name("away").rename(data)
    assert house.sync_ok("events").upserts == {"org-b": 3}
    house.assert_equal("events")


@pytest.mark.parametrize(
    ("pattern", "reconcile"),
    [
        pytest.param("data/**/*.parquet", True, id="data-file"),
        pytest.param("metadata/snap-*.avro", False, id="manifests"),
        pytest.param("metadata/*.json", False, id="metadata"),
    ],
)
def test_a_damaged_lake_holds_up_only_its_own(house: Lakehouse, tmp_path: Path, pattern: str, reconcile: bool) -> None:
    filled(house, "org-a", "org-b")
    files = {p: p.read_bytes() for p in (tmp_path / "warehouse" / "org_org_2db" / "events").glob(pattern)}
    for path in files:
        path.write_bytes(b"{}")
    result = house.sync("events", reconcile=reconcile)
    check(result.errors, ("org-b",), "org_org_2db.events", "")
    assert result.errors["org-b"].hint and result.upserts == {"org-a": 3}
    for path, content in files.items():
        path.write_bytes(content)
    assert house.sync_ok("events", reconcile=True).upserts == {"org-b": 3}
    house.assert_equal("events")
