"""Whether a position may be gone on from, given the database that answers now: the one place where it is decided.

Three answers. *Same*: the method's own window. *Reconcile*: the source is the one that the lake was made from, but
transaction ids cannot be trusted across what happened, so every row is compared by content and every key; what the
source no longer has becomes a delete, what differs a new version, and history keeps all of it. *Refuse*: it may be
another database, or one that has forgotten what the lake holds; nothing is read until a person adopts it.

Old evidence is never carried over a reconciliation: ids that were seen before may name other transactions now.
A transaction that the lake holds and a promoted server never received looks like this: same address and system,
a later timeline. If the server's next id is below the position's, the lake is ahead for certain: refused. If it is
not, its ids may have been used again for other transactions, and only the full comparison tells.
What is not known (an empty text in a position of an earlier version) is not compared. Independent of the method.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from lakehouse.capture.position import TOO_OLD, Position, Snapshot, SourceIdentity
from schemas.errors import LakehouseError, Retry


class Verdict(StrEnum):
    """What a method may do with a position."""

    SAME = "same"
    RECONCILE = "reconcile"
    REFUSE = "refuse"


class Cause(StrEnum):
    """What was found; each is said in `sync`, `status` and the events."""

    NOTHING = "nothing"
    ADOPTED = "adopted"
    ANOTHER_ADDRESS = "another address"
    ANOTHER_SYSTEM = "another system"
    ANOTHER_DATABASE = "another database"
    EARLIER_TIMELINE = "earlier timeline"
    BEHIND = "behind the lake"
    FAILOVER = "failover"
    RECREATED = "recreated table"
    REWRITTEN = "truncated or rewritten table"
    RESTARTED = "restarted server"
    TOO_OLD = "position too old"


@dataclass(frozen=True)
class Judgement:
    """The policy's answer. `detail`: what was found, with both values, in words for an operator."""

    verdict: Verdict
    cause: Cause
    detail: str = ""


class SourceRefused(LakehouseError):
    """The source is not, or may not be, the one that the lake was made from. Nothing was read or written."""

    retry = Retry.MANUAL


ADOPT_HINT = (
    "Point LAKEHOUSE_SOURCE__URL at the database that the lake was made from. If this one is to go on instead: "
    "`lakehouse lake adopt --reason …`; it shows what differs, and the next window compares every row."
)

_SAME = Judgement(Verdict.SAME, Cause.NOTHING)


def judge(position: Position, present: SourceIdentity, snapshot: Snapshot) -> Judgement:
    """Decide for one position. `snapshot`: of the transaction that would read the window."""
    if (adoption := position.adoption) is not None:
        # Judged against what the person saw and adopted: another change since then is not covered by it.
        adopted = dataclasses.replace(position, source=adoption.source, xmax=adoption.xmax, adoption=None)
        found = _refusal(adopted, present, snapshot)
        return found or Judgement(Verdict.RECONCILE, Cause.ADOPTED, f"adopted ({adoption.id})")
    return _refusal(position, present, snapshot) or _reconciliation(position, present, snapshot) or _SAME


def _refusal(position: Position, present: SourceIdentity, snapshot: Snapshot) -> Judgement | None:
    before = position.source
    for cause, name, was, now, why in (
        (
            Cause.ANOTHER_SYSTEM,
            "system identifier",
            before.system_identifier,
            present.system_identifier,
            "another cluster: a dump that was loaded elsewhere, or an upgrade",
        ),
        (
            Cause.ANOTHER_ADDRESS,
            "address",
            before.address,
            present.address,
            "a copy (staging?), or the same database under another name",
        ),
        (
            Cause.ANOTHER_DATABASE,
            "database oid",
            before.database_oid,
            present.database_oid,
            "another database of the same cluster: a copy by CREATE DATABASE, or one that was dropped and made again",
        ),
    ):
        if was != now and "" not in (was, now):
            return _refuse(cause, f"the source is another one than before: {name} was {was}, is {now} ({why})")
    if int(present.timeline) < int(before.timeline):
        return _refuse(
            Cause.EARLIER_TIMELINE,
            f"the source went back from timeline {before.timeline} to {present.timeline}: an old primary that came "
            "back, or a restore",
        )
    if snapshot.xmax < position.xmax:
        how = (
            "it was restored to an earlier time"
            if present.timeline == before.timeline
            else f"a failover or restore (timeline {before.timeline}, now {present.timeline}) lost transactions"
        )
        return _refuse(
            Cause.BEHIND,
            f"the source is behind the lake: its next transaction is {snapshot.xmax}, the last window saw "
            f"{position.xmax}: {how}, and the lake holds what it lost",
        )
    return None


def _reconciliation(position: Position, present: SourceIdentity, snapshot: Snapshot) -> Judgement | None:
    before = position.source
    age = snapshot.xmax - min(position.xmin, position.exact_xmin)
    if before.timeline != present.timeline:
        return _reconcile(
            Cause.FAILOVER,
            f"a failover: timeline {before.timeline}, now {present.timeline}; ids may name other transactions now",
        )
    if before.table_oid != present.table_oid:
        return _reconcile(
            Cause.RECREATED, f"another table under the same name: oid {before.table_oid}, now {present.table_oid}"
        )
    if _differ(before.storage, present.storage):
        return _reconcile(Cause.REWRITTEN, "the table was truncated or rewritten since the last window")
    if _differ(before.started, present.started):
        return _reconcile(
            Cause.RESTARTED,
            "the server was started again since the last window: it may have lost its last transactions, or be an "
            "older copy that has caught up",
        )
    if age > TOO_OLD:
        return _reconcile(Cause.TOO_OLD, f"the position is {age:,} transactions old: 32-bit ages wrap at 2^31")
    return None


def _differ(before: str, now: str) -> bool:
    return before != now and "" not in (before, now)


def _refuse(cause: Cause, detail: str) -> Judgement:
    return Judgement(Verdict.REFUSE, cause, detail)


def _reconcile(cause: Cause, detail: str) -> Judgement:
    return Judgement(Verdict.RECONCILE, cause, detail)


def refusal(source_name: str, judgement: Judgement) -> SourceRefused:
    """The error that says so; `source_name` is the hot table's."""
    return SourceRefused(f"{source_name}: {judgement.detail}. Nothing was captured.", ADOPT_HINT)


def same_source(before: SourceIdentity, present: SourceIdentity) -> bool:
    """Whether rows that were read under `before` and rows that are read now are of one database and timeline.

    Another table under the same name, or a restart, is left to the first window's own judgement.
    """
    return (
        not _differ(before.address, present.address)
        and before.system_identifier == present.system_identifier
        and before.database_oid == present.database_oid
        and before.timeline == present.timeline
    )
