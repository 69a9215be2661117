"""Memory follows the chunk, not the window: 64 chunks need no more than a few of them at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import dataclasses, sys, datetime
import pyarrow as pa
from pyiceberg.io.pyarrow import PyArrowFileIO
from lakehouse.landing.staging import Stager, Target
from schemas.contract import BUILT_IN, load_contract

contract = load_contract(BUILT_IN / "audit_log" / "v1.json")
if sys.argv[2] == "flat":
    contract = dataclasses.replace(contract, event_time=None)
MIB = 1024 * 1024
rows = MIB // 1100

def batches():
    for chunk in range(64):
        n = range(chunk * rows, (chunk + 1) * rows)
        columns = {}
        for c in contract.columns:
            if c.type.name == "timestamptz":
                columns[c.name] = pa.array([i * 7_000_000_000 for i in n], pa.timestamp("us", tz="UTC"))
            else:
                columns[c.name] = pa.array([f"{c.name}-{i}" for i in n])
        columns["metadata"] = pa.array(["x" * 1000 for _ in n])
        columns["organization_id"] = pa.array(["o" for _ in n])
        columns["_xmin"] = pa.array([1 for _ in n], pa.int64())
        yield pa.RecordBatch.from_pydict(columns)

with Stager(contract, lambda o: Target(PyArrowFileIO(), "file://" + sys.argv[1]), lambda o, n: 1, window="w",
            captured_at=datetime.datetime.now(datetime.UTC), chunk_bytes=MIB, threads=4) as stager:
    total = stager.add(batches())
    files = sum(len(s.files) for s in stager.finish().values())
print(total, files, pa.default_memory_pool().max_memory() // MIB)
"""


def staged(folder: Path, kind: str) -> tuple[int, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), kind], capture_output=True, text=True, check=True
    )
    rows, files, peak = map(int, done.stdout.split())
    return rows, files, peak


def test_memory_is_bounded_by_the_chunk(tmp_path: Path) -> None:
    for kind in ("flat", "days"):
        rows, files, peak = staged(tmp_path / kind, kind)
        assert rows == 64 * (1024 * 1024 // 1100)
        assert files >= 32
        assert peak <= 16, f"{kind}: {peak} MiB of Arrow memory for 64 chunks of 1 MiB"
