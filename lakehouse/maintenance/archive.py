"""What the archive's records want from time to time, for all organizations: see each part for what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakehouse.archive.holds import mirror_holds
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App


def keep_archive(app: App) -> tuple[dict[str, int], list[LakehouseError]]:
    """Bring the lake after the archive's records. Returns what was done, by name, and what could not be done.

    Idempotent, can be killed anywhere, and costs nothing where the archive was never set up.

    Raises:
        SourceError: the hot database does not answer.
    """
    mirrored, errors = mirror_holds(app)
    return {"holds_mirrored": mirrored}, errors
