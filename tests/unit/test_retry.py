"""The retry policy: who waits how long, and who waits for a person."""

from __future__ import annotations

import pytest

from lakehouse.outbox.retry import JITTER, decide
from lakehouse.settings import WorkSettings
from schemas.errors import LakehouseError, Retry

WORK = WorkSettings()


def waits(retry: Retry, *, endless: bool = False) -> list[float | None]:
    return [decide(LakehouseError("x", retry=retry), n, WORK, endless=endless).wait_seconds for n in range(1, 12)]


@pytest.mark.parametrize("retry", [Retry.TIMED, Retry.MANUAL])
def test_five_attempts_doubling_from_thirty_seconds_with_jitter(retry: Retry) -> None:
    found = waits(retry)
    for wait, middle in zip(found[:4], (30, 60, 120, 240), strict=True):
        assert wait is not None and middle * (1 - JITTER) <= wait <= middle * (1 + JITTER)
    assert found[4:] == [None] * 7
    assert len({decide(LakehouseError("x", retry=retry), 1, WORK).wait_seconds for _ in range(20)}) > 10, "jitter"


def test_an_outage_is_waited_out_at_half_an_hour() -> None:
    found = waits(Retry.TIMED, endless=True)
    assert all(w is not None and w <= 1800 * (1 + JITTER) for w in found)
    assert found[-1] is not None and found[-1] >= 1800 * (1 - JITTER)
    assert decide(LakehouseError("x", retry=Retry.TIMED), 10_000, WORK, endless=True).wait_seconds is not None


def test_a_permanent_error_waits_for_a_person_at_once_and_an_unknown_one_after_five() -> None:
    assert waits(Retry.NEVER, endless=True)[0] is None
    assert decide(ValueError("odd"), 4, WORK, endless=True).wait_seconds is not None
    assert decide(ValueError("odd"), 5, WORK, endless=True).wait_seconds is None


def test_the_error_is_cut_to_what_the_column_takes() -> None:
    assert len(decide(LakehouseError("x" * 2000), 1, WORK).error) == 500
