"""Every notebook runs from the first cell to the last, against a lake with rows in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, Lakehouse, host_tables, insert_events, s3_variables

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_every_cell_runs(
    path: Path, hot_url: str, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    host_tables(hot_url)
    house = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    house.init()
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
    for table in ("events", "findings", "oauth_grants"):
        house.backfill(table)
    house.close()
    for name, value in house.variables.items():
        monkeypatch.setenv(name, value)
    scope: dict[str, Any] = {}
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    for cell in cells:
        assert not cell["outputs"], "committed without outputs"
        exec(compile("".join(cell["source"]), str(path), "exec"), scope)
    scope["app"].close()
    assert "lakehouse.window" in capsys.readouterr().out


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
