"""Storage, catalog, control tables and source cut, delay, answer errors and drop replies after the effect.

Whatever happens to one window: the operator sees an error of ours that is tried again by itself, or none; afterwards
hot and lake are the same and no version landed twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from tests.faults.conftest import Proxied
from tests.faults.proxy import Fault, Request
from tests.support import insert_events


def asks(pattern: str) -> Callable[[Request], bool]:
    """Requests whose method and path, or whose statement, has this in it."""
    return lambda request: re.search(pattern, request.text) is not None


def commits(pattern: str) -> Callable[[Request], bool]:
    """The COMMIT of a transaction that had such a statement."""
    return lambda request: request.text == "COMMIT" and any(re.search(pattern, s) for s in request.before)


PLACES: dict[str, tuple[str, Callable[[Request], bool]]] = {
    "s3: reading metadata": ("s3", asks(r"^GET .*metadata\.json")),
    "s3: reading data": ("s3", asks(r"^GET .*\.parquet")),
    "s3: staging": ("s3", asks(r"^P(UT|OST) .*\.parquet")),
    "s3: committing": ("s3", asks(r"^P(UT|OST) .*/metadata/")),
    "catalog: reading": ("catalog", asks(r"SELECT.*iceberg_tables")),
    "catalog: committing": ("catalog", asks(r"UPDATE iceberg_tables")),
    "catalog: its COMMIT": ("catalog", commits(r"UPDATE iceberg_tables")),
    "control: claiming": ("control", asks(r"UPDATE tasks SET due_at")),
    "control: recording": ("control", commits(r"INSERT INTO windows")),
    "control: acknowledging": ("control", commits(r"UPDATE landings SET .*snapshot_id")),
    "control: giving back": ("control", commits(r"UPDATE tasks SET .*finished_at")),
    "source: connecting": ("source", asks(r"^\(connect\)")),
    "source: snapshot": ("source", asks(r"pg_current_snapshot")),
    "source: reading rows": ("source", asks(r"(?s)^COPY .*ingested_events")),
}
KINDS: dict[str, dict[str, object]] = {
    "cut before it arrives": {"kind": "cut_request", "after": 0},
    "cut in the middle": {"kind": "cut_request", "after": 40},
    "answer cut": {"kind": "cut_reply", "after": 40},
    "delay": {"kind": "delay", "seconds": 0.4},
    "500": {"kind": "answer", "answer": (500, "InternalError")},
    "503": {"kind": "answer", "answer": (503, "SlowDown")},
    "reply dropped": {"kind": "drop_reply"},
}
SHORT = ("cut in the middle", "500", "reply dropped")
"""What is done everywhere in a run of all tests; `FAULTS=all` does every kind, in seven minutes."""
ASKED = tuple(KINDS) if os.environ.get("FAULTS") == "all" else SHORT
# PostgreSQL has no 500 or 503: it ends a session by an error.
CASES = [
    pytest.param(place, kind, id=f"{place}, {kind}")
    for place, (server, _) in PLACES.items()
    for kind in ASKED
    if server == "s3" or kind != "503"
]


@pytest.mark.parametrize(("place", "kind"), CASES)
def test_one_fault(landed: Proxied, place: str, kind: str) -> None:
    server, where = PLACES[place]
    fault = landed[server].arm(Fault(where=where, times=2 if server == "s3" else 1, **KINDS[kind]))  # type: ignore[arg-type]
    landed.window(reconcile=True)
    assert fault.hits > 0, "the fault never acted"
    landed.calm()
    with landed.house.hot() as hot:
        # Rows move on before anybody tries again.
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-a-e200'")
        insert_events(hot, "org-b", 300, 1)
    landed.settle()


# An upload whose answer is cut after its status line took effect, and its client knows.
OUTAGES = [
    pytest.param(place, kind, id=f"{place}, {kind}")
    for place in PLACES
    for kind in ASKED
    if place.startswith("s3")
    and kind != "delay"
    and not (kind == "answer cut" and place in ("s3: staging", "s3: committing"))
]


@pytest.mark.parametrize(("place", "kind"), OUTAGES)
def test_an_outage_of_the_storage(landed: Proxied, place: str, kind: str) -> None:
    """A fault that lasts outlives the client's own retries: the error waits, and says that the storage is at fault."""
    server, where = PLACES[place]
    fault = landed[server].arm(Fault(where=where, times=None, **KINDS[kind]))  # type: ignore[arg-type]
    result = landed.window(reconcile=True)
    assert fault.hits > 0 and result.errors, "the fault never acted"
    landed.calm()
    landed.settle()
