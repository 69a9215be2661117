"""An organization's lake as a place that can be read, taken, broken and refused; and its part of the outbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from catalog.lake import ORGANIZATION_PROPERTY, encode_organization
from federation.kinds import DestinationKind
from lakehouse import sync
from lakehouse.duck import connect, lake_relation
from lakehouse.landing.commit import Landed
from schemas.errors import LakehouseError
from schemas.views import latest_view_sql
from tests.conformance.places import refuse_writes
from tests.conformance.stage import Stage
from tests.faults.proxy import Fault, HttpProxy
from tests.support import Lakehouse, insert_events


@dataclass
class OwnLake:
    """The lake of org-a: a real bucket, and a catalog in a real PostgreSQL."""

    house: Lakehouse
    kind = DestinationKind.ICEBERG_S3
    real = True
    config: dict[str, Any] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)
    """It has none of its own: the keys are in the settings."""

    def __post_init__(self) -> None:
        self.wrong = {"LAKE__S3__SECRET_ACCESS_KEY": "Canary-wrong-secret-key"}
        storage = self.house.app.address.storage
        self.namespace = encode_organization("org-a")
        self.bucket = urlsplit(self.house.app.address.warehouse).netloc
        self.endpoint = storage["s3.endpoint"]
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=storage["s3.access-key-id"],
            aws_secret_access_key=storage["s3.secret-access-key"],
            region_name="us-east-1",
        )

    def ids(self, table: str) -> set[str]:
        location = self.house.lake_table(table, "org-a").metadata_location
        latest = latest_view_sql(self.house.app.contract(table), relation=lake_relation(location))
        with connect([self.house.app.address_of("org-a")]) as duck:
            return {row[0] for row in duck.execute(f"SELECT id FROM ({latest})").fetchall()}

    def stored(self) -> dict[str, Any]:
        """What the catalog points at: a commit, and nothing else, changes it."""
        catalog = self.house.app.lake("org-a").catalog
        return {".".join(t): catalog.load_table(t).metadata_location for t in catalog.list_tables(self.namespace)}

    def take_mark(self, table: str) -> None:
        del table
        self._mark("org-z")

    def give_back(self) -> None:
        self._mark("org-a")

    def _mark(self, organization: str) -> None:
        catalog = self.house.app.lake("org-a").catalog
        catalog.update_namespace_properties(self.namespace, updates={ORGANIZATION_PROPERTY: organization})

    def files(self, table: str) -> list[str]:
        """Keys of the data files that the table refers to."""
        entries = self.house.lake_table(table, "org-a").inspect.files().to_pylist()
        return sorted(str(e["file_path"]).removeprefix(f"s3://{self.bucket}/") for e in entries)

    def staged(self, table: str) -> list[str]:
        """Keys of data files that lie in the table's folder and that nothing refers to yet."""
        prefix = f"warehouse/{self.namespace}/{table}/data/"
        listed = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return sorted({i["Key"] for i in listed if i["Key"].endswith(".parquet")} - set(self.files(table)))

    def vanish(self, table: str) -> Callable[[], None]:
        """Remove the data files; returns what brings them back, as the versions of a bucket do."""
        keys = self.files(table)
        bodies = {k: self.client.get_object(Bucket=self.bucket, Key=k)["Body"].read() for k in keys}
        for key in keys:
            self.client.delete_object(Bucket=self.bucket, Key=key)

        def bring_back() -> None:
            for key, body in bodies.items():
                self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

        return bring_back

    def clear(self) -> None:
        catalog = self.house.app.lake("org-a").catalog
        for table in catalog.list_tables(self.namespace):
            catalog.drop_table(table)
        prefix = f"warehouse/{self.namespace}/"
        for item in self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", []):
            self.client.delete_object(Bucket=self.bucket, Key=item["Key"])

    def deny(self) -> Callable[[], None]:
        return refuse_writes(self.client, self.bucket, "warehouse")

    def throttle(self) -> Callable[[], None]:
        proxy = HttpProxy(self.endpoint)
        proxy.arm(Fault("answer", lambda r: r.text.startswith(("PUT", "POST")), times=None, answer=(503, "SlowDown")))
        self.house.reopen(LAKE__S3__ENDPOINT=proxy.endpoint)

        def end() -> None:
            self.house.reopen(LAKE__S3__ENDPOINT=self.endpoint)
            proxy.__exit__(None, None, None)

        return end

    def alter(self, key: str) -> None:
        """Change one value of org-a-e3 in a data file, as somebody with the right tools would: its length stays."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        body = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        table = pq.read_table(pa.BufferReader(body))
        index = table.column_names.index("severity")
        values = pc.if_else(pc.equal(table["id"], "org-a-e3"), "CRITICAL", table["severity"])
        table = table.set_column(index, table.schema.field(index), values)

        def written(padding: int) -> bytes:
            sink = pa.BufferOutputStream()
            with pq.ParquetWriter(
                sink, table.schema, compression="zstd", write_statistics=False, store_schema=False
            ) as writer:
                writer.write_table(table)
                writer.add_key_value_metadata({"padding": "x" * padding})
            return bytes(sink.getvalue().to_pybytes())

        missing = len(body) - len(written(0))
        altered = next(b for b in (written(n) for n in range(missing, missing - 9, -1)) if len(b) == len(body))
        self.client.put_object(Bucket=self.bucket, Key=key, Body=altered)


class LakeStage(Stage):
    """Landing is the delivery: whoever lands brings it up to date."""

    place: OwnLake

    def deliver(self) -> list[LakehouseError]:
        errors = list(self.house.sync("events").errors.values())
        assert not [e for e in errors for secret in self.place.wrong.values() if secret in f"{e} {e.detail} {e.hint}"]
        return errors

    def equal(self) -> None:
        """With the hot table, which the lake is compared with; and its deliveries lead to where it stands."""
        self.house.assert_equal("events", "org-a")
        ranges = self.ranges()
        assert [after for after, _ in ranges] == [0, *[upto for _, upto in ranges[:-1]]], "without a hole"
        assert ranges[-1][1] == max(v["_sequence"] for v in self.house.versions("events", "org-a"))

    def new_row(self, number: int = 70) -> None:
        with self.house.hot() as hot:
            insert_events(hot, "org-a", number, 1)

    def second_organization(self) -> None:
        """org-b, with a lake of its own beside org-a's and three rows in it."""
        with self.house.hot() as hot:
            hot.execute("INSERT INTO organizations (id, name, slug, updated_at) VALUES ('org-b', 'B', 'b', now())")
            hot.execute(
                "INSERT INTO integration_connections (id, organization_id, provider, display_name, "
                "external_account_id, encrypted_access_token, updated_at) "
                "VALUES ('int-org-b', 'org-b', 'GITHUB', 'x', 'x', 'secret', now())"
            )
            insert_events(hot, "org-b", 1, 3)
        self.house.app.enrol("org-b")
        self.house.backfill("events", organizations=("org-b",))

    def snapshots(self) -> int:
        return len(self.house.lake_table("events", "org-a").snapshots())

    def lease_runs_out(self) -> None:
        """That of whoever died with a share."""
        with self.house.app.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE warehouse_deliveries SET lease_expires_at = now() - interval '1 s'")


@contextmanager
def landings() -> Iterator[list[Callable[[], Landed]]]:
    """What landings are called with from now on, to be done once more; the table is opened anew by who asks for it."""
    done: list[Callable[[], Landed]] = []
    land = sync.land

    def noted(table: Any, window: str, files: Any, before: Any, after: Any, **options: Any) -> Landed:
        def again() -> Landed:
            fresh = table.catalog.load_table(table.name())
            return land(fresh, window, files, before, after, most_partitions=options["most_partitions"])

        done.append(again)
        return land(table, window, files, before, after, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync, "land", noted)
        yield done
