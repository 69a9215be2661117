"""The demo's own path, smaller: real servers, a live workload, equality; and its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_the_demo_proves_equality_under_a_live_workload(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # What the caller's environment names must not be touched.
    stranger = {"LAKEHOUSE_SOURCE__URL": "postgresql://nobody@127.0.0.1:1/none", "LAKEHOUSE_NONSENSE": "1"}
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from lakehouse.cli import main; main()", "demo"),
            *("--rows", "6000", "--seconds", "8", "--rate", "60", "--report", str(report)),
        ],
        env={**os.environ, **stranger, "HOME": str(tmp_path / "no-home")},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr
    assert "30 of 30 tables" in done.stdout
    figures = json.loads(report.read_text())
    assert (figures["tables_equal"], figures["tables"], figures["proven"]) == (30, 30, True)
    assert figures["destinations_equal"] == 30 and all(p["lag"] == 0 for p in figures["parity"])
    for phase in ("backfill", "windows"):
        counts = figures["workload"][phase]
        assert all(counts[kind] > 0 for kind in ("inserts", "updates", "deletes", "rollbacks")), (phase, counts)
    assert sum(r["upserts"] for r in figures["rounds"]) > 0
    assert sum(r["deletes"] for r in figures["rounds"]) > 0
    retention = figures["retention"]
    assert len(retention["refused"]) == 3 and all("CREATE INDEX" in r for r in retention["refused"])
    assert sum(retention["archived"].values()) == sum(t["archived"] for t in figures["equality"]) > 0
    assert retention["tampered"].endswith("differs from the lake: title")
    assert retention["held"] and retention["recalled"].startswith(retention["held"])
    assert 0 < retention["rows_proven_again"] <= sum(retention["archived"].values())
    assert all(t["repeated"] == 0 and t["hot_rows"] > 0 for t in figures["equality"])
