"""Compares batches with one another, and with the hot database's own record of them. No I/O.

The chain: numbers from one on without a gap; each receipt names the chain's value before it; the value after it is the
hash of both. So a batch that is missing, altered or in another's place shows at its number. That the end was cut off
shows by what `_archive` says of itself, by the hot database, or by a value that somebody kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime

from lakehouse.archive.faults import Fault, fault
from lakehouse.archive.recorded import Recorded
from lakehouse.archive.records import FIRST_CHAIN, Receipt, Tombstone, chain_after


def chain_faults(
    batches: Sequence[Recorded],
    receipts: Mapping[int, Receipt],
    known: Mapping[int, str],
    *,
    exported: tuple[Sequence[Recorded], int],
) -> tuple[list[Fault], str | None]:
    """What is wrong with the chain, and its value after the last batch (None: it is not whole, or there is none).

    `receipts`: those whose signature is good. `known`: values that somebody kept, by number. `exported`: the batches
    that `_archive` has, and the number that it says it goes up to.
    """
    found: list[Fault] = []
    before, expected = FIRST_CHAIN, 1
    for batch in batches:
        number, receipt = batch.number, receipts.get(batch.number)
        if number != expected:
            found.append(fault(number, "chain", f"{_numbers(expected, number - 1)} missing before it"))
            before = receipt.previous if receipt is not None else before
        expected = number + 1
        after = chain_after(before, batch.receipt) if batch.receipt is not None else None
        if receipt is not None and receipt.previous != before:
            found.append(fault(number, "chain", "its receipt was signed after another batch than the one before it"))
        if after is None or batch.chain != after:
            found.append(fault(number, "chain", "its value is not that of its receipt and the batch before it"))
        if (kept := known.get(number)) is not None and kept != after:
            found.append(fault(number, "chain", f"its value was {kept} when it was kept, and is {after} now"))
        # What follows goes on from what stands here, or one batch's fault would be every later one's.
        before = after if receipt is not None and after is not None else batch.chain or after or before
    for number in sorted(known.keys() - {b.number for b in batches}):
        found.append(fault(number, "chain", "it was there when its value was kept, and is not any more"))
    in_lake, standing = exported
    last = in_lake[-1].number if in_lake else 0
    if standing and last != standing:
        there = f"the last is {last}" if last else "none is there"
        found.append(fault(standing, "chain", f"_archive says that it goes up to this batch, and {there}"))
    whole = bool(batches) and not found and len(receipts) == len(batches)
    return found, before if whole else None


def batch_faults(lake: Sequence[Recorded], hot: Mapping[int, Recorded]) -> list[Fault]:
    """Where the hot database's record of the batches that the lake has is another."""
    found = []
    ours = {b.number: b for b in lake}
    last = lake[-1].number if lake else 0
    for number, theirs in hot.items():
        if number > last:
            continue
        if (mine := ours.get(number)) is None:
            found.append(fault(number, "hot", f"the hot database has it, with {theirs.rows:,} rows; the lake has not"))
        elif (mine.receipts, mine.chains) != (theirs.receipts, theirs.chains):
            found.append(fault(number, "hot", "receipt or chain of the hot database are others than the lake's"))
    for number in sorted(ours.keys() - hot.keys()):
        found.append(
            fault(number, "hot", "the lake has it, the hot database has not: was it restored from an older copy?")
        )
    return found


def tombstone_faults(number: int, lake: Sequence[Tombstone], hot: Sequence[Tombstone]) -> list[Fault]:
    """Where a batch's tombstones in the lake and in the hot database are not the same, by key."""
    found = []
    ours, theirs = ({t.row_key: t for t in side} for side in (lake, hot))
    if gone := sorted(theirs.keys() - ours.keys()):
        found.append(fault(number, "hot", "tombstones that the hot database has and the lake has not", gone))
    if more := sorted(ours.keys() - theirs.keys()):
        found.append(fault(number, "hot", "tombstones that the lake has and the hot database has not", more))
    altered: dict[str, list[str]] = {}
    for key in sorted(ours.keys() & theirs.keys()):
        if differs := _differs(ours[key], theirs[key]):
            altered.setdefault(differs, []).append(key)
    found += [
        fault(number, "hot", f"the lake's tombstones are others than the hot database's in {differs}", keys)
        for differs, keys in altered.items()
    ]
    return found


def lake_alone_fault(
    number: int, archived_at: datetime, *, cutoff: datetime, years: int, kept_from: int | None
) -> Fault | None:
    """Why the hot database must have tombstones of this batch, of which it has none; None where they were pruned.

    Pruning waits until the audit window is over (`cutoff`), and goes in the order of batches: none after the first
    batch that has tombstones (`kept_from`) was pruned.
    """
    alone = "the lake alone has its tombstones, they were removed from the hot database"
    if archived_at >= cutoff:
        return fault(number, "hot", f"{alone}: it is younger than the audit window of {years} years")
    if kept_from is not None and kept_from < number:
        return fault(
            number, "hot", f"{alone}: batch {kept_from} still has some there, and would have been pruned first"
        )
    return None


def batch_ranges(numbers: Iterable[int]) -> str:
    """Numbers as people write them: 3-5, 9."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def _numbers(first: int, last: int) -> str:
    return f"batch {first} is" if first == last else f"batches {first} to {last} are"


def _differs(one: Tombstone, other: Tombstone) -> str:
    if one == other:
        return ""
    return ", ".join(f.name for f in fields(Tombstone) if getattr(one, f.name) != getattr(other, f.name))
