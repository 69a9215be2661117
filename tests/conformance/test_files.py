"""What only files have: a manifest that is damaged, deliveries that a filling cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from federation.kinds import DestinationKind
from federation.protocol import OvertakenError
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import resync
from schemas.errors import Retry
from tests.conformance.places import Files
from tests.conformance.test_destinations import Stage, house, stage

__all__ = ["house", "stage"]


@pytest.fixture(params=[DestinationKind.PARQUET_S3, DestinationKind.JSONL_S3], ids=lambda k: k.value)
def kind(request: pytest.FixtureRequest) -> DestinationKind:
    found: DestinationKind = request.param
    return found


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"format": 1}'], ids=["broken", "list", "empty"])
def test_a_damaged_manifest_is_said_and_filled_anew(stage: Stage, body: bytes) -> None:
    assert isinstance(stage.place, Files)
    stage.delivered()
    stage.place.put(stage.place.manifest_key("events"), body)
    error = stage.parity().error
    assert error is not None and error.retry is Retry.MANUAL and "resync" in error.hint
    (result,) = resync(stage.house.app, stage.destination, ["events"])
    assert result.error is None, result.error
    stage.equal()


def test_a_filling_that_is_overtaken_is_done_once_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.delivered()
    app = stage.house.app
    contract = app.contract("events")
    lake = open_lake_table(app, contract, "org-a")
    adapter = stage.adapter()
    before = stage.place.stored()
    with range_reader(app, lake) as rows, pytest.raises(OvertakenError):
        # As if it had been begun when the lake stood at 5, and a delivery of (0, 10] came meanwhile.
        adapter.replace(contract, 5, lake.snapshot_id, rows.latest(5))
    after = stage.place.stored()
    assert {k: after[k] for k in before} == before, "what counts is what was there"

    replace, states = type(adapter).replace, []

    def overtaken(self: Any, contract: Any, sequence: int, snapshot_id: int, rows: Iterator[Any]) -> Any:
        states.append(sequence)
        if len(states) == 1:
            raise OvertakenError("a delivery came")
        return replace(self, contract, sequence, snapshot_id, rows)

    monkeypatch.setattr(type(adapter), "replace", overtaken)
    (result,) = resync(app, stage.destination, ["events"])
    adapter.close()
    assert result.error is None and states == [10, 10]
    stage.equal()
