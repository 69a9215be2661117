"""The policy of fences, case by case."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lakehouse.capture.fence import Cause, Verdict, judge, same_source
from lakehouse.capture.position import TOO_OLD, Adoption, Position, Snapshot, SourceIdentity

SOURCE = SourceIdentity("7", "9", 2, 3, address="db:5432/app", storage="a", started="1.5")
POSITION = Position(
    xmin=100,
    xmax=120,
    seen=(),
    exact_xmin=90,
    bound=None,
    repeats=False,
    columns="c",
    labels=(),
    source=SOURCE,
)
NOW = Snapshot(115, 130)


def verdict(snapshot: Snapshot = NOW, position: Position = POSITION, **changed: Any) -> tuple[Verdict, Cause]:
    found = judge(position, dataclasses.replace(SOURCE, **changed), snapshot)
    assert bool(found.detail) == (found.cause is not Cause.NOTHING)
    return found.verdict, found.cause


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (Verdict.SAME, Cause.NOTHING)),
        ({"system_identifier": "8"}, (Verdict.REFUSE, Cause.ANOTHER_SYSTEM)),
        ({"address": "staging:5432/app"}, (Verdict.REFUSE, Cause.ANOTHER_ADDRESS)),
        ({"address": "staging:5432/app", "timeline": "10"}, (Verdict.REFUSE, Cause.ANOTHER_ADDRESS)),
        ({"database_oid": 4}, (Verdict.REFUSE, Cause.ANOTHER_DATABASE)),
        ({"timeline": "8"}, (Verdict.REFUSE, Cause.EARLIER_TIMELINE)),
        # As numbers: "10" sorts before "9".
        ({"timeline": "10"}, (Verdict.RECONCILE, Cause.FAILOVER)),
        ({"table_oid": 5}, (Verdict.RECONCILE, Cause.RECREATED)),
        ({"storage": "b"}, (Verdict.RECONCILE, Cause.REWRITTEN)),
        ({"started": "2.5"}, (Verdict.RECONCILE, Cause.RESTARTED)),
    ],
)
def test_what_differs(changed: dict[str, Any], expected: tuple[Verdict, Cause]) -> None:
    assert verdict(**changed) == expected


@pytest.mark.parametrize("timeline", ["9", "10"])
def test_a_source_behind_the_lake_is_refused_whatever_its_timeline(timeline: str) -> None:
    assert verdict(Snapshot(119, 119), timeline=timeline) == (Verdict.REFUSE, Cause.BEHIND)
    assert verdict(Snapshot(119, 120), timeline=timeline)[0] is not Verdict.REFUSE


def test_an_old_position_is_not_gone_on_from() -> None:
    assert verdict(Snapshot(1, 90 + TOO_OLD)) == (Verdict.SAME, Cause.NOTHING)
    assert verdict(Snapshot(1, 91 + TOO_OLD)) == (Verdict.RECONCILE, Cause.TOO_OLD)


def test_what_an_earlier_version_did_not_write_is_not_compared() -> None:
    raw = POSITION.to_json()
    for name in ("address", "storage", "started"):
        del raw["source"][name]
    del raw["adoption"]
    old = Position.from_json(raw)
    assert judge(old, SOURCE, NOW).verdict is Verdict.SAME
    assert judge(old, dataclasses.replace(SOURCE, system_identifier="8"), NOW).verdict is Verdict.REFUSE
    assert same_source(old.source, SOURCE)


def test_an_adoption_covers_what_was_adopted_and_nothing_else() -> None:
    other = dataclasses.replace(SOURCE, system_identifier="8", address="new:5432/app")
    adopted = dataclasses.replace(POSITION, adoption=Adoption("id", other, 50))
    assert Position.from_json(adopted.to_json()) == adopted
    assert judge(adopted, other, Snapshot(50, 50)).cause is Cause.ADOPTED
    assert judge(adopted, dataclasses.replace(other, started="9"), Snapshot(50, 60)).cause is Cause.ADOPTED
    assert judge(adopted, other, Snapshot(49, 49)).cause is Cause.BEHIND
    assert judge(adopted, SOURCE, NOW).verdict is Verdict.REFUSE
