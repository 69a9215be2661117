"""A case of the conformance suite that is skipped is a failure, whatever skipped it; other tests may be skipped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_runtest_makereport


@pytest.mark.parametrize(
    ("name", "outcome", "wanted"),
    [
        ("test_conformance[JSONL_S3-deletes_show_as_deleted]", "skipped", "failed"),
        ("test_conformance[JSONL_S3-deletes_show_as_deleted]", "passed", "passed"),
        ("test_a_folder_that_is_read_only", "skipped", "skipped"),
    ],
    ids=["a case that is skipped", "a case that passes", "another test"],
)
def test_a_skipped_case_is_an_empty_cell(name: str, outcome: str, wanted: str) -> None:
    report: Any = SimpleNamespace(outcome=outcome, skipped=outcome == "skipped", longrepr="the reason")
    hook = pytest_runtest_makereport(SimpleNamespace(name=name), None)  # type: ignore[arg-type]
    next(hook)
    with pytest.raises(StopIteration) as end:
        hook.send(report)
    assert end.value.value.outcome == wanted
    assert "the reason" in end.value.value.longrepr
