"""Which destinations durably hold an organization's table, and up to which `_sequence`.

The outbox knows: a delivery is DELIVERED once its destination has said that it is durable, for ICEBERG_S3 the landing
itself. A destination is complete up to where its first unfinished delivery begins. What became of it since, a
comparison tells: a table that was found to differ from the lake, and one that is being filled anew, counts for nothing
until that is over. A row may go only if one of the kinds in `archive.receipt_kinds` holds it, or a person waived that
for a reason; the lake's own proof is never waived.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from federation.kinds import DestinationKind

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass(frozen=True)
class Durable:
    """A destination that holds every version up to `sequence`."""

    name: str
    kind: str
    sequence: int

    @property
    def label(self) -> str:
        """How tombstones name it."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Waiver:
    """A person's word that no destination's receipt is needed, and why."""

    by: str
    reason: str
    standing: bool = True
    """It stands in the organization's policy; otherwise it is for one run."""


@dataclass(frozen=True)
class Backing:
    """What stands behind one organization's table besides the lake's own proof."""

    destinations: tuple[Durable, ...]
    kinds: frozenset[str]
    waiver: Waiver | None = None

    @property
    def counting(self) -> tuple[Durable, ...]:
        """Destinations of the kinds that count."""
        return tuple(d for d in self.destinations if d.kind in self.kinds)

    @property
    def sequence(self) -> int | None:
        """Versions above it have no receipt that counts; None: nobody asks for one."""
        if self.waiver is not None:
            return None
        return max((d.sequence for d in self.counting), default=-1)

    def holding(self, sequence: int) -> tuple[str, ...]:
        """Every destination that holds this version, as tombstones name them."""
        return tuple(d.label for d in self.destinations if d.sequence >= sequence)

    def receipt(self) -> tuple[dict[str, Any], ...]:
        """What allowed it, as receipts say it."""
        if self.waiver is not None:
            return ({"waived_by": self.waiver.by, "reason": self.waiver.reason},)
        return tuple({"name": d.name, "kind": d.kind, "sequence": d.sequence} for d in self.counting)


def read_backing(
    engine: Engine, organization: str, table: str, kinds: Collection[DestinationKind], waiver: Waiver | None
) -> Backing:
    """Ask the outbox, and what comparisons have found since."""
    with engine.connect() as connection:
        rows = connection.execute(_COMPLETE, {"organization": organization, "table": table}).all()
    found = tuple(Durable(r.name, r.kind, r.upto) for r in rows if r.upto is not None)
    return Backing(found, frozenset(k.value for k in kinds), waiver)


_COMPLETE = text(
    """
    SELECT d.name, d.kind, coalesce(min(w.sequence_after) FILTER (WHERE w.status <> 'DELIVERED'),
                                    max(w.sequence_upto) FILTER (WHERE w.status = 'DELIVERED')) AS upto
    FROM warehouse_destinations d
    JOIN warehouse_deliveries w ON w.destination_id = d.id
    -- A destination without an organization has every organization's rows; its deliveries are one organization's each.
    WHERE w.organization_id = :organization AND w.table_name = :table
      AND (d.organization_id = :organization OR d.organization_id IS NULL)
      AND NOT EXISTS (SELECT FROM destination_differences x WHERE x.destination_id = d.id
                      AND x.organization_id = :organization AND x.table_name = :table)
      AND NOT EXISTS (SELECT FROM destination_fillings f WHERE f.destination_id = d.id
                      AND f.organization_id = :organization AND f.table_name = :table)
    GROUP BY d.id, d.name, d.kind ORDER BY d.kind, d.name
    """
)
