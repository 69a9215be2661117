"""Receipts and tombstones are checked from the lake alone, and whatever was altered, removed or moved is named."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakehouse.archive.audit import read_audit
from lakehouse.archive.evidence import Verified, public_keys, verify
from lakehouse.archive.export import export_batches, recover_batches
from lakehouse.archive.recorded import open_recorded
from lakehouse.archive.seal import make_signing_key, unseal
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.maintenance.run import maintain_table
from schemas.contract import BUILT_IN
from schemas.errors import LakehouseError, Retry
from tests.cold import REFERENCES, allow, archive_once, archive_variables, old_events, old_findings
from tests.support import ROOT, Lakehouse, host_tables, local_variables, s3_variables

AUDIT_WINDOW = timedelta(days=8 * 366)
"""Longer than tombstones stay in the hot database."""


@dataclass(frozen=True)
class Made:
    """A lakehouse that was made once: its database, variables, and what its folder held."""

    url: str
    variables: dict[str, str]
    folder: Path
    kept: Path


@pytest.fixture(scope="module")
def made(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """For tests that only look at the hot database; what they do to the lake is undone by `house`."""
    name = f"evidence_{secrets.token_hex(6)}"
    url, folder = postgres_server.create_database(name), tmp_path_factory.mktemp("evidence")
    house = build(url, folder / "lake")
    house.close()
    shutil.copytree(folder / "lake", folder / "kept")
    yield Made(url, house.variables, folder / "lake", folder / "kept")
    postgres_server.drop_database(name)


@pytest.fixture
def house(made: Made) -> Iterator[Lakehouse]:
    """Four batches of two tables have left org-a's hot database, and one org-b's; all are in the lake."""
    shutil.rmtree(made.folder)
    shutil.copytree(made.kept, made.folder)
    lakehouse = Lakehouse(made.url, dict(made.variables))
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def own(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    """The same, for tests that change the hot database."""
    lakehouse = build(postgres_url, tmp_path / "lake")
    yield lakehouse
    lakehouse.close()


def build(url: str, folder: Path) -> Lakehouse:
    folder.mkdir()
    host_tables(url, ("org-a", "org-b"))
    lakehouse = Lakehouse(url, local_variables(url, folder) | archive_variables(folder))
    lakehouse.init()
    allow(lakehouse, "org-a", "org-b")
    with lakehouse.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
        old_events(hot, "org-a", 1, 25)
        old_events(hot, "org-a", 26, 5, day="2020-02-01")
        old_events(hot, "org-b", 1, 3)
        old_findings(hot, "org-a", 1, 4)
    for table in ("findings", "events"):
        lakehouse.backfill(table)
    assert archive_once(lakehouse, "findings", "org-a").rows == 4
    assert archive_once(lakehouse, "events", "org-a", batch_rows=10).rows == 30
    assert archive_once(lakehouse, "events", "org-b").rows == 3
    assert export_batches(lakehouse.app, "org-a") == 4 and export_batches(lakehouse.app, "org-b") == 1
    return lakehouse


def check(house: Lakehouse, organization: str = "org-a", **options: Any) -> Verified:
    options.setdefault("chain", True)
    return verify(house.app, organization, options.pop("keys", public_keys(house.app, [])), **options)


def said(result: Verified) -> list[tuple[int | None, str, tuple[str, ...]]]:
    return [(f.batch, f.what, f.keys) for f in result.faults]


def test_what_is_as_it_was_signed_is_sound(house: Lakehouse) -> None:
    result = check(house)
    assert result.faults == [] and result.notes == []
    assert (result.batches, result.rows, result.tables) == (4, 34, {"findings": 4, "events": 30})
    assert (result.signatures, result.tombstones, result.contents, result.keyed_hashes) == (4, 34, 34, 34)
    assert (result.first, result.last, result.hot, result.waiting, result.lake_alone) == (1, 4, "compared", 0, 0)
    with house.hot() as hot:
        row = hot.execute("SELECT chain FROM lakehouse_archive.batches WHERE number = 4 AND organization_id = 'org-a'")
        assert row.fetchone() == (result.chain,)
    assert check(house, "org-b").rows == 3


def test_any_altered_text_of_a_receipt_is_no_receipt(house: Lakehouse) -> None:
    """The forger knows the format, rewrites the payload, and mends what the table says of the chain."""

    def forge(row: dict[str, Any]) -> dict[str, Any]:
        if row["batch"] == 2 and row["receipt"] is not None:
            head, payload, signature = row["receipt"].split(".")
            raw = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            raw["operator"] = "nobody"
            text = json.dumps(raw, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
            forged = f"{head}.{base64.urlsafe_b64encode(text).rstrip(b'=').decode()}.{signature}"
            row["receipt"] = forged
        return row

    tamper(house, "_archive", forge)
    result = check(house)
    assert (2, "signature", ()) in said(result) and (2, "chain", ()) in said(result)
    assert (2, "hot", ()) in said(result)
    assert {f.batch for f in result.faults} == {2}, "one fault is not every later batch's"
    assert result.chain is None
    assert [f.what for f in check(house, chain=False).faults] == ["signature"]


def test_another_key_opens_nothing_and_keys_can_change(own: Lakehouse, tmp_path: Path) -> None:
    first = public_keys(own.app, [])
    other = make_signing_key(tmp_path / "second.pem")
    result = check(own, keys=[other])
    assert [f.what for f in result.faults if f.batch == 1] == ["signature"] and result.signatures == 0
    assert first[0].thumbprint in result.faults[0].detail and other.thumbprint in result.faults[0].detail
    # From now on the second key signs.
    own.reopen(ARCHIVE__SIGNING_KEY_FILE=str(tmp_path / "second.pem"))
    with own.hot() as hot:
        old_events(hot, "org-a", 40, 2)
    own.sync_ok("events")
    assert archive_once(own, "events", "org-a").rows == 2
    export_batches(own.app, "org-a")
    assert [f.batch for f in check(own).faults] == [1, 2, 3, 4]
    result = check(own, keys=[*first, other])
    assert result.sound and set(result.keys) == {first[0].thumbprint, other.thumbprint} and result.rows == 36


def test_one_altered_value_in_the_lake_is_found_and_by_the_tombstone_key_named(
    house: Lakehouse,
) -> None:
    tamper(house, "events", lambda row: row | {"actor": "mallory"} if row["id"] == "org-a-e7" else row)
    result = check(house)
    assert said(result) == [(2, "content", ("org-a-e7",))]
    assert (result.contents, result.keyed_hashes, result.signatures, result.tombstones) == (24, 33, 4, 34)
    house.variables.pop("LAKEHOUSE_ARCHIVE__TOMBSTONE_KEYS")
    house.reopen()
    result = check(house)
    assert said(result) == [(2, "content", ())] and result.keyed_hashes is None


def test_a_row_that_is_gone_from_the_lake_is_named(house: Lakehouse) -> None:
    tamper(house, "events", lambda row: None if row["id"] in ("org-a-e3", "org-a-e26") else row)
    assert said(check(house)) == [(2, "rows", ("org-a-e3",)), (4, "rows", ("org-a-e26",))]


def test_a_file_that_is_gone_or_damaged_costs_the_rows_that_it_held(house: Lakehouse) -> None:
    files = sorted(live(house, "events"), key=lambda path: pq.read_table(path).num_rows)
    assert [pq.read_table(path).num_rows for path in files] == [5, 25]
    Path(files[0]).unlink()
    result = check(house)
    assert [(f.batch, f.what) for f in result.faults] == [(4, "rows"), (None, "file")]
    assert files[0] in result.faults[1].detail and result.contents == 34 - 10
    data = bytearray(Path(files[1]).read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    Path(files[1]).write_bytes(data)
    result = check(house)
    assert [f.what for f in result.faults] == ["rows", "rows", "rows", "file", "file"] and result.contents == 4
    assert result.signatures == 4 and result.tombstones == 34


def test_a_removed_tombstone_is_found_and_named_where_the_hot_database_has_it(house: Lakehouse) -> None:
    tamper(house, "_archive", lambda row: None if row["row_key"] == "org-a-e15" else row)
    result = check(house)
    assert (3, "hot", ("org-a-e15",)) in said(result)
    (fault,) = [f for f in result.faults if f.what == "tombstones"]
    assert (fault.batch, fault.detail) == (3, "9 tombstones, 10 were signed")
    assert {f.batch for f in result.faults} == {3}
    (alone,) = check(house, chain=False).faults
    assert alone == fault


def test_the_receipt_goes_with_the_tombstone_that_bears_it(house: Lakehouse) -> None:
    tamper(house, "_archive", lambda row: None if row["receipt"] is not None and row["batch"] == 3 else row)
    result = check(house)
    assert (3, "receipt", ()) in said(result) and (3, "chain", ()) in said(result)
    assert {f.batch for f in result.faults} == {3}


def test_an_altered_tombstone_is_found_and_named_with_what_differs(house: Lakehouse) -> None:
    tamper(house, "_archive", lambda row: row | {"operator": "nobody"} if row["row_key"] == "org-a-e5" else row)
    result = check(house)
    assert said(result) == [(2, "tombstones", ()), (2, "hot", ("org-a-e5",))]
    assert result.faults[1].detail.endswith("operator")
    # With its keyed hash: the tombstone key names it, the hot database or not.
    tamper(house, "_archive", lambda row: row | {"keyed_hash": "0" * 64} if row["row_key"] == "org-a-e5" else row)
    assert (2, "tombstones", ("org-a-e5",)) in said(check(house, chain=False))


def test_a_tombstone_that_the_hot_database_lost_is_named(own: Lakehouse) -> None:
    with own.hot() as hot:
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE row_key = 'org-a-e12'")
        hot.execute("UPDATE lakehouse_archive.cold_storage_archive SET policy = 'x' WHERE row_key = 'org-a-f2'")
    assert said(check(own)) == [(1, "hot", ("org-a-f2",)), (3, "hot", ("org-a-e12",))]
    assert check(own, chain=False).sound
    with own.hot() as hot:
        # Pruned after the audit window: the lake has them, and that is no fault.
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE batch <= 3")
    own.clock.offset = AUDIT_WINDOW
    result = check(own)
    assert result.sound and result.lake_alone == 3 and result.notes == []


def test_a_batch_whose_tombstones_nobody_pruned_is_named(own: Lakehouse) -> None:
    with own.hot() as hot:
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE organization_id = 'org-a' AND batch = 4")
    result = check(own)
    assert said(result) == [(4, "hot", ())] and result.lake_alone == 1
    assert "younger than the audit window of 7 years" in result.faults[0].detail
    assert "batch 4: hot: " in own.run("receipts", "verify", "-o", "org-a", "--chain", check=1).stdout
    own.clock.offset = AUDIT_WINDOW
    result = check(own)
    assert said(result) == [(4, "hot", ())], "old enough, and the ones before it are still there"
    assert "batch 1 still has some there" in result.faults[0].detail


def test_batches_that_a_restored_database_got_back_are_told_from_those(own: Lakehouse) -> None:
    with own.hot() as hot:
        for name, column in (("cold_storage_archive", "batch"), ("batches", "number")):
            hot.execute(f"DELETE FROM lakehouse_archive.{name} WHERE organization_id = 'org-a' AND {column} >= 3")
    assert {f.batch for f in check(own).faults} == {3, 4}, "forgotten, and not put back yet"
    assert recover_batches(own.app, "org-a") == 2
    (line,) = read_audit(own.app, "org-a")
    assert (line.action, line.subject) == ("batches restored", {"first": 3, "last": 4})
    result = check(own)
    assert result.sound and result.lake_alone == 2
    assert len(result.notes) == 1 and result.notes[0].startswith("batches 3-4: the hot database was restored")
    with own.hot() as hot:
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE organization_id = 'org-a' AND batch = 2")
    assert said(check(own)) == [(2, "hot", ())]


def test_an_archived_row_that_the_lake_shows_as_deleted_is_named_unless_it_came_back(own: Lakehouse) -> None:
    with own.hot() as hot:
        # One comes back, and is deleted; another is moved to another day before it goes.
        old_events(hot, "org-a", 3, 1)
        old_events(hot, "org-a", 40, 1)
        own.sync_ok("events", reconcile=False)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e3'")
        hot.execute("UPDATE ingested_events SET occurred_at = occurred_at - interval '9 days' WHERE id = 'org-a-e40'")
        own.sync_ok("events", reconcile=False)
        assert archive_once(own, "events", "org-a").rows == 1
        export_batches(own.app, "org-a")
        # Somebody makes a delete of an archived row.
        hot.execute("DELETE FROM lakehouse_archive.cold_storage_archive WHERE row_key = 'org-a-e12'")
    assert own.sync_ok("events", reconcile=True).deletes == {"org-a": 3}
    assert said(check(own)) == [(3, "hot", ("org-a-e12",)), (3, "deleted", ("org-a-e12",))]
    assert said(check(own, chain=False)) == [(3, "deleted", ("org-a-e12",))]


def test_a_removed_batch_shows_wherever_it_stood(house: Lakehouse) -> None:
    kept = check(house)
    tamper(house, "_archive", lambda row: None if row["batch"] == 2 else row)
    result = check(house)
    assert [(f.batch, f.what) for f in result.faults] == [(2, "hot"), (3, "chain")]
    assert result.faults[1].detail == "batch 2 is missing before it"
    assert check(house, chain=False).sound, "each of the others is sound: this is what --chain is for"
    # The end: the table itself says how far it goes, and whoever kept the chain's value knows it too.
    tamper(house, "_archive", lambda row: None if row["batch"] >= 3 else row)
    without_hot(house)
    assert [(f.batch, f.what) for f in check(house).faults] == [(4, "chain")]
    with house.lake_table("_archive", "org-a").transaction() as transaction:
        transaction.set_properties({"lakehouse.exported": json.dumps(standing(house) | {"number": 1})})
    assert check(house).sound
    assert kept.chain is not None
    assert [(f.batch, f.what) for f in check(house, known={4: kept.chain}).faults] == [(4, "chain")]
    assert [f.batch for f in check(house, known={1: "0" * 64}).faults] == [1]


def test_swapped_batches_show(house: Lakehouse) -> None:
    tamper(house, "_archive", lambda row: row | {"batch": {2: 3, 3: 2}.get(row["batch"], row["batch"])})
    result = check(house)
    assert {(f.batch, f.what) for f in result.faults} >= {(2, "receipt"), (3, "receipt"), (2, "chain"), (3, "chain")}
    assert 1 not in {f.batch for f in result.faults}
    assert {(f.batch, f.what) for f in check(house, chain=False).faults} == {(2, "receipt"), (3, "receipt")}


def test_it_holds_after_compaction_and_expiry(own: Lakehouse) -> None:
    own.reopen(
        MAINTENANCE__KEEP_SNAPSHOTS="1",
        MAINTENANCE__KEEP_DAILY="0",
        MAINTENANCE__SETTLED_HOURS="0",
        MAINTENANCE__GRACE_MINUTES="0",
    )
    with own.hot() as hot:
        for number in range(3):
            old_events(hot, "org-a", 50 + number, 1)
            own.sync_ok("events", reconcile=False)
    before = live(own, "events")
    own.clock.offset = timedelta(hours=1)
    done = [maintain_table(own.app, own.app.contract("events"), "org-a") for _ in range(3)]
    assert not any(d.errors for d in done) and sum(d.files_merged for d in done) > 0
    assert len(own.lake_table("events", "org-a").snapshots()) == 1
    assert not all(Path(path).exists() for path in before)
    result = check(own)
    assert result.sound and result.contents == 34


def test_it_needs_neither_the_hot_database_nor_the_control_tables(house: Lakehouse, tmp_path: Path) -> None:
    public = public_keys(house.app, [])
    (tmp_path / "public.pem").write_text(public[0].pem)
    nowhere = "postgresql://auditor@127.0.0.1:1/none"
    environment = {k: v for k, v in house.variables.items() if "ARCHIVE" not in k}
    environment |= {"LAKEHOUSE_SOURCE__URL": nowhere, "LAKEHOUSE_CONTROL__URL": nowhere}
    auditor = Lakehouse.__new__(Lakehouse)
    auditor.variables = environment
    arguments = ("receipts", "verify", "--organization", "org-a", "--chain")
    said = auditor.run(*arguments, "--public-key", str(tmp_path / "public.pem"))
    assert "4 of 4 good" in said.stdout and "34 of 34 rows" in said.stdout and "whole up to 4:" in said.stdout
    assert "hot database not reachable" in said.stdout
    refused = auditor.run(*arguments, check=2)
    assert "no public key" in refused.stderr
    shown = auditor.run_json("receipts", "show", "--from-lake", "-o", "org-a", "--id", "org-a-e7")
    assert [t["batch"] for one in shown for t in one["tombstones"]] == [2]
    slug = auditor.run(*arguments[:3], "org-a-slug", "--public-key", str(tmp_path / "public.pem"), check=2)
    assert "the catalog has no organization with the id 'org-a-slug', and the host cannot be asked" in slug.stderr
    assert "127.0.0.1:1/none does not answer" in slug.stderr and "init" not in slug.stderr

    # Nor need they be named.
    for name in ("LAKEHOUSE_SOURCE__URL", "LAKEHOUSE_CONTROL__URL"):
        del auditor.variables[name]
    alone = auditor.run(*arguments, "--public-key", str(tmp_path / "public.pem"))
    assert "34 of 34 rows" in alone.stdout and "LAKEHOUSE_SOURCE__URL is not set" in alone.stdout
    assert auditor.run_json("receipts", "show", "--from-lake", "-o", "org-a", "--id", "org-a-e7") == shown
    assert "source.url" in auditor.run("receipts", "show", "-o", "org-a", check=2).stderr
    del auditor.variables["LAKEHOUSE_LAKE__CATALOG__URI"]
    assert "lake.catalog.uri" in auditor.run(*arguments, check=2).stderr


def test_the_commands_show_and_end_with_1_where_something_is_wrong(house: Lakehouse) -> None:
    shown = house.run_json("receipts", "show", "--organization", "org-a-slug", "--table", "events")
    assert [(one["number"], one["rows"]) for one in shown] == [(2, 10), (3, 10), (4, 10)]
    keys = {k.thumbprint: k for k in public_keys(house.app, [])}
    assert [unseal(one["jws"], keys).number for one in shown] == [2, 3, 4], "the receipt is printed whole"
    text = house.run("receipts", "show", "-o", "org-a", "--id", "org-a-f3").stdout
    assert "batch 1" in text and "lakehouse recall --organization org-a --table findings --id org-a-f3" in text
    tamper(house, "events", lambda row: row | {"severity": "LOW"} if row["id"] == "org-a-e7" else row)
    wrong = house.run("receipts", "verify", "-o", "org-a", "--chain", check=1)
    assert "batch 2: content: the lake's rows are not those that were signed: org-a-e7" in wrong.stdout
    missing = house.run("receipts", "show", "-o", "org-a", "--id", "org-a-e999", check=2)
    assert "no tombstone of that row" in missing.stderr


def test_batches_that_the_lake_does_not_have_yet_are_checked_from_the_hot_database(own: Lakehouse) -> None:
    with own.hot() as hot:
        old_events(hot, "org-a", 40, 2)
    own.sync_ok("events")
    assert archive_once(own, "events", "org-a").rows == 2
    result = check(own)
    assert result.sound and (result.waiting, result.batches, result.rows, result.contents) == (1, 5, 36, 36)
    with own.hot() as hot:
        hot.execute("UPDATE lakehouse_archive.cold_storage_archive SET operator = 'x' WHERE batch = 5")
    assert said(check(own)) == [(5, "tombstones", ())]


def test_an_id_that_came_back_and_left_again_has_two_tombstones_that_hold(own: Lakehouse) -> None:
    with own.hot() as hot:
        old_events(hot, "org-a", 3, 1)
        hot.execute("UPDATE ingested_events SET actor = 'second life' WHERE id = 'org-a-e3'")
    own.sync_ok("events")
    assert archive_once(own, "events", "org-a").rows == 1
    export_batches(own.app, "org-a")
    assert check(own).sound
    (first, second) = own.run_json("receipts", "show", "-o", "org-a", "--id", "org-a-e3")
    assert (first["number"], second["number"]) == (2, 5)


def test_a_column_that_the_contract_added_later_changes_no_receipt(own: Lakehouse, tmp_path: Path) -> None:
    raw = json.loads((BUILT_IN / "events" / "v1.json").read_text())
    last = raw["columns"][-1]
    added = last | {"id": last["id"] + 1, "name": "region", "source": "region", "since": "1.1"}
    folder = tmp_path / "contracts" / "events"
    folder.mkdir(parents=True)
    (folder / "v1.json").write_text(json.dumps(raw | {"version": "1.1", "columns": [*raw["columns"], added]}))
    with own.hot() as hot:
        hot.execute("ALTER TABLE ingested_events ADD COLUMN region text")
        old_events(hot, "org-a", 40, 2)
        hot.execute("UPDATE ingested_events SET region = 'eu'")
    own.reopen(CONTRACTS=json.dumps(["builtin", str(tmp_path / "contracts")]))
    own.sync_ok("events")
    assert archive_once(own, "events", "org-a").rows == 2
    export_batches(own.app, "org-a")
    result = check(own)
    assert result.sound and result.contents == 36


def test_an_object_that_is_gone_is_evidence_and_a_storage_that_does_not_answer_is_none(
    hot_url: str, tmp_path: Path
) -> None:
    with EmbeddedS3() as server:
        bucket = server.create_bucket("evidence")
        host_tables(hot_url, ("org-a",))
        house = Lakehouse(hot_url, s3_variables(hot_url, server, bucket) | archive_variables(tmp_path))
        house.init()
        allow(house, "org-a")
        with house.hot() as hot:
            for statement in REFERENCES:
                hot.execute(statement)
            old_events(hot, "org-a", 1, 4)
            old_events(hot, "org-a", 5, 3, day="2020-02-01")
        house.backfill("events")
        assert archive_once(house, "events", "org-a", batch_rows=4).rows == 7
        assert export_batches(house.app, "org-a") == 2
        assert check(house).sound
        table = house.lake_table("events", "org-a")
        gone = next(t.file.file_path for t in table.scan().plan_files() if "2020-02-01" in t.file.file_path)
        table.io.delete(gone)
        result = check(house)
        assert said(result) == [(2, "rows", ("org-a-e5", "org-a-e6", "org-a-e7")), (None, "file", ())]
        assert gone in result.faults[1].detail
        with open_recorded(house.app.lake("org-a")) as (_, archive):
            assert archive is not None
            server.stop()
            with pytest.raises(LakehouseError) as caught:
                archive.batches()
        assert caught.value.retry is Retry.TIMED
        house.close()


def test_a_stranger_comes_to_the_same_with_the_document_alone(house: Lakehouse, tmp_path: Path) -> None:
    (public,) = public_keys(house.app, [])
    (tmp_path / "public.pem").write_text(public.pem)

    def stranger() -> Any:
        command = [sys.executable, str(ROOT / "tests/stranger.py"), str(tmp_path / "public.pem"), str(BUILT_IN)]
        command += [",".join(live(house, "_archive"))]
        command += [f"{table}={','.join(live(house, table))}" for table in ("events", "findings")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    found = stranger()
    assert found == {"batches": 4, "rows": 34, "chain": check(house).chain, "faults": []}
    tamper(house, "events", lambda row: row | {"actor": "mallory"} if row["id"] == "org-a-e7" else row)
    assert stranger()["faults"] == ["batch 2: content"]


def tamper(house: Lakehouse, table: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change rows inside the data files themselves, as somebody could who may write to the bucket."""
    for path in live(house, table):
        before = pq.read_table(path)
        rows = [changed for row in before.to_pylist() if (changed := change(row)) is not None]
        pq.write_table(pa.Table.from_pylist(rows, schema=before.schema), path)


def live(house: Lakehouse, table: str, organization: str = "org-a") -> list[str]:
    scan = house.lake_table(table, organization).scan()
    return sorted(task.file.file_path.removeprefix("file://") for task in scan.plan_files())


def standing(house: Lakehouse) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(house.lake_table("_archive", "org-a").properties["lakehouse.exported"])
    return raw


def without_hot(house: Lakehouse) -> None:
    house.reopen(ARCHIVE__URL="postgresql://nobody@127.0.0.1:1/none")
