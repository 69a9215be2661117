"""Where each kind delivers to in tests: real servers, and what only that kind knows (tampering, others' marks)."""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import boto3
import psycopg
from psycopg import sql

from federation.kinds import DestinationKind
from lakehouse import destinations
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from tests.faults.proxy import Fault, HttpProxy
from tests.support import Lakehouse

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Target:
    """What a destination is given: its config, and credentials that may do everything there."""

    config: dict[str, Any]
    credentials: dict[str, str]

    def within(self, organization: str, **more: Any) -> Target:
        """A place of this organization's own beside others', in the same database or bucket."""
        key = "schema" if "schema" in self.config else "location"
        separator = "_" if key == "schema" else "/"
        return replace(self, config=self.config | {key: f"{self.config[key]}{separator}{organization}"} | more)


def new_target(kind: DestinationKind, postgres: EmbeddedPostgres, s3: EmbeddedS3) -> Target:
    """A fresh database or bucket on the session's servers, which go with them."""
    tag = secrets.token_hex(4)
    if kind is DestinationKind.POSTGRES_REPLICA:
        return Target({"schema": "copy", "history": True}, {"url": postgres.create_database(f"copy_{tag}")})
    keys = {"access_key_id": s3.access_key, "secret_access_key": s3.secret_key}
    return Target({"location": f"s3://{s3.create_bucket(f'copy-{tag}')}/files", "endpoint": s3.endpoint}, keys)


def add_there(
    house: Lakehouse,
    kind: DestinationKind,
    config: Mapping[str, Any],
    credentials: Mapping[str, str],
    **changes: Any,
) -> destinations.Destination:
    """The destination `there` of one organization, which has the events."""
    given: dict[str, Any] = {
        "organization": "org-a",
        "name": "there",
        "tables": ["events"],
        "cadence_seconds": 900,
        "table_cadences": {},
    }
    return destinations.add(house.app, kind=kind.value, config=config, credentials=credentials, **(given | changes))


class Place(Protocol):
    """A target of one kind. `real`: nothing of it is a stand-in."""

    kind: DestinationKind
    real: bool
    config: dict[str, Any]
    credentials: dict[str, str]
    wrong: dict[str, str]
    """Credentials that the target refuses."""

    def ids(self, table: str) -> set[str]:
        """Ids of the latest state, as a stranger would read it."""
        ...

    def stored(self) -> dict[str, Any]:
        """Everything that is there, to see that nothing changed."""
        ...

    def take_mark(self, table: str) -> None:
        """Give the table another owner's mark."""
        ...

    def vanish(self, table: str) -> None:
        """Remove what holds the table's rows, not the mark."""
        ...

    def clear(self) -> None:
        """Remove everything."""
        ...

    def deny(self) -> Callable[[], None]:
        """Refuse every write; returns what ends that."""
        ...

    def throttle(self) -> Callable[[], None]:
        """Answer that it is too busy, to whoever connects from now on; returns what ends that."""
        ...


@dataclass
class Replica:
    """A database beside the hot one, with a user that may make a schema there and nothing else."""

    url: str
    admin: str
    kind = DestinationKind.POSTGRES_REPLICA
    real = True

    def __post_init__(self) -> None:
        # A schema's name that needs quoting in every statement.
        self.schema = 'Order "of"; Ünïcode'
        self.config: dict[str, Any] = {"schema": self.schema, "history": True}
        self.credentials = {"url": self.url}
        parts = urlsplit(self.url)
        self.wrong = {
            "url": urlunsplit(
                parts._replace(netloc=f"{parts.username}:Canary-wrong-password@{parts.hostname}:{parts.port}")
            )
        }

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.admin, autocommit=True)

    def ids(self, table: str) -> set[str]:
        with self._connect() as connection:
            rows = connection.execute(sql.SQL("SELECT id FROM {}").format(sql.Identifier(self.schema, table)))
            return {row[0] for row in rows}

    def stored(self) -> dict[str, Any]:
        with self._connect() as connection:
            names = connection.execute(
                "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = %s AND c.relkind = 'r' ORDER BY 1",
                [self.schema],
            ).fetchall()
            return {
                name: connection.execute(
                    sql.SQL("SELECT t::text, t.xmin::text FROM {} t ORDER BY 1").format(
                        sql.Identifier(self.schema, name)
                    )
                ).fetchall()
                for (name,) in names
            }

    def take_mark(self, table: str) -> None:
        del table
        with self._connect() as connection:
            marks = sql.Identifier(self.schema, "_lakehouse")
            connection.execute(sql.SQL("UPDATE {} SET organization = 'org-z'").format(marks))

    def vanish(self, table: str) -> None:
        with self._connect() as connection:
            name = sql.Identifier(self.schema, f"_{table}")
            connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(name))

    def clear(self) -> None:
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.schema)))

    def deny(self) -> Callable[[], None]:
        user = sql.Identifier(urlsplit(self.url).username or "")
        schema = sql.Identifier(self.schema)
        tables = sql.SQL("{} INSERT, UPDATE ON ALL TABLES IN SCHEMA {} {} {}")
        # An owner's own rights are taken as a stranger's are.
        with self._connect() as connection:
            connection.execute(tables.format(sql.SQL("REVOKE"), schema, sql.SQL("FROM"), user))

        def allow() -> None:
            with self._connect() as connection:
                connection.execute(tables.format(sql.SQL("GRANT"), schema, sql.SQL("TO"), user))

        return allow

    def throttle(self) -> Callable[[], None]:
        user = sql.Identifier(urlsplit(self.url).username or "")

        def limit(number: int) -> None:
            with self._connect() as connection:
                connection.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(user, sql.Literal(number)))

        limit(0)
        return lambda: limit(-1)


@dataclass
class Files:
    """A prefix of a bucket that holds other things too."""

    s3: EmbeddedS3
    bucket: str
    kind: DestinationKind
    real = True

    def __post_init__(self) -> None:
        self.config: dict[str, Any] = {
            "location": f"s3://{self.bucket}/exports/org-a",
            "endpoint": self.s3.endpoint,
            "max_dates": 2,
        }
        self.credentials = {"access_key_id": self.s3.access_key, "secret_access_key": self.s3.secret_key}
        self.wrong = self.credentials | {"secret_access_key": "Canary-wrong-secret-key"}
        self.client = boto3.client(
            "s3",
            endpoint_url=self.s3.endpoint,
            aws_access_key_id=self.s3.access_key,
            aws_secret_access_key=self.s3.secret_key,
            region_name="us-east-1",
        )

    def _objects(self) -> dict[str, bytes]:
        listed = self.client.list_objects_v2(Bucket=self.bucket, Prefix="exports/").get("Contents", [])
        keys = sorted(item["Key"] for item in listed if not item["Key"].endswith("/"))
        return {key: self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def manifest_key(self, table: str) -> str:
        return f"exports/org-a/{table}/organization_id=org-a/_manifest.json"

    def manifest(self, table: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._objects()[self.manifest_key(table)])
        return found

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Every version, by what a stranger has: the manifest, and a reader of the format."""
        objects = self._objects()
        found: list[dict[str, Any]] = []
        for file in self.manifest(table)["files"]:
            body = objects[file["path"].removeprefix(f"s3://{self.bucket}/")]
            if self.kind is DestinationKind.PARQUET_S3:
                import pyarrow as pa
                import pyarrow.parquet as pq

                found += pq.read_table(pa.BufferReader(body)).to_pylist()
            else:
                found += [json.loads(line) for line in gzip.decompress(body).decode().splitlines()]
        return found

    def ids(self, table: str) -> set[str]:
        latest: dict[tuple[Any, str], dict[str, Any]] = {}
        for row in sorted(self.rows(table), key=lambda r: r["_sequence"]):
            latest[row["occurred_at"], row["id"]] = row
        return {row["id"] for row in latest.values() if row["_op"] != "delete"}

    def stored(self) -> dict[str, Any]:
        return dict(self._objects())

    def take_mark(self, table: str) -> None:
        self.put(self.manifest_key(table), json.dumps(self.manifest(table) | {"organization_id": "org-z"}).encode())

    def vanish(self, table: str) -> None:
        for file in self.manifest(table)["files"]:
            self.client.delete_object(Bucket=self.bucket, Key=file["path"].removeprefix(f"s3://{self.bucket}/"))

    def clear(self) -> None:
        for key in self._objects():
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def deny(self) -> Callable[[], None]:
        return refuse_writes(self.client, self.bucket, "exports")

    def throttle(self) -> Callable[[], None]:
        before = self.config
        proxy = HttpProxy(self.s3.endpoint)
        # Whoever writes, and whoever reads a file; the manifest can be read.
        busy = lambda request: request.text.startswith("PUT") or is_data(request.text)  # noqa: E731
        proxy.arm(Fault("answer", busy, times=None, answer=(503, "SlowDown")))
        self.config = before | {"endpoint": proxy.endpoint}

        def end() -> None:
            self.config = before
            proxy.__exit__(None, None, None)

        return end


def is_data(request: str) -> bool:
    """It is about a file with rows."""
    return "/date=" in unquote(request)


def refuse_writes(client: S3Client, bucket: str, prefix: str) -> Callable[[], None]:
    """Nothing can be written below this prefix any more; returns what ends that."""
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket}/{prefix}/*",
    }
    policy = {"Version": "2012-10-17", "Statement": [denied]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    return lambda: client.delete_bucket_policy(Bucket=bucket)
