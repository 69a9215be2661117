"""The one root of every error that this product raises on purpose.

An error says what happened (`detail`), what to do about it (`hint`) and whether trying again can help
(`retry`). Vendors' errors are translated at the edge where they arise, with ``raise ... from``.
"""

from __future__ import annotations

from enum import StrEnum


class Retry(StrEnum):
    """Whether the same call may succeed later without a person doing something."""

    TIMED = "timed"
    MANUAL = "manual"
    NEVER = "never"


class LakehouseError(Exception):
    """Something that the product understands went wrong.

    `detail` names the place and the fault; `hint` names the remedy.
    """

    retry: Retry = Retry.MANUAL

    def __init__(self, detail: str, hint: str = "", *, retry: Retry | None = None) -> None:
        super().__init__(detail if not hint else f"{detail}\n  {hint}")
        self.detail = detail
        self.hint = hint
        if retry is not None:
            self.retry = retry


class ContractError(LakehouseError):
    """A contract file is not valid; file and field are named."""

    retry = Retry.NEVER


class ContractViolation(LakehouseError):
    """The source does not keep its contract: a column is missing or changed, or a value is forbidden."""
