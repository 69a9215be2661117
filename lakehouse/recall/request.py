"""What was asked for: whose rows, which of them, as of when, and where they are to go. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from schemas.contract import Contract
from schemas.errors import LakehouseError

Target = Literal["table", "parquet", "csv", "jsonl"]
TARGETS: tuple[Target, ...] = ("table", "parquet", "csv", "jsonl")


class RecallError(LakehouseError):
    """Rows cannot be recalled as was asked; nothing was written."""


@dataclass(frozen=True)
class Request:
    """Which rows of one table of one organization. Either `ids`, or a condition and/or a range of the event time.

    `ids` are key texts (`schemas.keys`). `event_from` is inclusive, `event_upto` exclusive. `as_of`: the state that the
    lake had captured by then; None is the newest.
    """

    organization: str
    contract: Contract
    ids: tuple[str, ...] = ()
    where: str | None = None
    event_from: datetime | None = None
    event_upto: datetime | None = None
    as_of: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is kept: what was asked for, without what was not."""
        asked = {
            "ids": list(self.ids) or None,
            "where": self.where,
            "from": _text(self.event_from),
            "upto": _text(self.event_upto),
            "as_of": _text(self.as_of),
        }
        return {k: v for k, v in asked.items() if v is not None}


def make_request(
    organization: str,
    contract: Contract,
    *,
    ids: Sequence[str] = (),
    where: str | None = None,
    event_from: datetime | None = None,
    event_upto: datetime | None = None,
    as_of: datetime | None = None,
) -> Request:
    """A request that says plainly which rows it means.

    Raises:
        RecallError: it names no rows, names them in two ways, or asks for times of a table that has none.
    """
    ranged = event_from is not None or event_upto is not None
    if ids and (where is not None or ranged):
        raise RecallError("ids were given together with a condition or a time", "Recall the ids alone, or leave them.")
    if not ids and where is None and not ranged:
        raise RecallError(
            "which rows are to be recalled was not said",
            "Name them by --id (repeat it), --where or --from/--to; `--where true` is the whole table.",
        )
    if any(not key for key in ids):
        raise RecallError("an empty id was given")
    if where is not None and not where.strip():
        raise RecallError("--where is empty", "`--where true` is the whole table.")
    if ranged and contract.event_time is None:
        raise RecallError(f"{contract.table} has no event time", "Write a condition instead: --where.")
    if event_from is not None and event_upto is not None and event_from >= event_upto:
        raise RecallError(f"--from {_text(event_from)} is not before --to {_text(event_upto)}")
    return Request(organization, contract, tuple(dict.fromkeys(ids)), where, event_from, event_upto, as_of)


def _text(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment is not None else None
