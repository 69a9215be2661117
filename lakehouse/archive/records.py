"""What the archive writes down: holds, tombstones and receipts as values, and the hashes that bind them.

The bytes that are hashed and signed are defined here and nowhere else; docs/compliance.md repeats them for whoever
checks a receipt without this program. No I/O.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

FIRST_CHAIN = "0" * 64
"""What the first batch of an organization follows."""
RECEIPT_TYPE = "lakehouse-receipt+jws"


@dataclass(frozen=True)
class Hold:
    """A legal hold. None means all: of the organization's tables, of a table's rows, of time."""

    id: UUID
    organization: str
    table: str | None
    row_keys: tuple[str, ...] | None
    event_from: datetime | None
    event_upto: datetime | None
    """Exclusive."""
    reason: str
    placed_by: str
    placed_at: datetime
    released_by: str | None = None
    released_reason: str | None = None
    released_at: datetime | None = None


@dataclass(frozen=True)
class Tombstone:
    """One row that left the hot database. `sequence`: the version in the lake that was proven equal to it."""

    organization: str
    table: str
    row_key: str
    event_time: datetime | None
    sequence: int
    batch: int
    delivered_to: tuple[str, ...]
    snapshot_id: int
    keyed_hash: str
    hash_key: str
    contract_version: str
    policy: str
    operator: str
    archived_at: datetime

    def line(self) -> str:
        """The text of this tombstone that `tombstones_sha256` hashes: a JSON array of its fields, in their order."""
        values = [
            self.organization, self.table, self.row_key, moment(self.event_time), self.sequence, self.batch,
            list(self.delivered_to), self.snapshot_id, self.keyed_hash, self.hash_key, self.contract_version,
            self.policy, self.operator, moment(self.archived_at),
        ]  # fmt: skip
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Receipt:
    """What one batch proves; its JSON is the payload of the JWS."""

    installation: str
    organization: str
    table: str
    contract_version: str
    batch: UUID
    number: int
    previous: str
    """The chain's value before this batch."""
    rows: int
    content_sha256: str
    tombstones_sha256: str
    lake_table: str
    snapshot_id: int
    files: tuple[str, ...]
    """The data files that were read, as the lake names them; a compaction may have replaced them since."""
    destinations: tuple[dict[str, Any], ...]
    """Whose durable receipts allowed it: name, kind, the `_sequence` that each is complete to; or the waiver."""
    policy: str
    operator: str
    method: str
    software: str
    archived_at: datetime

    def payload(self) -> bytes:
        """The signed bytes: JSON in UTF-8 with sorted keys."""
        values = {k: getattr(self, k) for k in self.__dataclass_fields__}
        values |= {"v": 1, "batch": str(self.batch), "archived_at": moment(self.archived_at)}
        return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, payload: bytes) -> Receipt:
        """Read a payload.

        Raises:
            ValueError, KeyError, TypeError: it is not one of this version.
        """
        raw = json.loads(payload)
        if (version := raw.pop("v")) != 1:
            raise ValueError(f"a receipt of version {version}")
        raw |= {
            "batch": UUID(raw["batch"]),
            "archived_at": datetime.fromisoformat(raw["archived_at"]),
            "files": tuple(raw["files"]),
            "destinations": tuple(raw["destinations"]),
        }
        return cls(**raw)


def moment(value: datetime | None) -> str | None:
    """A time as it is hashed and signed: UTC, with microseconds."""
    return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")


class ContentDigest:
    """`content_digest` of rows that come in order of their keys' bytes: any number of them, in little memory."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.rows = 0

    def add(self, hashes: Iterable[str]) -> None:
        """The canonical hashes of the next rows."""
        for row_hash in hashes:
            self._digest.update(f"{row_hash}\n".encode())
            self.rows += 1

    def hexdigest(self) -> str:
        """Of the rows so far."""
        return self._digest.hexdigest()


def content_digest(rows: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over (key text, canonical hash of the row) pairs: the hashes, a line each, in order of the keys' bytes.

    The canonical hash (docs/canonical-row.md) is unkeyed, so a stranger can compute this from the lake alone.
    """
    digest = ContentDigest()
    digest.add(row_hash for _, row_hash in sorted(rows, key=lambda pair: pair[0].encode()))
    return digest.hexdigest()


def tombstone_lines(
    shared: Tombstone, rows: Iterable[tuple[str, str | None, int, Sequence[str], str]]
) -> Iterator[str]:
    """`Tombstone.line` of many rows that differ only in key, event time (as `moment`), sequence, destinations and hash.

    What they share is encoded once: a batch writes these while its rows are locked.
    """
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    head = encode([shared.organization, shared.table])[:-1]
    middle = f",{shared.snapshot_id},"
    tail = encode(
        [shared.hash_key, shared.contract_version, shared.policy, shared.operator, moment(shared.archived_at)]
    )[1:]
    destinations: dict[Sequence[str], str] = {}
    for key, event, sequence, delivered, keyed in rows:
        if (held := destinations.get(delivered)) is None:
            held = destinations[delivered] = encode(list(delivered))
        time = "null" if event is None else f'"{event}"'
        yield f'{head},{encode(key)},{time},{sequence},{shared.batch},{held}{middle}"{keyed}",{tail}'


def lines_digest(lines: Iterable[str]) -> str:
    """SHA-256 over lines of tombstones that come in the order of their keys' bytes; see `tombstones_digest`."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def tombstones_digest(tombstones: Iterable[Tombstone]) -> str:
    """SHA-256 over the lines of a batch's tombstones, in the order of their keys' bytes."""
    return lines_digest(t.line() for t in sorted(tombstones, key=lambda t: t.row_key.encode()))


def chain_after(previous: str, receipt: str) -> str:
    """The chain's value after a batch: SHA-256 over the value before it, a line feed, and the receipt's JWS text."""
    return hashlib.sha256(f"{previous}\n{receipt}".encode()).hexdigest()
