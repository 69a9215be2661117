"""Programs of this suite count the failpoints that they pass; `tests/crash_report.py` adds them up."""

from __future__ import annotations

import os

import pytest

from tests.crash_report import LOG


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_FAILPOINT_LOG", os.environ[LOG])
