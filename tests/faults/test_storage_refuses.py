"""A bucket that turns read-only or full: said in our words, nothing is lost, and it goes on when it is mended."""

from __future__ import annotations

import re

import pytest

from schemas.errors import Retry
from tests.faults.conftest import Proxied
from tests.faults.proxy import Fault, Request
from tests.support import insert_events


def writes(request: Request) -> bool:
    return re.match(r"(PUT|POST) ", request.text) is not None


def commits(request: Request) -> bool:
    return writes(request) and "/metadata/" in request.text


@pytest.mark.parametrize("where", [writes, commits], ids=["staging", "committing"])
@pytest.mark.parametrize(
    ("answer", "retry", "hint"),
    [
        ((403, "AccessDenied"), Retry.MANUAL, "must allow to read, list, write"),
        ((507, "InsufficientStorage"), Retry.TIMED, "is full"),
        ((403, "QuotaExceeded"), Retry.TIMED, "is full"),
    ],
    ids=["read-only", "full", "over its quota"],
)
def test_a_bucket_that_takes_nothing(
    landed: Proxied, where: object, answer: tuple[int, str], retry: Retry, hint: str
) -> None:
    house = landed.house
    before = house.lake_table("events", "org-a").metadata_location
    fault = landed.s3.arm(Fault("answer", where, times=None, answer=answer))  # type: ignore[arg-type]
    for _ in range(2):
        result = house.sync("events", reconcile=True)
        assert fault.hits > 0
        assert set(result.errors) == {"org-a", "org-b"}, result
        for error in result.errors.values():
            assert (error.retry, hint in error.hint) == (retry, True), (error, error.hint)
    assert house.lake_table("events", "org-a").metadata_location == before
    landed.calm()
    with house.hot() as hot:
        insert_events(hot, "org-b", 300, 1)
    landed.settle()


def test_what_the_operator_sees(landed: Proxied) -> None:
    """A program of its own: an exit status, one line of ours a fault, no traceback."""
    for server, fault in (
        ("s3", Fault("answer", writes, times=None, answer=(503, "SlowDown"))),
        ("catalog", Fault("cut_request", lambda r: "iceberg_tables" in r.text, times=None)),
        ("control", Fault("drop_reply", lambda r: r.text == "COMMIT", times=None)),
        ("source", Fault("cut_reply", lambda r: r.text.startswith("COPY"), times=None, after=40)),
    ):
        landed[server].arm(fault)
        done = landed.house.run("sync", "--once", "--table", "events", check=1)
        assert fault.hits > 0, server
        assert "Traceback" not in done.stderr + done.stdout, (server, done.stderr)
        assert done.stdout + done.stderr, server
        landed.calm()
    landed.settle()
