"""An installation with one destination of the kind under test, and what every case does with it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from federation.config import parse_config
from federation.kinds import DeliveryStatus, DestinationKind
from federation.protocol import Delivery, Owner
from federation.registry import open_adapter
from lakehouse import destinations
from lakehouse.deliver.parity import Parity, parity
from lakehouse.deliver.run import deliver_now
from lakehouse.deliver.targets import adapter_of, way_to
from lakehouse.destinations import Destination
from schemas.contract import BUILT_IN
from schemas.errors import LakehouseError
from tests.conformance.places import Files, Place, Replica, add_there
from tests.support import Lakehouse


@dataclass
class Stage:
    """A lake with events of one organization, and a destination of the kind under test."""

    house: Lakehouse
    place: Place
    destination: Destination
    folder: Path

    def deliver(self) -> list[LakehouseError]:
        """Bring it up to date; the errors that were met."""
        results = deliver_now(self.house.app, [self.destination], ["events"])
        errors = [r.error for r in results if r.error is not None]
        assert not [e for e in errors for secret in self.place.credentials.values() if secret in str(e)]
        return errors

    def delivered(self) -> None:
        assert self.deliver() == []

    def parity(self) -> Parity:
        (found,) = parity(self.house.app, [self.destination], ["events"])
        return found

    def equal(self) -> None:
        found = self.parity()
        assert found.equal and found.lag == 0, (found, str(found.error))

    def adapter(self, credentials: dict[str, str] | None = None) -> Any:
        keys = self.place.credentials if credentials is None else credentials
        whose = self.destination.id
        return adapter_of(self.house.app, "org-a", self.place.kind, self.place.config, keys, destination=whose)

    def adapter_of(self, owner: Owner) -> Any:
        """As whoever else comes to the same place."""
        place, app = self.place, self.house.app
        way = way_to(app, owner.organization, parse_config(place.kind, place.config), place.credentials)
        return open_adapter(place.kind, place.config, place.credentials, owner, way)

    @property
    def every_version(self) -> bool:
        return bool(self.place.config.get("history"))

    def versions(self) -> int:
        """How many are there, as a stranger would count them."""
        place = self.place
        if isinstance(place, Files):
            return len(place.rows("events"))
        assert isinstance(place, Replica)
        with psycopg.connect(place.admin, autocommit=True) as connection:
            name = sql.Identifier(place.schema, "events_history")
            ((count,),) = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchall()
            return int(count)

    def ranges(self) -> list[tuple[int, int]]:
        """What was delivered, by the outbox."""
        rows = destinations.deliveries(self.house.app, destination=str(self.destination.id), all_of_them=True)
        assert {r["status"] for r in rows} <= {DeliveryStatus.DELIVERED.value}
        return sorted((r["sequence_after"], r["sequence_upto"]) for r in rows)

    def pieces(self, *bounds: int) -> list[Delivery]:
        contract = self.house.app.contract("events")
        pairs = itertools.pairwise(bounds)
        return [Delivery(f"d{a}", contract, a, b, 1) for a, b in pairs]


def alter(stage: Stage) -> None:
    """Change one value of one row there, as somebody with the right tools would."""
    place = stage.place
    if isinstance(place, Replica):
        with psycopg.connect(place.admin, autocommit=True) as connection:
            name = sql.Identifier(place.schema, "_events")
            connection.execute(sql.SQL("UPDATE {} SET severity = 'CRITICAL' WHERE id = 'org-a-e3'").format(name))
        return
    assert isinstance(place, Files)
    import gzip

    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for file in place.manifest("events")["files"]:
        key = file["path"].removeprefix(f"s3://{place.bucket}/")
        body = place.stored()[key]
        if place.kind is DestinationKind.JSONL_S3:
            lines = gzip.decompress(body).decode().splitlines()
            changed = [
                line.replace('"severity":"INFO"', '"severity":"CRITICAL"') if '"org-a-e3"' in line else line
                for line in lines
            ]
            if changed != lines:
                place.put(key, gzip.compress(("\n".join(changed) + "\n").encode()))
        else:
            table = pq.read_table(pa.BufferReader(body))
            mine = pc.equal(table["id"], "org-a-e3")
            sink = pa.BufferOutputStream()
            index = table.column_names.index("severity")
            values = pc.if_else(mine, "CRITICAL", table["severity"])
            pq.write_table(table.set_column(index, table.schema.field(index), values), sink)
            place.put(key, sink.getvalue().to_pybytes())


def add_another(stage: Stage, **changes: Any) -> Destination:
    """A second destination, in a schema of its own beside the stage's replica."""
    kind = DestinationKind(changes.pop("kind", "POSTGRES_REPLICA"))
    config = changes.pop("config", {"schema": "another"})
    credentials = changes.pop("credentials", stage.place.credentials)
    return add_there(stage.house, kind, config, credentials, **({"name": "another", "tables": []} | changes))


def more_columns(folder: Path) -> Path:
    """A folder with the next version of the contract of events: one more column."""
    contract = json.loads((BUILT_IN / "events" / "v1.json").read_text())
    contract["version"] = "1.1"
    number = max(c.get(k, 0) for c in contract["columns"] for k in ("id", "element_id")) + 1
    column = {"id": number, "name": "region", "source": "region", "type": "string", "source_type": "text"}
    contract["columns"].append(
        column | {"nullable": True, "description": "New.", "sensitivity": "internal", "since": "1.1"}
    )
    (folder / "events").mkdir()
    (folder / "events" / "v1.json").write_text(json.dumps(contract))
    return folder


def connections() -> int:
    """Connections that this process has open, of which it is the one that connected or that was connected to."""
    import psutil

    return sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process().net_connections("tcp"))
