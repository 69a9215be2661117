"""Remembers which tables of a destination were found to hold something else than the lake, until that is mended.

Whoever rests on a destination as a copy (`lakehouse.archive.durable`) asks here: the outbox knows what was delivered,
and not what became of it since. A table that could not be compared stays as it was last found.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert

from lakehouse.control.models import ERROR_LENGTH, DestinationDifference

if TYPE_CHECKING:
    from sqlalchemy import Engine


def remember(engine: Engine, destination: uuid.UUID, organization: str, table: str, detail: str) -> None:
    """It differs from the lake, or nobody can say that it does not; an empty `detail`: it is equal."""
    row = DestinationDifference
    with engine.begin() as connection:
        if not detail:
            connection.execute(
                delete(row).where(
                    row.destination_id == destination, row.organization_id == organization, row.table_name == table
                )
            )
            return
        text = detail[:ERROR_LENGTH]
        new = insert(row).values(
            destination_id=destination, organization_id=organization, table_name=table, detail=text
        )
        keys = ["destination_id", "organization_id", "table_name"]
        changed = {"detail": text, "found_at": func.clock_timestamp()}
        connection.execute(new.on_conflict_do_update(index_elements=keys, set_=changed))
