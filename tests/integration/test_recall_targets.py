"""Where recalled rows go: a table of our own that is proven and expires, files that are whole and never replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from lakehouse.archive.installation import SCHEMA
from lakehouse.archive.records import content_digest
from lakehouse.cli.program import app as program
from lakehouse.maintenance.archive import keep_archive
from lakehouse.recall import files
from lakehouse.recall.request import RecallError
from lakehouse.recall.run import recalls, remove_recall
from schemas.canonical import postgres_hash
from schemas.errors import LakehouseError
from tests.integration.test_recall import bring, ids, recalled
from tests.support import Lakehouse, host_tables, insert_events, local_variables, s3_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    house.init()
    yield house
    house.close()


def landed(house: Lakehouse, count: int = 3) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, count)
    house.backfill("events")


def tables(house: Lakehouse) -> list[str]:
    with house.hot() as hot:
        rows = hot.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r' "
            "AND relname LIKE 'recalled%%' ORDER BY 1",
            [SCHEMA],
        ).fetchall()
    return [name for (name,) in rows]


def audit(house: Lakehouse) -> list[tuple[Any, ...]]:
    with house.hot() as hot:
        return hot.execute(f"SELECT actor, action, reason, subject FROM {SCHEMA}.audit ORDER BY id").fetchall()  # type: ignore[arg-type]


# --- a table ----------------------------------------------------------------------------------------------------------


def test_recalls_share_a_table_and_each_goes_in_its_time(house: Lakehouse) -> None:
    landed(house)
    short = bring(house, ids=("org-a-e1", "org-a-e2"), expires=timedelta(hours=1))
    long = bring(house, ids=("org-a-e2",))
    other = bring(house, ids=("org-a-e3",))
    rows = [("org-a-e1", short.id), ("org-a-e2", long.id), ("org-a-e2", short.id), ("org-a-e3", other.id)]
    assert sorted(recalled(house, columns="id, recall_id")) == sorted(rows)
    house.clock.offset = timedelta(minutes=59)
    assert "recalls_expired" not in keep_archive(house.app)[0]
    house.clock.offset = timedelta(minutes=61)
    assert keep_archive(house.app)[0]["recalls_expired"] == 1
    assert recalled(house) == [("org-a-e2",), ("org-a-e3",)]
    removed = remove_recall(house.app, str(other.id), by="me", reason="seen")
    assert (removed.state, removed.row_count) == ("removed", 1)
    with pytest.raises(RecallError, match="its rows are gone since"):
        remove_recall(house.app, str(other.id), by="me", reason="again")
    assert tables(house) == ["recalled_events"]
    house.clock.offset = timedelta(days=30, minutes=1)
    counts, _ = keep_archive(house.app)
    assert (counts["recalls_expired"], counts["recalled_tables_dropped"]) == (1, 1)
    # An empty table would keep the host from dropping an enum type that it has.
    assert tables(house) == []
    assert {r.id: r.state for r in recalls(house.app)} == dict.fromkeys((short.id, long.id, other.id), "removed")
    assert next(a for a in audit(house) if a[1] == "recall removed")[0] == "lakehouse maintenance"


def test_the_hosts_table_has_changed_since(house: Lakehouse) -> None:
    landed(house)
    assert bring(house, ids=("org-a-e1",)).changes == ("lakehouse_archive.recalled_events was made",)
    assert bring(house, ids=("org-a-e1",)).changes == ()
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ALTER COLUMN source TYPE text, DROP COLUMN actor")
    done = bring(house, ids=("org-a-e2",))
    assert done.target == "table recalled_events_2"
    assert done.changes == (
        "lakehouse_archive.recalled_events has source as character varying(180), which is text now",
        "lakehouse_archive.recalled_events_2 was made",
    )
    assert recalled(house, "recalled_events_2") == [("org-a-e2",)]
    assert [len(recalled(house)), bring(house, ids=("org-a-e3",)).changes[1:]] == [2, ()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # A label that the lake still holds.
        (
            "ALTER TYPE \"Severity\" RENAME VALUE 'INFO' TO 'NOTE'",
            "column severity of the hot table does not take what the lake holds: invalid input value for enum",
        ),
        # A type that is gone with its column.
        (
            'ALTER TABLE ingested_events DROP COLUMN processing_status; DROP TYPE "EventProcessingStatus"',
            'column processing_status: the hot database has no type "EventProcessingStatus" any more',
        ),
        # Narrower columns: one refuses, two would round without a word.
        (
            "UPDATE ingested_events SET source = 'x'; ALTER TABLE ingested_events ALTER COLUMN source TYPE varchar(2)",
            "column source of the hot table does not take what the lake holds: value too long",
        ),
        # A domain whose condition, or whose NOT NULL, the lake's rows do not meet.
        (
            "UPDATE ingested_events SET source = 'x'; CREATE DOMAIN word AS varchar(180) CHECK (VALUE <> 'audit'); "
            "ALTER TABLE ingested_events ALTER COLUMN source TYPE word",
            "column source of the hot table does not take what the lake holds: value for domain word violates check",
        ),
        (
            "UPDATE ingested_events SET actor = 'x'; CREATE DOMAIN named AS varchar(180) NOT NULL; "
            "ALTER TABLE ingested_events ALTER COLUMN actor TYPE named",
            "column actor of the hot table does not take what the lake holds: domain named does not allow null values",
        ),
        (
            "ALTER TABLE ingested_events ALTER COLUMN created_at TYPE timestamp(0)",
            "row org-a-e1 came out of the hot database with another created_at than the lake holds: nothing was kept",
        ),
        (
            "ALTER TABLE ingested_events ALTER COLUMN payload TYPE text",
            "",
        ),
    ],
    ids=["label", "type", "length", "condition", "null", "precision", "wider"],
)
def test_what_the_hot_database_cannot_hold_any_more(house: Lakehouse, change: str, said: str) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        hot.execute("UPDATE ingested_events SET created_at = '2026-01-01 00:00:00.001'")
    house.backfill("events")
    with house.hot() as hot:
        hot.execute(change)  # type: ignore[arg-type]
        before = hot.execute("SELECT e::text FROM ingested_events e ORDER BY id").fetchall()
    if said:
        with pytest.raises(RecallError) as caught:
            bring(house, where="true")
        assert said in caught.value.detail
        assert "--to parquet, csv or jsonl" in caught.value.hint
        assert tables(house) == [], "nothing is left behind"
        assert [(r.state, r.error) for r in recalls(house.app)] == [("failed", caught.value.detail)]
    else:
        assert bring(house, where="true").rows == 3
    assert ids(house, where="true") == ["org-a-e1", "org-a-e2", "org-a-e3"]
    with house.hot() as hot:
        assert hot.execute("SELECT e::text FROM ingested_events e ORDER BY id").fetchall() == before


def test_two_recalls_at_once(house: Lakehouse) -> None:
    """They share a table; who would have to change it while another fills it is told to come again."""
    landed(house)
    house.reopen(SOURCE__LOCK_TIMEOUT_SECONDS="1")
    bring(house, ids=("org-a-e1",))
    with house.hot() as hot:
        hot.execute(f"ALTER TABLE {SCHEMA}.recalled_events ADD COLUMN mine text")  # type: ignore[arg-type]
        with hot.transaction():
            hot.execute(f"LOCK TABLE {SCHEMA}.recalled_events IN ROW EXCLUSIVE MODE")  # type: ignore[arg-type]
            assert bring(house, ids=("org-a-e2",)).rows == 1
        hot.execute(f"ALTER TABLE {SCHEMA}.recalled_events DROP COLUMN actor")  # type: ignore[arg-type]
        with hot.transaction():
            hot.execute(f"LOCK TABLE {SCHEMA}.recalled_events IN ROW EXCLUSIVE MODE")  # type: ignore[arg-type]
            with pytest.raises(RecallError, match="another recall is at work on its table"):
                bring(house, ids=("org-a-e3",))
    assert bring(house, ids=("org-a-e3",)).changes == (
        "lakehouse_archive.recalled_events got the column actor character varying(255)",
    )
    assert recalled(house) == [("org-a-e1",), ("org-a-e2",), ("org-a-e3",)]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_comes_with_its_manifest(house: Lakehouse, tmp_path: Path) -> None:
    landed(house)
    path = tmp_path / "out" / "events.csv"
    path.parent.mkdir()
    done = bring(house, where="id <> 'org-a-e2'", target="csv", output=path)
    manifest = json.loads((tmp_path / "out" / "events.csv.manifest.json").read_text())
    contract = house.app.contract("events")
    with house.hot() as hot:
        query = f"SELECT id, {postgres_hash(contract)} FROM ingested_events WHERE id <> 'org-a-e2'"
        rows = hot.execute(query.encode()).fetchall()
    assert {k: v for k, v in manifest.items() if k not in ("at", "software")} == {
        "v": 1,
        "recall": str(done.id),
        "installation": "tests",
        "organization": "org-a",
        "table": "events",
        "request": {"where": "id <> 'org-a-e2'"},
        "reason": "because",
        "by": "an auditor",
        "snapshot_id": house.lake_table("events", "org-a").current_snapshot().snapshot_id,
        "contract": "1.0",
        "rows": 2,
        "content_sha256": content_digest(rows),
        "missing": {},
        "format": "csv",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    assert sorted(p.name for p in path.parent.iterdir()) == ["events.csv", "events.csv.manifest.json"]
    # The same rows of the same snapshot are the same bytes.
    bring(house, where="id <> 'org-a-e2'", target="csv", output=tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_nothing_is_replaced_and_nothing_is_left_half_done(house: Lakehouse, tmp_path: Path) -> None:
    landed(house)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.csv").write_text("mine")
    (out / "b.csv.manifest.json").write_text("mine")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(RecallError, match="is there already"):
            bring(house, where="true", target="csv", output=out / name)
    with pytest.raises(RecallError, match="there is no folder"):
        bring(house, where="true", target="csv", output=out / "c" / "d.csv")
    for file in (tmp_path / "warehouse").rglob("data/**/*.parquet"):
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LakehouseError, match="the lake's files cannot be read"):
        bring(house, where="true", target="csv", output=out / "e.csv")
    assert sorted(p.name for p in out.iterdir()) == ["a.csv", "b.csv.manifest.json"]
    assert {p.read_text() for p in out.iterdir()} == {"mine"}
    assert [r.state for r in recalls(house.app)] == ["failed"] * 4


def test_a_file_that_did_not_get_its_name_failed(
    house: Lakehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are on record before anybody can see them, and that they were not handed out after."""
    landed(house)
    write = files.write

    def somebody_else_is_first(*arguments: Any) -> files.Written:
        (tmp_path / "a.csv").write_text("mine")
        return write(*arguments)

    monkeypatch.setattr(files, "write", somebody_else_is_first)
    with pytest.raises(RecallError, match="is there already"):
        bring(house, where="true", target="csv", output=tmp_path / "a.csv")
    (found,) = recalls(house.app)
    assert (found.state, found.row_count) == ("failed", 3)
    assert [line[1] for line in audit(house)] == ["recall", "recalled", "recall failed"]
    assert (tmp_path / "a.csv").read_text() == "mine"


@pytest.fixture
def in_a_bucket(hot_url: str, s3: Any, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    house = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    house.init()
    landed(house)
    yield house
    house.close()


def test_a_file_in_a_bucket(in_a_bucket: Lakehouse, s3: Any, bucket: str) -> None:
    url = f"s3://{bucket}/recalled/events.parquet"
    done = bring(in_a_bucket, where="true", target="parquet", output=url)
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
    )
    stored = client.get_object(Bucket=bucket, Key="recalled/events.parquet")["Body"].read()
    manifest = json.loads(client.get_object(Bucket=bucket, Key="recalled/events.parquet.manifest.json")["Body"].read())
    assert hashlib.sha256(stored).hexdigest() == done.file_sha256 == manifest["sha256"]
    with pytest.raises(RecallError, match="is there already"):
        bring(in_a_bucket, where="true", target="parquet", output=url)
    client.delete_object(Bucket=bucket, Key="recalled/events.parquet")
    with pytest.raises(RecallError, match=r"manifest.json: is there already"):
        bring(in_a_bucket, where="true", target="parquet", output=url)
    with pytest.raises(RecallError, match="lies within a lake"):
        bring(in_a_bucket, where="true", target="parquet", output=f"s3://{bucket}/warehouse/x.parquet")
    with pytest.raises(RecallError, match="neither a path nor"):
        bring(in_a_bucket, where="true", target="parquet", output="gs://elsewhere/x")
    names = [o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix="recalled")["Contents"]]
    assert names == ["recalled/events.parquet.manifest.json"]


# --- the record -------------------------------------------------------------------------------------------------------


def test_who_asked_for_what_is_written_down_before_and_after(house: Lakehouse) -> None:
    landed(house)
    done = bring(house, ids=("org-a-e1", "nothing"))
    with pytest.raises(RecallError):
        bring(house, where="other = 1")
    request = {"ids": ["org-a-e1", "nothing"]}
    (failed, good) = recalls(house.app)
    assert (good.id, good.requested_by, good.reason, good.request) == (done.id, "an auditor", "because", request)
    assert (good.row_count, good.content_sha256, good.snapshot_id) == (1, done.content_sha256, done.snapshot_id)
    assert (failed.state, failed.row_count) == ("failed", None)
    lines = audit(house)
    assert [line[:3] for line in lines] == [
        ("an auditor", action, "because") for action in ("recall", "recalled", "recall", "recall failed")
    ]
    assert lines[0][3] == {"recall": str(done.id), "table": "events", "request": request, "target": "table"}
    assert lines[1][3] == {
        "recall": str(done.id),
        "table": "events",
        "target": "table recalled_events",
        "rows": 1,
        "content_sha256": done.content_sha256,
        "snapshot_id": str(done.snapshot_id),
        "contract": "1.0",
        "missing": {"nothing": "not in the lake"},
    }
    assert lines[3][3]["error"].startswith("--where: the table has no column 'other'")


def test_the_program(house: Lakehouse, tmp_path: Path) -> None:
    landed(house)
    of = ("recall", "--organization", "org-a-slug", "--table", "events")
    done = house.run(*of, "--id", "org-a-e1", "--id", "no", "--reason", "r", "--to", "table", "--expires", "2d")
    assert "1 rows of events into table recalled_events" in done.stdout
    assert done.stderr == "no: not in the lake\n"
    shown = house.run_json(
        *of, "--from", "2026-01-01T00:02", "--to", "2026-01-01T00:03", "--reason", "r", "--by", "me", "--to", "jsonl",
        "--output", str(tmp_path / "x.jsonl"),
    )  # fmt: skip
    assert (shown["rows"], shown["target"]) == (1, f"jsonl {tmp_path}/x.jsonl")
    assert json.loads((tmp_path / "x.jsonl").read_text())["id"] == "org-a-e2"
    none = house.run(*of, "--id", "no", "--reason", "r", "--to", "table", check=1)
    assert "error: none of the ids is in the lake: no: not in the lake" in none.stderr
    for arguments, said in (
        ((*of, "--where", "true", "--to", "table"), "a recall needs a reason"),
        ((*of, "--where", "true", "--reason", "r"), "--to says nothing"),
        ((*of, "--where", "true", "--reason", "r", "--to", "table", "--output", "x"), "--output is for files"),
        ((*of, "--where", "true", "--reason", "r", "--to", "csv", "--expires", "1d"), "--expires is for --to table"),
        ((*of[:-1], "nothing", "--where", "true", "--reason", "r", "--to", "csv"), "no contract for a table 'nothing'"),
        (("recall", "-o", "nobody", "--table", "events", "--where", "true", "--reason", "r", "--to", "csv"),
         "no organization 'nobody'"),
        ((*of, "--where", "true", "--reason", "r", "--to", "table", "--expires", "99999999d"),
         "--expires 99999999d: longer than a hundred years"),
        (("recall", "remove", "x"), "'x' is not the id of a recall"),
    ):  # fmt: skip
        refused = CliRunner().invoke(program, arguments, env=house.environment())
        assert isinstance(refused.exception, LakehouseError), arguments
        assert said in refused.exception.detail
    listed = house.run_json("recall", "list", "--organization", "org-a")
    assert [(r["state"], r["requested_by"] == "me") for r in listed] == [
        ("failed", False), ("done", True), ("done", False),
    ]  # fmt: skip
    assert house.run_json("recall", "remove", listed[2]["id"])["state"] == "removed"
    assert "removed" in house.run("recall", "list").stdout
