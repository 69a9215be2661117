"""Named places where a test can make this process die, fail or wait.

`LAKEHOUSE_FAILPOINTS="landing.after_commit=kill;backfill.range_done=kill@3"` arms them; without the variable
a failpoint is two dictionary look-ups. An action may carry `@n`: it then acts on the n-th pass only.

Actions: `kill` (SIGKILL to this process, nothing is cleaned up), `error` (raises FailpointError),
`touch:PATH` (creates PATH, so that a test can wait for the moment), `hold:PATH` (creates PATH and waits until
somebody removes it).

`LAKEHOUSE_FAILPOINT_LOG=PATH` counts: each pass appends a line "name passed", and one more "name <action>" where it
acts, from whichever process. The crash suite adds them up.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import LakehouseError

NAMES: dict[str, str] = {
    "work.claimed": "a table's task is claimed, nothing is read",
    "capture.before_read": "a window's snapshot is taken, nothing is read",
    "capture.chunk_staged": "one chunk of a window lies in the lake's folder, nothing refers to it",
    "capture.file_begun": "the first rows of a data file are on their way, the file has no end yet",
    "landing.recorded": "all files of a window are staged and recorded, no table was touched",
    "landing.before_commit": "one organization's share is about to be committed",
    "landing.after_commit": "one organization's share is committed, nothing is acknowledged",
    "landing.after_part": "one part of a landing in several parts is committed",
    "landing.acknowledged": "one organization's share is acknowledged",
    "prepare.statement": "one statement of `source prepare` was run; its transaction may be open",
    "backfill.range_read": "a range's files are written, the range is not recorded as done",
    "backfill.range_done": "a range is recorded as done",
    "backfill.before_commit": "all ranges are done, the table is not committed",
    "backfill.after_commit": "the table is committed, the cursor is not written",
    "maintain.noted": "files that expiry will free are noted, no snapshot is expired",
    "maintain.expired": "snapshots are expired, no file is removed",
    "maintain.removed": "some files are removed, their notes are not",
    "maintain.merged": "a merged file is written, nothing refers to it",
    "maintain.before_commit": "merged files are written and compared, nothing is committed",
    "maintain.after_commit": "merged files are committed, nothing is measured",
    "delivery.claimed": "a delivery is claimed, its destination was not asked",
    "delivery.taken": "the destination holds the range, nothing was compared",
    "delivery.delivered": "the destination holds the range and was compared, nothing is acknowledged",
    "fill.taken": "a filling has taken a chunk, which nobody sees yet",
    "fill.before_exchange": "a filling has taken all, and the destination shows what was there before",
    "archive.hold_placed": "a hold is in force in the hot database, the lake does not know it",
    "archive.candidates_read": "candidates of the archive are read, the lake was not asked",
    "archive.proven": "the lake holds the candidates, nothing is locked",
    "archive.locked": "a batch's rows are locked, they were not looked at again",
    "archive.tombstones_written": "a batch's tombstones and receipt are written, its rows are not deleted",
    "archive.before_commit": "a batch's rows are deleted, nothing is committed",
    "archive.after_commit": "a batch is committed, nobody was told",
    "archive.exported": "tombstones are committed to the lake's `_archive`, the hot database does not know it",
    "retention.recorded": "what is about to end is written into the lake's record, nothing has left",
    "retention.committed": "days have left a lake table, the audit does not say so",
    "recall.table_filled": "recalled rows are in their table, nothing is proven or committed",
    "recall.recorded": "a recall to a file is on record with its rows, the file has no name yet",
    "keys.row_rotated": "one stored credential is written under the new key, others are not",
}
"""Every failpoint and what holds when it is passed. A name that is not here cannot be armed or passed."""


class FailpointError(LakehouseError):
    """A test asked for this failure."""


@dataclass
class _Armed:
    action: str
    on_pass: int | None
    passes: itertools.count[int] = field(default_factory=lambda: itertools.count(1))


@functools.cache
def _armed() -> dict[str, _Armed]:
    armed: dict[str, _Armed] = {}
    for item in filter(None, os.environ.get("LAKEHOUSE_FAILPOINTS", "").split(";")):
        name, _, action = item.partition("=")
        if name not in NAMES:
            raise LakehouseError(
                f"LAKEHOUSE_FAILPOINTS: no failpoint is named {name!r}", f"There are: {', '.join(NAMES)}"
            )
        action, _, number = action.partition("@")
        armed[name] = _Armed(action, int(number) if number else None)
    return armed


def failpoint(name: str) -> None:
    """Pass the failpoint `name`; does nothing unless it is armed."""
    if name not in NAMES:
        raise ValueError(f"unknown failpoint {name}")
    _note(name, "passed")
    if (armed := _armed().get(name)) is None:
        return
    if armed.on_pass is not None and next(armed.passes) != armed.on_pass:
        return
    kind, _, argument = armed.action.partition(":")
    _note(name, kind)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "error":
        raise FailpointError(f"failpoint {name}")
    elif kind in ("touch", "hold"):
        marker = Path(argument)
        marker.touch()
        while kind == "hold" and marker.exists():
            threading.Event().wait(0.02)
    else:
        raise LakehouseError(f"LAKEHOUSE_FAILPOINTS: {name}: no action is named {armed.action!r}")


def _note(name: str, what: str) -> None:
    if path := os.environ.get("LAKEHOUSE_FAILPOINT_LOG"):
        # One short write to a file opened for appending: lines of several processes do not mix.
        with Path(path).open("a") as log:
            log.write(f"{name} {what}\n")
