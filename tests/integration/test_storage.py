"""What the way to storage costs: requests, clients, what a backfill's processes load, how rows are sorted."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from catalog.objects import ObjectWriter
from catalog.storage import LakeFileIO, object_writer
from lakehouse.embedded.s3 import EmbeddedS3
from lakehouse.landing.staging import Stager, Target
from schemas.contract import BUILT_IN, load_contract
from tests.s3_gate import S3Gate
from tests.support import ROOT, Lakehouse, host_tables, insert_events, s3_variables


def access(s3: EmbeddedS3, endpoint: str | None = None) -> dict[str, str]:
    return {
        "s3.endpoint": endpoint or s3.endpoint,
        "s3.region": s3.region,
        "s3.access-key-id": s3.access_key,
        "s3.secret-access-key": s3.secret_key,
    }


@pytest.mark.parametrize("kind", ["iceberg", "backfill"])
def test_a_small_object_is_one_request(s3: EmbeddedS3, bucket: str, kind: str) -> None:
    with S3Gate(s3.endpoint) as gate:
        location = f"s3://{bucket}/lake"
        storage = access(s3, gate.endpoint)
        io = LakeFileIO(storage) if kind == "iceberg" else pickle.loads(pickle.dumps(object_writer(storage, location)))
        with io.new_output(f"{location}/a/b.parquet").create(overwrite=True) as stream:
            stream.write(b"x" * 100_000)
        assert [r.partition("?")[0] for r in gate.requests] == [f"PUT /{bucket}/lake/a/b.parquet"]
        with pytest.raises(FileExistsError):
            io.new_output(f"{location}/a/b.parquet").create(overwrite=False)
    assert LakeFileIO(access(s3)).new_input(f"{location}/a/b.parquet").open().read() == b"x" * 100_000


def test_lakes_share_a_client_only_where_nothing_differs(s3: EmbeddedS3) -> None:
    def client(bucket: str = "one", **changes: str) -> object:
        return LakeFileIO({**access(s3), **changes}).fs_by_scheme("s3", bucket)

    assert client() is client()
    assert client() is client(**{"lakehouse.cursor": "moved on"})
    for changed in ("s3.secret-access-key", "s3.access-key-id", "s3.session-token", "s3.proxy-uri"):
        assert client(**{changed: "http://other"}) is not client()
    assert client("two") is not client("one")


BACKFILL = """
import json, sys
from lakehouse.backfill.run import backfill_table
from lakehouse.backfill.worker import LIBRARIES
from lakehouse.executor import LocalProcesses
from tests.support import Lakehouse

house = Lakehouse(*json.loads(sys.argv[1]))
with LocalProcesses(1, libraries=LIBRARIES) as executor:
    result = backfill_table(house.app, house.app.contract("events"), executor)
    assert not result.errors and result.rows == {"org-a": 3000, "org-b": 10}, result
    # Not a function of a module of ours: it would bring along what is imported there.
    print(json.dumps(executor.submit(eval, "list(__import__('sys').modules)").result()))
"""


def test_a_backfills_process_loads_neither_iceberg_nor_sqlalchemy(hot_url: str, s3: EmbeddedS3, bucket: str) -> None:
    host_tables(hot_url, ("org-a", "org-b"))
    house = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    try:
        with house.hot() as hot:
            insert_events(hot, "org-a", 1, 3000)
            insert_events(hot, "org-b", 1, 10)
        house.init()
        # An interpreter of its own: what is forked in this one has what tests load.
        script = [sys.executable, "-c", BACKFILL, json.dumps([house.hot_url, house.variables])]
        done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert done.returncode == 0, done.stderr
        modules = set(json.loads(done.stdout))
        assert "pyarrow" in modules
        assert not modules & {"pyiceberg.table", "pyiceberg.io.pyarrow", "sqlalchemy", "duckdb", "typer", "rich"}
        house.assert_equal("events")
    finally:
        house.close()


def test_rows_of_a_chunk_are_cut_by_organization_and_day_and_numbered_in_order(tmp_path: Path) -> None:
    contract = load_contract(BUILT_IN / "audit_log" / "v1.json")
    day = 86_400_000_000

    def batch(numbers: list[int]) -> pa.RecordBatch:
        columns: dict[str, pa.Array] = {}
        for column in contract.columns:
            if column.type.name == "timestamptz":
                columns[column.name] = pa.array([n * day // 10 for n in numbers], pa.timestamp("us", tz="UTC"))
            else:
                columns[column.name] = pa.array([f"{column.name}-{n}" for n in numbers])
        columns["organization_id"] = pa.array([f"o{n % 2}" for n in numbers])
        columns["_xmin"] = pa.array(numbers, pa.int64())
        return pa.RecordBatch.from_pydict(columns)

    given = [[31, 2, 17, 4], [25, 3, 1], [0, 12, 33, 5, 11]]
    next_number = {"o0": 1, "o1": 1}

    def allocate(organization: str, count: int) -> int:
        first = next_number[organization]
        next_number[organization] += count
        return first

    with Stager(
        contract,
        lambda o: Target(ObjectWriter(pa.fs.LocalFileSystem(), "file:///x", str(tmp_path)), f"file:///x/{o}"),
        allocate,
        window="w",
        captured_at=datetime.now(UTC),
        chunk_bytes=1 << 20,
        threads=2,
    ) as stager:
        assert stager.add(map(batch, given)) == 12
        shares = stager.finish()
    assert {o: s.rows for o, s in shares.items()} == {"o0": 4, "o1": 8}
    for organization, share in shares.items():
        assert [f.day for f in share.files] == sorted(
            {n // 10 for g in given for n in g if f"o{n % 2}" == organization}
        )
        numbers: list[int] = []
        for file in share.files:
            table = pq.read_table(str(tmp_path) + file.path.removeprefix("file:///x"), partitioning=None)
            assert {x // 10 for x in table["_xmin"].to_pylist()} == {file.day}
            numbers += table["_sequence"].to_pylist()
            assert (table["_sequence"][0].as_py(), table["_sequence"][-1].as_py()) == (
                file.first_sequence,
                file.last_sequence,
            )
        assert numbers == list(range(1, share.rows + 1))
