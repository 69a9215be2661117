"""Arithmetic of transaction ids, also across the wrap at 2^32, and positions that go to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from lakehouse.capture.position import HALF_SPACE, XID_SPACE, Position, Snapshot, SourceIdentity, new_ids, still_new
from lakehouse.landing.cursor import Inventory, LakeCursor
from lakehouse.sync import group_by_position

POSITION = Position(
    xmin=2**33 + 5,
    xmax=2**33 + 9,
    seen=(5, 7),
    exact_xmin=2**33,
    bound=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    repeats=False,
    columns="abc",
    labels=(("1", "HIGH"), ("2", "LÖW")),
    source=SourceIdentity("7", "1", 2, 3),
    reconciled_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_ids_at_or_after_the_snapshots_xmin_are_kept(epoch: int) -> None:
    snapshot = Snapshot(xmin=epoch * XID_SPACE + 100, xmax=epoch * XID_SPACE + 200)
    assert new_ids(pa.array([99, 100, 150, 150, 199]), snapshot) == {100, 150, 199}
    assert still_new([99, 100, 199], snapshot) == {100, 199}


def test_ids_are_compared_across_the_wrap() -> None:
    snapshot = Snapshot(xmin=2 * XID_SPACE - 10, xmax=2 * XID_SPACE + 10)
    before, after = XID_SPACE - 11, 3
    assert new_ids(pa.array([before, XID_SPACE - 10, after]), snapshot) == {XID_SPACE - 10, after}
    assert still_new([before, after], snapshot) == {after}


def test_what_is_half_the_space_away_is_old() -> None:
    snapshot = Snapshot(xmin=10, xmax=11)
    assert new_ids(pa.array([10 + HALF_SPACE - 1, 10 + HALF_SPACE]), snapshot) == {10 + HALF_SPACE - 1}


def test_a_position_and_a_cursor_survive_json() -> None:
    cursor = LakeCursor(POSITION, "w/1", 9, datetime(2026, 1, 3, tzinfo=UTC), None, Inventory(7, "s3://x/y"))
    again = LakeCursor.from_json(json.loads(json.dumps(cursor.to_json())))
    assert again == cursor
    assert again.position.reconciled_at == POSITION.reconciled_at


def test_groups_are_equal_positions_and_reconcile_when_the_oldest_is_due() -> None:
    def cursor(**changes: object) -> LakeCursor:
        position = dataclasses.replace(POSITION, **changes)  # type: ignore[arg-type]
        return LakeCursor(position, None, 0, datetime(2026, 1, 1, tzinfo=UTC), None, None)

    older = datetime(2025, 1, 1, tzinfo=UTC)
    groups = group_by_position(
        {"a": cursor(), "b": cursor(reconciled_at=older), "c": cursor(seen=(5,)), "d": cursor()}, without=["d"]
    )
    assert [g.organizations for g in groups] == [("a", "b"), ("c",)]
    assert groups[0].position.reconciled_at == older
    (never,) = group_by_position({"a": cursor(), "b": cursor(reconciled_at=None)})
    assert never.position.reconciled_at is None
