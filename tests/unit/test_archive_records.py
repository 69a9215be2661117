"""The lines that a batch hashes while its rows are locked are those of its tombstones, whatever stands in a key."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta, timezone

from lakehouse.archive.foreign_keys import children_first
from lakehouse.archive.records import Tombstone, lines_digest, moment, tombstone_lines, tombstones_digest

KEYS = ["b", "a", "ä", 'quote" and \\', "line\nfeed", "\u2028", "", "😀", "Z" * 300, "a,b", "\x7f\x01"]


def test_lines_of_a_batch_are_those_of_its_tombstones() -> None:
    shared = Tombstone(
        organization='org "a"', table="events", row_key="", event_time=None, sequence=0, batch=7, delivered_to=(),
        snapshot_id=2**62, keyed_hash="", hash_key="t1", contract_version="1.0", policy="data_retention_days 90",
        operator="Änn", archived_at=datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2))),
    )  # fmt: skip
    events = [None, datetime(2020, 1, 1, tzinfo=UTC), datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)]
    tombstones = [
        dataclasses.replace(
            shared,
            row_key=key,
            event_time=events[n % 3],
            sequence=n * 10**12,
            delivered_to=[(), ("ICEBERG_S3 lake",), ("ICEBERG_S3 lake", 'JSONL_S3 "x"')][n % 3],
            keyed_hash=f"{n:064x}",
        )
        for n, key in enumerate(KEYS)
    ]
    tombstones.sort(key=lambda t: t.row_key.encode())
    rows = [(t.row_key, moment(t.event_time), t.sequence, t.delivered_to, t.keyed_hash) for t in tombstones]
    lines = list(tombstone_lines(shared, rows))
    assert lines == [t.line() for t in tombstones]
    assert lines_digest(lines) == tombstones_digest(reversed(tombstones))


def test_children_come_first_and_cycles_are_named() -> None:
    order, cycles = children_first(["a", "b", "c", "d"], {"a": ["b"], "b": ["c", "b", "elsewhere"], "d": []})
    assert (order.index("a") < order.index("b") < order.index("c"), cycles) == (True, [])
    order, cycles = children_first(["a", "b", "c"], {"a": ["b"], "b": ["a", "c"], "c": []})
    assert (sorted(order), cycles) == (["a", "b", "c"], [("a", "b")])
    assert order.index("b") < order.index("c")
    order, cycles = children_first("abcd", {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["d"]})
    assert (sorted(order), cycles) == (["a", "b", "c", "d"], [("a", "b", "c")])
